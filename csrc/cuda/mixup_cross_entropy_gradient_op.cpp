#include "cuda/op.h"

#include "cuda/targets.h"
#include "mixup_cross_entropy_gradient.h"

namespace fastcifar::cuda {
namespace {

Tensor mixup_cross_entropy_gradient_cuda(const Tensor& logits, const Tensor& labels,
                                         const std::optional<Tensor>& partner_labels, const std::optional<Tensor>& lam,
                                         double label_smoothing, const Tensor& grad_loss, const Tensor& totals) {
  const char* op = "mixup_cross_entropy_gradient";
  const DeviceStream stream(logits);
  const auto a = prepare_mixup_cross_entropy_gradient(Backend::cuda, op, logits, labels, partner_labels, lam,
                                                      label_smoothing, grad_loss, totals);
  const Tensor workspace = empty({mixup_cross_entropy_workspace(a.rows)}, ScalarType::Double, logits);
  check_launch(
      op, mixup_cross_entropy_gradient(dtype_of(logits), a.logits.const_data_ptr(), targets_of(op, a, label_smoothing),
                                       floats(a.grad_loss), a.grad_logits.mutable_data_ptr(), mutable_doubles(a.totals),
                                       mutable_doubles(workspace), stream));
  return a.grad_logits;
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kMixupCrossEntropyGradientSchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) {
  m.impl("mixup_cross_entropy_gradient", TORCH_BOX(&fastcifar::cuda::mixup_cross_entropy_gradient_cuda));
}

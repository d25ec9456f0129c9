#include "cuda/op.h"

#include "cuda/targets.h"
#include "mixup_cross_entropy.h"

namespace fastcifar::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> mixup_cross_entropy_cuda(const Tensor& logits, const Tensor& labels,
                                                                    const std::optional<Tensor>& partner_labels,
                                                                    const std::optional<Tensor>& lam,
                                                                    double label_smoothing) {
  const char* op = "mixup_cross_entropy";
  const DeviceStream stream(logits);
  const auto a = prepare_mixup_cross_entropy(Backend::cuda, logits, labels, partner_labels, lam, label_smoothing);
  const Tensor workspace = empty({mixup_cross_entropy_workspace(a.rows)}, ScalarType::Double, logits);
  check_launch(op, mixup_cross_entropy(dtype_of(logits), a.logits.const_data_ptr(), targets_of(op, a, label_smoothing),
                                       mutable_floats(a.loss), mutable_floats(a.correct), mutable_doubles(a.sums),
                                       mutable_floats(a.normalizer), mutable_doubles(workspace), stream));
  return {a.loss, a.correct, a.sums, a.normalizer};
}

Tensor mixup_cross_entropy_backward_cuda(const Tensor& grad_loss, const Tensor& logits, const Tensor& normalizer,
                                         const Tensor& labels, const std::optional<Tensor>& partner_labels,
                                         const std::optional<Tensor>& lam, double label_smoothing) {
  const char* op = "_mixup_cross_entropy_backward";
  const DeviceStream stream(logits);
  const auto a = prepare_mixup_cross_entropy_backward(Backend::cuda, grad_loss, logits, normalizer, labels,
                                                      partner_labels, lam, label_smoothing);
  if (a.rows == 0) return a.grad_logits;
  check_launch(op, mixup_cross_entropy_backward(dtype_of(logits), floats(a.grad_loss), a.logits.const_data_ptr(),
                                                floats(a.normalizer), targets_of(op, a, label_smoothing),
                                                a.grad_logits.mutable_data_ptr(), stream));
  return a.grad_logits;
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kMixupCrossEntropySchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) {
  m.impl("mixup_cross_entropy", TORCH_BOX(&fastcifar::cuda::mixup_cross_entropy_cuda));
  m.impl("_mixup_cross_entropy_backward", TORCH_BOX(&fastcifar::cuda::mixup_cross_entropy_backward_cuda));
}

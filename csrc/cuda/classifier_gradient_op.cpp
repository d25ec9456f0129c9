#include "cuda/op.h"

#include "classifier_gradient.h"
#include "cuda/targets.h"

namespace fastcifar::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> classifier_gradient_cuda(const Tensor& pooled, const Tensor& weight,
                                                            const Tensor& bias, const Tensor& labels,
                                                            const std::optional<Tensor>& partner_labels,
                                                            const std::optional<Tensor>& lam, double label_smoothing,
                                                            const Tensor& grad_loss, const Tensor& totals) {
  const char* op = "classifier_gradient";
  const DeviceStream stream(pooled);
  const auto a = prepare_classifier_gradient(Backend::cuda, pooled, weight, bias, labels, partner_labels, lam,
                                             label_smoothing, grad_loss, totals);
  const Dtype dtype = dtype_of(pooled);
  STD_TORCH_CHECK(
      classifier_gradient_suits(dtype, a.channels, a.classes), op,
      ": on CUDA it takes bfloat16 and float16, from compute capability 9.0 on with 227 KB of shared memory "
      "a block, a multiple of 128 channels and up to 128 classes; got ",
      torch::headeronly::toString(pooled.scalar_type()), ", ", a.channels, " channels and ", a.classes, " classes");
  if (a.rows == 0) {
    zero(a.grad_weight);
    zero(a.grad_bias);
    return {a.grad_pooled, a.grad_weight, a.grad_bias};
  }
  const Tensor in = readable(op, a.pooled), matrix = readable(op, a.weight);
  const Tensor workspace =
      empty({classifier_gradient_workspace(a.rows, a.channels, a.classes)}, ScalarType::Double, pooled);
  const Classifier c{in.const_data_ptr(),
                     matrix.const_data_ptr(),
                     a.bias.const_data_ptr(),
                     static_cast<int>(a.channels),
                     floats(a.grad_loss),
                     a.grad_pooled.mutable_data_ptr(),
                     a.grad_weight.mutable_data_ptr(),
                     a.grad_bias.mutable_data_ptr(),
                     mutable_doubles(a.totals),
                     mutable_doubles(workspace)};
  check_launch(op, classifier_gradient(dtype, c, targets_of(op, a, label_smoothing), stream));
  return {a.grad_pooled, a.grad_weight, a.grad_bias};
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kClassifierGradientSchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) { m.impl("classifier_gradient", TORCH_BOX(&fastcifar::cuda::classifier_gradient_cuda)); }

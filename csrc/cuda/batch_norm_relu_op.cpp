#include "cuda/op.h"

#include "batch_norm_relu.h"

namespace fastcifar::cuda {
namespace {

int64_t pixels(const Tensor& x) { return x.size(0) * x.size(2) * x.size(3); }

std::tuple<Tensor, Tensor, Tensor> batch_norm_relu_cuda(const Tensor& x, const Tensor& gamma, const Tensor& beta,
                                                        double eps) {
  const char* op = "batch_norm_relu";
  const DeviceStream stream(x);
  BatchNormReluForward a = prepare_batch_norm_relu(Backend::cuda, x, gamma, beta);
  if (x.size(0) == 0) {
    zero(a.mean);
    zero(a.var);
    return {a.z, a.mean, a.var};
  }
  const Tensor in = readable(op, a.x);
  const int64_t M = pixels(x), C = x.size(1);
  const Tensor workspace = empty_floats(in, batch_norm_relu_workspace(M, C));
  check_launch(op, batch_norm_relu(dtype_of(in), in.const_data_ptr(), floats(a.gamma), floats(a.beta),
                                   static_cast<float>(eps), a.z.mutable_data_ptr(), mutable_floats(a.mean),
                                   mutable_floats(a.var), mutable_floats(workspace), M, C, stream));
  return {a.z, a.mean, a.var};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_relu_backward_cuda(const Tensor& grad_z, const Tensor& x,
                                                                 const Tensor& gamma, const Tensor& beta,
                                                                 const Tensor& mean, const Tensor& var, double eps) {
  const char* op = "_batch_norm_relu_backward";
  const DeviceStream stream(x);
  BatchNormReluBackward a = prepare_batch_norm_relu_backward(Backend::cuda, grad_z, x, gamma, beta, mean, var);
  if (x.size(0) == 0) {
    zero(a.grad_gamma);
    zero(a.grad_beta);
    return {a.grad_x, a.grad_gamma, a.grad_beta};
  }
  const Tensor in = readable(op, a.x), grad = readable(op, a.grad_z);
  const int64_t M = pixels(x), C = x.size(1);
  const Tensor workspace = empty_floats(in, batch_norm_relu_backward_workspace(M, C));
  check_launch(op, batch_norm_relu_backward(dtype_of(in), grad.const_data_ptr(), in.const_data_ptr(), floats(a.gamma),
                                            floats(a.beta), floats(a.mean), floats(a.var), static_cast<float>(eps),
                                            a.grad_x.mutable_data_ptr(), mutable_floats(a.grad_gamma),
                                            mutable_floats(a.grad_beta), mutable_floats(workspace), M, C, stream));
  return {a.grad_x, a.grad_gamma, a.grad_beta};
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kBatchNormReluSchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) {
  m.impl("batch_norm_relu", TORCH_BOX(&fastcifar::cuda::batch_norm_relu_cuda));
  m.impl("_batch_norm_relu_backward", TORCH_BOX(&fastcifar::cuda::batch_norm_relu_backward_cuda));
}

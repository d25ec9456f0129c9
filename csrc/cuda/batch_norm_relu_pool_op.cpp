#include "cuda/op.h"

#include "batch_norm_relu_pool.h"

namespace fastcifar::cuda {
namespace {

int64_t map_pixels(const Tensor& u) { return u.size(2) * u.size(3); }

std::tuple<Tensor, Tensor, Tensor> batch_norm_relu_pool_cuda(const Tensor& u, const Tensor& gamma, const Tensor& beta,
                                                             double eps, const std::optional<Tensor>& u_rows) {
  const char* op = "batch_norm_relu_pool";
  const DeviceStream stream(u);
  const BatchNormReluPoolForward a = prepare_batch_norm_relu_pool(Backend::cuda, u, gamma, beta, u_rows);
  const Tensor in = readable(op, a.u);
  const int64_t N = u.size(0), C = u.size(1);
  const Tensor workspace = empty_floats(in, batch_norm_relu_pool_workspace(N, map_pixels(u), C));
  PartialRows rows{};  // only read
  if (a.u_rows) rows = {const_cast<float*>(floats(*a.u_rows)), static_cast<int>(a.u_rows->size(0))};
  check_launch(op, batch_norm_relu_pool(dtype_of(in), in.const_data_ptr(), rows, floats(a.gamma), floats(a.beta),
                                        static_cast<float>(eps), a.pooled.mutable_data_ptr(), mutable_floats(a.mean),
                                        mutable_floats(a.var), mutable_floats(workspace), N, map_pixels(u), C, stream));
  return {a.pooled, a.mean, a.var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_relu_pool_backward_cuda(const Tensor& grad_pooled,
                                                                              const Tensor& u, const Tensor& gamma,
                                                                              const Tensor& beta, const Tensor& mean,
                                                                              const Tensor& var, double eps,
                                                                              const std::optional<Tensor>& u_rows) {
  const char* op = "_batch_norm_relu_pool_backward";
  const DeviceStream stream(u);
  const BatchNormReluPoolBackward a =
      prepare_batch_norm_relu_pool_backward(Backend::cuda, grad_pooled, u, gamma, beta, mean, var, u_rows);
  const Tensor in = readable(op, a.u), grad = readable(op, a.grad_pooled);
  const int64_t N = u.size(0), C = u.size(1);
  const Tensor workspace = empty_floats(in, batch_norm_relu_pool_backward_workspace(N, map_pixels(u), C));
  check_launch(op, batch_norm_relu_pool_backward(dtype_of(in), grad.const_data_ptr(), in.const_data_ptr(),
                                                 floats(a.gamma), floats(a.beta), floats(a.mean), floats(a.var),
                                                 static_cast<float>(eps), a.grad_u.mutable_data_ptr(),
                                                 mutable_floats(a.grad_gamma), mutable_floats(a.grad_beta),
                                                 mutable_floats(workspace), N, map_pixels(u), C, stream));
  return {a.grad_u, a.grad_gamma, a.grad_beta, a.grad_u_rows};
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kBatchNormReluPoolSchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) {
  m.impl("batch_norm_relu_pool", TORCH_BOX(&fastcifar::cuda::batch_norm_relu_pool_cuda));
  m.impl("_batch_norm_relu_pool_backward", TORCH_BOX(&fastcifar::cuda::batch_norm_relu_pool_backward_cuda));
}

#include "cuda/op.h"

#include "depthwise_block.h"

namespace fastcifar::cuda {
namespace {

BlockOutputs depthwise_block_cuda(const std::optional<Tensor>& z, const Tensor& u, const Tensor& gamma0,
                                  const Tensor& beta0, const Tensor& w, const Tensor& gamma1, const Tensor& beta1,
                                  double eps, int64_t stride, const std::optional<Tensor>& u_mean,
                                  const std::optional<Tensor>& u_var, const std::optional<Tensor>& u_rows) {
  const char* op = z ? "_depthwise_block_into" : "depthwise_block";
  const DeviceStream stream(u);
  DepthwiseBlockForward a = check_depthwise_block(Backend::cuda, op, u, gamma0, beta0, w, gamma1, beta1, stride);
  a.z = placed(op, "z", z, {a.shape.N, a.shape.C, a.shape.Ho, a.shape.Wo}, u);
  // Given statistics are copied by the kernel that uses them.
  const std::optional<KnownStatistics> known = check_statistics(op, u_mean, u_var, u);
  const std::optional<Tensor> given_rows = check_u_rows(op, u_rows, u_mean, u);
  if (a.shape.N == 0) {
    for (const Tensor& t : {a.mean0, a.var0, a.mean1, a.var1}) zero(t);
    if (known) return {a.z, a.y, torch::stable::clone(known->mean), torch::stable::clone(known->var), a.mean1, a.var1};
    return {a.z, a.y, a.mean0, a.var0, a.mean1, a.var1};
  }
  const Tensor in = readable(op, a.u), weight = float_weight(a.w);
  const Tensor workspace = empty_floats(in, depthwise_block_workspace(a.shape));
  BlockForward b{};
  b.u = in.const_data_ptr();
  b.gamma0 = floats(a.gamma0);
  b.beta0 = floats(a.beta0);
  b.w = floats(weight);
  b.gamma1 = floats(a.gamma1);
  b.beta1 = floats(a.beta1);
  b.eps = static_cast<float>(eps);
  b.u_mean = known ? floats(known->mean) : nullptr;
  b.u_var = known ? floats(known->var) : nullptr;
  b.z = a.z.mutable_data_ptr();
  b.y = a.y.mutable_data_ptr();
  b.mean0 = mutable_floats(a.mean0);
  b.var0 = mutable_floats(a.var0);
  b.mean1 = mutable_floats(a.mean1);
  b.var1 = mutable_floats(a.var1);
  b.workspace = mutable_floats(workspace);
  PartialRows rows{};
  if (given_rows) rows = {const_cast<float*>(floats(*given_rows)), static_cast<int>(given_rows->size(0))};
  check_launch(op, depthwise_block(dtype_of(in), b, rows, a.shape, stream));
  return {a.z, a.y, a.mean0, a.var0, a.mean1, a.var1};
}

BlockOutputs depthwise_block_backward_cuda(const std::optional<Tensor>& grad_u, const Tensor& grad_z, const Tensor& u,
                                           const Tensor& y, const Tensor& gamma0, const Tensor& beta0, const Tensor& w,
                                           const Tensor& gamma1, const Tensor& beta1, const Tensor& mean0,
                                           const Tensor& var0, const Tensor& mean1, const Tensor& var1, double eps,
                                           int64_t stride) {
  const char* op = grad_u ? "_depthwise_block_backward_into" : "_depthwise_block_backward";
  const DeviceStream stream(u);
  DepthwiseBlockBackward a = check_depthwise_block_backward(Backend::cuda, op, u, y, gamma0, beta0, w, gamma1, beta1,
                                                            mean0, var0, mean1, var1, stride, grad_u);
  const DwShape& s = a.shape;
  a.grad_z = check_matching(op, "grad_z", grad_z, {s.N, s.C, s.Ho, s.Wo}, u);
  if (a.shape.N == 0) {
    for (const Tensor& t : {a.grad_gamma0, a.grad_beta0, a.grad_w, a.grad_gamma1, a.grad_beta1}) zero(t);
    return {a.grad_u, a.grad_gamma0, a.grad_beta0, a.grad_w, a.grad_gamma1, a.grad_beta1};
  }
  const Tensor in = readable(op, a.u), out = readable(op, a.y), grad = readable(op, a.grad_z);
  const Tensor weight = float_weight(a.w), grad_w = empty_float_weight(a.w);
  const Tensor workspace = empty_floats(in, depthwise_block_backward_workspace(a.shape));
  BlockBackward b{};
  b.grad_z = grad.const_data_ptr();
  b.u = in.const_data_ptr();
  b.y = out.const_data_ptr();
  b.gamma0 = floats(a.gamma0);
  b.beta0 = floats(a.beta0);
  b.w = floats(weight);
  b.gamma1 = floats(a.gamma1);
  b.beta1 = floats(a.beta1);
  b.mean0 = floats(a.mean0);
  b.var0 = floats(a.var0);
  b.mean1 = floats(a.mean1);
  b.var1 = floats(a.var1);
  b.eps = static_cast<float>(eps);
  b.grad_u = a.grad_u.mutable_data_ptr();
  b.grad_gamma0 = mutable_floats(a.grad_gamma0);
  b.grad_beta0 = mutable_floats(a.grad_beta0);
  b.grad_w = mutable_floats(grad_w);
  b.grad_gamma1 = mutable_floats(a.grad_gamma1);
  b.grad_beta1 = mutable_floats(a.grad_beta1);
  b.workspace = mutable_floats(workspace);
  check_launch(op, depthwise_block_backward(dtype_of(in), b, a.shape, stream));
  return {a.grad_u, a.grad_gamma0, a.grad_beta0, weight_gradient(grad_w, w), a.grad_gamma1, a.grad_beta1};
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kDepthwiseBlockSchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) {
  using Forward = fastcifar::Placed<&fastcifar::cuda::depthwise_block_cuda>;
  using Backward = fastcifar::Placed<&fastcifar::cuda::depthwise_block_backward_cuda>;
  m.impl("depthwise_block", TORCH_BOX(&Forward::anew));
  m.impl("_depthwise_block_into", TORCH_BOX(&Forward::into));
  m.impl("_depthwise_block_backward", TORCH_BOX(&Backward::anew));
  m.impl("_depthwise_block_backward_into", TORCH_BOX(&Backward::into));
}

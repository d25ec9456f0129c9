#include "cuda/op.h"

#include "separable_block.h"

namespace fastcifar::cuda {
namespace {

// A weight in the activations' dtype.
Tensor in_dtype_of(const Tensor& x, const Tensor& w) {
  return w.scalar_type() == x.scalar_type() ? w : torch::stable::to(w, x.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> separable_block_cuda(
    const Tensor& u, const Tensor& gamma0, const Tensor& beta0, const Tensor& w, const Tensor& gamma1,
    const Tensor& beta1, const Tensor& pointwise, double eps, int64_t stride, const std::optional<Tensor>& u_rows) {
  const char* op = "separable_block";
  const DeviceStream stream(u);
  SeparableBlockForward prepared =
      prepare_separable_block(Backend::cuda, op, u, gamma0, beta0, w, gamma1, beta1, pointwise, stride, u_rows);
  DepthwiseBlockForward& a = prepared.block;
  Tensor v_rows = empty_moments_of_v(prepared);
  const Tensor in = readable(op, a.u), weight = float_weight(a.w);
  const Tensor matrix = readable(op, in_dtype_of(u, prepared.pointwise));
  const Tensor workspace = empty_floats(in, separable_block_workspace(a.shape));
  SeparableForward f{};
  f.block.u = in.const_data_ptr();
  f.block.gamma0 = floats(a.gamma0);
  f.block.beta0 = floats(a.beta0);
  f.block.w = floats(weight);
  f.block.gamma1 = floats(a.gamma1);
  f.block.beta1 = floats(a.beta1);
  f.block.eps = static_cast<float>(eps);
  f.block.y = a.y.mutable_data_ptr();
  f.block.mean0 = mutable_floats(a.mean0);
  f.block.var0 = mutable_floats(a.var0);
  f.block.mean1 = mutable_floats(a.mean1);
  f.block.var1 = mutable_floats(a.var1);
  if (prepared.u_rows) {
    f.u_rows = {const_cast<float*>(floats(*prepared.u_rows)), static_cast<int>(prepared.u_rows->size(0))};
  }
  f.pointwise = matrix.const_data_ptr();
  f.out_channels = prepared.out_channels;
  f.v = prepared.v.mutable_data_ptr();
  f.v_rows = mutable_floats(v_rows);
  f.workspace = mutable_floats(workspace);
  check_launch(op, separable_block(dtype_of(in), f, a.shape, has_tensor_cores(), stream));
  return {prepared.v, v_rows, a.y, a.mean0, a.var0, a.mean1, a.var1};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> separable_block_backward_cuda(
    const Tensor& grad_v, const Tensor& u, const Tensor& y, const Tensor& gamma0, const Tensor& beta0, const Tensor& w,
    const Tensor& gamma1, const Tensor& beta1, const Tensor& pointwise, const Tensor& mean0, const Tensor& var0,
    const Tensor& mean1, const Tensor& var1, double eps, int64_t stride, const std::optional<Tensor>& u_rows,
    const std::optional<Tensor>& grad_v_rows, const std::optional<Tensor>& v, const std::optional<Tensor>& v_rows) {
  const char* op = "_separable_block_backward";
  const DeviceStream stream(u);
  SeparableBlockBackward prepared =
      prepare_separable_block_backward(Backend::cuda, op, grad_v, u, y, gamma0, beta0, w, gamma1, beta1, pointwise,
                                       mean0, var0, mean1, var1, stride, u_rows, grad_v_rows, v, v_rows);
  DepthwiseBlockBackward& a = prepared.block;
  const DwShape& s = a.shape;
  const int64_t channels = prepared.out_channels;
  const Tensor in = readable(op, a.u), out = readable(op, a.y), grad = readable(op, prepared.grad_v);
  const Tensor of_v = prepared.of_moments ? readable(op, prepared.of_moments->v) : grad;
  const Tensor weight = float_weight(a.w), matrix = readable(op, in_dtype_of(u, prepared.pointwise));
  Tensor masked = empty_channels_last(u, s.N, s.C, s.Ho, s.Wo);
  const Tensor grad_w = empty_float_weight(a.w);
  const Tensor grad_pointwise = empty({channels, s.C, 1, 1}, pointwise.scalar_type(), u);
  const Tensor workspace =
      empty_floats(in, separable_block_backward_workspace(dtype_of(in), s, channels, has_tensor_cores()));
  SeparableBackward g{};
  g.block.grad_z = masked.mutable_data_ptr();
  g.block.u = in.const_data_ptr();
  g.block.y = out.const_data_ptr();
  g.block.gamma0 = floats(a.gamma0);
  g.block.beta0 = floats(a.beta0);
  g.block.w = floats(weight);
  g.block.gamma1 = floats(a.gamma1);
  g.block.beta1 = floats(a.beta1);
  g.block.mean0 = floats(a.mean0);
  g.block.var0 = floats(a.var0);
  g.block.mean1 = floats(a.mean1);
  g.block.var1 = floats(a.var1);
  g.block.eps = static_cast<float>(eps);
  g.block.grad_u = a.grad_u.mutable_data_ptr();
  g.block.grad_gamma0 = mutable_floats(a.grad_gamma0);
  g.block.grad_beta0 = mutable_floats(a.grad_beta0);
  g.block.grad_w = mutable_floats(grad_w);
  g.block.grad_gamma1 = mutable_floats(a.grad_gamma1);
  g.block.grad_beta1 = mutable_floats(a.grad_beta1);
  g.grad_v = grad.const_data_ptr();
  if (prepared.of_moments) {
    g.of_v = {of_v.const_data_ptr(), floats(prepared.of_moments->rows), floats(prepared.of_moments->grad_rows)};
  }
  if (prepared.u_rows) {
    g.of_u = {floats(*prepared.u_rows), static_cast<int>(prepared.u_rows->size(0)),
              mutable_floats(prepared.grad_u_rows)};
  }
  g.pointwise = matrix.const_data_ptr();
  g.out_channels = channels;
  g.pointwise_dtype = dtype_of(pointwise);
  g.grad_pointwise = grad_pointwise.mutable_data_ptr();
  g.workspace = mutable_floats(workspace);
  check_launch(op, separable_block_backward(dtype_of(in), g, s, has_tensor_cores(), stream));
  return {a.grad_u,      a.grad_gamma0, a.grad_beta0,   weight_gradient(grad_w, w),
          a.grad_gamma1, a.grad_beta1,  grad_pointwise, prepared.grad_u_rows};
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kSeparableBlockSchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) {
  m.impl("separable_block", TORCH_BOX(&fastcifar::cuda::separable_block_cuda));
  m.impl("_separable_block_backward", TORCH_BOX(&fastcifar::cuda::separable_block_backward_cuda));
}

#include "cuda/op.h"

#include "dwconv3x3.h"

namespace fastcifar::cuda {
namespace {

Tensor dwconv3x3_cuda(const Tensor& x, const Tensor& w, int64_t stride) {
  const DeviceStream stream(x);
  DwconvForward a = prepare_dwconv3x3(Backend::cuda, x, w, stride);
  if (a.shape.N == 0) return a.y;
  const Tensor in = readable("dwconv3x3", a.x), weight = float_weight(a.w);
  check_launch("dwconv3x3",
               dwconv3x3(dtype_of(in), in.const_data_ptr(), floats(weight), a.y.mutable_data_ptr(), a.shape, stream));
  return a.y;
}

std::tuple<Tensor, Tensor> dwconv3x3_backward_cuda(const Tensor& grad_y, const Tensor& x, const Tensor& w,
                                                   int64_t stride, bool need_grad_x, bool need_grad_w) {
  const char* op = "_dwconv3x3_backward";
  const DeviceStream stream(x);
  DwconvBackward a = prepare_dwconv3x3_backward(Backend::cuda, grad_y, x, w, stride, need_grad_x, need_grad_w);
  if (a.shape.N == 0) {
    if (need_grad_w) zero(a.grad_w);
    return {a.grad_x, a.grad_w};
  }
  if (!need_grad_x && !need_grad_w) return {a.grad_x, a.grad_w};
  const Tensor in = readable(op, a.x), grad = readable(op, a.grad_y), weight = float_weight(a.w);
  const Tensor grad_w = need_grad_w ? empty_float_weight(weight) : a.grad_w;
  const Tensor workspace = empty_floats(in, need_grad_w ? dwconv3x3_backward_workspace(a.shape) : 0);
  check_launch(op, dwconv3x3_backward(dtype_of(in), grad.const_data_ptr(), in.const_data_ptr(), floats(weight),
                                      need_grad_x ? a.grad_x.mutable_data_ptr() : nullptr,
                                      need_grad_w ? mutable_floats(grad_w) : nullptr, mutable_floats(workspace),
                                      a.shape, stream));
  return {a.grad_x, need_grad_w ? weight_gradient(grad_w, w) : grad_w};
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kDwconv3x3Schemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) {
  m.impl("dwconv3x3", TORCH_BOX(&fastcifar::cuda::dwconv3x3_cuda));
  m.impl("_dwconv3x3_backward", TORCH_BOX(&fastcifar::cuda::dwconv3x3_backward_cuda));
}

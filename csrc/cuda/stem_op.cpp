#include "cuda/op.h"

#include "stem.h"

namespace fastcifar::cuda {
namespace {

StemShape shape_of(const Stem& a) { return {a.N, a.C, a.H, a.W}; }
StemWeight layout_of(const Stem& a) { return {a.w.scalar_type() == ScalarType::Float, a.channels_last}; }

std::tuple<Tensor, Tensor> stem_cuda(const Tensor& x, const Tensor& w) {
  const char* op = "stem";
  const DeviceStream stream(x);
  StemForward a = prepare_stem(Backend::cuda, x, w);
  const Tensor in = readable(op, a.x), weight = readable(op, a.w);
  a.u = readable(op, a.u);  // as large as the kernels can count
  check_launch(op, stem(dtype_of(in), in.const_data_ptr(), weight.const_data_ptr(), layout_of(a),
                        a.u.mutable_data_ptr(), mutable_floats(a.u_rows), shape_of(a), has_tensor_cores(), stream));
  return {a.u, a.u_rows};
}

Tensor stem_backward_cuda(const Tensor& grad_u, const Tensor& x, const Tensor& w,
                          const std::optional<Tensor>& grad_u_rows, const std::optional<Tensor>& u,
                          const std::optional<Tensor>& u_rows) {
  const char* op = "_stem_backward";
  const DeviceStream stream(x);
  StemBackward a = prepare_stem_backward(Backend::cuda, grad_u, x, w, grad_u_rows, u, u_rows);
  const Tensor in = readable(op, a.x), grad = readable(op, a.grad_u);
  const bool tensor_cores = has_tensor_cores();
  const Tensor workspace =
      empty_floats(in, stem_backward_workspace(dtype_of(in), layout_of(a), shape_of(a), tensor_cores));
  const Tensor of_u = a.grad_u_rows ? readable(op, a.u) : grad;
  ThroughMoments moments{};
  if (a.grad_u_rows) moments = {of_u.const_data_ptr(), floats(a.u_rows), floats(*a.grad_u_rows)};
  check_launch(
      op, stem_backward(dtype_of(in), grad.const_data_ptr(), moments, in.const_data_ptr(), layout_of(a),
                        a.grad_w.mutable_data_ptr(), mutable_floats(workspace), shape_of(a), tensor_cores, stream));
  return a.grad_w;
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kStemSchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) {
  m.impl("stem", TORCH_BOX(&fastcifar::cuda::stem_cuda));
  m.impl("_stem_backward", TORCH_BOX(&fastcifar::cuda::stem_backward_cuda));
}

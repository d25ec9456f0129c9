#include "cuda/op.h"

#include "dwconv3x3_affine_relu.h"

namespace fastcifar::cuda {
namespace {

Tensor dwconv3x3_affine_relu_cuda(const Tensor& u, const Tensor& scale0, const Tensor& shift0, const Tensor& w,
                                  const Tensor& scale1, const Tensor& shift1, int64_t stride) {
  const char* op = "dwconv3x3_affine_relu";
  const DeviceStream stream(u);
  DwconvAffineRelu a = prepare_dwconv3x3_affine_relu(Backend::cuda, u, scale0, shift0, w, scale1, shift1, stride);
  if (a.shape.N == 0) return a.z;
  const Tensor in = readable(op, a.u), weight = float_weight(a.w);
  check_launch(
      op, dwconv3x3_affine_relu(dtype_of(in), in.const_data_ptr(), floats(a.scale0), floats(a.shift0), floats(weight),
                                floats(a.scale1), floats(a.shift1), a.z.mutable_data_ptr(), a.shape, stream));
  return a.z;
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kDwconv3x3AffineReluSchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) { m.impl("dwconv3x3_affine_relu", TORCH_BOX(&fastcifar::cuda::dwconv3x3_affine_relu_cuda)); }

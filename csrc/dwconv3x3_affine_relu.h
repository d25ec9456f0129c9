// dwconv3x3_affine_relu: what both backends check and allocate.
#pragma once
#include "checks.h"

namespace fastcifar {

inline constexpr const char* kDwconv3x3AffineReluSchemas[] = {
    "dwconv3x3_affine_relu(Tensor u, Tensor scale0, Tensor shift0, Tensor w, Tensor scale1, Tensor shift1, int stride)"
    " -> Tensor",
};

struct DwconvAffineRelu {
  Tensor u, scale0, shift0, w, scale1, shift1, z;
  DwShape shape;
};

inline DwconvAffineRelu prepare_dwconv3x3_affine_relu(Backend backend, const Tensor& u, const Tensor& scale0,
                                                      const Tensor& shift0, const Tensor& w, const Tensor& scale1,
                                                      const Tensor& shift1, int64_t stride) {
  const char* op = "dwconv3x3_affine_relu";
  DwconvAffineRelu a;
  a.u = check_activation(backend, op, "u", u);
  a.shape = check_stride(op, u, stride);
  const int64_t c = a.shape.C;
  a.scale0 = check_per_channel(op, "scale0", scale0, c, u);
  a.shift0 = check_per_channel(op, "shift0", shift0, c, u);
  a.w = check_depthwise_weight(op, w, u);
  a.scale1 = check_per_channel(op, "scale1", scale1, c, u);
  a.shift1 = check_per_channel(op, "shift1", shift1, c, u);
  a.z = empty_channels_last(u, a.shape.N, c, a.shape.Ho, a.shape.Wo);
  return a;
}

}  // namespace fastcifar

// dwconv3x3 and its backward: what both backends check and allocate.
#pragma once
#include "checks.h"

namespace fastcifar {

inline constexpr const char* kDwconv3x3Schemas[] = {
    "dwconv3x3(Tensor x, Tensor w, int stride) -> Tensor",
    "_dwconv3x3_backward(Tensor grad_y, Tensor x, Tensor w, int stride, bool need_grad_x, bool need_grad_w)"
    " -> (Tensor, Tensor)",
};

struct DwconvForward {
  Tensor x, w, y;
  DwShape shape;
};

inline DwconvForward prepare_dwconv3x3(Backend backend, const Tensor& x, const Tensor& w, int64_t stride) {
  const char* op = "dwconv3x3";
  DwconvForward a;
  a.x = check_activation(backend, op, "x", x);
  a.w = check_depthwise_weight(op, w, x);
  a.shape = check_stride(op, x, stride);
  a.y = empty_channels_last(x, a.shape.N, a.shape.C, a.shape.Ho, a.shape.Wo);
  return a;
}

struct DwconvBackward {
  Tensor grad_y, x, w, grad_x, grad_w;  // a gradient that is not needed is empty
  DwShape shape;
};

inline DwconvBackward prepare_dwconv3x3_backward(Backend backend, const Tensor& grad_y, const Tensor& x,
                                                 const Tensor& w, int64_t stride, bool need_grad_x, bool need_grad_w) {
  const char* op = "_dwconv3x3_backward";
  DwconvBackward a;
  a.x = check_activation(backend, op, "x", x);
  a.w = check_depthwise_weight(op, w, x);
  a.shape = check_stride(op, x, stride);
  a.grad_y = check_matching(op, "grad_y", grad_y, {a.shape.N, a.shape.C, a.shape.Ho, a.shape.Wo}, x);
  a.grad_x = need_grad_x ? empty_channels_last(x, a.shape.N, a.shape.C, a.shape.H, a.shape.W) : no_gradient(x);
  a.grad_w = need_grad_w ? empty_weight(w) : no_gradient(w);
  return a;
}

}  // namespace fastcifar

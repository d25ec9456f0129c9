// separable_block and its backward: what both backends check and allocate.
#pragma once
#include <optional>

#include "depthwise_block.h"

namespace fastcifar {

inline constexpr const char* kSeparableBlockSchemas[] = {
    "separable_block(Tensor u, Tensor gamma0, Tensor beta0, Tensor w, Tensor gamma1, Tensor beta1, Tensor pointwise,"
    " float eps, int stride, Tensor? u_rows=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "_separable_block_backward(Tensor grad_v, Tensor u, Tensor y, Tensor gamma0, Tensor beta0, Tensor w,"
    " Tensor gamma1, Tensor beta1, Tensor pointwise, Tensor mean0, Tensor var0, Tensor mean1, Tensor var1, float eps,"
    " int stride, Tensor? u_rows=None, Tensor? grad_v_rows=None, Tensor? v=None, Tensor? v_rows=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
};

// A 1x1 weight [out, C, 1, 1], float32 or x's dtype.
inline Tensor check_pointwise_weight(const char* op, const Tensor& w, const Tensor& x) {
  STD_TORCH_CHECK(w.dim() == 4 && w.size(0) >= 1 && w.size(1) == x.size(1) && w.size(2) == 1 && w.size(3) == 1, op,
                  ": pointwise must be [out_channels, ", x.size(1), ", 1, 1], got ", shape_text(w));
  STD_TORCH_CHECK(w.scalar_type() == ScalarType::Float || w.scalar_type() == x.scalar_type(), op,
                  ": pointwise must be float32 or the activations' ", torch::headeronly::toString(x.scalar_type()),
                  ", got ", torch::headeronly::toString(w.scalar_type()));
  check_device(op, "pointwise", w, x);
  return dense(w);
}

struct SeparableBlockForward {
  DepthwiseBlockForward block;
  Tensor pointwise, v;
  std::optional<Tensor> u_rows;
  int64_t out_channels;
};

// All but the moments of v, for `op`: separable_block itself or an op that holds it.
inline SeparableBlockForward prepare_separable_block(Backend backend, const char* op, const Tensor& u,
                                                     const Tensor& gamma0, const Tensor& beta0, const Tensor& w,
                                                     const Tensor& gamma1, const Tensor& beta1, const Tensor& pointwise,
                                                     int64_t stride, const std::optional<Tensor>& u_rows) {
  SeparableBlockForward a;
  a.block = check_depthwise_block(backend, op, u, gamma0, beta0, w, gamma1, beta1, stride);
  const DwShape& s = a.block.shape;
  STD_TORCH_CHECK(s.N > 0, op, ": u must not be empty, got ", shape_text(u));
  a.pointwise = check_pointwise_weight(op, pointwise, u);
  a.out_channels = a.pointwise.size(0);
  if (u_rows.has_value()) a.u_rows = check_moments(op, "u_rows", *u_rows, u);
  a.v = empty_channels_last(u, s.N, a.out_channels, s.Ho, s.Wo);
  return a;
}

// Partial moments [rows, 3, out_channels] of v, to be written.
inline Tensor empty_moments_of_v(const SeparableBlockForward& a) {
  const int64_t rows = moment_rows(output_pixels(a.block.shape), a.out_channels);
  return empty({rows, 3, a.out_channels}, ScalarType::Float, a.v);
}

// What the gradient of v is made of besides grad_v, where the next op used the moments of v.
struct GradientOfMoments {
  Tensor grad_rows, v, rows;
};

struct SeparableBlockBackward {
  DepthwiseBlockBackward block;  // without grad_z
  Tensor grad_v, pointwise, grad_u_rows;
  std::optional<Tensor> u_rows;
  std::optional<GradientOfMoments> of_moments;
  int64_t out_channels;
};

inline SeparableBlockBackward prepare_separable_block_backward(
    Backend backend, const char* op, const Tensor& grad_v, const Tensor& u, const Tensor& y, const Tensor& gamma0,
    const Tensor& beta0, const Tensor& w, const Tensor& gamma1, const Tensor& beta1, const Tensor& pointwise,
    const Tensor& mean0, const Tensor& var0, const Tensor& mean1, const Tensor& var1, int64_t stride,
    const std::optional<Tensor>& u_rows, const std::optional<Tensor>& grad_v_rows, const std::optional<Tensor>& v,
    const std::optional<Tensor>& v_rows) {
  SeparableBlockBackward a;
  a.block = check_depthwise_block_backward(backend, op, u, y, gamma0, beta0, w, gamma1, beta1, mean0, var0, mean1, var1,
                                           stride);
  const DwShape& s = a.block.shape;
  STD_TORCH_CHECK(s.N > 0, op, ": u must not be empty, got ", shape_text(u));
  a.pointwise = check_pointwise_weight(op, pointwise, u);
  a.out_channels = a.pointwise.size(0);
  a.grad_v = check_matching(op, "grad_v", grad_v, {s.N, a.out_channels, s.Ho, s.Wo}, u);
  if (grad_v_rows.has_value()) {
    STD_TORCH_CHECK(v.has_value() && v_rows.has_value(), op, ": grad_v_rows needs v and v_rows");
    a.of_moments = {check_moments(op, "grad_v_rows", *grad_v_rows, grad_v),
                    check_matching(op, "v", *v, {s.N, a.out_channels, s.Ho, s.Wo}, u),
                    check_moments(op, "v_rows", *v_rows, grad_v)};
  }
  if (u_rows.has_value()) {
    a.u_rows = check_moments(op, "u_rows", *u_rows, u);
    a.grad_u_rows = empty({a.u_rows->size(0), 3, s.C}, ScalarType::Float, u);
  } else {
    a.grad_u_rows = no_gradient(gamma0);
  }
  return a;
}

}  // namespace fastcifar

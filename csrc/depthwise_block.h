// depthwise_block and its backward, and both with memory given for the first output: what both backends check and
// allocate.
#pragma once
#include <optional>
#include <tuple>

#include "checks.h"

namespace fastcifar {

inline constexpr const char* kDepthwiseBlockSchemas[] = {
    "depthwise_block(Tensor u, Tensor gamma0, Tensor beta0, Tensor w, Tensor gamma1, Tensor beta1, float eps,"
    " int stride, Tensor? u_mean=None, Tensor? u_var=None, Tensor? u_rows=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "_depthwise_block_into(Tensor(a!) z, Tensor u, Tensor gamma0, Tensor beta0, Tensor w, Tensor gamma1,"
    " Tensor beta1, float eps, int stride, Tensor? u_mean=None, Tensor? u_var=None, Tensor? u_rows=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "_depthwise_block_backward(Tensor grad_z, Tensor u, Tensor y, Tensor gamma0, Tensor beta0, Tensor w,"
    " Tensor gamma1, Tensor beta1, Tensor mean0, Tensor var0, Tensor mean1, Tensor var1, float eps, int stride)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "_depthwise_block_backward_into(Tensor(a!) grad_u, Tensor grad_z, Tensor u, Tensor y, Tensor gamma0,"
    " Tensor beta0, Tensor w, Tensor gamma1, Tensor beta1, Tensor mean0, Tensor var0, Tensor mean1, Tensor var1,"
    " float eps, int stride) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
};

using BlockOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Two ops from a backend's function of the memory for the first output and of an op's arguments: `anew` allocates that
// memory, `into` is given it.
template <auto compute>
struct Placed;
template <class... Arguments, BlockOutputs (*compute)(const std::optional<Tensor>&, Arguments...)>
struct Placed<compute> {
  static BlockOutputs anew(Arguments... arguments) { return compute(std::nullopt, arguments...); }
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> into(const Tensor& first, Arguments... arguments) {
    const auto [_, a, b, c, d, e] = compute(first, arguments...);
    return {a, b, c, d, e};
  }
};

struct DepthwiseBlockForward {
  Tensor u, gamma0, beta0, w, gamma1, beta1, z, y, mean0, var0, mean1, var1;
  bool given_statistics;  // mean0 and var0 hold u's; otherwise they are to be computed
  DwShape shape;
};

// All but z and given statistics, for `op`: depthwise_block itself or an op that holds it.
inline DepthwiseBlockForward check_depthwise_block(Backend backend, const char* op, const Tensor& u,
                                                   const Tensor& gamma0, const Tensor& beta0, const Tensor& w,
                                                   const Tensor& gamma1, const Tensor& beta1, int64_t stride) {
  DepthwiseBlockForward a;
  a.u = check_activation(backend, op, "u", u);
  a.shape = check_stride(op, u, stride);
  const int64_t c = a.shape.C;
  a.gamma0 = check_per_channel(op, "gamma0", gamma0, c, u);
  a.beta0 = check_per_channel(op, "beta0", beta0, c, u);
  a.w = check_depthwise_weight(op, w, u);
  a.gamma1 = check_per_channel(op, "gamma1", gamma1, c, u);
  a.beta1 = check_per_channel(op, "beta1", beta1, c, u);
  a.given_statistics = false;
  a.y = empty_channels_last(u, a.shape.N, c, a.shape.Ho, a.shape.Wo);
  a.mean0 = empty_per_channel(u, c);
  a.var0 = empty_per_channel(u, c);
  a.mean1 = empty_per_channel(u, c);
  a.var1 = empty_per_channel(u, c);
  return a;
}

// u's statistics, where they are given.
struct KnownStatistics {
  Tensor mean, var;
};

inline std::optional<KnownStatistics> check_statistics(const char* op, const std::optional<Tensor>& u_mean,
                                                       const std::optional<Tensor>& u_var, const Tensor& u) {
  STD_TORCH_CHECK(u_mean.has_value() == u_var.has_value(), op, ": u_mean and u_var are given together or not at all");
  if (!u_mean.has_value()) return std::nullopt;
  return KnownStatistics{check_per_channel(op, "u_mean", *u_mean, u.size(1), u),
                         check_per_channel(op, "u_var", *u_var, u.size(1), u)};
}

// Partial moments [rows, 3, C]: count, mean and sum of squared deviations; the first row not empty.
inline Tensor check_moments(const char* op, const char* name, const Tensor& rows, const Tensor& x) {
  STD_TORCH_CHECK(rows.dim() == 3 && rows.size(0) >= 1 && rows.size(1) == 3 && rows.size(2) == x.size(1), op, ": ",
                  name, " must be [rows, 3, ", x.size(1), "], got ", shape_text(rows));
  STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32, got ",
                  torch::headeronly::toString(rows.scalar_type()));
  check_device(op, name, rows, x);
  return dense(rows);
}

// The partial moments of u, where they are given.
inline std::optional<Tensor> check_u_rows(const char* op, const std::optional<Tensor>& u_rows,
                                          const std::optional<Tensor>& u_mean, const Tensor& u) {
  if (!u_rows.has_value()) return std::nullopt;
  STD_TORCH_CHECK(!u_mean.has_value(), op, ": u_rows and u_mean are not given together");
  return check_moments(op, "u_rows", *u_rows, u);
}

struct DepthwiseBlockBackward {
  Tensor grad_z, u, y, gamma0, beta0, w, gamma1, beta1, mean0, var0, mean1, var1;
  Tensor grad_u, grad_gamma0, grad_beta0, grad_w, grad_gamma1, grad_beta1;
  DwShape shape;
};

// All but grad_z, for `op`: _depthwise_block_backward itself or the backward of an op that holds depthwise_block.
inline DepthwiseBlockBackward check_depthwise_block_backward(Backend backend, const char* op, const Tensor& u,
                                                             const Tensor& y, const Tensor& gamma0, const Tensor& beta0,
                                                             const Tensor& w, const Tensor& gamma1, const Tensor& beta1,
                                                             const Tensor& mean0, const Tensor& var0,
                                                             const Tensor& mean1, const Tensor& var1, int64_t stride,
                                                             const std::optional<Tensor>& grad_u = std::nullopt) {
  DepthwiseBlockBackward a;
  a.u = check_activation(backend, op, "u", u);
  a.shape = check_stride(op, u, stride);
  const DwShape& s = a.shape;
  a.y = check_matching(op, "y", y, {s.N, s.C, s.Ho, s.Wo}, u);
  a.gamma0 = check_per_channel(op, "gamma0", gamma0, s.C, u);
  a.beta0 = check_per_channel(op, "beta0", beta0, s.C, u);
  a.w = check_depthwise_weight(op, w, u);
  a.gamma1 = check_per_channel(op, "gamma1", gamma1, s.C, u);
  a.beta1 = check_per_channel(op, "beta1", beta1, s.C, u);
  a.mean0 = check_per_channel(op, "mean0", mean0, s.C, u);
  a.var0 = check_per_channel(op, "var0", var0, s.C, u);
  a.mean1 = check_per_channel(op, "mean1", mean1, s.C, u);
  a.var1 = check_per_channel(op, "var1", var1, s.C, u);
  a.grad_u = placed(op, "grad_u", grad_u, {s.N, s.C, s.H, s.W}, u);
  a.grad_w = empty_weight(w);
  a.grad_gamma0 = empty_per_channel(u, s.C);
  a.grad_beta0 = empty_per_channel(u, s.C);
  a.grad_gamma1 = empty_per_channel(u, s.C);
  a.grad_beta1 = empty_per_channel(u, s.C);
  return a;
}

}  // namespace fastcifar

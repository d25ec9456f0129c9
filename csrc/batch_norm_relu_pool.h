// batch_norm_relu_pool and its backward: what is checked and allocated.
#pragma once
#include "separable_block.h"

namespace fastcifar {

inline constexpr const char* kBatchNormReluPoolSchemas[] = {
    "batch_norm_relu_pool(Tensor u, Tensor gamma, Tensor beta, float eps, Tensor? u_rows=None)"
    " -> (Tensor, Tensor, Tensor)",
    "_batch_norm_relu_pool_backward(Tensor grad_pooled, Tensor u, Tensor gamma, Tensor beta, Tensor mean, Tensor var,"
    " float eps, Tensor? u_rows=None) -> (Tensor, Tensor, Tensor, Tensor)",
};

inline Tensor check_map(Backend backend, const char* op, const Tensor& u) {
  const Tensor map = check_activation(backend, op, "u", u);
  STD_TORCH_CHECK(u.size(0) > 0, op, ": u must not be empty, got ", shape_text(u));
  return map;
}

struct BatchNormReluPoolForward {
  Tensor u, gamma, beta, pooled, mean, var;
  std::optional<Tensor> u_rows;
};

inline BatchNormReluPoolForward prepare_batch_norm_relu_pool(Backend backend, const Tensor& u, const Tensor& gamma,
                                                             const Tensor& beta, const std::optional<Tensor>& u_rows) {
  const char* op = "batch_norm_relu_pool";
  BatchNormReluPoolForward a;
  a.u = check_map(backend, op, u);
  const int64_t c = u.size(1);
  a.gamma = check_per_channel(op, "gamma", gamma, c, u);
  a.beta = check_per_channel(op, "beta", beta, c, u);
  if (u_rows.has_value()) a.u_rows = check_moments(op, "u_rows", *u_rows, u);
  a.pooled = empty({u.size(0), c}, u.scalar_type(), u);
  a.mean = empty_per_channel(u, c);
  a.var = empty_per_channel(u, c);
  return a;
}

struct BatchNormReluPoolBackward {
  Tensor grad_pooled, u, gamma, beta, mean, var, grad_u, grad_gamma, grad_beta, grad_u_rows;
  std::optional<Tensor> u_rows;
};

inline BatchNormReluPoolBackward prepare_batch_norm_relu_pool_backward(Backend backend, const Tensor& grad_pooled,
                                                                       const Tensor& u, const Tensor& gamma,
                                                                       const Tensor& beta, const Tensor& mean,
                                                                       const Tensor& var,
                                                                       const std::optional<Tensor>& u_rows) {
  const char* op = "_batch_norm_relu_pool_backward";
  STD_TORCH_CHECK(backend == Backend::cpu || !u_rows.has_value(), op,
                  ": only the CPU has kernels for gradients of u_rows");
  BatchNormReluPoolBackward a;
  a.u = check_map(backend, op, u);
  const int64_t n = u.size(0), c = u.size(1);
  STD_TORCH_CHECK(grad_pooled.dim() == 2 && grad_pooled.size(0) == n && grad_pooled.size(1) == c, op,
                  ": grad_pooled must be [", n, ", ", c, "], got ", shape_text(grad_pooled));
  STD_TORCH_CHECK(grad_pooled.scalar_type() == u.scalar_type(), op, ": grad_pooled must be ",
                  torch::headeronly::toString(u.scalar_type()), " like u, got ",
                  torch::headeronly::toString(grad_pooled.scalar_type()));
  check_device(op, "grad_pooled", grad_pooled, u);
  a.grad_pooled = dense(grad_pooled);
  a.gamma = check_per_channel(op, "gamma", gamma, c, u);
  a.beta = check_per_channel(op, "beta", beta, c, u);
  a.mean = check_per_channel(op, "mean", mean, c, u);
  a.var = check_per_channel(op, "var", var, c, u);
  a.grad_u = empty_channels_last(u, n, c, u.size(2), u.size(3));
  a.grad_gamma = empty_per_channel(u, c);
  a.grad_beta = empty_per_channel(u, c);
  if (u_rows.has_value()) {
    a.u_rows = check_moments(op, "u_rows", *u_rows, u);
    a.grad_u_rows = empty({u_rows->size(0), 3, c}, ScalarType::Float, u);
  } else {
    a.grad_u_rows = no_gradient(gamma);
  }
  return a;
}

}  // namespace fastcifar

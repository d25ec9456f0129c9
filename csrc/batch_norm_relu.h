// batch_norm_relu and its backward: what both backends check and allocate.
#pragma once
#include "checks.h"

namespace fastcifar {

inline constexpr const char* kBatchNormReluSchemas[] = {
    "batch_norm_relu(Tensor x, Tensor gamma, Tensor beta, float eps) -> (Tensor, Tensor, Tensor)",
    "_batch_norm_relu_backward(Tensor grad_z, Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor var, float eps)"
    " -> (Tensor, Tensor, Tensor)",
};

struct BatchNormReluForward {
  Tensor x, gamma, beta, z, mean, var;
};

inline BatchNormReluForward prepare_batch_norm_relu(Backend backend, const Tensor& x, const Tensor& gamma,
                                                    const Tensor& beta) {
  const char* op = "batch_norm_relu";
  BatchNormReluForward a;
  a.x = check_activation(backend, op, "x", x);
  const int64_t c = x.size(1);
  a.gamma = check_per_channel(op, "gamma", gamma, c, x);
  a.beta = check_per_channel(op, "beta", beta, c, x);
  a.z = empty_channels_last(x, x.size(0), c, x.size(2), x.size(3));
  a.mean = empty_per_channel(x, c);
  a.var = empty_per_channel(x, c);
  return a;
}

struct BatchNormReluBackward {
  Tensor grad_z, x, gamma, beta, mean, var, grad_x, grad_gamma, grad_beta;
};

inline BatchNormReluBackward prepare_batch_norm_relu_backward(Backend backend, const Tensor& grad_z, const Tensor& x,
                                                              const Tensor& gamma, const Tensor& beta,
                                                              const Tensor& mean, const Tensor& var) {
  const char* op = "_batch_norm_relu_backward";
  BatchNormReluBackward a;
  a.x = check_activation(backend, op, "x", x);
  const int64_t c = x.size(1);
  a.grad_z = check_matching(op, "grad_z", grad_z, {x.size(0), c, x.size(2), x.size(3)}, x);
  a.gamma = check_per_channel(op, "gamma", gamma, c, x);
  a.beta = check_per_channel(op, "beta", beta, c, x);
  a.mean = check_per_channel(op, "mean", mean, c, x);
  a.var = check_per_channel(op, "var", var, c, x);
  a.grad_x = empty_channels_last(x, x.size(0), c, x.size(2), x.size(3));
  a.grad_gamma = empty_per_channel(x, c);
  a.grad_beta = empty_per_channel(x, c);
  return a;
}

}  // namespace fastcifar

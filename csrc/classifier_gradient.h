// classifier_gradient: what both backends check and allocate.
#pragma once
#include "mixup_cross_entropy_gradient.h"

namespace fastcifar {

inline constexpr const char* kClassifierGradientSchemas[] = {
    "classifier_gradient(Tensor pooled, Tensor weight, Tensor bias, Tensor labels, Tensor? partner_labels, Tensor? lam,"
    " float label_smoothing, Tensor grad_loss, Tensor(a!) totals) -> (Tensor, Tensor, Tensor)",
};

struct ClassifierGradient : MixupCrossEntropyGradient {  // its logits and their gradient: room that the CPU uses
  Tensor pooled, weight, bias, grad_pooled, grad_weight, grad_bias;
  int64_t channels;
};

inline ClassifierGradient prepare_classifier_gradient(Backend backend, const Tensor& pooled, const Tensor& weight,
                                                      const Tensor& bias, const Tensor& labels,
                                                      const std::optional<Tensor>& partner_labels,
                                                      const std::optional<Tensor>& lam, double label_smoothing,
                                                      const Tensor& grad_loss, const Tensor& totals) {
  const char* op = "classifier_gradient";
  const ScalarType dtype = pooled.scalar_type();
  STD_TORCH_CHECK(pooled.dim() == 2 && pooled.size(1) >= 1, op, ": pooled must be [B, K], K at least 1, got ",
                  shape_text(pooled));
  const int64_t rows = pooled.size(0), channels = pooled.size(1);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) >= 1 && weight.size(1) == channels, op,
                  ": weight must be [classes, ", channels, "], at least one class, got ", shape_text(weight));
  const int64_t classes = weight.size(0);
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == classes, op, ": bias must be [", classes, "], got ",
                  shape_text(bias));
  const auto like_pooled = [&](const char* name, const Tensor& t) {
    STD_TORCH_CHECK(t.scalar_type() == dtype, op, ": ", name, " must be ", torch::headeronly::toString(dtype),
                    " like pooled, got ", torch::headeronly::toString(t.scalar_type()));
    check_device(op, name, t, pooled);
    return dense(t);
  };
  const Tensor logits = empty({rows, classes}, dtype, pooled);
  return {prepare_mixup_cross_entropy_gradient(backend, op, logits, labels, partner_labels, lam, label_smoothing,
                                               grad_loss, totals),
          dense(pooled),
          like_pooled("weight", weight),
          like_pooled("bias", bias),
          empty({rows, channels}, dtype, pooled),
          empty({classes, channels}, dtype, pooled),
          empty({classes}, dtype, pooled),
          channels};
}

}  // namespace fastcifar

// mixup_cross_entropy_gradient: what both backends check and allocate.
#pragma once
#include "mixup_cross_entropy.h"

namespace fastcifar {

inline constexpr const char* kMixupCrossEntropyGradientSchemas[] = {
    "mixup_cross_entropy_gradient(Tensor logits, Tensor labels, Tensor? partner_labels, Tensor? lam,"
    " float label_smoothing, Tensor grad_loss, Tensor(a!) totals) -> Tensor",
};

struct MixupCrossEntropyGradient : MixupCrossEntropy {
  Tensor grad_loss, totals, grad_logits;
};

inline MixupCrossEntropyGradient prepare_mixup_cross_entropy_gradient(Backend backend, const char* op,
                                                                      const Tensor& logits, const Tensor& labels,
                                                                      const std::optional<Tensor>& partner_labels,
                                                                      const std::optional<Tensor>& lam,
                                                                      double label_smoothing, const Tensor& grad_loss,
                                                                      const Tensor& totals) {
  MixupCrossEntropyGradient a{
      check_targets(backend, op, logits, labels, partner_labels, lam, label_smoothing), {}, {}, {}};
  a.grad_loss = check_number(op, "grad_loss", grad_loss, logits);
  STD_TORCH_CHECK(totals.dim() == 1 && totals.size(0) == 2 && totals.scalar_type() == ScalarType::Double, op,
                  ": totals must be float64 [2], got ", torch::headeronly::toString(totals.scalar_type()), " ",
                  shape_text(totals));
  STD_TORCH_CHECK(totals.is_contiguous(), op, ": totals must be contiguous");
  check_device(op, "totals", totals, logits);
  a.totals = totals;
  a.grad_logits = empty({a.rows, a.classes}, logits.scalar_type(), logits);
  return a;
}

}  // namespace fastcifar

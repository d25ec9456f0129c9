// mixup_cross_entropy and its backward: what both backends check and allocate.
#pragma once
#include <optional>

#include "checks.h"

namespace fastcifar {

inline constexpr const char* kMixupCrossEntropySchemas[] = {
    "mixup_cross_entropy(Tensor logits, Tensor labels, Tensor? partner_labels, Tensor? lam, float label_smoothing)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "_mixup_cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor normalizer, Tensor labels,"
    " Tensor? partner_labels, Tensor? lam, float label_smoothing) -> Tensor",
};

struct MixupCrossEntropy {
  Tensor logits, labels;
  std::optional<Tensor> partner_labels, lam;  // both or neither
  int64_t rows, classes;
};

inline Tensor check_number(const char* op, const char* name, const Tensor& t, const Tensor& logits) {
  STD_TORCH_CHECK(t.numel() == 1 && t.scalar_type() == ScalarType::Float, op, ": ", name,
                  " must be one float32 number, got ", torch::headeronly::toString(t.scalar_type()), " ",
                  shape_text(t));
  check_device(op, name, t, logits);
  return t;
}

inline MixupCrossEntropy check_targets(Backend backend, const char* op, const Tensor& logits, const Tensor& labels,
                                       const std::optional<Tensor>& partner_labels, const std::optional<Tensor>& lam,
                                       double label_smoothing) {
  MixupCrossEntropy a;
  STD_TORCH_CHECK(logits.dim() == 2 && logits.size(1) >= 1, op, ": logits must be [B, K], K at least 1, got ",
                  shape_text(logits));
  const ScalarType dtype = logits.scalar_type();
  const bool half = backend == Backend::cuda && dtype == ScalarType::Half;
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || half, op, ": logits must be float32",
                  backend == Backend::cuda ? ", bfloat16 or float16" : " or bfloat16", ", got ",
                  torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(label_smoothing >= 0 && label_smoothing <= 1, op, ": label_smoothing must be in [0, 1], got ",
                  label_smoothing);
  a.rows = logits.size(0);
  a.classes = logits.size(1);
  a.logits = dense(logits);
  const auto classes = [&](const char* name, const Tensor& t) {
    STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == a.rows, op, ": ", name, " must be [", a.rows, "], got ",
                    shape_text(t));
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long, op, ": ", name, " must be Long, got ",
                    torch::headeronly::toString(t.scalar_type()));
    check_device(op, name, t, logits);
    return dense(t);
  };
  a.labels = classes("labels", labels);
  // training_batch gives empty tensors where nothing is mixed
  const bool mixed = lam.has_value() && lam->numel() > 0;
  STD_TORCH_CHECK(mixed || !partner_labels.has_value() || partner_labels->numel() == 0, op,
                  ": partner_labels and lam are given together or not at all");
  if (mixed) {
    STD_TORCH_CHECK(partner_labels.has_value(), op, ": partner_labels and lam are given together or not at all");
    a.partner_labels = classes("partner_labels", *partner_labels);
    a.lam = check_number(op, "lam", *lam, logits);
  }
  return a;
}

struct MixupCrossEntropyForward : MixupCrossEntropy {
  Tensor loss, correct, sums, normalizer;
};

inline MixupCrossEntropyForward prepare_mixup_cross_entropy(Backend backend, const Tensor& logits, const Tensor& labels,
                                                            const std::optional<Tensor>& partner_labels,
                                                            const std::optional<Tensor>& lam, double label_smoothing) {
  MixupCrossEntropyForward a{
      check_targets(backend, "mixup_cross_entropy", logits, labels, partner_labels, lam, label_smoothing),
      {},
      {},
      {},
      {}};
  a.loss = empty({}, ScalarType::Float, logits);
  a.correct = empty({}, ScalarType::Float, logits);
  a.sums = empty({2}, ScalarType::Double, logits);
  a.normalizer = empty({a.rows}, ScalarType::Float, logits);
  return a;
}

struct MixupCrossEntropyBackward : MixupCrossEntropy {
  Tensor grad_loss, normalizer, grad_logits;
};

inline MixupCrossEntropyBackward prepare_mixup_cross_entropy_backward(
    Backend backend, const Tensor& grad_loss, const Tensor& logits, const Tensor& normalizer, const Tensor& labels,
    const std::optional<Tensor>& partner_labels, const std::optional<Tensor>& lam, double label_smoothing) {
  const char* op = "_mixup_cross_entropy_backward";
  MixupCrossEntropyBackward a{
      check_targets(backend, op, logits, labels, partner_labels, lam, label_smoothing), {}, {}, {}};
  a.grad_loss = check_number(op, "grad_loss", grad_loss, logits);
  STD_TORCH_CHECK(
      normalizer.dim() == 1 && normalizer.size(0) == a.rows && normalizer.scalar_type() == ScalarType::Float, op,
      ": normalizer must be float32 [", a.rows, "], got ", torch::headeronly::toString(normalizer.scalar_type()), " ",
      shape_text(normalizer));
  check_device(op, "normalizer", normalizer, logits);
  a.normalizer = dense(normalizer);
  a.grad_logits = empty({a.rows, a.classes}, logits.scalar_type(), logits);
  return a;
}

}  // namespace fastcifar

#include "mixup_cross_entropy_gradient.h"

#include <torch/csrc/stable/library.h>

#include "cpu/loss.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

Tensor gradient(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& partner_labels,
                const std::optional<Tensor>& lam, double label_smoothing, const Tensor& grad_loss,
                const Tensor& totals) {
  const char* op = "mixup_cross_entropy_gradient";
  const auto a = prepare_mixup_cross_entropy_gradient(Backend::cpu, op, logits, labels, partner_labels, lam,
                                                      label_smoothing, grad_loss, totals);
  LossGradient gradient(op, a, label_smoothing);
  parallel(a.rows, a.rows * a.classes * 8, [&](int64_t begin, int64_t end) { gradient.take(begin, end); });
  gradient.add_sums(a.totals);
  return a.grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kMixupCrossEntropyGradientSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) { m.impl("mixup_cross_entropy_gradient", TORCH_BOX(&gradient)); }

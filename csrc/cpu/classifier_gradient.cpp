#include "classifier_gradient.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/classifier_gradient_kernel.h"
#include "cpu/loss.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

constexpr int64_t kRows = 8;  // of a part: what the kernels take at once

std::tuple<Tensor, Tensor> gradient(const Tensor& pooled, const Tensor& weight, const Tensor& bias,
                                    const Tensor& labels, const std::optional<Tensor>& partner_labels,
                                    const std::optional<Tensor>& lam, double label_smoothing, const Tensor& grad_loss,
                                    const Tensor& totals) {
  const auto a = prepare_classifier_gradient(Backend::cpu, pooled, weight, bias, labels, partner_labels, lam,
                                             label_smoothing, grad_loss, totals);
  LossGradient loss("classifier_gradient", a, label_smoothing);
  const ClassifierTask task{loss.task.element, data(a.pooled), data(a.weight), data(a.bias), a.channels, a.classes};
  void *logits = mutable_data(a.logits), *to = mutable_data(a.grad_pooled);
  const void* grad = data(a.grad_logits);
  parallel((a.rows + kRows - 1) / kRows, a.rows * a.channels * a.classes, [&](int64_t begin, int64_t end) {
    const int64_t b0 = begin * kRows, b1 = std::min(end * kRows, a.rows);
    FASTCIFAR_KERNEL(classifier_logits)(task, b0, b1, logits);
    loss.take(b0, b1);
    FASTCIFAR_KERNEL(classifier_grad_pooled)(task, b0, b1, grad, to);
  });
  loss.add_sums(a.totals);
  return {a.grad_pooled, a.grad_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kClassifierGradientSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) { m.impl("classifier_gradient", TORCH_BOX(&gradient)); }

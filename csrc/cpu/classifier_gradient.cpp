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
  const LossTask loss = task_of("classifier_gradient", a, label_smoothing);
  const ClassifierTask task{loss.element, data(a.pooled), data(a.weight), data(a.bias), a.channels, a.classes};
  const float scale = *floats(a.grad_loss) / static_cast<float>(a.rows);
  std::vector<RowLoss> rows(a.rows);
  std::vector<float> normalizer(a.rows);
  void *logits = mutable_data(a.logits), *grad = mutable_data(a.grad_logits), *to = mutable_data(a.grad_pooled);
  parallel((a.rows + kRows - 1) / kRows, a.rows * a.channels * a.classes, [&](int64_t begin, int64_t end) {
    const int64_t b0 = begin * kRows, b1 = std::min(end * kRows, a.rows);
    FASTCIFAR_KERNEL(classifier_logits)(task, b0, b1, logits);
    FASTCIFAR_KERNEL(mixup_cross_entropy)(loss, b0, b1, rows.data(), normalizer.data());
    FASTCIFAR_KERNEL(mixup_cross_entropy_backward)(loss, b0, b1, normalizer.data(), scale, grad);
    FASTCIFAR_KERNEL(classifier_grad_pooled)(task, b0, b1, grad, to);
  });
  const LossSums sums = sums_of(rows, loss);
  auto* of_epoch = static_cast<double*>(mutable_data(a.totals));
  of_epoch[0] += sums.loss;
  of_epoch[1] += sums.correct;
  return {a.grad_pooled, a.grad_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kClassifierGradientSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) { m.impl("classifier_gradient", TORCH_BOX(&gradient)); }

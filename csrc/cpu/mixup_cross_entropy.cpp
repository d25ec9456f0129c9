#include "mixup_cross_entropy.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "cpu/data.h"
#include "cpu/mixup_cross_entropy_kernel.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

LossTask task_of(const char* op, const MixupCrossEntropy& a, double label_smoothing) {
  const auto in_range = [&](const char* name, const Tensor& t) {
    const auto* values = static_cast<const int64_t*>(data(t));
    for (int64_t b = 0; b < a.rows; ++b) {
      STD_TORCH_CHECK(values[b] >= 0 && values[b] < a.classes, op, ": ", name, "[", b, "] must be in [0, ",
                      a.classes - 1, "], got ", values[b]);
    }
    return values;
  };
  LossTask task;
  task.element = element_of(a.logits);
  task.logits = data(a.logits);
  task.classes = a.classes;
  task.labels = in_range("labels", a.labels);
  task.partner_labels = a.lam ? in_range("partner_labels", *a.partner_labels) : task.labels;
  task.lam = a.lam ? *floats(*a.lam) : 1.0f;
  task.smoothing = static_cast<float>(label_smoothing);
  return task;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& logits, const Tensor& labels,
                                                   const std::optional<Tensor>& partner_labels,
                                                   const std::optional<Tensor>& lam, double label_smoothing) {
  const auto a = prepare_mixup_cross_entropy(Backend::cpu, logits, labels, partner_labels, lam, label_smoothing);
  const LossTask task = task_of("mixup_cross_entropy", a, label_smoothing);
  std::vector<RowLoss> rows(a.rows);
  float* normalizer = mutable_floats(a.normalizer);
  parallel(a.rows, a.rows * a.classes * 4, [&](int64_t begin, int64_t end) {
    FASTCIFAR_KERNEL(mixup_cross_entropy)(task, begin, end, rows.data(), normalizer);
  });
  double loss = 0, correct = 0, partner_correct = 0;
  for (const RowLoss& row : rows) {
    loss += row.loss;
    correct += row.correct;
    partner_correct += row.partner_correct;
  }
  correct = partner_correct + task.lam * (correct - partner_correct);
  *mutable_floats(a.loss) = static_cast<float>(loss / static_cast<double>(a.rows));
  *mutable_floats(a.correct) = static_cast<float>(correct);
  auto* sums = static_cast<double*>(mutable_data(a.sums));
  sums[0] = loss;
  sums[1] = correct;
  return {a.loss, a.correct, a.sums, a.normalizer};
}

Tensor backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& normalizer, const Tensor& labels,
                const std::optional<Tensor>& partner_labels, const std::optional<Tensor>& lam, double label_smoothing) {
  const auto a = prepare_mixup_cross_entropy_backward(Backend::cpu, grad_loss, logits, normalizer, labels,
                                                      partner_labels, lam, label_smoothing);
  const LossTask task = task_of("_mixup_cross_entropy_backward", a, label_smoothing);
  const float scale = *floats(a.grad_loss) / static_cast<float>(a.rows);
  void* grad = mutable_data(a.grad_logits);
  parallel(a.rows, a.rows * a.classes * 4, [&](int64_t begin, int64_t end) {
    FASTCIFAR_KERNEL(mixup_cross_entropy_backward)(task, begin, end, floats(a.normalizer), scale, grad);
  });
  return a.grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kMixupCrossEntropySchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("mixup_cross_entropy", TORCH_BOX(&forward));
  m.impl("_mixup_cross_entropy_backward", TORCH_BOX(&backward));
}

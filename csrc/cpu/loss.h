// The arguments of the ops of the loss as their kernels see them, and the sums over the rows.
#pragma once
#include <vector>

#include "cpu/data.h"
#include "cpu/mixup_cross_entropy_kernel.h"
#include "mixup_cross_entropy_gradient.h"

namespace fastcifar {

inline LossTask task_of(const char* op, const MixupCrossEntropy& a, double label_smoothing) {
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

struct LossSums {
  double loss, correct;
};

inline LossSums sums_of(const std::vector<RowLoss>& rows, const LossTask& task) {
  double loss = 0, correct = 0, partner_correct = 0;
  for (const RowLoss& row : rows) {
    loss += row.loss;
    correct += row.correct;
    partner_correct += row.partner_correct;
  }
  return {loss, partner_correct + task.lam * (correct - partner_correct)};
}

// The loss of a batch and its gradient, rows at a time.
class LossGradient {
 public:
  const LossTask task;

  LossGradient(const char* op, const MixupCrossEntropyGradient& a, double label_smoothing)
      : task(task_of(op, a, label_smoothing)), scale_(*floats(a.grad_loss) / static_cast<float>(a.rows)),
        grad_(mutable_data(a.grad_logits)), rows_(a.rows), normalizer_(a.rows) {}

  void take(int64_t begin, int64_t end) {
    FASTCIFAR_KERNEL(mixup_cross_entropy)(task, begin, end, rows_.data(), normalizer_.data());
    FASTCIFAR_KERNEL(mixup_cross_entropy_backward)(task, begin, end, normalizer_.data(), scale_, grad_);
  }
  void add_sums(const Tensor& totals) const {
    const LossSums sums = sums_of(rows_, task);
    auto* to = static_cast<double*>(mutable_data(totals));
    to[0] += sums.loss;
    to[1] += sums.correct;
  }

 private:
  float scale_;
  void* grad_;
  std::vector<RowLoss> rows_;
  std::vector<float> normalizer_;
};

}  // namespace fastcifar

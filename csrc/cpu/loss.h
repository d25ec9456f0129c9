// The arguments of the ops of the loss as their kernels see them, and the sums over the rows.
#pragma once
#include <vector>

#include "cpu/data.h"
#include "cpu/mixup_cross_entropy_kernel.h"
#include "mixup_cross_entropy.h"

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

}  // namespace fastcifar

// A step has 128 rows of 100 numbers: plain loops, in one instruction set.
#include "mixup_cross_entropy.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cpu/data.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

// Where the mass of a row's target lies.
struct Targets {
  const int64_t *labels, *partner_labels;
  float lam, smoothing;
};

Targets targets_of(const char* op, const MixupCrossEntropy& a, double label_smoothing) {
  const auto in_range = [&](const char* name, const Tensor& t) {
    const auto* values = static_cast<const int64_t*>(data(t));
    for (int64_t b = 0; b < a.rows; ++b) {
      STD_TORCH_CHECK(values[b] >= 0 && values[b] < a.classes, op, ": ", name, "[", b, "] must be in [0, ", a.classes - 1,
                      "], got ", values[b]);
    }
    return values;
  };
  const int64_t* labels = in_range("labels", a.labels);
  return {labels, a.lam ? in_range("partner_labels", *a.partner_labels) : labels, a.lam ? *floats(*a.lam) : 1.0f,
          static_cast<float>(label_smoothing)};
}

struct RowLoss {
  float loss;
  bool correct, partner_correct;
};

template <class T>
RowLoss row_loss(const T* row, int64_t classes, const Targets& t, int64_t b, float* normalizer) {
  int64_t predicted = 0;
  for (int64_t k = 1; k < classes; ++k) predicted = to_f32(row[k]) > to_f32(row[predicted]) ? k : predicted;
  const float most = to_f32(row[predicted]);
  float exponentials = 0.f, sum = 0.f;
  for (int64_t k = 0; k < classes; ++k) {
    const float x = to_f32(row[k]) - most;
    exponentials += std::exp(x);
    sum += x;
  }
  const float log_sum = std::log(exponentials);
  const int64_t label = t.labels[b], partner = t.partner_labels[b];
  const float own = to_f32(row[label]) - most, others = to_f32(row[partner]) - most;
  const float target = t.lam == 1.f ? own : t.lam * own + (1.f - t.lam) * others;
  float loss = log_sum - (1.f - t.smoothing) * target;
  if (t.smoothing > 0.f) loss -= t.smoothing / static_cast<float>(classes) * sum;  // 0 * -infinity is not a number
  normalizer[b] = most + log_sum;
  return {loss, predicted == label, predicted == partner};
}

template <class T>
void row_gradient(const T* row, int64_t classes, const Targets& t, int64_t b, float normalizer, float scale, T* grad) {
  const float everywhere = t.smoothing / static_cast<float>(classes), there = 1.f - t.smoothing;
  for (int64_t k = 0; k < classes; ++k) {
    const float target = everywhere + (k == t.labels[b] ? there * t.lam : 0.f) +
                         (k == t.partner_labels[b] ? there * (1.f - t.lam) : 0.f);
    grad[k] = from_f32<T>((std::exp(to_f32(row[k]) - normalizer) - target) * scale);
  }
}

template <class F>
void with_type(const Tensor& t, F f) {
  t.scalar_type() == ScalarType::Float ? f(float()) : f(bf16());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& logits, const Tensor& labels,
                                                   const std::optional<Tensor>& partner_labels,
                                                   const std::optional<Tensor>& lam, double label_smoothing) {
  const auto a =
      prepare_mixup_cross_entropy(Backend::cpu, logits, labels, partner_labels, lam, label_smoothing);
  const Targets t = targets_of("mixup_cross_entropy", a, label_smoothing);
  std::vector<RowLoss> rows(a.rows);
  float* normalizer = mutable_floats(a.normalizer);
  with_type(logits, [&](auto type) {
    using T = decltype(type);
    const auto* at = static_cast<const T*>(data(a.logits));
    parallel(a.rows, a.rows * a.classes * 16, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) rows[b] = row_loss(at + b * a.classes, a.classes, t, b, normalizer);
    });
  });
  double loss = 0, correct = 0, partner_correct = 0;
  for (const RowLoss& row : rows) {
    loss += row.loss;
    correct += row.correct;
    partner_correct += row.partner_correct;
  }
  correct = partner_correct + t.lam * (correct - partner_correct);
  *mutable_floats(a.loss) = static_cast<float>(loss / static_cast<double>(a.rows));
  *mutable_floats(a.correct) = static_cast<float>(correct);
  auto* sums = static_cast<double*>(mutable_data(a.sums));
  sums[0] = loss;
  sums[1] = correct;
  return {a.loss, a.correct, a.sums, a.normalizer};
}

Tensor backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& normalizer, const Tensor& labels,
                const std::optional<Tensor>& partner_labels, const std::optional<Tensor>& lam, double label_smoothing) {
  const auto a = prepare_mixup_cross_entropy_backward(Backend::cpu, grad_loss, logits, normalizer, labels, partner_labels,
                                                      lam, label_smoothing);
  const Targets t = targets_of("_mixup_cross_entropy_backward", a, label_smoothing);
  const float scale = *floats(a.grad_loss) / static_cast<float>(a.rows);
  with_type(logits, [&](auto type) {
    using T = decltype(type);
    const auto* at = static_cast<const T*>(data(a.logits));
    auto* grad = static_cast<T*>(mutable_data(a.grad_logits));
    parallel(a.rows, a.rows * a.classes * 16, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        row_gradient(at + b * a.classes, a.classes, t, b, floats(a.normalizer)[b], scale, grad + b * a.classes);
    });
  });
  return a.grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("mixup_cross_entropy", TORCH_BOX(&forward));
  m.impl("_mixup_cross_entropy_backward", TORCH_BOX(&backward));
}

#include "cpu/mixup_cross_entropy_kernel.h"

#include <cmath>

#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// e^x for x <= 0, to 2 units in the last place; NaN for NaN. It is 2^n times a polynomial (Cephes' expf). The expf of
// libm takes one number at a time, and took half of the op's time.
FC_INLINE Vec exponential(Vec x) {
  const Vec to_integer = broadcast(12582912.f);  // adding 1.5 * 2^23 rounds to an integer, in the low bits
  const Vec shifted = x * broadcast(1.44269504088896341f) + to_integer, n = shifted - to_integer;
  const Vec r = (x - n * broadcast(0.693359375f)) - n * broadcast(-2.12194440e-4f);
  constexpr float kRest[5] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  Vec p = broadcast(1.9875691500e-4f);
  for (const float c : kRest) p = p * r + broadcast(c);
  p = p * (r * r) + r + broadcast(1.f);
  const VecBits power = (reinterpret_cast<VecBits>(shifted) - (0x4b400000u - 127u)) << 23;
  return x < broadcast(-87.f) ? Vec{} : p * reinterpret_cast<Vec>(power);
}

template <class T>
RowLoss row_loss(const T* row, const LossTask& t, int64_t b, float* normalizer) {
  const int classes = static_cast<int>(t.classes), whole = classes / kLanes * kLanes;
  float most = to_f32(row[0]);
  if (whole > 0) {
    Vec largest = load(row, Full{});
    for (int k = kLanes; k < whole; k += kLanes) {
      const Vec v = load(row + k, Full{});
      largest = v > largest ? v : largest;
    }
    for (int i = 0; i < kLanes; ++i) most = largest[i] > most ? largest[i] : most;
  }
  for (int k = whole; k < classes; ++k) most = to_f32(row[k]) > most ? to_f32(row[k]) : most;
  int predicted = 0;  // of equal ones the first
  while (predicted < classes && !(to_f32(row[predicted]) == most)) ++predicted;

  Vec exponentials{}, sums{};
  for (int k = 0; k < whole; k += kLanes) {
    const Vec x = load(row + k, Full{}) - broadcast(most);
    exponentials += exponential(x);
    sums += x;
  }
  float sum_exp = sum_of(exponentials), sum = sum_of(sums);
  for (int k = whole; k < classes; ++k) {
    const float x = to_f32(row[k]) - most;
    sum_exp += std::exp(x);
    sum += x;
  }
  const float log_sum = std::log(sum_exp);
  const int64_t label = t.labels[b], partner = t.partner_labels[b];
  const float own = to_f32(row[label]) - most, others = to_f32(row[partner]) - most;
  const float target = t.lam == 1.f ? own : t.lam * own + (1.f - t.lam) * others;
  float loss = log_sum - (1.f - t.smoothing) * target;
  if (t.smoothing > 0.f) loss -= t.smoothing / static_cast<float>(classes) * sum;  // 0 * -infinity is not a number
  *normalizer = most + log_sum;
  return {loss, predicted == label, predicted == partner};
}

template <class T>
void row_gradient(const T* row, const LossTask& t, int64_t b, float normalizer, float scale, T* grad) {
  const int classes = static_cast<int>(t.classes);
  const float everywhere = t.smoothing / static_cast<float>(classes), there = 1.f - t.smoothing;
  for_vectors(classes, [&](int k, auto width) FC_LAMBDA {
    const Vec p = exponential(load(row + k, width) - broadcast(normalizer));
    store(grad + k, (p - broadcast(everywhere)) * broadcast(scale), width);
  });
  const int64_t label = t.labels[b], partner = t.partner_labels[b];
  const auto set = [&](int64_t k) {
    const float target = everywhere + (k == label ? there * t.lam : 0.f) + (k == partner ? there * (1.f - t.lam) : 0.f);
    grad[k] = from_f32<T>((std::exp(to_f32(row[k]) - normalizer) - target) * scale);
  };
  set(label);
  set(partner);
}

}  // namespace

void mixup_cross_entropy(const LossTask& t, int64_t b0, int64_t b1, RowLoss* rows, float* normalizer) {
  with_type(t.element, [&](auto type) {
    const auto* logits = static_cast<const decltype(type)*>(t.logits);
    for (int64_t b = b0; b < b1; ++b) rows[b] = row_loss(logits + b * t.classes, t, b, normalizer + b);
  });
}

void mixup_cross_entropy_backward(const LossTask& t, int64_t b0, int64_t b1, const float* normalizer, float scale,
                                  void* grad) {
  with_type(t.element, [&](auto type) {
    using T = decltype(type);
    const auto* logits = static_cast<const T*>(t.logits);
    for (int64_t b = b0; b < b1; ++b)
      row_gradient(logits + b * t.classes, t, b, normalizer[b], scale, static_cast<T*>(grad) + b * t.classes);
  });
}

}  // namespace fastcifar::FASTCIFAR_ISA

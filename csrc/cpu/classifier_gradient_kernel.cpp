#include "cpu/classifier_gradient_kernel.h"

#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Calls f(first, Count<MOST> or Count<1>) for groups of [begin, end).
template <int MOST, class F>
FC_INLINE void for_groups(int64_t begin, int64_t end, F f) {
  for (; begin + MOST <= end; begin += MOST) f(begin, Count<MOST>{});
  for (; begin < end; ++begin) f(begin, Count<1>{});
}

// The logits of R rows for N classes.
template <int R, int N, class T>
FC_INLINE void logits_of(const T* rows, const T* weight, const T* bias, const ClassifierTask& t, T* logits) {
  Vec sum[R][N] = {};
  for_vectors(static_cast<int>(t.channels), [&](int k, auto lanes) FC_LAMBDA {
    Vec classes[N];
    for (int n = 0; n < N; ++n) classes[n] = load(weight + n * t.channels + k, lanes);
    for (int r = 0; r < R; ++r) {
      const Vec row = load(rows + r * t.channels + k, lanes);
      for (int n = 0; n < N; ++n) sum[r][n] = row * classes[n] + sum[r][n];
    }
  });
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) logits[r * t.classes + n] = from_f32<T>(sum_of(sum[r][n]) + to_f32(bias[n]));
  }
}

// R rows of a product with `count` rows of channels: to[r] is the sum of factors[r * of_row + i * of_step] * from[i].
template <int R, class T>
FC_INLINE void weighted_sums(const T* factors, int64_t of_row, int64_t of_step, const T* from, int64_t count,
                             int64_t channels, T* to) {
  for_vectors(static_cast<int>(channels), [&](int k, auto lanes) FC_LAMBDA {
    Vec sum[R] = {};
    for (int64_t i = 0; i < count; ++i) {
      const Vec values = load(from + i * channels + k, lanes);
      for (int r = 0; r < R; ++r) sum[r] = broadcast(to_f32(factors[r * of_row + i * of_step])) * values + sum[r];
    }
    for (int r = 0; r < R; ++r) store(to + r * channels + k, sum[r], lanes);
  });
}

}  // namespace

void classifier_logits(const ClassifierTask& t, int64_t b0, int64_t b1, void* logits) {
  with_type(t.element, [&](auto type) {
    using T = decltype(type);
    const auto *pooled = static_cast<const T*>(t.pooled), *weight = static_cast<const T*>(t.weight);
    const auto* bias = static_cast<const T*>(t.bias);
    for_groups<4>(b0, b1, [&](int64_t b, auto rows) FC_LAMBDA {
      for_groups<4>(0, t.classes, [&](int64_t n, auto classes) FC_LAMBDA {
        logits_of<decltype(rows)::value, decltype(classes)::value>(
            pooled + b * t.channels, weight + n * t.channels, bias + n, t, static_cast<T*>(logits) + b * t.classes + n);
      });
    });
  });
}

void classifier_grad_pooled(const ClassifierTask& t, int64_t b0, int64_t b1, const void* grad_logits,
                            void* grad_pooled) {
  with_type(t.element, [&](auto type) {
    using T = decltype(type);
    for_groups<8>(b0, b1, [&](int64_t b, auto rows) FC_LAMBDA {
      weighted_sums<decltype(rows)::value>(static_cast<const T*>(grad_logits) + b * t.classes, t.classes, 1,
                                           static_cast<const T*>(t.weight), t.classes, t.channels,
                                           static_cast<T*>(grad_pooled) + b * t.channels);
    });
  });
}

void classifier_grad_weight(const ClassifierTask& t, int64_t n0, int64_t n1, const void* grad_logits, void* grad_weight,
                            void* grad_bias) {
  with_type(t.element, [&](auto type) {
    using T = decltype(type);
    const T* grads = static_cast<const T*>(grad_logits);
    for_groups<8>(n0, n1, [&](int64_t n, auto classes) FC_LAMBDA {
      weighted_sums<decltype(classes)::value>(grads + n, 1, t.classes, static_cast<const T*>(t.pooled), t.rows,
                                              t.channels, static_cast<T*>(grad_weight) + n * t.channels);
    });
    for (int64_t n = n0; n < n1; ++n) {
      float sum = 0;
      for (int64_t b = 0; b < t.rows; ++b) sum += to_f32(grads[b * t.classes + n]);
      static_cast<T*>(grad_bias)[n] = from_f32<T>(sum);
    }
  });
}

}  // namespace fastcifar::FASTCIFAR_ISA

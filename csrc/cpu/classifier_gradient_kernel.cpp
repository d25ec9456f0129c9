#include "cpu/classifier_gradient_kernel.h"

#include <type_traits>

#include "cpu/product.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Calls f(first, Count<MOST> or Count<1>) for groups of [begin, end).
template <int MOST, class F>
FC_INLINE void for_groups(int64_t begin, int64_t end, F f) {
  for (; begin + MOST <= end; begin += MOST) f(begin, Count<MOST>{});
  for (; begin < end; ++begin) f(begin, Count<1>{});
}

// The sum of all lanes, by halves.
template <int half, int... lane>
FC_INLINE Vec added_halves(Vec v, std::integer_sequence<int, lane...>) {
  return v + reinterpret_cast<Vec>(shuffled(reinterpret_cast<VecBits>(v), reinterpret_cast<VecBits>(v),
                                            std::integer_sequence<int, (lane ^ half)...>{}));
}
template <int half = kLanes / 2>
FC_INLINE float sum_by_halves(Vec v) {
  v = added_halves<half>(v, std::make_integer_sequence<int, kLanes>{});
  if constexpr (half == 1) {
    return v[0];
  } else {
    return sum_by_halves<half / 2>(v);
  }
}

// Whether numbers of type T are multiplied in pairs.
template <class T>
constexpr bool kInPairs = kHasPairs && std::is_same_v<T, bf16>;

// Calls f(first channel) for whole lines, and returns the channel behind those.
template <class F>
FC_INLINE int64_t for_lines(int64_t channels, F f) {
  int64_t k = 0;
  for (; k + 2 * kLanes <= channels; k += 2 * kLanes) f(k);
  return k;
}

// The logits of R rows for N classes.
template <int R, int N, class T>
FC_INLINE void logits_of(const T* rows, const T* weight, const T* bias, const ClassifierTask& t, T* logits) {
  Vec sum[R][N] = {};
  int64_t first = 0;
  if constexpr (kInPairs<T>) {
    first = for_lines(t.channels, [&](int64_t k) FC_LAMBDA {
      Vec classes[N];
      for (int n = 0; n < N; ++n) classes[n] = reinterpret_cast<Vec>(load_bits(weight + n * t.channels + k));
      for (int r = 0; r < R; ++r) {
        const VecBits row = load_bits(rows + r * t.channels + k);
        for (int n = 0; n < N; ++n) sum[r][n] = multiply_add(row, classes[n], sum[r][n]);
      }
    });
  }
  for_vectors(static_cast<int>(t.channels - first), [&](int offset, auto lanes) FC_LAMBDA {
    const int64_t k = first + offset;
    Vec classes[N];
    for (int n = 0; n < N; ++n) classes[n] = load(weight + n * t.channels + k, lanes);
    for (int r = 0; r < R; ++r) {
      const Vec row = load(rows + r * t.channels + k, lanes);
      for (int n = 0; n < N; ++n) sum[r][n] = row * classes[n] + sum[r][n];
    }
  });
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) logits[r * t.classes + n] = from_f32<T>(sum_by_halves(sum[r][n]) + to_f32(bias[n]));
  }
}

// The factors of the rows of a product with `count` rows of channels: of row r and step i at [r * of_row + i * of_step].
template <class T>
struct RowFactors {
  const T* first;
  int64_t of_row, of_step, count;

  FC_INLINE float at(int64_t row, int64_t step) const { return to_f32(first[row * of_row + step * of_step]); }
};

// R rows of such a product: to[r] is the sum of the factors of row r times the rows of `from`. `pairs`: scratch memory.
template <int R, class T>
FC_INLINE void weighted_sums(const RowFactors<T>& factors, const T* from, int64_t channels, T* to, Pair* pairs) {
  const int64_t count = factors.count, steps = (count + 1) / 2;  // of pairs
  if constexpr (kInPairs<T>) {
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t i = 0; i < steps; ++i) {
        const float second = 2 * i + 1 < count ? factors.at(r, 2 * i + 1) : 0.f;
        pairs[r * steps + i] = {bits_of(factors.at(r, 2 * i)) >> 16 | bits_of(second)};
      }
    }
  }
  const int64_t first = for_lines(channels, [&](int64_t k) FC_LAMBDA {
    Vec low[R] = {}, high[R] = {};
    const T* row = from + k;
    if constexpr (kInPairs<T>) {
      for (int64_t i = 0; i < steps; ++i, row += 2 * channels) {
        VecBits of_low, of_high;
        pair_up(load_bits(row), 2 * i + 1 < count ? load_bits(row + channels) : VecBits{}, of_low, of_high);
        for (int r = 0; r < R; ++r) {
          low[r] = multiply_add(pairs[r * steps + i], reinterpret_cast<Vec>(of_low), low[r]);
          high[r] = multiply_add(pairs[r * steps + i], reinterpret_cast<Vec>(of_high), high[r]);
        }
      }
    } else {
      for (int64_t i = 0; i < count; ++i, row += channels) {
        const Vec of_low = load(row, Full{}), of_high = load(row + kLanes, Full{});
        for (int r = 0; r < R; ++r) {
          low[r] = multiply_add(factors.at(r, i), of_low, low[r]);
          high[r] = multiply_add(factors.at(r, i), of_high, high[r]);
        }
      }
    }
    for (int r = 0; r < R; ++r) store(to + r * channels + k, low[r], high[r]);
  });
  for_vectors(static_cast<int>(channels - first), [&](int offset, auto lanes) FC_LAMBDA {
    const int64_t k = first + offset;
    Vec sum[R] = {};
    for (int64_t i = 0; i < count; ++i) {
      const Vec values = load(from + i * channels + k, lanes);
      for (int r = 0; r < R; ++r) sum[r] = multiply_add(factors.at(r, i), values, sum[r]);
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

int64_t classifier_scratch(const ClassifierTask& t) {
  const int64_t most = t.rows > t.classes ? t.rows : t.classes;
  return kClassifierGroup * (most + 1) / 2;
}

void classifier_grad_pooled(const ClassifierTask& t, int64_t b0, int64_t b1, const void* grad_logits, void* grad_pooled,
                            float* scratch) {
  with_type(t.element, [&](auto type) {
    using T = decltype(type);
    const T* grads = static_cast<const T*>(grad_logits);
    for_groups<kClassifierGroup>(b0, b1, [&](int64_t b, auto rows) FC_LAMBDA {
      weighted_sums<decltype(rows)::value>(
          RowFactors<T>{grads + b * t.classes, t.classes, 1, t.classes}, static_cast<const T*>(t.weight), t.channels,
          static_cast<T*>(grad_pooled) + b * t.channels, reinterpret_cast<Pair*>(scratch));
    });
  });
}

void classifier_grad_weight(const ClassifierTask& t, int64_t n0, int64_t n1, const void* grad_logits, void* grad_weight,
                            void* grad_bias, float* scratch) {
  with_type(t.element, [&](auto type) {
    using T = decltype(type);
    const T* grads = static_cast<const T*>(grad_logits);
    for_groups<kClassifierGroup>(n0, n1, [&](int64_t n, auto classes) FC_LAMBDA {
      weighted_sums<decltype(classes)::value>(
          RowFactors<T>{grads + n, 1, t.classes, t.rows}, static_cast<const T*>(t.pooled), t.channels,
          static_cast<T*>(grad_weight) + n * t.channels, reinterpret_cast<Pair*>(scratch));
    });
    for (int64_t n = n0; n < n1; ++n) {
      float sum = 0;
      for (int64_t b = 0; b < t.rows; ++b) sum += to_f32(grads[b * t.classes + n]);
      static_cast<T*>(grad_bias)[n] = from_f32<T>(sum);
    }
  });
}

}  // namespace fastcifar::FASTCIFAR_ISA

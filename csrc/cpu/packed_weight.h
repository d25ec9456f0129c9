// The weight of a pointwise convolution as a right factor: W^T for the product, W for its gradient.
#pragma once

#include <type_traits>

#include "cpu/product_factors.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// The number of W at p, rounded to T.
template <class T, class W>
FC_INLINE float weight_at(const W* p) {
  return to_f32(from_f32<T>(to_f32(*p)));
}

// A step of a panel of W^T: numbers of W that lie `pitch` apart from column to column.
template <class T, class W>
FC_INLINE void pack_step(float* out, int64_t step, int64_t length, int64_t width, const W* weight, int64_t pitch) {
  for (int64_t j = 0; j < width; ++j) {
    out[j] = step < length ? weight_at<T>(weight + step + j * pitch) : 0.0f;
  }
}
template <class T, class Number, class W>
FC_INLINE void pack_step(Number* out, int64_t step, int64_t length, int64_t width, const W* weight, int64_t pitch) {
  for (int64_t j = 0; j < width; ++j) {
    const W* first = weight + 2 * step + j * pitch;
    const Parts<Number> low(broadcast(2 * step < length ? weight_at<T>(first) : 0)),
        high(broadcast(2 * step + 1 < length ? weight_at<T>(first + 1) : 0));
    for (int part = 0; part < kPartsOf<Number>; ++part) {
      parts_of(out)[part * kPanel + j] = Pair{pair_up_parts(low.of[part], high.of[part])[0]};
    }
  }
}

// kLanes numbers, or the parts of pairs of numbers, that lie one after the other in W.
template <class Number>
struct NumbersOfW {
  VecBits of[kPartsOf<Number>];
};
template <class Number, class T, class W>
FC_INLINE NumbersOfW<Number> numbers_of(const W* p) {
  if constexpr (kStepsOf<Number> == 1) {
    return {{reinterpret_cast<VecBits>(rounded<T>(load(p, Full{})))}};
  } else if constexpr (kPartsOf<Number> == 1 && std::is_same_v<W, bf16>) {
    return {{load_bits(p)}};
  } else {
    const Parts<Number> low(load(p, Full{})), high(load(p + kLanes, Full{}));
    NumbersOfW<Number> numbers;
    for (int part = 0; part < kPartsOf<Number>; ++part) {
      bf16 narrow[2 * kLanes];
      store(narrow, low.of[part], high.of[part]);
      numbers.of[part] = load_bits(narrow);
    }
    return numbers;
  }
}

// A panel of W^T, whose steps lie one after the other in W.
template <class Number, class T, class W>
void pack_transposed_panel(const W* weight, int64_t length, int64_t width, int64_t pitch, Number* out) {
  const int64_t steps = num_steps<Number>(length);
  int64_t step = 0;
  if (width == kPanel) {
    for (; (step + kLanes) * kStepsOf<Number> <= length; step += kLanes) {
      for (int64_t j = 0; j < kPanel; j += kLanes) {
        VecBits block[kPartsOf<Number>][kLanes];
        for (int i = 0; i < kLanes; ++i) {
          const auto numbers = numbers_of<Number, T>(weight + (j + i) * pitch + step * kStepsOf<Number>);
          for (int part = 0; part < kPartsOf<Number>; ++part) block[part][i] = numbers.of[part];
        }
        for (int part = 0; part < kPartsOf<Number>; ++part) {
          transpose(block[part]);
          auto* to = parts_of(out + step * kPanel) + part * kPanel + j;
          for (int i = 0; i < kLanes; ++i) store(to + i * kPartsOf<Number> * kPanel, block[part][i]);
        }
      }
    }
  }
  for (; step < steps; ++step) pack_step<T>(out + step * kPanel, step, length, width, weight, pitch);
}

// A panel of W, whose columns lie one after the other.
template <class T, class W>
void pack_panel(const W* weight, int64_t length, int64_t width, int64_t pitch, float* out) {
  for (int64_t step = 0; step < length; ++step) {
    for_vectors(static_cast<int>(width), [&](int c, auto lanes) FC_LAMBDA {
      store(out + step * kPanel + c, rounded<T>(load(weight + step * pitch + c, lanes)), lanes);
    });
  }
}
template <class T, class Number, class W>
void pack_panel(const W* weight, int64_t length, int64_t width, int64_t pitch, Number* out) {
  int64_t step = 0;
  for (; width == kPanel && 2 * step + 2 <= length; ++step) {
    const W* at = weight + 2 * step * pitch;
    const auto first = numbers_of<Number, T>(at), second = numbers_of<Number, T>(at + pitch);
    for (int part = 0; part < kPartsOf<Number>; ++part) {
      VecBits low, high;
      pair_up(first.of[part], second.of[part], low, high);
      Pair* to = parts_of(out + step * kPanel) + part * kPanel;
      store(to, low), store(to + kLanes, high);
    }
  }
  for (; step < num_steps<Number>(length); ++step) {
    for_vectors(static_cast<int>(width), [&](int c, auto lanes) FC_LAMBDA {
      const W* at = weight + 2 * step * pitch + c;
      const Parts<Number> first(2 * step < length ? rounded<T>(load(at, lanes)) : Vec{}),
          second(2 * step + 1 < length ? rounded<T>(load(at + pitch, lanes)) : Vec{});
      for (int part = 0; part < kPartsOf<Number>; ++part) {
        store(parts_of(out + step * kPanel) + part * kPanel + c, pair_up_parts(first.of[part], second.of[part]));
      }
    });
  }
}

template <class Number, class T, class W>
void pack_weight(const PointwiseProduct& p, const W* weight, bool transposed, int64_t first, int64_t end,
                 Number* packed) {
  const int64_t length = transposed ? p.k : p.m, columns = transposed ? p.m : p.k, steps = num_steps<Number>(length);
  for (int64_t panel = first; panel < end; ++panel) {
    const int64_t column = panel * kPanel, width = columns - column < kPanel ? columns - column : kPanel;
    Number* out = packed + column * steps;
    if (width < kPanel) memset(static_cast<void*>(out), 0, kPanel * steps * sizeof(Number));
    if (transposed) {
      pack_transposed_panel<Number, T>(weight + column * p.k, length, width, p.k, out);
    } else {
      pack_panel<T>(weight + column, length, width, p.k, out);
    }
  }
}

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA

#include "cpu/dwconv3x3_kernel.h"

#include "cpu/tile.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

template <class T, class Lanes>
struct ForwardSink {
  T* y;
  int64_t width, channels;
  Lanes lanes;

  FC_INLINE void operator()(int64_t row, int64_t column, Vec sum) {
    store(y + (row * width + column) * channels, sum, lanes);
  }
  FC_INLINE void finish() {}
};

template <int stride, class T>
void forward(const DwShape& s, const Range& range, const T* x, const float* taps, int64_t pitch, T* y, float* memory) {
  Ring ring(memory, s.H, s.W);
  const int64_t image = s.H * s.W * s.C, steps = s.H * ((s.C + kBlock - 1) / kBlock);
  for (int64_t n = range.n0; n < range.n1; ++n) {
    Ahead ahead;
    if (s.C > kBlock && n + 1 < range.n1 && range.c1 - range.c0 == s.C) {
      ahead.add(x + (n + 1) * image, image * sizeof(T), steps);
      ahead.add(y + (n + 1) * s.Ho * s.Wo * s.C, s.Ho * s.Wo * s.C * sizeof(T), steps);
    }
    for (int64_t c = range.c0; c < range.c1; c += kBlock) {
      const T* xn = x + n * s.H * s.W * s.C + c;
      T* yn = y + n * s.Ho * s.Wo * s.C + c;
      const int channels = static_cast<int>(range.c1 - c < kBlock ? range.c1 - c : kBlock);
      convolve<stride>(
          ring, s, channels, taps + c, pitch,
          [&](int64_t row, int offset, auto lanes) FC_LAMBDA {
            const T* p = xn + row * s.W * s.C + offset;
            return [p, lanes, step = s.C](int64_t column) FC_LAMBDA { return load(p + column * step, lanes); };
          },
          ahead,
          [&](int offset, auto lanes) FC_LAMBDA {
            return ForwardSink<T, decltype(lanes)>{yn + offset, s.Wo, s.C, lanes};
          });
    }
  }
}

template <class T, class Lanes, bool need_x, bool need_w>
struct BackwardSink {
  const T* x;
  T* grad_x;
  float* sums;
  int64_t width, channels, pitch;
  Lanes lanes;
  Vec grad_w[9];

  FC_INLINE BackwardSink(const T* x, T* grad_x, float* sums, int64_t width, int64_t channels, int64_t pitch, Lanes lanes)
      : x(x), grad_x(grad_x), sums(sums), width(width), channels(channels), pitch(pitch), lanes(lanes) {
    if constexpr (need_w) {
      for (int k = 0; k < 9; ++k) grad_w[k] = Vec{};
    }
  }
  template <int... K>
  FC_INLINE void operator()(int64_t row, int64_t column, Vec sum, Tap<K>... taps) {
    const int64_t at = (row * width + column) * channels;
    if constexpr (need_x) store(grad_x + at, sum, lanes);
    if constexpr (need_w) {
      const Vec value = load(x + at, lanes);
      ((grad_w[K] = value * taps.value + grad_w[K]), ...);
    }
  }
  FC_INLINE void finish() {
    if constexpr (need_w) {
      for (int k = 0; k < 9; ++k) accumulate(sums + k * pitch, grad_w[k]);
    }
  }
};

template <class T, bool need_x, bool need_w>
void backward(const DwShape& s, const Range& range, const T* grad_y, const T* x, const float* taps, int64_t pitch,
              T* grad_x, float* grad_w, float* memory) {
  Ring ring(memory, s.Ho, s.Wo);
  const int64_t image_size = s.H * s.W * s.C, grad_size = s.Ho * s.Wo * s.C, steps = s.Ho * ((s.C + kBlock - 1) / kBlock);
  for (int64_t n = range.n0; n < range.n1; ++n) {
    Ahead ahead;
    if (s.C > kBlock && n + 1 < range.n1 && range.c1 - range.c0 == s.C) {
      ahead.add(grad_y + (n + 1) * grad_size, grad_size * sizeof(T), steps);
      if (need_w) ahead.add(x + (n + 1) * image_size, image_size * sizeof(T), steps);
      if (need_x) ahead.add(grad_x + (n + 1) * image_size, image_size * sizeof(T), steps);
    }
    for (int64_t c = range.c0; c < range.c1; c += kBlock) {
      const T* gn = grad_y + n * s.Ho * s.Wo * s.C + c;
      const int64_t image = n * s.H * s.W * s.C + c;
      const int channels = static_cast<int>(range.c1 - c < kBlock ? range.c1 - c : kBlock);
      const auto input = [&](int64_t row, int offset, auto lanes) FC_LAMBDA {
        const T* p = gn + row * s.Wo * s.C + offset;
        return [p, lanes, step = s.C](int64_t column) FC_LAMBDA { return load(p + column * step, lanes); };
      };
      const auto sink = [&](int offset, auto lanes) FC_LAMBDA {
        return BackwardSink<T, decltype(lanes), need_x, need_w>(x + image + offset, grad_x + image + offset,
                                                                grad_w + c + offset, s.W, s.C, pitch, lanes);
      };
      if (s.stride == 1 && !need_w) {  // the convolution with its taps in reverse
        convolve<1>(ring, s, channels, taps + 8 * pitch + c, -pitch, input, ahead, sink);
      } else if (s.stride == 1) {
        convolve_transposed1(ring, s, channels, taps + c, pitch, input, ahead, sink);
      } else {
        convolve_transposed2(ring, s, channels, taps + c, pitch, input, ahead, sink);
      }
    }
  }
}

template <class T>
void backward(const DwShape& s, const Range& range, const void* grad_y, const void* x, const float* taps, int64_t pitch,
              void* grad_x, float* grad_w, float* ring) {
  const auto* g = static_cast<const T*>(grad_y);
  const auto* xt = static_cast<const T*>(x);
  auto* gx = static_cast<T*>(grad_x);
  if (grad_x && grad_w) {
    backward<T, true, true>(s, range, g, xt, taps, pitch, gx, grad_w, ring);
  } else if (grad_x) {
    backward<T, true, false>(s, range, g, xt, taps, pitch, gx, grad_w, ring);
  } else {
    backward<T, false, true>(s, range, g, xt, taps, pitch, gx, grad_w, ring);
  }
}

template <class T>
void forward(const DwShape& s, const Range& range, const void* x, const float* taps, int64_t pitch, void* y, float* ring) {
  const auto run = s.stride == 1 ? &forward<1, T> : &forward<2, T>;
  run(s, range, static_cast<const T*>(x), taps, pitch, static_cast<T*>(y), ring);
}

}  // namespace

void dwconv3x3_forward(Element element, const DwShape& s, const Range& range, const void* x, const float* taps,
                       int64_t pitch, void* y, float* ring) {
  (element == Element::f32 ? &forward<float> : &forward<bf16>)(s, range, x, taps, pitch, y, ring);
}

void dwconv3x3_backward(Element element, const DwShape& s, const Range& range, const void* grad_y, const void* x,
                        const float* taps, int64_t pitch, void* grad_x, float* grad_w, float* ring) {
  (element == Element::f32 ? &backward<float> : &backward<bf16>)(s, range, grad_y, x, taps, pitch, grad_x, grad_w, ring);
}

void sum_parts(const float* parts, int64_t num_parts, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = parts[i];
  for (int64_t k = 1; k < num_parts; ++k) {
    for (int64_t i = 0; i < size; ++i) out[i] += parts[k * size + i];
  }
}

}  // namespace fastcifar::FASTCIFAR_ISA

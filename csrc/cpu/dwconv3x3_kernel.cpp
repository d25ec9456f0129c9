#include "cpu/dwconv3x3_kernel.h"

#include <type_traits>

#include "cpu/rows.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Rows of outputs in a strip; what is left at the lower border is cut into strips of half as many. Found by trying 1, 2
// and 4: the registers hold the nine taps, the sums and the columns of such a strip.
template <int stride>
constexpr int kStrip = stride == 1 ? 4 : 2;

// Calls f(first row, Count<n>) for strips of n rows, then for strips of n / 2 rows over the rest, and so on.
template <int n, class F>
FC_INLINE void for_strips(int64_t rows, F f, int64_t first = 0) {
  for (; first + n <= rows; first += n) f(first, Count<n>{});
  if constexpr (n > 1) for_strips<n / 2>(rows, f, first);
}

// The channels of a range in an image in channels_last memory.
template <class T>
struct Map {
  T* first;
  int64_t height, width, step;

  FC_INLINE T* row(int64_t y) const { return first + y * width * step; }
  // Pointers to n rows from y on. Those of rows outside the map point to `outside`.
  template <int n>
  FC_INLINE auto rows(int64_t y, int offset, T* outside) const {
    struct {
      T* row[n];
    } found;
    for (int r = 0; r < n; ++r) found.row[r] = y + r < 0 || y + r >= height ? outside : row(y + r) + offset;
    return found;
  }
  // Asks for what follows row y in memory, even where that is the next image: `n` pixels a call.
  template <int n>
  FC_INLINE auto prefetch(int64_t y) const {
    constexpr bool write = !std::is_const_v<T>;
    return Prefetch<n * kLanes* static_cast<int>(sizeof(T)), write>{reinterpret_cast<const char*>(row(y))};
  }
};

template <int stride, class T>
void forward(const DwShape& s, const Range& range, const T* x, const float* taps, int64_t pitch, T* y, const T* zeros) {
  const int channels = static_cast<int>(range.c1 - range.c0);
  for (int64_t n = range.n0; n < range.n1; ++n) {
    const Map<const T> in{x + n * s.H * s.W * s.C + range.c0, s.H, s.W, s.C};
    const Map<T> out{y + n * s.Ho * s.Wo * s.C + range.c0, s.Ho, s.Wo, s.C};
    for_strips<kStrip<stride>>(s.Ho, [&](int64_t first, auto strip) FC_LAMBDA {
      constexpr int R = decltype(strip)::value, halo = 3 - stride;
      auto next_in = in.template prefetch<R * stride * stride>((first + R) * stride - 1 + halo);
      auto next_out = out.template prefetch<R>(first + R);
      for_vectors(channels, [&](int offset, auto lanes) FC_LAMBDA {
        const auto i = in.template rows<R * stride + halo>(first * stride - 1, offset, zeros);
        const auto o = out.template rows<R>(first, offset, nullptr);
        const TapVectors w(taps + range.c0 + offset, pitch);
        if constexpr (stride == 1) {
          convolve_rows1<R>(i.row, o.row, s.W, s.C, w, lanes, next_in, next_out);
        } else {
          convolve_rows2<R>(i.row, o.row, s.W, s.C, w, lanes, next_in, next_out);
        }
      });
    });
  }
}

template <int stride, class T, bool need_x, bool need_w>
void backward(const DwShape& s, const Range& range, const T* grad_y, const T* x, const float* taps, int64_t pitch,
              T* grad_x, float* grad_w, const T* zeros) {
  const int channels = static_cast<int>(range.c1 - range.c0);
  for (int64_t n = range.n0; n < range.n1; ++n) {
    const int64_t image = n * s.H * s.W * s.C + range.c0;
    const Map<const T> grads{grad_y + n * s.Ho * s.Wo * s.C + range.c0, s.Ho, s.Wo, s.C};
    const Map<const T> pixels{x + image, s.H, s.W, s.C};
    const Map<T> outs{grad_x + image, s.H, s.W, s.C};
    for_strips<kStrip<stride>>(s.Ho, [&](int64_t first, auto strip) FC_LAMBDA {
      constexpr int R = decltype(strip)::value, halo = 3 - stride;
      auto next_grads = grads.template prefetch<R>(first + R + 1);
      auto next_pixels = pixels.template prefetch<R * stride * stride>((first + R) * stride - 1 + halo);
      auto next_outs = outs.template prefetch<R * stride * stride>((first + R) * stride);
      for_vectors(channels, [&](int offset, auto lanes) FC_LAMBDA {
        if constexpr (need_w) {
          const auto i = pixels.template rows<R * stride + halo>(first * stride - 1, offset, zeros);
          const auto g = grads.template rows<R>(first, offset, nullptr);
          TapSums sums;
          if constexpr (stride == 1) {
            add_weight_gradient1<R>(i.row, g.row, s.W, s.C, sums, lanes, next_pixels, next_grads);
          } else {
            add_weight_gradient2<R>(i.row, g.row, s.W, s.C, sums, lanes, next_pixels, next_grads);
          }
          sums.add_to(grad_w + range.c0 + offset, pitch);
        }
        if constexpr (need_x) {
          const auto g = grads.template rows<R + 3 - stride>(first - (stride == 1), offset, zeros);
          const auto o = outs.template rows<R * stride>(first * stride, offset, nullptr);
          const float* w = taps + range.c0 + offset;
          const auto sweep = [&](auto&... ahead) FC_LAMBDA {
            if constexpr (stride == 1) {  // the convolution with its taps in reverse
              convolve_rows1<R>(g.row, o.row, s.W, s.C, TapVectors(w + 8 * pitch, -pitch), lanes, ahead...);
            } else {
              convolve_transposed_rows2<R>(g.row, o.row, s.W, s.C, TapVectors(w, pitch), lanes, ahead...);
            }
          };
          if constexpr (need_w) {
            sweep(next_outs);
          } else {
            sweep(next_outs, next_grads);
          }
        }
      });
    });
  }
}

template <int stride, class T>
void backward(const DwShape& s, const Range& range, const void* grad_y, const void* x, const float* taps, int64_t pitch,
              void* grad_x, float* grad_w, const void* zeros) {
  const auto run = grad_x && grad_w ? &backward<stride, T, true, true>
                   : grad_x         ? &backward<stride, T, true, false>
                                    : &backward<stride, T, false, true>;
  run(s, range, static_cast<const T*>(grad_y), static_cast<const T*>(x), taps, pitch, static_cast<T*>(grad_x), grad_w,
      static_cast<const T*>(zeros));
}

template <class T>
void forward(const DwShape& s, const Range& range, const void* x, const float* taps, int64_t pitch, void* y,
             const void* zeros) {
  const auto run = s.stride == 1 ? &forward<1, T> : &forward<2, T>;
  run(s, range, static_cast<const T*>(x), taps, pitch, static_cast<T*>(y), static_cast<const T*>(zeros));
}

}  // namespace

void dwconv3x3_forward(Element element, const DwShape& s, const Range& range, const void* x, const float* taps,
                       int64_t pitch, void* y, const float* zeros) {
  (element == Element::f32 ? &forward<float> : &forward<bf16>)(s, range, x, taps, pitch, y, zeros);
}

void dwconv3x3_backward(Element element, const DwShape& s, const Range& range, const void* grad_y, const void* x,
                        const float* taps, int64_t pitch, void* grad_x, float* grad_w, const float* zeros) {
  const auto run = element == Element::f32 ? (s.stride == 1 ? &backward<1, float> : &backward<2, float>)
                                           : (s.stride == 1 ? &backward<1, bf16> : &backward<2, bf16>);
  run(s, range, grad_y, x, taps, pitch, grad_x, grad_w, zeros);
}

void sum_parts(const float* parts, int64_t num_parts, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = parts[i];
  for (int64_t k = 1; k < num_parts; ++k) {
    for (int64_t i = 0; i < size; ++i) out[i] += parts[k * size + i];
  }
}

}  // namespace fastcifar::FASTCIFAR_ISA

#include "cpu/stem_kernel.h"

#include "cpu/stem_tiles.h"
#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Sums that the registers hold: of the forward kPixels x kVectors, of the backward up to kHalf x kVectors. A row of the
// weight is swept in one go where there are 32 registers, else in two.
constexpr int kVectors = 2;
constexpr int kPixels = kLanes == 16 ? 8 : 4;
constexpr int kHalf = kLanes == 16 ? kStemRow : 5;

// Calls f(first channel, Count<vectors>, Full or Tail) over the range's channels.
template <class F>
FC_INLINE void for_channels(const Range& range, F f) {
  int64_t c = range.c0;
  for (; c + kVectors * kLanes <= range.c1; c += kVectors * kLanes) f(c, Count<kVectors>{}, Full{});
  for_vectors(static_cast<int>(range.c1 - c),
              [&](int offset, auto lanes) FC_LAMBDA { f(c + offset, Count<1>{}, lanes); });
}

// Calls f(first pixel, Count<pixels>) over a row.
template <class F>
FC_INLINE void for_pixels(int64_t width, F f) {
  int64_t x = 0;
  for (; x + kPixels <= width; x += kPixels) f(x, Count<kPixels>{});
  for (; x < width; ++x) f(x, Count<1>{});
}

// The border of `image` is zeros already.
template <class T>
void copy_image(const StemShape& s, const T* x, float* image) {
  for (int64_t y = 0; y < s.H; ++y) {
    float* row = image + s.pixel(y + 1, 1);
    for (int64_t i = 0; i < 3 * s.W; ++i) row[i] = to_f32(x[y * 3 * s.W + i]);
  }
}

template <class T>
void set_pivot(const StemShape& s, const Range& range, const T* x, const float* taps, int64_t pitch, float* columns,
               float* image) {
  // The convolution of the mean is the mean of the convolutions.
  float window[kStemTaps] = {};
  const Sample images(s.N);
  for (int64_t i = 0; i < images.size; ++i) {
    copy_image(s, x + images[i] * s.H * s.W * 3, image);
    const float* pixels = image + s.pixel(s.H / 2, s.W / 2);
    for (int t = 0; t < kStemTaps; ++t) window[t] += pixels[t / kStemRow * s.row() + t % kStemRow];
  }
  const auto size = static_cast<float>(images.size);
  for (int64_t c = range.c0; c < range.c1; ++c) {
    float sum = 0;
    for (int t = 0; t < kStemTaps; ++t) sum += window[t] / size * taps[t * pitch + c];
    columns[kMean * pitch + c] = to_f32(from_f32<T>(sum));  // rounded: see set_output_pivot
  }
}

template <class T>
void forward(const StemShape& s, const Range& range, const T* x, const float* taps, int64_t pitch, T* u,
             const float* columns, float* sums, float* image) {
  for (int64_t n = range.n0; n < range.n1; ++n) {
    copy_image(s, x + n * s.H * s.W * 3, image);
    for (int64_t y = 0; y < s.H; ++y) {
      T* row = u + (n * s.H + y) * s.W * s.C;
      for_channels(range, [&](int64_t c, auto vectors, auto lanes) FC_LAMBDA {
        constexpr int V = decltype(vectors)::value;
        Vec sum[V] = {}, square[V] = {};
        for_pixels(s.W, [&](int64_t first, auto pixels) FC_LAMBDA {
          constexpr int P = decltype(pixels)::value;
          Vec value[P][V] = {};
          const float* in = image + s.pixel(y, first);
          const float* tap = taps + c;
          for (int r = 0; r < 3; ++r, in += s.row()) {
            for (int k = 0; k < kStemRow; ++k, tap += pitch) {
              Vec w[V];
              for (int v = 0; v < V; ++v) w[v] = load(tap + v * kLanes);
              for (int p = 0; p < P; ++p) {
                const Vec a = broadcast(in[3 * p + k]);
                for (int v = 0; v < V; ++v) value[p][v] = a * w[v] + value[p][v];
              }
            }
          }
          for (int v = 0; v < V; ++v) {
            const Vec pivot = load(columns + kMean * pitch + c + v * kLanes);
            for (int p = 0; p < P; ++p) {
              store(row + (first + p) * s.C + c + v * kLanes, value[p][v], lanes);
              add_offset(rounded<T>(value[p][v]), pivot, sum[v], square[v]);
            }
          }
        });
        for (int v = 0; v < V; ++v) {
          accumulate(sums + c + v * kLanes, sum[v]);
          accumulate(sums + pitch + c + v * kLanes, square[v]);
        }
      });
    }
  }
}

// A row of the gradient of u in float32 [W][pitch], with what comes through the moments of u.
template <class T>
FC_INLINE void copy_gradient(const StemShape& s, const Range& range, const T* grad_u, const T* u, const float* columns,
                             int64_t pitch, float* row) {
  for (int64_t x = 0; x < s.W; ++x) {
    for_vectors(static_cast<int>(range.c1 - range.c0), [&](int offset, auto lanes) FC_LAMBDA {
      const int64_t c = range.c0 + offset, at = x * s.C + c;
      Vec grad = load(grad_u + at, lanes);
      if (columns) {
        const Vec mean = load(columns + kMean * pitch + c), factor = load(columns + kXFactor * pitch + c);
        grad += (load(u + at, lanes) - mean) * factor + load(columns + kConstant * pitch + c);
      }
      store(row + x * pitch + c, grad);
    });
  }
}

// n of the nine numbers under a row of the weight, from `in` on, met with a row of gradients.
template <int n, int V>
FC_INLINE void add_row(const StemShape& s, const float* in, const float* grad, float* sums, int64_t pitch) {
  Vec sum[n][V] = {};
  for (int64_t x = 0; x < s.W; ++x, in += 3, grad += pitch) {
    Vec g[V];
    for (int v = 0; v < V; ++v) g[v] = load(grad + v * kLanes);
    for (int k = 0; k < n; ++k) {
      const Vec a = broadcast(in[k]);
      for (int v = 0; v < V; ++v) sum[k][v] = a * g[v] + sum[k][v];
    }
  }
  for (int k = 0; k < n; ++k) {
    for (int v = 0; v < V; ++v) accumulate(sums + k * pitch + v * kLanes, sum[k][v]);
  }
}

template <class T>
void backward(const StemShape& s, const Range& range, const T* grad_u, const T* u, const float* columns, const T* x,
              int64_t pitch, float* sums, float* image, float* row) {
  for (int64_t n = range.n0; n < range.n1; ++n) {
    copy_image(s, x + n * s.H * s.W * 3, image);
    for (int64_t y = 0; y < s.H; ++y) {
      const int64_t at = (n * s.H + y) * s.W * s.C;
      copy_gradient(s, range, grad_u + at, u + at, columns, pitch, row);
      for_channels(range, [&](int64_t c, auto vectors, auto) FC_LAMBDA {
        constexpr int V = decltype(vectors)::value;
        for (int r = 0; r < 3; ++r) {
          const float* in = image + s.pixel(y + r, 0);
          float* tap = sums + r * kStemRow * pitch + c;
          add_row<kHalf, V>(s, in, row + c, tap, pitch);
          if constexpr (kHalf < kStemRow) {
            add_row<kStemRow - kHalf, V>(s, in + kHalf, row + c, tap + kHalf * pitch, pitch);
          }
        }
      });
    }
  }
}

}  // namespace

void set_stem_pivot(Element element, const StemShape& s, const Range& range, const void* x, const float* taps,
                    int64_t pitch, float* columns, float* image) {
  with_type(element, [&](auto type) {
    set_pivot(s, range, static_cast<const decltype(type)*>(x), taps, pitch, columns, image);
  });
}

void stem_forward(Element element, bool tiles, const StemShape& s, const Range& range, const void* x, const float* taps,
                  int64_t pitch, void* u, const float* columns, float* sums, float* image) {
#if defined(FASTCIFAR_HAVE_TILES)
  if (tiles) {
    return forward_in_tiles(s, range, static_cast<const bf16*>(x), taps, pitch, static_cast<bf16*>(u), columns, sums,
                            reinterpret_cast<bf16*>(image));
  }
#endif
  (void)tiles;
  with_type(element, [&](auto type) {
    using T = decltype(type);
    forward(s, range, static_cast<const T*>(x), taps, pitch, static_cast<T*>(u), columns, sums, image);
  });
}

void stem_backward(Element element, bool tiles, const StemShape& s, const Range& range, const void* grad_u,
                   const void* u, const float* columns, const void* x, int64_t pitch, float* sums, float* image,
                   float* row) {
#if defined(FASTCIFAR_HAVE_TILES)
  if (tiles) {
    return backward_in_tiles(s, range, static_cast<const bf16*>(grad_u), static_cast<const bf16*>(u), columns,
                             static_cast<const bf16*>(x), pitch, sums, reinterpret_cast<bf16*>(image));
  }
#endif
  (void)tiles;
  with_type(element, [&](auto type) {
    using T = decltype(type);
    backward(s, range, static_cast<const T*>(grad_u), static_cast<const T*>(u), columns, static_cast<const T*>(x),
             pitch, sums, image, row);
  });
}

}  // namespace fastcifar::FASTCIFAR_ISA

#include "cpu/depthwise_block_kernel.h"

#include "cpu/ahead.h"
#include "cpu/tile.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// While it works on a tile's images, a sweep asks for the next tile's memory, `next` elements further on, pixel by pixel:
// with the vector of channels that begins a line (BackwardSink with every vector).
template <class T>
FC_INLINE bool begins_line(int offset) {
  return offset * sizeof(T) % 64 == 0;
}

// Rows of relu(x * scale + shift).
template <class T>
FC_INLINE auto affine_relu_rows(const T* x, const float* columns, int64_t pitch, int64_t width, int64_t channels,
                                int64_t next) {
  return [=](int64_t row, int offset, auto lanes) FC_LAMBDA {
    const T* p = x + row * width * channels + offset;
    const Vec scale = load(columns + kScale * pitch + offset), shift = load(columns + kShift * pitch + offset);
    return [=](int64_t column) FC_LAMBDA {
      if (begins_line<T>(offset)) ask(p + column * channels + next);
      return relu(load(p + column * channels, lanes) * scale + shift);
    };
  };
}

// Rows of the gradient of y, computed from the gradient of z = relu(bn(y)).
template <class T>
FC_INLINE auto gradient_rows(const T* grad_z, const T* y, const float* columns, int64_t pitch, int64_t width,
                             int64_t channels, int64_t next) {
  return [=](int64_t row, int offset, auto lanes) FC_LAMBDA {
    const int64_t first = row * width * channels + offset;
    const Vec mean = load(columns + kMean * pitch + offset), scale = load(columns + kScale * pitch + offset),
              shift = load(columns + kShift * pitch + offset),
              grad_factor = load(columns + kGradFactor * pitch + offset),
              x_factor = load(columns + kXFactor * pitch + offset),
              constant = load(columns + kConstant * pitch + offset);
    return [=](int64_t column) FC_LAMBDA {
      const Vec value = load(y + first + column * channels, lanes),
                grad = load(grad_z + first + column * channels, lanes);
      if (begins_line<T>(offset)) {
        ask(y + first + column * channels + next);
        ask(grad_z + first + column * channels + next);
      }
      const Vec g = value * scale + shift > Vec{} ? grad : Vec{};
      return g * grad_factor + ((value - mean) * x_factor + constant);
    };
  };
}

template <class T, class Lanes>
struct StatisticsSink {
  T* y;
  float* sums;
  int64_t width, channels, pitch;
  Lanes lanes;
  Vec pivot, sum, square;

  FC_INLINE void operator()(int64_t row, int64_t column, Vec value) {
    store(y + (row * width + column) * channels, value, lanes);
    add_offset(rounded<T>(value), pivot, sum, square);
  }
  FC_INLINE void finish() {
    accumulate(sums, sum);
    accumulate(sums + pitch, square);
  }
};

template <class T, class Lanes>
struct AffineReluSink {
  T* z;
  int64_t width, channels;
  Lanes lanes;
  Vec scale, shift;

  FC_INLINE void operator()(int64_t row, int64_t column, Vec value) {
    store(z + (row * width + column) * channels, relu(value * scale + shift), lanes);
  }
  FC_INLINE void finish() {}
};

// Calls f(first image, number of images) for the images of each tile.
template <class F>
FC_INLINE void for_images(const Ring& ring, const Range& range, F f) {
  const int64_t most = ring.images();
  for (int64_t n = range.n0; n < range.n1; n += most) f(n, range.n1 - n < most ? range.n1 - n : most);
}

// Convolves all images and blocks of channels of a range. make_sink(image, channel, lanes) makes what takes the
// results.
template <int stride, class T, class MakeSink>
FC_INLINE void forward(const DwShape& s, const Range& range, const T* u, const float* columns0, const float* taps,
                       int64_t pitch, float* memory, MakeSink make_sink) {
  Ring ring(memory, s.H, s.W);
  const int64_t image = s.H * s.W * s.C;
  for_images(ring, range, [&](int64_t n, int64_t images) FC_LAMBDA {
    for (int64_t c = range.c0; c < range.c1; c += kBlock) {
      const int channels = static_cast<int>(range.c1 - c < kBlock ? range.c1 - c : kBlock);
      convolve<stride>(ring, s, images, channels, taps + c, pitch,
                       affine_relu_rows(u + n * image + c, columns0 + c, pitch, s.W, s.C, images * image),
                       [&](int offset, auto lanes) FC_LAMBDA { return make_sink(n, c + offset, lanes); });
    }
  });
}

template <int stride, class T>
void forward_with_statistics(const DwShape& s, const Range& range, const void* u, const float* columns0,
                             const float* taps, int64_t pitch, void* y, const float* columns1, float* sums,
                             float* ring) {
  forward<stride>(s, range, static_cast<const T*>(u), columns0, taps, pitch, ring,
                  [&](int64_t n, int64_t c, auto lanes) FC_LAMBDA {
                    return StatisticsSink<T, decltype(lanes)>{static_cast<T*>(y) + n * s.Ho * s.Wo * s.C + c,
                                                              sums + c,
                                                              s.Wo,
                                                              s.C,
                                                              pitch,
                                                              lanes,
                                                              load(columns1 + kMean * pitch + c),
                                                              Vec{},
                                                              Vec{}};
                  });
}

template <int stride, class T>
void forward_affine_relu(const DwShape& s, const Range& range, const void* u, const float* columns0, const float* taps,
                         int64_t pitch, const float* columns1, void* z, float* ring) {
  forward<stride>(s, range, static_cast<const T*>(u), columns0, taps, pitch, ring,
                  [&](int64_t n, int64_t c, auto lanes) FC_LAMBDA {
                    return AffineReluSink<T, decltype(lanes)>{static_cast<T*>(z) + n * s.Ho * s.Wo * s.C + c,
                                                              s.Wo,
                                                              s.C,
                                                              lanes,
                                                              load(columns1 + kScale * pitch + c),
                                                              load(columns1 + kShift * pitch + c)};
                  });
}

template <class T, class Lanes>
struct BackwardSink {
  const T* u;
  T* grad_h;
  const float* factor;
  float* sums;
  int64_t width, channels, pitch, next;
  Lanes lanes;
  Vec mean, scale, shift, sum, product, grad_w[9];

  FC_INLINE BackwardSink(const T* u, T* grad_h, const float* columns, float* sums, int64_t width, int64_t channels,
                         int64_t pitch, int64_t next, Lanes lanes)
      : u(u), grad_h(grad_h), factor(columns + kGradFactor * pitch), sums(sums), width(width), channels(channels),
        pitch(pitch), next(next), lanes(lanes) {
    mean = load(columns + kMean * pitch);
    scale = load(columns + kScale * pitch);
    shift = load(columns + kShift * pitch);
    sum = product = Vec{};
    for (int k = 0; k < 9; ++k) grad_w[k] = Vec{};
  }
  template <int... K>
  FC_INLINE void operator()(int64_t row, int64_t column, Vec value, Tap<K>... taps) {
    const int64_t at = (row * width + column) * channels;
    ask(u + at + next);
    ask(grad_h + at + next);
    const Vec x = load(u + at, lanes), h = relu(x * scale + shift);
    const Vec g = h > Vec{} ? value : Vec{};
    store(grad_h + at, g * load(factor), lanes);
    sum += g;
    product = g * (x - mean) + product;
    ((grad_w[K] = h * taps.value + grad_w[K]), ...);
  }
  FC_INLINE void finish() {
    accumulate(sums, sum);
    accumulate(sums + pitch, product);
    for (int k = 0; k < 9; ++k) accumulate(sums + (2 + k) * pitch, grad_w[k]);
  }
};

template <int stride, class T>
void backward(const DwShape& s, const Range& range, const void* grad_z, const void* y, const void* u,
              const float* columns0, const float* columns1, const float* taps, int64_t pitch, void* grad_h, float* sums,
              float* memory) {
  Ring ring(memory, s.Ho, s.Wo);
  const int64_t image_size = s.H * s.W * s.C, grad_size = s.Ho * s.Wo * s.C;
  for_images(ring, range, [&](int64_t n, int64_t images) FC_LAMBDA {
    for (int64_t c = range.c0; c < range.c1; c += kBlock) {
      const int64_t image = n * image_size + c, out_image = n * grad_size + c;
      const int channels = static_cast<int>(range.c1 - c < kBlock ? range.c1 - c : kBlock);
      const auto input = gradient_rows(static_cast<const T*>(grad_z) + out_image, static_cast<const T*>(y) + out_image,
                                       columns1 + c, pitch, s.Wo, s.C, images * grad_size);
      const auto sink = [&](int offset, auto lanes) FC_LAMBDA {
        return BackwardSink<T, decltype(lanes)>(static_cast<const T*>(u) + image + offset,
                                                static_cast<T*>(grad_h) + image + offset, columns0 + c + offset,
                                                sums + c + offset, s.W, s.C, pitch, images * image_size, lanes);
      };
      if constexpr (stride == 1) {
        convolve_transposed1(ring, s, images, channels, taps + c, pitch, input, sink);
      } else {
        convolve_transposed2(ring, s, images, channels, taps + c, pitch, input, sink);
      }
    }
  });
}

template <class T>
void set_output_pivot(const DwShape& s, const Range& range, const T* u, const float* columns0, const float* taps,
                      int64_t pitch, float* columns1) {
  const float *scale = columns0 + kScale * pitch, *shift = columns0 + kShift * pitch;
  float* pivots = columns1 + kMean * pitch;
  for (int64_t c = range.c0; c < range.c1; ++c) pivots[c] = 0;
  const Sample images(s.N);
  for (int64_t i = 0; i < images.size; ++i) {
    for (int64_t k = 0; k < 9; ++k) {
      const int64_t y = s.Ho / 2 * s.stride + k / 3 - 1, x = s.Wo / 2 * s.stride + k % 3 - 1;
      if (y < 0 || y >= s.H || x < 0 || x >= s.W) continue;
      const T* p = u + ((images[i] * s.H + y) * s.W + x) * s.C;
      const float* w = taps + k * pitch;
      for (int64_t c = range.c0; c < range.c1; ++c) {
        const float h = to_f32(p[c]) * scale[c] + shift[c];
        pivots[c] += w[c] * (h > 0 ? h : 0);
      }
    }
  }
  // The pivot is rounded to T. Otherwise each difference of a bfloat16 and the pivot would be rounded to the same side,
  // and the error of the sum would grow with the number of pixels instead of with its square root.
  const auto size = static_cast<float>(images.size);
  for (int64_t c = range.c0; c < range.c1; ++c) pivots[c] = to_f32(from_f32<T>(pivots[c] / size));
}

}  // namespace

void set_output_pivot(Element element, const DwShape& s, const Range& range, const void* u, const float* columns0,
                      const float* taps, int64_t pitch, float* columns1) {
  if (element == Element::f32) {
    set_output_pivot(s, range, static_cast<const float*>(u), columns0, taps, pitch, columns1);
  } else {
    set_output_pivot(s, range, static_cast<const bf16*>(u), columns0, taps, pitch, columns1);
  }
}

void depthwise_block_forward(Element element, const DwShape& s, const Range& range, const void* u,
                             const float* columns0, const float* taps, int64_t pitch, void* y, const float* columns1,
                             float* sums, float* ring) {
  const auto run = element == Element::f32
                       ? (s.stride == 1 ? &forward_with_statistics<1, float> : &forward_with_statistics<2, float>)
                       : (s.stride == 1 ? &forward_with_statistics<1, bf16> : &forward_with_statistics<2, bf16>);
  run(s, range, u, columns0, taps, pitch, y, columns1, sums, ring);
}

void depthwise_block_backward(Element element, const DwShape& s, const Range& range, const void* grad_z, const void* y,
                              const void* u, const float* columns0, const float* columns1, const float* taps,
                              int64_t pitch, void* grad_h, float* sums, float* ring) {
  const auto run = element == Element::f32 ? (s.stride == 1 ? &backward<1, float> : &backward<2, float>)
                                           : (s.stride == 1 ? &backward<1, bf16> : &backward<2, bf16>);
  run(s, range, grad_z, y, u, columns0, columns1, taps, pitch, grad_h, sums, ring);
}

void dwconv3x3_affine_relu(Element element, const DwShape& s, const Range& range, const void* u, const float* columns0,
                           const float* taps, int64_t pitch, const float* columns1, void* z, float* ring) {
  const auto run = element == Element::f32
                       ? (s.stride == 1 ? &forward_affine_relu<1, float> : &forward_affine_relu<2, float>)
                       : (s.stride == 1 ? &forward_affine_relu<1, bf16> : &forward_affine_relu<2, bf16>);
  run(s, range, u, columns0, taps, pitch, columns1, z, ring);
}

}  // namespace fastcifar::FASTCIFAR_ISA

#include "cpu/batch_norm_relu_pool_kernel.h"

#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Pixels whose numbers are added up from zero before they are added to a sum: that is more exact than one chain.
constexpr int64_t kTile = 32;

// Calls f(first pixel, end) over the tiles of an image.
template <class F>
FC_INLINE void for_tiles(int64_t pixels, F f) {
  for (int64_t first = 0; first < pixels; first += kTile) f(first, first + kTile < pixels ? first + kTile : pixels);
}

// Calls f(image, channel, lanes) for each vector of channels, image by image.
template <class F>
FC_INLINE void for_images(const Range& range, F f) {
  for (int64_t n = range.n0; n < range.n1; ++n) {
    for_vectors(static_cast<int>(range.c1 - range.c0),
                [&](int offset, auto lanes) FC_LAMBDA { f(n, range.c0 + offset, lanes); });
  }
}

template <class T>
void pool(const Range& range, int64_t pixels, int64_t channels, const T* u, const float* columns, int64_t pitch,
          T* pooled) {
  const Vec share = broadcast(1.f / static_cast<float>(pixels));
  for_images(range, [&](int64_t n, int64_t c, auto lanes) FC_LAMBDA {
    const Vec scale = load(columns + kScale * pitch + c), shift = load(columns + kShift * pitch + c);
    const T* map = u + n * pixels * channels + c;
    Vec sum{};
    for_tiles(pixels, [&](int64_t first, int64_t end) FC_LAMBDA {
      Vec part{};
      for (int64_t i = first; i < end; ++i) part += relu(load(map + i * channels, lanes) * scale + shift);
      sum += part;
    });
    store(pooled + n * channels + c, sum * share, lanes);
  });
}

// What the gradient of u is made of: an image's columns of a vector of channels, and its share of grad_pooled.
template <class T, class Lanes>
struct Gradient {
  const T* map;  // of the image, from the vector's channel on
  int64_t channels;
  Vec mean, scale, shift, share;
  Lanes lanes;

  FC_INLINE Gradient(int64_t n, int64_t c, int64_t pixels, int64_t channels, const T* grad_pooled, const T* u,
                     const float* columns, int64_t pitch, Lanes lanes)
      : map(u + n * pixels * channels + c), channels(channels), mean(load(columns + kMean * pitch + c)),
        scale(load(columns + kScale * pitch + c)), shift(load(columns + kShift * pitch + c)),
        share(load(grad_pooled + n * channels + c, lanes) * broadcast(1.f / static_cast<float>(pixels))), lanes(lanes) {
  }
  FC_INLINE Vec value(int64_t i) const { return load(map + i * channels, lanes); }
  FC_INLINE Vec of(Vec value) const { return value * scale + shift > Vec{} ? share : Vec{}; }
};

template <class T>
void add_sums(const Range& range, int64_t pixels, int64_t channels, const T* grad_pooled, const T* u,
              const float* columns, int64_t pitch, float* sums) {
  for_images(range, [&](int64_t n, int64_t c, auto lanes) FC_LAMBDA {
    const Gradient grad(n, c, pixels, channels, grad_pooled, u, columns, pitch, lanes);
    for_tiles(pixels, [&](int64_t first, int64_t end) FC_LAMBDA {
      Vec sum{}, product{};
      for (int64_t i = first; i < end; ++i) {
        const Vec value = grad.value(i), g = grad.of(value);
        sum += g;
        product = g * (value - grad.mean) + product;
      }
      accumulate(sums + c, sum);
      accumulate(sums + pitch + c, product);
    });
  });
}

template <class T>
void apply(const Range& range, int64_t pixels, int64_t channels, const T* grad_pooled, const T* u, const float* columns,
           int64_t pitch, T* grad_u) {
  for_images(range, [&](int64_t n, int64_t c, auto lanes) FC_LAMBDA {
    const Gradient grad(n, c, pixels, channels, grad_pooled, u, columns, pitch, lanes);
    const Vec grad_factor = load(columns + kGradFactor * pitch + c), x_factor = load(columns + kXFactor * pitch + c);
    const Vec constant = load(columns + kConstant * pitch + c);
    T* out = grad_u + n * pixels * channels + c;
    for (int64_t i = 0; i < pixels; ++i) {
      const Vec value = grad.value(i);
      store(out + i * channels, grad.of(value) * grad_factor + ((value - grad.mean) * x_factor + constant), lanes);
    }
  });
}

}  // namespace

void pool_affine_relu(Element element, const Range& range, int64_t pixels, int64_t channels, const void* u,
                      const float* columns, int64_t pitch, void* pooled) {
  with_type(element, [&](auto type) {
    using T = decltype(type);
    pool(range, pixels, channels, static_cast<const T*>(u), columns, pitch, static_cast<T*>(pooled));
  });
}

void add_pool_gradient_sums(Element element, const Range& range, int64_t pixels, int64_t channels,
                            const void* grad_pooled, const void* u, const float* columns, int64_t pitch, float* sums) {
  with_type(element, [&](auto type) {
    using T = decltype(type);
    add_sums(range, pixels, channels, static_cast<const T*>(grad_pooled), static_cast<const T*>(u), columns, pitch,
             sums);
  });
}

void apply_pool_gradient(Element element, const Range& range, int64_t pixels, int64_t channels, const void* grad_pooled,
                         const void* u, const float* columns, int64_t pitch, void* grad_u) {
  with_type(element, [&](auto type) {
    using T = decltype(type);
    apply(range, pixels, channels, static_cast<const T*>(grad_pooled), static_cast<const T*>(u), columns, pitch,
          static_cast<T*>(grad_u));
  });
}

}  // namespace fastcifar::FASTCIFAR_ISA

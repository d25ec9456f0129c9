#include "cpu/batch_norm_relu_kernel.h"

#include <cmath>

#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Walks rows x channels in tiles that stay in the L1 cache, a vector of channels at a time:
// f(first row, number of rows, channel, lanes).
template <class F>
FC_INLINE void for_tiles(const Range& range, int64_t row_bytes, F f) {
  // At most 64 rows: rows that lie a power of two of bytes apart share few of the cache's sets.
  int64_t tile = (1 << 15) / row_bytes;
  tile = tile < 16 ? 16 : tile > 64 ? 64 : tile;
  for (int64_t row = range.n0; row < range.n1; row += tile) {
    const int64_t rows = range.n1 - row < tile ? range.n1 - row : tile;
    for_vectors(static_cast<int>(range.c1 - range.c0),
                [&](int offset, auto lanes) FC_LAMBDA { f(row, rows, range.c0 + offset, lanes); });
  }
}

template <class T>
void add_statistics(const Range& range, int64_t channels, const T* x, const float* columns, int64_t pitch, float* sums) {
  for_tiles(range, channels * sizeof(T), [&](int64_t row, int64_t rows, int64_t c, auto lanes) FC_LAMBDA {
    const T* p = x + row * channels + c;
    const Vec pivot = load(columns + kMean * pitch + c);
    Vec sum0{}, sum1{}, square0{}, square1{};
    int64_t i = 0;
    for (; i + 2 <= rows; i += 2) {  // two chains of additions hide their latency
      const Vec a = load(p + i * channels, lanes) - pivot, b = load(p + (i + 1) * channels, lanes) - pivot;
      sum0 += a;
      sum1 += b;
      square0 = a * a + square0;
      square1 = b * b + square1;
    }
    if (i < rows) {
      const Vec a = load(p + i * channels, lanes) - pivot;
      sum0 += a;
      square0 = a * a + square0;
    }
    accumulate(sums + c, sum0 + sum1);
    accumulate(sums + pitch + c, square0 + square1);
  });
}

template <class T>
void apply_affine_relu(const Range& range, int64_t channels, const T* x, const float* columns, int64_t pitch, T* z) {
  for_tiles(range, channels * sizeof(T), [&](int64_t row, int64_t rows, int64_t c, auto lanes) FC_LAMBDA {
    const T* p = x + row * channels + c;
    T* q = z + row * channels + c;
    const Vec scale = load(columns + kScale * pitch + c), shift = load(columns + kShift * pitch + c);
    for (int64_t i = 0; i < rows; ++i) store(q + i * channels, relu(load(p + i * channels, lanes) * scale + shift), lanes);
  });
}

// The gradient before the ReLU.
FC_INLINE Vec unrelu(Vec grad, Vec x, Vec scale, Vec shift) { return x * scale + shift > Vec{} ? grad : Vec{}; }

template <class T>
void add_gradient_sums(const Range& range, int64_t channels, const T* grad_z, const T* x, const float* columns,
                       int64_t pitch, float* sums) {
  for_tiles(range, 2 * channels * sizeof(T), [&](int64_t row, int64_t rows, int64_t c, auto lanes) FC_LAMBDA {
    const T *p = x + row * channels + c, *q = grad_z + row * channels + c;
    const Vec mean = load(columns + kMean * pitch + c), scale = load(columns + kScale * pitch + c),
              shift = load(columns + kShift * pitch + c);
    Vec sum0{}, sum1{}, product0{}, product1{};
    int64_t i = 0;
    for (; i + 2 <= rows; i += 2) {
      const Vec x0 = load(p + i * channels, lanes), x1 = load(p + (i + 1) * channels, lanes);
      const Vec g0 = unrelu(load(q + i * channels, lanes), x0, scale, shift);
      const Vec g1 = unrelu(load(q + (i + 1) * channels, lanes), x1, scale, shift);
      sum0 += g0;
      sum1 += g1;
      product0 = g0 * (x0 - mean) + product0;
      product1 = g1 * (x1 - mean) + product1;
    }
    if (i < rows) {
      const Vec x0 = load(p + i * channels, lanes), g0 = unrelu(load(q + i * channels, lanes), x0, scale, shift);
      sum0 += g0;
      product0 = g0 * (x0 - mean) + product0;
    }
    accumulate(sums + c, sum0 + sum1);
    accumulate(sums + pitch + c, product0 + product1);
  });
}

template <bool masked, class T>
void apply_gradient(const Range& range, int64_t channels, const T* grad, const T* x, const float* columns, int64_t pitch,
                    T* grad_x) {
  for_tiles(range, 2 * channels * sizeof(T), [&](int64_t row, int64_t rows, int64_t c, auto lanes) FC_LAMBDA {
    const T *p = x + row * channels + c, *q = grad + row * channels + c;
    T* out = grad_x + row * channels + c;
    const Vec mean = load(columns + kMean * pitch + c), scale = load(columns + kScale * pitch + c),
              shift = load(columns + kShift * pitch + c), grad_factor = load(columns + kGradFactor * pitch + c), x_factor = load(columns + kXFactor * pitch + c),
              constant = load(columns + kConstant * pitch + c);
    for (int64_t i = 0; i < rows; ++i) {
      const Vec value = load(p + i * channels, lanes);
      Vec g = load(q + i * channels, lanes);
      if constexpr (!masked) g = unrelu(g, value, scale, shift);
      store(out + i * channels, g * grad_factor + ((value - mean) * x_factor + constant), lanes);
    }
  });
}

// Calls f(channel, sum of the parts' first row, of their second).
template <class F>
FC_INLINE void for_totals(const Range& range, const Parts& parts, int64_t pitch, F f) {
  for (int64_t block = range.c0; block < range.c1; block += kBlock) {
    double first[kBlock] = {}, second[kBlock] = {};
    for (int64_t k = 0; k < parts.num_parts; ++k) {
      const float* part = parts.sums + k * parts.part_size + block;
      for (int i = 0; i < kBlock; ++i) first[i] += part[i];
      for (int i = 0; i < kBlock; ++i) second[i] += part[pitch + i];
    }
    for (int i = 0; i < kBlock && block + i < range.c1; ++i) f(block + i, first[i], second[i]);
  }
}

template <class T>
void set_pivot(const Range& range, const T* x, float* columns) {
  for (int64_t c = range.c0; c < range.c1; ++c) columns[c] = to_f32(x[c]);
}

}  // namespace

void set_pivot(Element element, const Range& range, const void* x, float* columns) {
  if (element == Element::f32) {
    set_pivot(range, static_cast<const float*>(x), columns);
  } else {
    set_pivot(range, static_cast<const bf16*>(x), columns);
  }
}

void add_statistics(Element element, const Range& range, int64_t channels, const void* x, const float* columns,
                    int64_t pitch, float* sums) {
  if (element == Element::f32) {
    add_statistics(range, channels, static_cast<const float*>(x), columns, pitch, sums);
  } else {
    add_statistics(range, channels, static_cast<const bf16*>(x), columns, pitch, sums);
  }
}

void fold_statistics(const Range& range, const float* mean, const float* var, const float* gamma, const float* beta,
                     double eps, float* columns, int64_t pitch) {
  for (int64_t c = range.c0; c < range.c1; ++c) {
    const double scale = gamma[c] / std::sqrt(var[c] + eps);
    columns[kMean * pitch + c] = mean[c];
    columns[kScale * pitch + c] = static_cast<float>(scale);
    columns[kShift * pitch + c] = static_cast<float>(beta[c] - mean[c] * scale);
  }
}

void finish_statistics(const Range& range, const Parts& parts, double count, const float* gamma, const float* beta,
                       double eps, float* columns, int64_t pitch, float* mean, float* var) {
  for_totals(range, parts, pitch, [&](int64_t c, double sum, double square) FC_LAMBDA {
    const double offset = sum / count, variance = square / count - offset * offset;
    mean[c] = static_cast<float>(columns[kMean * pitch + c] + offset);
    var[c] = variance < 0 ? 0.0f : static_cast<float>(variance);  // NaN stays NaN
  });
  fold_statistics(range, mean, var, gamma, beta, eps, columns, pitch);
}

void apply_affine_relu(Element element, const Range& range, int64_t channels, const void* x, const float* columns,
                       int64_t pitch, void* z) {
  if (element == Element::f32) {
    apply_affine_relu(range, channels, static_cast<const float*>(x), columns, pitch, static_cast<float*>(z));
  } else {
    apply_affine_relu(range, channels, static_cast<const bf16*>(x), columns, pitch, static_cast<bf16*>(z));
  }
}

void add_gradient_sums(Element element, const Range& range, int64_t channels, const void* grad_z, const void* x,
                       const float* columns, int64_t pitch, float* sums) {
  if (element == Element::f32) {
    add_gradient_sums(range, channels, static_cast<const float*>(grad_z), static_cast<const float*>(x), columns, pitch,
                      sums);
  } else {
    add_gradient_sums(range, channels, static_cast<const bf16*>(grad_z), static_cast<const bf16*>(x), columns, pitch,
                      sums);
  }
}

void finish_gradient(const Range& range, const Parts& parts, double count, const float* gamma, const float* var,
                     double eps, float* columns, int64_t pitch, float* grad_gamma, float* grad_beta) {
  for_totals(range, parts, pitch, [&](int64_t c, double sum, double product) FC_LAMBDA {
    const double rstd = 1 / std::sqrt(var[c] + eps), scale = gamma[c] * rstd;
    grad_beta[c] = static_cast<float>(sum);
    grad_gamma[c] = static_cast<float>(product * rstd);
    columns[kGradFactor * pitch + c] = static_cast<float>(scale);
    columns[kXFactor * pitch + c] = static_cast<float>(-scale * rstd * rstd * product / count);
    columns[kConstant * pitch + c] = static_cast<float>(-scale * sum / count);
  });
}

void apply_gradient(Element element, const Range& range, int64_t channels, bool masked, const void* grad, const void* x,
                    const float* columns, int64_t pitch, void* grad_x) {
  if (element == Element::f32) {
    (masked ? &apply_gradient<true, float> : &apply_gradient<false, float>)(
        range, channels, static_cast<const float*>(grad), static_cast<const float*>(x), columns, pitch,
        static_cast<float*>(grad_x));
  } else {
    (masked ? &apply_gradient<true, bf16> : &apply_gradient<false, bf16>)(
        range, channels, static_cast<const bf16*>(grad), static_cast<const bf16*>(x), columns, pitch,
        static_cast<bf16*>(grad_x));
  }
}

}  // namespace fastcifar::FASTCIFAR_ISA

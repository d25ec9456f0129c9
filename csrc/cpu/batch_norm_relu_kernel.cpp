#include "cpu/batch_norm_relu_kernel.h"

#include <cmath>

#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Rows of a tile. A pass without sums goes row by row: the caches' prefetchers follow such a walk along memory. A pass
// with sums keeps the sums of a group of channels in registers over a few rows, and asks for the next rows itself.
// (With tiles of 64 rows of one vector the same passes ran at half the speed of a copy.)
constexpr int64_t kTile = 16;
constexpr int kGroup = kLanes == 16 ? 4 : 2;  // vectors of channels whose sums and factors fit into the registers

// Calls f(row, channel, lanes) for each vector, row by row.
template <class F>
FC_INLINE void for_rows(const Range& range, F f) {
  for (int64_t row = range.n0; row < range.n1; ++row) {
    for_vectors(static_cast<int>(range.c1 - range.c0),
                [&](int offset, auto lanes) FC_LAMBDA { f(row, range.c0 + offset, lanes); });
  }
}

// Calls f(first row, number of rows, channel, Group<n>, lanes) for each tile and group of n vectors. The vectors of an
// incomplete last group come one by one.
template <int n>
struct Group {};
template <class F>
FC_INLINE void for_tiles(const Range& range, F f) {
  for (int64_t row = range.n0; row < range.n1; row += kTile) {
    const int64_t rows = range.n1 - row < kTile ? range.n1 - row : kTile;
    int64_t c = range.c0;
    for (; c + kGroup * kLanes <= range.c1; c += kGroup * kLanes) f(row, rows, c, Group<kGroup>{}, Full{});
    for_vectors(static_cast<int>(range.c1 - c),
                [&](int offset, auto lanes) FC_LAMBDA { f(row, rows, c + offset, Group<1>{}, lanes); });
  }
}

// Asks for the cache lines of a group one tile ahead.
template <int n, class T>
FC_INLINE void prefetch_tile(const T* p, int64_t channels) {
  for (int byte = 0; byte < static_cast<int>(n * kLanes * sizeof(T)); byte += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(p + kTile * channels) + byte);
  }
}

template <int n, class T, class Lanes>
FC_INLINE void add_statistics(Group<n>, int64_t rows, int64_t channels, const T* x, const float* pivots, int64_t pitch,
                              float* sums, Lanes lanes) {
  Vec pivot[n], sum[n], square[n];
  for (int v = 0; v < n; ++v) pivot[v] = load(pivots + v * kLanes), sum[v] = square[v] = Vec{};
  for (int64_t i = 0; i < rows; ++i, x += channels) {
    prefetch_tile<n>(x, channels);
    for (int v = 0; v < n; ++v) {
      const Vec a = load(x + v * kLanes, lanes) - pivot[v];
      sum[v] += a;
      square[v] = a * a + square[v];
    }
  }
  for (int v = 0; v < n; ++v) {
    accumulate(sums + v * kLanes, sum[v]);
    accumulate(sums + pitch + v * kLanes, square[v]);
  }
}

template <class T>
void add_statistics(const Range& range, int64_t channels, const T* x, const float* columns, int64_t pitch,
                    float* sums) {
  for_tiles(range, [&](int64_t row, int64_t rows, int64_t c, auto group, auto lanes) FC_LAMBDA {
    add_statistics(group, rows, channels, x + row * channels + c, columns + kMean * pitch + c, pitch, sums + c, lanes);
  });
}

template <class T>
void apply_affine_relu(const Range& range, int64_t channels, const T* x, const float* columns, int64_t pitch, T* z) {
  for_rows(range, [&](int64_t row, int64_t c, auto lanes) FC_LAMBDA {
    const Vec scale = load(columns + kScale * pitch + c), shift = load(columns + kShift * pitch + c);
    store(z + row * channels + c, relu(load(x + row * channels + c, lanes) * scale + shift), lanes);
  });
}

// The gradient of x * scale + shift, from that of its ReLU.
FC_INLINE Vec unrelu(Vec grad, Vec x, Vec scale, Vec shift) { return x * scale + shift > Vec{} ? grad : Vec{}; }

template <int n, class T, class Lanes>
FC_INLINE void add_gradient_sums(Group<n>, int64_t rows, int64_t channels, const T* grad_z, const T* x,
                                 const float* columns, int64_t pitch, float* sums, Lanes lanes) {
  Vec mean[n], scale[n], shift[n], sum[n], product[n];
  for (int v = 0; v < n; ++v) {
    mean[v] = load(columns + kMean * pitch + v * kLanes);
    scale[v] = load(columns + kScale * pitch + v * kLanes);
    shift[v] = load(columns + kShift * pitch + v * kLanes);
    sum[v] = product[v] = Vec{};
  }
  for (int64_t i = 0; i < rows; ++i, x += channels, grad_z += channels) {
    prefetch_tile<n>(x, channels);
    prefetch_tile<n>(grad_z, channels);
    for (int v = 0; v < n; ++v) {
      const Vec value = load(x + v * kLanes, lanes);
      const Vec g = unrelu(load(grad_z + v * kLanes, lanes), value, scale[v], shift[v]);
      sum[v] += g;
      product[v] = g * (value - mean[v]) + product[v];
    }
  }
  for (int v = 0; v < n; ++v) {
    accumulate(sums + v * kLanes, sum[v]);
    accumulate(sums + pitch + v * kLanes, product[v]);
  }
}

template <class T>
void add_gradient_sums(const Range& range, int64_t channels, const T* grad_z, const T* x, const float* columns,
                       int64_t pitch, float* sums) {
  for_tiles(range, [&](int64_t row, int64_t rows, int64_t c, auto group, auto lanes) FC_LAMBDA {
    const int64_t at = row * channels + c;
    add_gradient_sums(group, rows, channels, grad_z + at, x + at, columns + c, pitch, sums + c, lanes);
  });
}

template <bool masked, int n, class T, class Lanes>
FC_INLINE void apply_gradient(Group<n>, int64_t rows, int64_t channels, const T* grad, const T* x, const float* columns,
                              int64_t pitch, T* grad_x, Lanes lanes) {
  Vec mean[n], scale[n], shift[n], grad_factor[n], x_factor[n], constant[n];
  for (int v = 0; v < n; ++v, columns += kLanes) {
    mean[v] = load(columns + kMean * pitch);
    scale[v] = load(columns + kScale * pitch);
    shift[v] = load(columns + kShift * pitch);
    grad_factor[v] = load(columns + kGradFactor * pitch);
    x_factor[v] = load(columns + kXFactor * pitch);
    constant[v] = load(columns + kConstant * pitch);
  }
  for (int64_t i = 0; i < rows; ++i, x += channels, grad += channels, grad_x += channels) {
    prefetch_tile<n>(x, channels);
    prefetch_tile<n>(grad, channels);
    for (int v = 0; v < n; ++v) {
      const Vec value = load(x + v * kLanes, lanes);
      Vec g = load(grad + v * kLanes, lanes);
      if constexpr (!masked) g = unrelu(g, value, scale[v], shift[v]);
      store(grad_x + v * kLanes, g * grad_factor[v] + ((value - mean[v]) * x_factor[v] + constant[v]), lanes);
    }
  }
}

template <bool masked, class T>
void apply_gradient(const Range& range, int64_t channels, const T* grad, const T* x, const float* columns,
                    int64_t pitch, T* grad_x) {
  for_tiles(range, [&](int64_t row, int64_t rows, int64_t c, auto group, auto lanes) FC_LAMBDA {
    const int64_t at = row * channels + c;
    apply_gradient<masked>(group, rows, channels, grad + at, x + at, columns + c, pitch, grad_x + at, lanes);
  });
}

// Calls f(channel, sum over the parts' first rows, sum over their second rows).
template <class F>
FC_INLINE void for_totals(const Range& range, const Sums& sums, int64_t pitch, F f) {
  for (int64_t block = range.c0; block < range.c1; block += kBlock) {
    double first[kBlock] = {}, second[kBlock] = {};
    for (int64_t k = 0; k < sums.num_parts; ++k) {
      const float* part = sums.part(k) + block;
      for (int i = 0; i < kBlock; ++i) first[i] += part[i];
      for (int i = 0; i < kBlock; ++i) second[i] += part[pitch + i];
    }
    for (int i = 0; i < kBlock && block + i < range.c1; ++i) f(block + i, first[i], second[i]);
  }
}

template <class T>
void set_pivot(const Range& range, int64_t rows, int64_t channels, const T* x, float* columns) {
  const Sample sample(rows);
  for (int64_t c = range.c0; c < range.c1; ++c) {
    float sum = 0;
    for (int64_t i = 0; i < sample.size; ++i) sum += to_f32(x[sample[i] * channels + c]);
    columns[c] = sum / static_cast<float>(sample.size);
  }
}

}  // namespace

void set_pivot(Element element, const Range& range, int64_t rows, int64_t channels, const void* x, float* columns) {
  if (element == Element::f32) {
    set_pivot(range, rows, channels, static_cast<const float*>(x), columns);
  } else {
    set_pivot(range, rows, channels, static_cast<const bf16*>(x), columns);
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

void finish_statistics(const Range& range, const Sums& sums, double count, const float* gamma, const float* beta,
                       double eps, float* columns, int64_t pitch, float* mean, float* var) {
  for_totals(range, sums, pitch, [&](int64_t c, double sum, double square) FC_LAMBDA {
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

void finish_gradient(const Range& range, const Sums& sums, double count, const float* gamma, const float* var,
                     double eps, float* columns, int64_t pitch, float* grad_gamma, float* grad_beta) {
  for_totals(range, sums, pitch, [&](int64_t c, double sum, double product) FC_LAMBDA {
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
    (masked ? &apply_gradient<true, float>
            : &apply_gradient<false, float>)(range, channels, static_cast<const float*>(grad),
                                             static_cast<const float*>(x), columns, pitch, static_cast<float*>(grad_x));
  } else {
    (masked ? &apply_gradient<true, bf16>
            : &apply_gradient<false, bf16>)(range, channels, static_cast<const bf16*>(grad),
                                            static_cast<const bf16*>(x), columns, pitch, static_cast<bf16*>(grad_x));
  }
}

}  // namespace fastcifar::FASTCIFAR_ISA

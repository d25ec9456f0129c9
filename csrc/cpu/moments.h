// Partial moments [rows, 3, C] of a map: what an op leaves for the next one (see moment_rows in common.h).
#pragma once
#include "cpu/batch_norm_relu_kernel.h"
#include "cpu/data.h"

namespace fastcifar {

// Writes the mean and the biased variance of each channel.
inline void merge_moments(const Tensor& rows, float* mean, float* var) {
  const int64_t num_rows = rows.size(0), channels = rows.size(2);
  const float* moments = floats(rows);
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0, sum = 0, squares = 0;
    const auto at = [&](int64_t row, int quantity) -> double { return moments[(row * 3 + quantity) * channels + c]; };
    for (int64_t row = 0; row < num_rows; ++row) total += at(row, 0), sum += at(row, 0) * at(row, 1);
    const double exact = sum / total;
    for (int64_t row = 0; row < num_rows; ++row) {
      const double offset = at(row, 1) - exact;
      squares += at(row, 2) + at(row, 0) * offset * offset;
    }
    mean[c] = static_cast<float>(exact);
    var[c] = static_cast<float>(squares / total);
  }
}

// Puts the moments of `pixels` pixels into the first row, and leaves the others empty. f(mean, var) writes the mean and
// the biased variance of each channel.
template <class F>
void write_moments(Tensor rows, int64_t pixels, F f) {
  zero(rows);
  const int64_t channels = rows.size(2);
  float *count = mutable_floats(rows), *mean = count + channels, *squares = mean + channels;
  f(mean, squares);
  for (int64_t c = 0; c < channels; ++c) {
    count[c] = static_cast<float>(pixels);
    squares[c] *= static_cast<float>(pixels);
  }
}

// What the gradient of u's moments adds to the gradient of u, (u - mean) * x_factor + constant, as columns: all of u is in
// the first row.
inline void read_moments_gradient(const Tensor& grad_rows, const Tensor& rows, float* columns, int64_t pitch) {
  const int64_t channels = rows.size(2);
  const float *grad_mean = floats(grad_rows) + channels, *grad_squares = grad_mean + channels;
  const float *count = floats(rows), *mean = count + channels;
  for (int64_t c = 0; c < channels; ++c) {
    columns[kMean * pitch + c] = mean[c];
    columns[kXFactor * pitch + c] = 2 * grad_squares[c];
    columns[kConstant * pitch + c] = grad_mean[c] / count[c];
  }
}

// The gradient of u's moments. The columns hold the part of a pixel's gradient that comes through u's mean and variance.
inline void write_moments_gradient(const Tensor& rows, const float* columns, int64_t pitch, Tensor grad_rows) {
  zero(grad_rows);
  const int64_t channels = rows.size(2);
  for (int64_t row = 0; row < rows.size(0); ++row) {
    const float *count = floats(rows) + row * 3 * channels, *mean = count + channels;
    float* grad_mean = mutable_floats(grad_rows) + (row * 3 + 1) * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float factor = columns[kXFactor * pitch + c];
      grad_mean[c] = count[c] * (columns[kConstant * pitch + c] + (mean[c] - columns[kMean * pitch + c]) * factor);
      grad_mean[channels + c] = factor / 2;
    }
  }
}

}  // namespace fastcifar

// Kernels of BN and ReLU over channels_last memory, a [rows, C] matrix: over a part of the rows and channels, in one
// thread. Here n0 and n1 of a `Range` count rows. What is known of each channel lies in `columns`, float32
// [kColumns][pitch], padded with zeros to whole blocks of channels.
#pragma once
#include "common.h"
#include "cpu/isa.h"
#include "cpu/range.h"

namespace fastcifar {

enum Column {
  kMean,   // until the mean is known, a pivot in its place: some value of the channel
  kScale,  // BN is x * scale + shift
  kShift,
  kGradFactor,  // the gradient of x is g * grad_factor + (x - mean) * x_factor + constant
  kXFactor,
  kConstant,
  kColumns
};

// The sums over each part of the rows, `size` floats a part. They are added up in the order of the parts. A BN has two
// rows of `pitch` sums.
struct Sums {
  float* first;
  int64_t num_parts, size;

  float* part(int64_t i) const { return first + i * size; }
};

}  // namespace fastcifar

FASTCIFAR_DECLARE_KERNELS(
    // Takes the mean of up to eight rows of x as the pivots.
    void set_pivot(Element element, const Range& range, int64_t rows, int64_t channels, const void* x, float* columns);

    // Adds the sums of x - pivot and of its square to sums [2][pitch].
    void add_statistics(Element element, const Range& range, int64_t channels, const void* x, const float* columns,
                        int64_t pitch, float* sums);

    // Writes mean and var [C], and the columns mean, scale and shift, from the sums over `count` rows.
    void finish_statistics(const Range& range, const Sums& sums, double count, const float* gamma, const float* beta,
                           double eps, float* columns, int64_t pitch, float* mean, float* var);

    // Writes the columns mean, scale and shift from statistics that are known.
    void fold_statistics(const Range& range, const float* mean, const float* var, const float* gamma, const float* beta,
                         double eps, float* columns, int64_t pitch);

    // z = relu(x * scale + shift)
    void apply_affine_relu(Element element, const Range& range, int64_t channels, const void* x, const float* columns,
                           int64_t pitch, void* z);

    // Adds the sums of g and g * (x - mean) to sums [2][pitch], where g is grad_z where the ReLU let x through, else 0.
    void add_gradient_sums(Element element, const Range& range, int64_t channels, const void* grad_z, const void* x,
                           const float* columns, int64_t pitch, float* sums);

    // Writes grad_gamma and grad_beta [C], and the columns of the gradient, from the sums over `count` rows.
    void finish_gradient(const Range& range, const Sums& sums, double count, const float* gamma, const float* var,
                         double eps, float* columns, int64_t pitch, float* grad_gamma, float* grad_beta);

    // grad_x = g * grad_factor + (x - mean) * x_factor + constant. `masked`: `grad` is g already; otherwise g is `grad`
    // where the ReLU let x through, else 0.
    void apply_gradient(Element element, const Range& range, int64_t channels, bool masked, const void* grad,
                        const void* x, const float* columns, int64_t pitch, void* grad_x);)

// Kernels of BN and ReLU over channels_last memory, a [rows, C] matrix: over a part of the rows and channels, in one
// thread. `Range` counts rows in n0, n1. A channel's numbers are columns of a float32 array [kColumns][pitch], padded
// with zeros to whole blocks of channels.
#pragma once
#include "common.h"
#include "cpu/isa.h"
#include "cpu/range.h"

namespace fastcifar {

enum Column {
  kMean,   // before that is known, a pivot: some value of the channel
  kScale,  // BN is x * scale + shift
  kShift,
  kGradFactor,  // its gradient is g * grad_factor + (x - mean) * x_factor + constant
  kXFactor,
  kConstant,
  kColumns
};

// Sums over parts of the rows, `size` apart, to be added up in their order. A BN's are two rows of `pitch`.
struct Sums {
  float* first;
  int64_t num_parts, size;

  float* part(int64_t i) const { return first + i * size; }
};

}  // namespace fastcifar

FASTCIFAR_DECLARE_KERNELS(
    // The row that x points to as the pivot.
    void set_pivot(Element element, const Range& range, const void* x, float* columns);

    // Adds the sums of x - pivot and of its square to sums [2][pitch].
    void add_statistics(Element element, const Range& range, int64_t channels, const void* x, const float* columns,
                        int64_t pitch, float* sums);

    // mean, var [C] and the columns mean, scale and shift from `count` rows' statistics.
    void finish_statistics(const Range& range, const Sums& sums, double count, const float* gamma, const float* beta,
                           double eps, float* columns, int64_t pitch, float* mean, float* var);

    // The columns mean, scale and shift from statistics that are known.
    void fold_statistics(const Range& range, const float* mean, const float* var, const float* gamma, const float* beta,
                         double eps, float* columns, int64_t pitch);

    // z = relu(x * scale + shift)
    void apply_affine_relu(Element element, const Range& range, int64_t channels, const void* x, const float* columns,
                           int64_t pitch, void* z);

    // Adds the sums of g and g * (x - mean) to sums [2][pitch], where g is grad_z before the ReLU.
    void add_gradient_sums(Element element, const Range& range, int64_t channels, const void* grad_z, const void* x,
                           const float* columns, int64_t pitch, float* sums);

    // grad_gamma, grad_beta [C] and the gradient's columns from the sums over `count` rows.
    void finish_gradient(const Range& range, const Sums& sums, double count, const float* gamma, const float* var,
                         double eps, float* columns, int64_t pitch, float* grad_gamma, float* grad_beta);

    // grad_x = g * grad_factor + (x - mean) * x_factor + constant; g is `grad` where `masked`, else `grad` before the ReLU.
    void apply_gradient(Element element, const Range& range, int64_t channels, bool masked, const void* grad,
                        const void* x, const float* columns, int64_t pitch, void* grad_x);)

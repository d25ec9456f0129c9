// Kernels of separable_block's pointwise product and of its gradients: over a part of the pixels or of the output
// channels, in one thread. Columns as in batch_norm_relu_kernel.h: columns1 of y's BN. A tile of pixels is computed into
// a cache as it is loaded, multiplied there, and used before the product leaves the cache.
#pragma once
#include "common.h"
#include "cpu/batch_norm_relu_kernel.h"

namespace fastcifar {

// v = z . W^T with z = relu(bn1(y)): rows are pixels, y has k channels and v has m.
struct PointwiseProduct {
  Element element;
  bool tiles;  // the tile registers multiply: bfloat16, and float32 as sums of three
  int64_t k, m;
  const void* y;
  const float* columns1;  // [kColumns][round_up(k, kBlock)]

  bool is_split() const { return tiles && element == Element::f32; }
  bool is_large() const { return k * m > 1 << 18; }  // W alone fills the L2 cache, or nearly
};

// What a part of the pixels leaves for the moments of v: two sums and the pivots.
enum ProductSum { kSumOfV, kSquareOfV, kPivotOfV, kProductSums };

// What the gradient of v is made of: grad_v, and what comes through the moments of v where the next op uses them.
struct GradientOfProduct {
  const void *grad_v, *v;
  const float* columns;  // kMean, kXFactor and kConstant of [kColumns][round_up(m, kBlock)]; null: grad_v is all
};

}  // namespace fastcifar

FASTCIFAR_DECLARE_KERNELS(
    // W and its gradient are worked on in panels of columns.
    int64_t num_panels(int64_t columns);
    // Floats of W as pack_weight leaves it, and of a matrix of sums for the gradient of W.
    int64_t packed_weight(const PointwiseProduct& p, bool transposed); int64_t weight_sums(const PointwiseProduct& p);
    // Floats of scratch memory that each kernel below needs.
    int64_t product_scratch(const PointwiseProduct& p);

    // Packs the panels [first, end) of W [m][k], float32 or bfloat16, rounded to p.element: for v = z . W^T
    // (`transposed`, a matrix [k][m]) or for grad_z = grad_v . W (a matrix [m][k]).
    void pack_weight(const PointwiseProduct& p, Element of_weight, const void* weight, bool transposed, int64_t first,
                     int64_t end, float* packed);

    // Rows [first, end) of v, a part of the pixels. Takes the first of them, rounded to p.element, as the pivots, and adds
    // the sums of v - pivot and of its square to the first two rows of sums [kProductSums][round_up(m, kBlock)].
    void multiply_forward(const PointwiseProduct& p, int64_t first, int64_t end, const float* packed, void* v,
                          float* sums, float* scratch);

    // The mean and the biased variance of v [m] from the sums over the parts, of counts[i] rows each.
    void finish_moments(const PointwiseProduct& p, const Sums& sums, const double* counts, float* mean, float* var);

    // Floats of the factors of the gradient of W from `rows` pixels, a multiple of kBlock.
    int64_t weight_factors(const PointwiseProduct& p, int64_t rows);

    // Rows [first, end) of grad_z, which may be grad_v where k = m: a tile is read before its rows are written. Adds the two sums that bn1's gradient needs to sums [2][round_up(k, kBlock)]. Leaves
    // the factors of the gradient of W in `factors`, which have room for `rows_of_factors` pixels and begin with pixel
    // `first_of_factors`; first - first_of_factors is a multiple of kBlock.
    void multiply_backward(const PointwiseProduct& p, const GradientOfProduct& g, int64_t first, int64_t end,
                           const float* packed, void* grad_z, float* sums, float* factors, int64_t first_of_factors,
                           int64_t rows_of_factors, float* scratch);

    // Rows [first_channel, end_channel) of the gradient of W, [m][k] in panels, from the first `rows` pixels of the
    // factors; with `add` it is added. first_channel is a multiple of kBlock.
    void multiply_factors(const PointwiseProduct& p, const float* factors, int64_t rows_of_factors, int64_t rows,
                          int64_t first_channel, int64_t end_channel, float* grad_w, bool add);

    // Rows [first, end) of the gradient [m][k] of W, float32 or bfloat16: the sum of `num_parts` matrices, in order.
    void write_weight_gradient(const PointwiseProduct& p, const float* sums, int64_t num_parts, Element of_weight,
                               int64_t first, int64_t end, void* grad);)

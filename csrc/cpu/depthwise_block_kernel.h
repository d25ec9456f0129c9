// Kernels of depthwise_block and of its evaluation: over a part of the images and channels, in one thread. Columns as
// in batch_norm_relu_kernel.h: columns0 of u's BN, columns1 of y's.
#pragma once
#include "common.h"
#include "cpu/batch_norm_relu_kernel.h"

FASTCIFAR_DECLARE_KERNELS(
    // Takes the mean of y in the middle of up to eight images as the pivots of y.
    void set_output_pivot(Element element, const DwShape& s, const Range& range, const void* u, const float* columns0,
                          const float* taps, int64_t pitch, float* columns1);

    // y = the convolution of relu(bn0(u)); adds the sums of y - pivot and of its square to sums [2][pitch].
    void depthwise_block_forward(Element element, const DwShape& s, const Range& range, const void* u,
                                 const float* columns0, const float* taps, int64_t pitch, void* y,
                                 const float* columns1, float* sums, float* ring);

    // Writes grad_h, the gradient of bn0(u) times the column kGradFactor of columns0, from the gradient of z. They may be
    // one tensor where the stride is 1: the ring holds what is still needed of the rows that are written over. Adds the
    // two sums that bn0's gradient needs to the first two rows of sums [11][pitch], and the gradient of the weight to
    // the other nine. ring: ring_floats(Wo).
    void depthwise_block_backward(Element element, const DwShape& s, const Range& range, const void* grad_z,
                                  const void* y, const void* u, const float* columns0, const float* columns1,
                                  const float* taps, int64_t pitch, void* grad_h, float* sums, float* ring);

    // z = relu(bn1(the convolution of relu(bn0(u))))
    void dwconv3x3_affine_relu(Element element, const DwShape& s, const Range& range, const void* u,
                               const float* columns0, const float* taps, int64_t pitch, const float* columns1, void* z,
                               float* ring);)

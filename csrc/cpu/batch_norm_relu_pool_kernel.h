// Kernels of BN, ReLU and the mean over all pixels of an image: over a part of the images and channels, in one thread.
// Columns and sums as in batch_norm_relu_kernel.h. `pixels`: of an image.
#pragma once
#include "cpu/batch_norm_relu_kernel.h"

FASTCIFAR_DECLARE_KERNELS(
    // pooled [N][channels] = the mean of relu(u * scale + shift)
    void pool_affine_relu(Element element, const Range& range, int64_t pixels, int64_t channels, const void* u,
                          const float* columns, int64_t pitch, void* pooled);

    // Adds the sums of g and g * (u - mean) to sums [2][pitch], where g is grad_pooled / pixels where the ReLU let u
    // through, else 0.
    void add_pool_gradient_sums(Element element, const Range& range, int64_t pixels, int64_t channels,
                                const void* grad_pooled, const void* u, const float* columns, int64_t pitch,
                                float* sums);

    // grad_u = g * grad_factor + (u - mean) * x_factor + constant
    void apply_pool_gradient(Element element, const Range& range, int64_t pixels, int64_t channels,
                             const void* grad_pooled, const void* u, const float* columns, int64_t pitch,
                             void* grad_u);)

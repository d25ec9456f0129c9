// Kernels of dwconv3x3: over a part of the images and channels, in one thread.
#pragma once
#include "common.h"
#include "cpu/isa.h"
#include "cpu/range.h"

FASTCIFAR_DECLARE_KERNELS(
    // taps: float32 [9][pitch]. zeros: a row of zeros, W * C of them.
    void dwconv3x3_forward(Element element, const DwShape& s, const Range& range, const void* x, const float* taps,
                           int64_t pitch, void* y, const float* zeros);

    // grad_x and grad_w may be null. grad_w: float32 [9][pitch], added to. zeros: as above, W * C.
    void dwconv3x3_backward(Element element, const DwShape& s, const Range& range, const void* grad_y, const void* x,
                            const float* taps, int64_t pitch, void* grad_x, float* grad_w, const float* zeros);

    // out[i] = sum of parts[k][i] over k, in the order of k.
    void sum_parts(const float* parts, int64_t num_parts, int64_t size, float* out);)

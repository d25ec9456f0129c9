// Kernels of separable_block's pointwise product: over a part of its output, in one thread.
#pragma once
#include "common.h"
#include "cpu/isa.h"
#include "cpu/range.h"

FASTCIFAR_DECLARE_KERNELS(
    // Rows [first, end) of out [rows][n] = x [rows][k] . matrix: x and out of the element type, matrix float32
    // [k][pitch], padded with zeros to whole blocks of channels. A sum runs over k in order, in float32.
    void multiply_rows(Element element, int64_t first, int64_t end, int64_t k, int64_t n, const void* x,
                       const float* matrix, int64_t pitch, void* out);

    // Rows [first, end) of out [m][n] = a [rows][m]^T . b [rows][n]: a and b of the element type, out float32
    // [m][pitch]. A sum runs over the rows in order, in float32.
    void multiply_transposed(Element element, int64_t first, int64_t end, int64_t rows, int64_t m, int64_t n,
                             const void* a, const void* b, float* out, int64_t pitch);)

// Kernels of stem: over a part of the images and output channels, in one thread.
//
// Images are copied to float32 with a border of zeros. So the nine numbers of the image under a row of the weight lie
// side by side, and no pixel is a special case. Taps are in the same order: row, column, channel of the image.
//
// `tiles`: in bfloat16, with C a multiple of 32, the tile registers multiply the numbers rounded to bfloat16 (see
// stem_tiles.h). Scratch memory `image`: s.memory() zeros.
#pragma once
#include "common.h"
#include "cpu/batch_norm_relu_kernel.h"

namespace fastcifar {

inline constexpr int kStemRow = 9, kStemTaps = 27;  // numbers under a row of the weight, and under all three

struct StemShape {
  int64_t N, C, H, W;

  int64_t row() const { return (W + 2) * 3; }        // floats of a row of an image with its border
  int64_t image() const { return (H + 2) * row(); }  // and of the image
  int64_t pixel(int64_t y, int64_t x) const { return y * row() + x * 3; }  // of what lies under the weight there
  int64_t memory() const { return image() + 64; }  // floats for an image, and for what is read behind it
};

}  // namespace fastcifar

FASTCIFAR_DECLARE_KERNELS(
    // Takes the mean of u in the middle of up to eight images as the pivots. taps: float32 [27][pitch].
    void set_stem_pivot(Element element, const StemShape& s, const Range& range, const void* x, const float* taps,
                        int64_t pitch, float* columns, float* image);

    // u = the convolution; adds the sums of u - pivot and of its square, u as it is rounded, to sums [2][pitch].
    void stem_forward(Element element, bool tiles, const StemShape& s, const Range& range, const void* x,
                      const float* taps, int64_t pitch, void* u, const float* columns, float* sums, float* image);

    // Adds the gradient of the weight to sums [27][pitch]. columns: what is added to grad_u,
    // (u - mean) * x_factor + constant; null: nothing, and u is not read. row: scratch, float32 [W][pitch].
    void stem_backward(Element element, bool tiles, const StemShape& s, const Range& range, const void* grad_u,
                       const void* u, const float* columns, const void* x, int64_t pitch, float* sums, float* image,
                       float* row);)

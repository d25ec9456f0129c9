// Kernel of training_batch: images [b0, b1) of the batch, in one thread.
#pragma once
#include "common.h"
#include "cpu/isa.h"

namespace fastcifar {

enum class Pixel { f32, bf16, fp16 };

struct CropTask {
  const uint8_t* images;  // [M][size][size][3]
  int64_t size, padding;
  const int64_t *index, *top, *left, *partner;  // of the batch's rows; partner may be null
  const bool* flip;
  const int64_t* box;  // first and end row, first and end column of what the partner covers; null: the images are mixed
  const int64_t* hole;  // [rows][2], first row and column of a square of zeros; may be null
  int64_t hole_size;
  // float32 [256][3]: a byte's value, multiplied by its image's weight in the mix. If the kernel multiplied, the
  // compiler could fuse product and sum, and the result would differ from PyTorch's in the last bit.
  const float *own, *others;
  Pixel pixel;
  void* out;  // [rows][size][size][3]
};

}  // namespace fastcifar

FASTCIFAR_DECLARE_KERNELS(
    // bytes: 3 * size of scratch. row: as many float32.
    void training_batch(const CropTask& task, int64_t b0, int64_t b1, uint8_t* bytes, float* row);)

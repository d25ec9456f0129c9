#include "cpu/training_batch_kernel.h"

#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Row y of the batch's image b, cropped and flipped.
void crop(const CropTask& t, int64_t b, int64_t y, uint8_t* bytes) {
  const int64_t size = t.size, source = t.top[b] + y - t.padding, shift = t.left[b] - t.padding;
  memset(bytes, 0, 3 * size);
  if (source < 0 || source >= size) return;
  const int64_t first = shift < 0 ? -shift : 0, end = shift > 0 ? size - shift : size;
  const uint8_t* pixels = t.images + (t.index[b] * size + source) * size * 3;
  if (end > first) memcpy(bytes + 3 * first, pixels + 3 * (first + shift), 3 * (end - first));
  if (!t.flip[b]) return;
  for (int64_t l = 0, r = size - 1; l < r; ++l, --r) {
    for (int c = 0; c < 3; ++c) {
      const uint8_t left = bytes[3 * l + c];
      bytes[3 * l + c] = bytes[3 * r + c];
      bytes[3 * r + c] = left;
    }
  }
}

template <class T>
void write(const float* row, int64_t size, T* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = from_f32<T>(row[i]);
}

}  // namespace

void training_batch(const CropTask& t, int64_t b0, int64_t b1, uint8_t* bytes, float* row) {
  for (int64_t b = b0; b < b1; ++b) {
    for (int64_t y = 0; y < t.size; ++y) {
      crop(t, b, y, bytes);
      for (int64_t x = 0; x < t.size; ++x) {
        for (int c = 0; c < 3; ++c) row[3 * x + c] = t.own[3 * bytes[3 * x + c] + c];
      }
      if (t.partner) {
        crop(t, t.partner[b], y, bytes);
        for (int64_t x = 0; x < t.size; ++x) {
          for (int c = 0; c < 3; ++c) row[3 * x + c] += t.others[3 * bytes[3 * x + c] + c];
        }
      }
      const int64_t at = (b * t.size + y) * t.size * 3;
      if (t.pixel == Pixel::f32) {
        memcpy(static_cast<float*>(t.out) + at, row, 3 * t.size * sizeof(float));
      } else if (t.pixel == Pixel::bf16) {
        write(row, 3 * t.size, static_cast<bf16*>(t.out) + at);
      } else {
        write(row, 3 * t.size, static_cast<fp16*>(t.out) + at);
      }
    }
  }
}

}  // namespace fastcifar::FASTCIFAR_ISA

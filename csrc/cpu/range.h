// How an op's work is cut into parts for kernels and threads.
#pragma once
#include <cstdint>

namespace fastcifar {

enum class Element { f32, bf16 };

constexpr int kBlock = 32;      // channels that a kernel takes at a time: in bfloat16 one cache line
constexpr int64_t kParts = 64;  // that an op's work is cut into at most: threads share the parts, and wait for the last

inline int64_t clamp(int64_t value, int64_t most) { return value < 1 ? 1 : value < most ? value : most; }
inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// What one kernel call works on: images [n0, n1), channels [c0, c1); c0 is a multiple of kBlock.
struct Range {
  int64_t n0, n1, c0, c1;
};

// An even cut into `image_parts` times `channel_parts` ranges. It depends on the shape alone, never on the number of
// threads. So sums over the parts, added up in their order, are the same to the last bit everywhere.
struct Cut {
  int64_t images, channels, image_parts, channel_parts;

  int64_t size() const { return image_parts * channel_parts; }

  Range operator[](int64_t part) const {
    const int64_t i = part / channel_parts, j = part % channel_parts, blocks = (channels + kBlock - 1) / kBlock;
    const int64_t end = blocks * (j + 1) / channel_parts * kBlock;
    return {images * i / image_parts, images * (i + 1) / image_parts, blocks * j / channel_parts * kBlock,
            end < channels ? end : channels};
  }
};

// Rows of the ring (see tile.h) for maps of this width: a power of two, in about 20 KiB of the L1 cache.
inline int64_t ring_rows(int64_t width) {
  int64_t rows = 4;
  while (rows < 32 && 2 * rows * (width + 2) * kBlock <= 5120) rows *= 2;
  return rows;
}

// How many floats that ring has, with its row of zeros.
inline int64_t ring_floats(int64_t width) { return (ring_rows(width) + 1) * (width + 2) * kBlock; }

// For kernels that walk through whole images: up to kParts parts of at least `part_bytes` each, cut by images. Where that
// makes fewer than eight parts, they are cut by channels too.
inline Cut cut_by_images(int64_t images, int64_t channels, int64_t image_bytes, int64_t part_bytes) {
  const int64_t blocks = (channels + kBlock - 1) / kBlock;
  const int64_t by_images = clamp(images * image_bytes / part_bytes, clamp(images, kParts));
  return {images, channels, by_images, clamp(8 / by_images, blocks)};
}

// Up to kParts parts of at least 128 KiB each, cut by images first, then by channels. `image_bytes`: of one image.
inline Cut cut(int64_t images, int64_t channels, int64_t image_bytes) {
  const int64_t blocks = (channels + kBlock - 1) / kBlock;
  const int64_t by_images = clamp(images * image_bytes >> 17, clamp(images, kParts));
  return {images, channels, by_images, clamp(kParts / by_images, blocks)};
}

}  // namespace fastcifar

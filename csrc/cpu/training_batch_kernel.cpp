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

// Columns [begin, end) of a row; none if begin == end.
struct Span {
  int64_t begin, end;
};

Span clamped(int64_t begin, int64_t end, Span limits) {
  begin = begin < limits.begin ? limits.begin : begin;
  end = end > limits.end ? limits.end : end;
  return {begin, end < begin ? begin : end};
}

// The part of row y of image b, within `limits`, that its hole covers.
Span hole(const CropTask& t, int64_t b, int64_t y, Span limits) {
  if (!t.hole || y < t.hole[2 * b] || y >= t.hole[2 * b] + t.hole_size) return {limits.begin, limits.begin};
  return clamped(t.hole[2 * b + 1], t.hole[2 * b + 1] + t.hole_size, limits);
}

// The normalised pixels of a row; zero where the row has a hole.
void look_up(const float* table, const uint8_t* bytes, Span columns, Span hole, float* row) {
  for (int64_t x = columns.begin; x < columns.end; ++x) {
    for (int c = 0; c < 3; ++c) row[3 * x + c] = table[3 * bytes[3 * x + c] + c];
  }
  if (hole.end > hole.begin) memset(row + 3 * hole.begin, 0, 3 * (hole.end - hole.begin) * sizeof(float));
}

void add(const float* table, const uint8_t* bytes, Span columns, float* row) {
  for (int64_t x = columns.begin; x < columns.end; ++x) {
    for (int c = 0; c < 3; ++c) row[3 * x + c] += table[3 * bytes[3 * x + c] + c];
  }
}

// Row y of image b, and what its partner adds to it or covers of it.
void make_row(const CropTask& t, int64_t b, int64_t y, uint8_t* bytes, float* row) {
  const Span all{0, t.size};
  crop(t, b, y, bytes);
  look_up(t.own, bytes, all, hole(t, b, y, all), row);
  if (!t.partner) return;
  const int64_t partner = t.partner[b];
  if (t.box) {
    if (y < t.box[0] || y >= t.box[1]) return;
    const Span inside = clamped(t.box[2], t.box[3], all);
    crop(t, partner, y, bytes);
    look_up(t.others, bytes, inside, hole(t, partner, y, inside), row);
  } else {
    const Span skipped = hole(t, partner, y, all);
    crop(t, partner, y, bytes);
    add(t.others, bytes, {0, skipped.begin}, row);
    add(t.others, bytes, {skipped.end, t.size}, row);
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
      const int64_t at = (b * t.size + y) * t.size * 3;
      float* made = t.pixel == Pixel::f32 ? static_cast<float*>(t.out) + at : row;
      make_row(t, b, y, bytes, made);
      if (t.pixel == Pixel::bf16) write(made, 3 * t.size, static_cast<bf16*>(t.out) + at);
      if (t.pixel == Pixel::fp16) write(made, 3 * t.size, static_cast<fp16*>(t.out) + at);
    }
  }
}

}  // namespace fastcifar::FASTCIFAR_ISA

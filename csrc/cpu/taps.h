// The nine taps of a depthwise weight in registers, for both ways of walking over a map (rows.h, tile.h).
#pragma once
#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// The nine taps of one vector of channels, from float32 rows `pitch` apart.
struct TapVectors {
  Vec tap[3][3];  // row, column
  FC_INLINE TapVectors(const float* w, int64_t pitch) {
    for (int k = 0; k < 9; ++k) tap[k / 3][k % 3] = load(w + k * pitch);
  }
  // What column k of the taps makes of three pixels one above the other.
  template <int k>
  FC_INLINE Vec first(const Vec* pixels) const {
    return tap[2][k] * pixels[2] + (tap[1][k] * pixels[1] + tap[0][k] * pixels[0]);
  }
  // The same, added to `sum`.
  template <int k>
  FC_INLINE Vec add(const Vec* pixels, Vec sum) const {
    return tap[2][k] * pixels[2] + (tap[1][k] * pixels[1] + (tap[0][k] * pixels[0] + sum));
  }
};

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA

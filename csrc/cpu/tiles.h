// The tile registers of AMX: eight, of 16 rows of 64 bytes each. A product adds 16 x 16 sums of 16 pairs of bfloat16.
// FASTCIFAR_EMULATED computes the same on any machine, for tests.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cpu/vec.h"

#if defined(__AMX_BF16__) || defined(FASTCIFAR_EMULATED)
#define FASTCIFAR_HAVE_TILES

namespace fastcifar::FASTCIFAR_ISA {
namespace {

constexpr int64_t kTileRows = 16, kTileColumns = 16, kTileSteps = 16;  // steps in pairs

#if defined(FASTCIFAR_EMULATED)
thread_local uint32_t emulated_tiles[8][kTileRows][kTileColumns];
thread_local bool tiles_are_set_up = false;

inline auto& emulated_tile(int tile) {
  if (!tiles_are_set_up) abort();
  return emulated_tiles[tile];
}
template <int tile>
void tile_zero() {
  memset(emulated_tile(tile), 0, sizeof emulated_tiles[tile]);
}
template <int tile>
void tile_load(const void* p, int64_t pitch) {
  for (int64_t r = 0; r < kTileRows; ++r)
    memcpy(emulated_tile(tile)[r], static_cast<const char*>(p) + r * pitch * 4, 64);
}
template <int tile>
void tile_load_once(const void* p, int64_t pitch) {
  tile_load<tile>(p, pitch);
}
template <int tile>
void tile_store(void* p, int64_t pitch) {
  for (int64_t r = 0; r < kTileRows; ++r) memcpy(static_cast<char*>(p) + r * pitch * 4, emulated_tile(tile)[r], 64);
}
// What is subnormal counts as zero.
inline float flushed(uint32_t bits) { return float_of(bits & 0x7f800000u ? bits : bits & 0x80000000u); }
// In the order of Intel's manual: what is at even places and what is at odd ones is added up from zero.
template <int sums, int left, int right>
void tile_multiply() {
  for (int r = 0; r < kTileRows; ++r) {
    float even[kTileColumns] = {}, odd[kTileColumns] = {};
    for (int i = 0; i < kTileSteps; ++i) {
      const uint32_t a = emulated_tile(left)[r][i], *b = emulated_tile(right)[i];
      const float first = flushed(a << 16), second = flushed(a & 0xffff0000u);
      for (int c = 0; c < kTileColumns; ++c) {
        even[c] += first * flushed(b[c] << 16);
        odd[c] += second * flushed(b[c] & 0xffff0000u);
      }
    }
    for (int c = 0; c < kTileColumns; ++c) {
      uint32_t& sum = emulated_tile(sums)[r][c];
      sum = bits_of(flushed(bits_of(flushed(sum) + (even[c] + odd[c]))));
    }
  }
}
class TileRegisters {
 public:
  explicit TileRegisters(bool used = true) : used_(used) {
    if (!used) return;
    if (tiles_are_set_up) abort();  // the inner one would take them from the outer one
    tiles_are_set_up = true;
    memset(emulated_tiles, 0xff, sizeof emulated_tiles);  // NaN
  }
  ~TileRegisters() {
    if (used_) tiles_are_set_up = false;
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  bool used_;
};
#else
// Not the compiler's intrinsics: GCC's are macros that take no template argument.
template <int tile>
FC_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}
template <int tile>
FC_INLINE void tile_load(const void* p, int64_t pitch) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(pitch * 4), "i"(tile) : "memory");
}
// Of memory that this pass reads no more: it does not drive out of the L1 cache what is read again.
template <int tile>
FC_INLINE void tile_load_once(const void* p, int64_t pitch) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(pitch * 4), "i"(tile) : "memory");
}
template <int tile>
FC_INLINE void tile_store(void* p, int64_t pitch) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(pitch * 4), "i"(tile) : "memory");
}
template <int sums, int left, int right>
FC_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(left), "i"(right));
}

// This thread may use the tile registers while the object lives, if it is `used`.
class TileRegisters {
 public:
  explicit TileRegisters(bool used = true) : used_(used) {
    if (!used) return;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }
  ~TileRegisters() {
    if (used_) asm volatile("tilerelease");
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  bool used_;
};
#endif

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA
#endif

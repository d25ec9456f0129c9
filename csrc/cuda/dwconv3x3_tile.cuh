// How the work of the depthwise 3x3 convolution (padding 1, channels_last) is cut, for its forward and its backward.
//
// A thread owns V channels of a tile that is R rows high. It marches along W with a window of columns in registers
// while the next column is on its way. PLANE > 0: the whole map is PLANE x PLANE pixels and is one thread's tile. All
// of it is loaded first, the march is unrolled, and the taps outside the map vanish at compile time. (With the march
// of other tiles unrolled too, the code had 70 KiB and registers were spilled.)
#pragma once
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/statistics.cuh"

namespace fastcifar::cuda {

struct DwGeometry {
  int N, C, H, W, Ho, Wo;
};

// The block's weights, float [9][kBlockChannels] in shared memory; in device memory they are [C][9]. They are on their
// way until they are shared.
class Taps {
 public:
  __device__ __forceinline__ Taps(const float* w, int C) {
    const int c0 = blockIdx.x * kBlockChannels, count = 9 * min(kBlockChannels, C - c0);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int i = k * kThreads + threadIdx.x;
      own_[k] = i < count ? w[static_cast<int64_t>(c0) * 9 + i] : 0.f;
    }
  }
  __device__ __forceinline__ void share(float* taps) const {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int i = k * kThreads + threadIdx.x;
      if (i < 9 * kBlockChannels) taps[i % 9 * kBlockChannels + i / 9] = own_[k];
    }
    __syncthreads();
  }

 private:
  static constexpr int kLoads = (9 * kBlockChannels + kThreads - 1) / kThreads;
  float own_[kLoads];
};

// V_ channels, R_ rows a thread. WHOLE_: tiles do not hang over the map, whose height is a multiple of R * S and
// whose width is one of S.
template <int V_, int S_, int R_, int PLANE_, bool WHOLE_ = false>
struct Tile {
  static constexpr int V = V_, S = S_, R = R_, PLANE = PLANE_;
  static constexpr bool WHOLE = WHOLE_;
};

// A place in a tensor, from which others are reached by distances in bytes that all threads share. AS_POINTER: it takes
// two registers, and each access two additions; otherwise it is a 32-bit offset from the tensor, which takes one, and each
// access three. It may for a while lie outside of the tensor.
template <class T, bool AS_POINTER>
class Cursor {
 public:
  __device__ __forceinline__ Cursor(T* tensor, uint32_t first) : tensor_(tensor), place_(place(tensor, first)) {}
  __device__ __forceinline__ T* at(int64_t distance) const {
    if constexpr (AS_POINTER)
      return reinterpret_cast<T*>(place_ + distance);
    else
      return at_byte(tensor_, place_ + static_cast<uint32_t>(distance));
  }
  __device__ __forceinline__ void move(int64_t distance) { place_ += distance; }

 private:
  // Of characters and not a number: by way of a number the compiler forgets that it leads to device memory.
  using Bytes = std::conditional_t<std::is_const_v<T>, const char*, char*>;
  using Place = std::conditional_t<AS_POINTER, Bytes, uint32_t>;
  __device__ __forceinline__ static Place place(T* tensor, uint32_t first) {
    if constexpr (AS_POINTER)
      return tensor == nullptr ? nullptr : reinterpret_cast<Bytes>(tensor) + first;
    else
      return first;
  }
  T* tensor_;
  Place place_;
};

// Moves a window by a column.
template <int COLUMNS, int ROWS, int V>
__device__ __forceinline__ void move_columns(float (&window)[COLUMNS][ROWS][V]) {
#pragma unroll
  for (int k = 0; k + 1 < COLUMNS; ++k)
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
      for (int v = 0; v < V; ++v) window[k][i][v] = window[k + 1][i][v];
}

// Calls take(integral_constant<int, 0>), ... <TURNS - 1>, and again from the first on, until one returns true. A window of
// TURNS columns that starts one column further with each turn moves no number from register to register.
template <int TURNS, class Take>
__device__ __forceinline__ void take_in_turns(Take take) {
  using std::integral_constant;
  if constexpr (TURNS == 1) {
    while (!take(integral_constant<int, 0>())) {
    }
  } else if constexpr (TURNS == 2) {
    while (!take(integral_constant<int, 0>()) && !take(integral_constant<int, 1>())) {
    }
  } else {
    static_assert(TURNS == 3);
    while (!take(integral_constant<int, 0>()) && !take(integral_constant<int, 1>()) &&
           !take(integral_constant<int, 2>())) {
    }
  }
}

enum class Pass { kForward, kBackward, kFusedBackward };

// The tile of outputs (forward) or of cells of S x S inputs (backward) for a shape, given to f as a type: the largest
// that 128 registers (16 warps an SM) hold.
template <Pass PASS, class F>
auto with_tile(const DwShape& s, F f) {
  if (s.C % 2 != 0) return s.stride == 1 ? f(Tile<1, 1, 4, 0>()) : f(Tile<1, 2, 2, 0>());
  const bool is4 = s.H == 4 && s.W == 4, is2 = s.H == 2 && s.W == 2;
  if (is4) return s.stride == 2 ? f(Tile<2, 2, 2, 4>()) : f(Tile<2, 1, 4, 4>());
  if (is2 && s.stride == 1) return f(Tile<2, 1, 2, 2>());
  constexpr int kRows = PASS == Pass::kFusedBackward ? 2 : 4;
  if (s.stride == 2) return s.H % 4 == 0 && s.W % 2 == 0 ? f(Tile<2, 2, 2, 0, true>()) : f(Tile<2, 2, 2, 0>());
  return s.H % kRows == 0 ? f(Tile<2, 1, kRows, 0, true>()) : f(Tile<2, 1, kRows, 0>());
}

// Division of 0 <= n < 2^31 by a number that the host knows: a multiplication, where the hardware divides in 20 steps.
struct Divisor {
  uint32_t number, factor, shift;

  FC_HD uint32_t quotient(uint32_t n) const {
    return (static_cast<uint32_t>(static_cast<uint64_t>(n) * factor >> 32) + n) >> shift;
  }
};
inline Divisor divisor(uint32_t number) {
  uint32_t shift = 0;
  while ((uint64_t{1} << shift) < number) ++shift;
  return {number, static_cast<uint32_t>((((uint64_t{1} << shift) - number) << 32) / number + 1), shift};
}

// The tiles of a batch: image by image, strip of rows by strip, and in a strip from left to right.
struct TileGrid {
  struct Place {
    int image, strip, column;  // column: the tile's first
  };

  int columns, count;  // columns: of a tile
  Divisor across, down;

  FC_HD Place place(int tile) const {
    const uint32_t strip = across.quotient(tile), image = down.quotient(strip);
    return {static_cast<int>(image), static_cast<int>(strip - image * down.number),
            static_cast<int>(tile - strip * across.number) * columns};
  }
};

inline DwGeometry geometry(const DwShape& s) {
  return {static_cast<int>(s.N), static_cast<int>(s.C),  static_cast<int>(s.H),
          static_cast<int>(s.W), static_cast<int>(s.Ho), static_cast<int>(s.Wo)};
}

// The tiles, and how many blocks share them out along grid.y. They form no clusters: on an H200 only 248 of the 264 blocks
// that run at a time can be in clusters of four, and a few more blocks doubled the time.
struct Plan {
  TileGrid tiles;
  int rows;
};

// As wide as the map, whose halo then costs least, but narrower while half of the blocks wanted would go without work.
template <class TILE>
Plan plan(const DwShape& s, bool reducing) {
  const int channel_blocks = ceil_div(s.C, kBlockChannels);
  const int down = ceil_div(s.Ho, TILE::R);  // Ho x Wo are the outputs and the cells of the inputs
  int columns = static_cast<int>(s.Wo);
  const auto tiles = [&] { return s.N * down * ceil_div(s.Wo, columns); };
  const auto blocks = [&] { return ceil_div(tiles(), Lanes<TILE::V>::kCount); };
  while (TILE::PLANE == 0 && columns > 4 && 2 * blocks() * channel_blocks <= kTargetBlocks) columns = (columns + 1) / 2;
  const int rows = std::min(blocks(), reducing ? std::max(1, kTargetBlocks / channel_blocks) : 65535);
  return {{columns, static_cast<int>(tiles()), divisor(ceil_div(s.Wo, columns)), divisor(down)}, rows};
}

// Rows of partial results of the reducing kernels.
template <Pass PASS>
int partial_rows(const DwShape& s) {
  return with_tile<PASS>(s, [&](auto tile) { return plan<decltype(tile)>(s, true).rows; });
}

}  // namespace fastcifar::cuda

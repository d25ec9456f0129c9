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

// V_ channels, R_ rows a thread.
template <int V_, int S_, int R_, int PLANE_>
struct Tile {
  static constexpr int V = V_, S = S_, R = R_, PLANE = PLANE_;
};

enum class Pass { kForward, kBackward, kFusedBackward };

// The tile of outputs (forward) or of cells of S x S inputs (backward) for a shape, given to f as a type: the largest
// that 128 registers (16 warps an SM) hold.
template <Pass PASS, class F>
auto with_tile(const DwShape& s, F f) {
  if (s.C % 2 != 0) return s.stride == 1 ? f(Tile<1, 1, 4, 0>()) : f(Tile<1, 2, 2, 0>());
  const bool is4 = s.H == 4 && s.W == 4, is2 = s.H == 2 && s.W == 2;
  if (s.stride == 2) return is4 ? f(Tile<2, 2, 2, 4>()) : f(Tile<2, 2, 2, 0>());
  if (is4) return f(Tile<2, 1, 4, 4>());
  if (is2) return f(Tile<2, 1, 2, 2>());
  return f(Tile<2, 1, PASS == Pass::kFusedBackward ? 2 : 4, 0>());
}

inline DwGeometry geometry(const DwShape& s) {
  return {static_cast<int>(s.N), static_cast<int>(s.C),  static_cast<int>(s.H),
          static_cast<int>(s.W), static_cast<int>(s.Ho), static_cast<int>(s.Wo)};
}

// How many columns a tile has, and how many blocks share the tiles out along grid.y. They form no clusters: on an H200
// only 248 of the 264 blocks that run at a time can be in clusters of four, and a few more blocks doubled the time.
struct Plan {
  int columns, rows;
};

// As wide as the map, whose halo then costs least, but narrower while half of the blocks wanted would go without work.
template <class TILE>
Plan plan(const DwShape& s, bool reducing) {
  const int channel_blocks = ceil_div(s.C, kBlockChannels);
  const int64_t strips = s.N * ceil_div(s.Ho, TILE::R);  // Ho x Wo are the outputs and the cells of the inputs
  Plan p{static_cast<int>(s.Wo), 0};
  const auto blocks = [&] { return ceil_div(strips * ceil_div(s.Wo, p.columns), Lanes<TILE::V>::kCount); };
  while (TILE::PLANE == 0 && p.columns > 4 && 2 * blocks() * channel_blocks <= kTargetBlocks)
    p.columns = (p.columns + 1) / 2;
  p.rows = std::min(blocks(), reducing ? std::max(1, kTargetBlocks / channel_blocks) : 65535);
  return p;
}

// Rows of partial results of the reducing kernels.
template <Pass PASS>
int partial_rows(const DwShape& s) {
  return with_tile<PASS>(s, [&](auto tile) { return plan<decltype(tile)>(s, true).rows; });
}

}  // namespace fastcifar::cuda

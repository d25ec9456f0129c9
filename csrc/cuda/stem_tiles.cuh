// What both kinds of kernels of the first convolution share: the order of the taps, and the tiles of a batch of images.
#pragma once
#include "cuda/statistics.cuh"

namespace fastcifar::cuda {

inline constexpr int kTaps = 27, kRowTaps = 9;
inline constexpr int kTileWidth = 32;  // pixels

// Taps are in the order of the images' memory: row, column, channel. In a weight that is not channels_last, the channel
// of the images comes first.
__device__ __forceinline__ int place_of(int tap) { return tap % 3 * 9 + tap / 3; }
__device__ __forceinline__ int tap_at(int place) { return place % 9 * 3 + place / 9; }

// A tile, or a step between tiles: image, and tile down and across.
struct Place {
  int n, y, x;
};
FC_HD Place place_of_tile(unsigned tile, unsigned down, unsigned across) {
  return {static_cast<int>(tile / across / down), static_cast<int>(tile / across % down),
          static_cast<int>(tile % across)};
}

struct Geometry {
  int N, C, H, W;
  int down, across;  // tiles of an image
  Place step;        // from a block's tile to its next one
};

// The tiles of a batch of images for a block, which goes from tile blockIdx.y on in steps of gridDim.y.
struct Tiles {
  int N, H, W, down, across;
  Place at, step;

  __device__ __forceinline__ explicit Tiles(const Geometry& s)
      : N(s.N), H(s.H), W(s.W), down(s.down), across(s.across), at(place_of_tile(blockIdx.y, s.down, s.across)),
        step(s.step) {}

  __device__ __forceinline__ bool more() const { return at.n < N; }
  __device__ __forceinline__ void advance() {
    at.x += step.x;
    at.y += step.y;
    at.n += step.n;
    if (at.x >= across) at.x -= across, ++at.y;
    if (at.y >= down) at.y -= down, ++at.n;
  }
};

}  // namespace fastcifar::cuda

// The backward of the 1x1 convolution of few channels, where the maps are large: both of its products in one kernel,
// which reads each map once. For 16-bit types whose rows are whole 16-byte vectors, on tensor cores.
//
// A block takes tiles of rows (pixels): grad_v and y come into shared memory while the tile before is computed. First
// grad_z = grad_v . w: a warp owns 16 channels of some of the rows, keeps its part of w in registers, masks and stores
// its results, adds up norm's two sums, and writes z = relu(norm(y)) over y. Then grad_w += grad_v^T . z: a warp owns
// a part of grad_w. At its end each block writes a row of partial results, of grad_w and of the sums; another kernel
// adds up the rows.
#pragma once
#include "cuda/pointwise.cuh"

namespace fastcifar::cuda {

template <class T>
struct PointwiseBackwardArguments {
  const T *grad_v, *y, *w;  // [M, O], [M, C], [O, C]
  ThroughMoments of_v;      // [M, O]
  int M, O, C;
  Norm norm;    // its statistics known
  T* grad_z;    // [M, C], masked
  float* rows;  // [blocks][O * C + 2 * C]: grad_w, and the sums of grad_z and of grad_z * (y - mean)
};

// For up to OUT output and IN input channels. ROWS: of a tile. RESIDENT: blocks an SM.
template <int OUT, int IN, int ROWS, int THREADS, int RESIDENT>
struct BackwardTile {
  static constexpr int kOut = OUT, kIn = IN, kRows = ROWS, kThreads = THREADS;
  static constexpr int kResident = RESIDENT;
  static constexpr int kPitchG = OUT + 8, kPitchY = IN + 8;  // so that ldmatrix meets no bank twice
  static constexpr int kPacksG = ROWS * OUT / 8 / THREADS, kPacksY = ROWS * IN / 8 / THREADS;  // of a thread
  static constexpr int kPacksW = ceil_div(OUT * IN / 8, THREADS);
  static constexpr int kWarps = THREADS / 32;
  // Of grad_z: a warp has 16 channels, and every kRowWarps-th group of 16 rows.
  static constexpr int kSlices = IN / 16, kRowWarps = kWarps / kSlices;
  // Of grad_w: a warp has OUT / 4 rows and kInPart columns.
  static constexpr int kOutPart = OUT / 4, kInPart = IN / (kWarps / 4);
  static_assert(ROWS % (16 * kRowWarps) == 0 && kOutPart % 16 == 0 && kInPart % 16 == 0, "whole fragments");
  static_assert(kPacksG * THREADS * 8 == ROWS * OUT && kPacksY * THREADS * 8 == ROWS * IN, "the same for all threads");
  // Rows of the weight that have place at a time where the tiles lie later.
  static constexpr int kStaged = OUT * kPitchY <= ROWS * (kPitchG + kPitchY) ? OUT : OUT / 2;
  static_assert(kStaged * kPitchY <= ROWS * (kPitchG + kPitchY) && kStaged % 16 == 0, "half of it has place");
};

// THROUGH: something comes through the moments of v. grid: (blocks that share out the rows)
template <class T, class Tile, bool THROUGH>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    pointwise_backward_kernel(const PointwiseBackwardArguments<T> a) {
  begin_kernel();
  constexpr int kOut = Tile::kOut, kIn = Tile::kIn, kRows = Tile::kRows, kPitchG = Tile::kPitchG;
  constexpr int kPitchY = Tile::kPitchY, kMain = Tile::kThreads;
  using Four = Pack<T, 4>;
  SHARED_ARRAY(uint16_t, shared, kRows*(kPitchG + kPitchY));
  SHARED_ARRAY(float, partials, Tile::kRowWarps * 2 * kIn);
  uint16_t *const of_g = shared, *const of_y = shared + kRows * kPitchG;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int in = lane % 8, first = lane / 8 % 2 * 8, second = lane / 16 * 8;  // for load_matrices
  const int tiles = ceil_div(a.M, kRows);

  SHARED_ARRAY(float, part_mean, THROUGH ? kOut : 4);
  SHARED_ARRAY(float, part_factor, THROUGH ? kOut : 4);
  SHARED_ARRAY(float, part_constant, THROUGH ? kOut : 4);
  if (THROUGH && threadIdx.x < kOut) {
    const PartThroughMoments part = part_through(a.of_v, threadIdx.x, a.O);
    part_mean[threadIdx.x] = part.mean;
    part_factor[threadIdx.x] = part.factor;
    part_constant[threadIdx.x] = part.constant;
  }

  SHARED_ARRAY(float, of_scale, kIn);
  SHARED_ARRAY(float, of_shift, kIn);
  SHARED_ARRAY(float, of_mean, kIn);
  if (threadIdx.x < kIn) {
    const int c = threadIdx.x;
    const bool is_channel = c < a.C;
    const float mean = is_channel ? a.norm.known_mean[c] : 0.f;
    const Affine affine = is_channel ? affine_of(a.norm.gamma[c], a.norm.beta[c], mean, a.norm.known_var[c], a.norm.eps)
                                     : Affine{0.f, 0.f};
    of_scale[c] = affine.scale;
    of_shift[c] = affine.shift;
    of_mean[c] = mean;
  }

  Pack<T, 8> next_g[Tile::kPacksG], next_y[Tile::kPacksY];
  Pack<T, 8> next_v[THROUGH ? Tile::kPacksG : 1];
  const auto fetch = [&](int tile) {
    const int m0 = tile * kRows;
#pragma unroll
    for (int i = 0; i < Tile::kPacksG; ++i) {
      const int j = threadIdx.x + i * kMain, m = m0 + j / (kOut / 8), c = j % (kOut / 8) * 8;
      const uint32_t place = (static_cast<uint32_t>(m) * a.O + c) * 2;
      next_g[i] = load_if<8>(at_byte(a.grad_v, place), m < a.M && c < a.O);
      if constexpr (THROUGH)
        next_v[i] = load_if<8>(at_byte(static_cast<const T*>(a.of_v.x), place), m < a.M && c < a.O);
    }
#pragma unroll
    for (int i = 0; i < Tile::kPacksY; ++i) {
      const int j = threadIdx.x + i * kMain, m = m0 + j / (kIn / 8), c = j % (kIn / 8) * 8;
      next_y[i] = load_if<8>(at_byte(a.y, (static_cast<uint32_t>(m) * a.C + c) * 2), m < a.M && c < a.C);
    }
  };
  const auto put = [&](int m0) {
#pragma unroll
    for (int i = 0; i < Tile::kPacksG; ++i) {
      const int j = threadIdx.x + i * kMain;
      if constexpr (THROUGH) {
        const int c = j % (kOut / 8) * 8;
        const bool is_row = m0 + j / (kOut / 8) < a.M;
        float grad[8], x[8], mean[8], factor[8], constant[8];
        unpack(next_g[i], grad);
        unpack(next_v[i], x);
        load<8>(part_mean + c, mean);
        load<8>(part_factor + c, factor);
        load<8>(part_constant + c, constant);
#pragma unroll
        for (int k = 0; k < 8; ++k) grad[k] = with_part(grad[k], x[k], {mean[k], factor[k], constant[k]});
        next_g[i] = is_row ? rounded<T>(grad) : Pack<T, 8>{};
      }
      *reinterpret_cast<Pack<T, 8>*>(of_g + j / (kOut / 8) * kPitchG + j % (kOut / 8) * 8) = next_g[i];
    }
#pragma unroll
    for (int i = 0; i < Tile::kPacksY; ++i) {
      const int j = threadIdx.x + i * kMain;
      *reinterpret_cast<Pack<T, 8>*>(of_y + j / (kIn / 8) * kPitchY + j % (kIn / 8) * 8) = next_y[i];
    }
  };

  // The weight comes first: what waits for it waits for the first tiles too.
  const int slice = warp % Tile::kSlices * 16, row_warp = warp / Tile::kSlices;
  Fragment weight[kOut / 16];  // of 16 rows and the warp's 16 columns: two fragments of 8 columns
  {
    Pack<T, 8> packs[Tile::kPacksW];
#pragma unroll
    for (int i = 0; i < Tile::kPacksW; ++i) {
      const int j = threadIdx.x + i * kMain, o = j / (kIn / 8), c = j % (kIn / 8) * 8;
      packs[i] = load_if<8>(a.w + o * a.C + c, o < a.O && c < a.C);
    }
    fetch(blockIdx.x);
    // A lane's results are columns 2q and 2q + 1 of each fragment. The words of a row are put in an order in which they
    // are four neighbouring channels: even words of the 16 channels are the first fragment.
#pragma unroll
    for (int o0 = 0; o0 < kOut; o0 += Tile::kStaged) {
#pragma unroll
      for (int i = 0; i < Tile::kPacksW; ++i) {
        const int j = threadIdx.x + i * kMain, o = j / (kIn / 8) - o0, c = j % (kIn / 8) * 8;
        if (o < 0 || o >= Tile::kStaged) continue;
        uint32_t* row = reinterpret_cast<uint32_t*>(shared + o * kPitchY + c / 16 * 16) + c / 8 % 2 * 2;
#pragma unroll
        for (int k = 0; k < 4; ++k) row[k % 2 * 4 + k / 2] = packs[i].words[k];
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < Tile::kStaged; k += 16)  // matrices (k, n), (k + 8, n), (k, n + 8), (k + 8, n + 8)
        weight[(o0 + k) / 16] = load_matrices<true>(shared + (k + first + in) * kPitchY + slice + second);
      __syncthreads();
    }
  }

  constexpr int kM = Tile::kOutPart / 16, kN = Tile::kInPart / 16;
  const int channel = slice + q * 4;  // the lane's first
  const int out0 = warp % 4 * Tile::kOutPart, in0 = warp / 4 * Tile::kInPart;
  float grad_w[kM][2 * kN][4] = {}, sums[2][4] = {};
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    put(tile * kRows);
    __syncthreads();
    fetch(tile + gridDim.x);
#pragma unroll 1
    for (int r0 = row_warp * 16; r0 < kRows; r0 += Tile::kRowWarps * 16) {
      float acc[2][4] = {};
#pragma unroll
      for (int k = 0; k < kOut / 16; ++k) {  // matrices (m, k), (m + 8, k), (m, k + 8), (m + 8, k + 8)
        const Fragment rows = load_matrices<false>(of_g + (r0 + first + in) * kPitchG + k * 16 + second);
#pragma unroll
        for (int f = 0; f < 2; ++f) multiply_add<T>(acc[f], rows, weight[k].at[2 * f], weight[k].at[2 * f + 1]);
      }
      float scale[4], shift[4], mean[4];
      load<4>(of_scale + channel, scale);
      load<4>(of_shift + channel, shift);
      load<4>(of_mean + channel, mean);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = r0 + e * 8 + g, m = tile * kRows + row;
        Four& at = *reinterpret_cast<Four*>(of_y + row * kPitchY + channel);
        float y[4], z[4], v[4];
        unpack(at, y);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float normed = fmaf(y[i], scale[i], shift[i]);
          v[i] = normed <= 0.f ? 0.f : acc[i / 2][e * 2 + i % 2];
          z[i] = relu(normed);
        }
        at = rounded<T>(z);
        const Four pack = rounded<T>(v);
        unpack(pack, v);
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // of a row behind the last, v is 0, as grad_v is
          sums[0][i] += v[i];
          sums[1][i] = fmaf(v[i], y[i] - mean[i], sums[1][i]);
        }
        if (m < a.M && channel < a.C)
          *reinterpret_cast<Four*>(at_byte(a.grad_z, (static_cast<uint32_t>(m) * a.C + channel) * 2)) = pack;
      }
    }
    __syncthreads();
    // Unrolled further, kernels spill.
#pragma unroll 4
    for (int r0 = 0; r0 < kRows; r0 += 16) {
      Fragment left[kM], right[kN];
#pragma unroll
      for (int i = 0; i < kM; ++i)
        left[i] = load_matrices<true>(of_g + (r0 + second + in) * kPitchG + out0 + i * 16 + first);
#pragma unroll
      for (int i = 0; i < kN; ++i)
        right[i] = load_matrices<true>(of_y + (r0 + first + in) * kPitchY + in0 + i * 16 + second);
#pragma unroll
      for (int i = 0; i < kM; ++i)
#pragma unroll
        for (int k = 0; k < 2 * kN; ++k)
          multiply_add<T>(grad_w[i][k], left[i], right[k / 2].at[k % 2 * 2], right[k / 2].at[k % 2 * 2 + 1]);
    }
    __syncthreads();
  }

  float* const row = a.rows + static_cast<int64_t>(blockIdx.x) * (a.O + 2) * a.C;
#pragma unroll
  for (int i = 0; i < kM; ++i)
#pragma unroll
    for (int k = 0; k < 2 * kN; ++k)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int o = out0 + i * 16 + e * 8 + g, c = in0 + k * 8 + q * 2;
        if (o < a.O && c < a.C)
          *reinterpret_cast<Pack<float, 2>*>(row + o * a.C + c) =
              Pack<float, 2>{{bits_of(grad_w[i][k][e * 2]), bits_of(grad_w[i][k][e * 2 + 1])}};
      }
#pragma unroll
  for (int s = 0; s < 2; ++s)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) sums[s][i] += __shfl_xor_sync(~0u, sums[s][i], distance);
      if (g == 0) partials[(row_warp * 2 + s) * kIn + channel + i] = sums[s][i];
    }
  __syncthreads();
  for (int j = threadIdx.x; j < 2 * kIn; j += kMain) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < Tile::kRowWarps; ++w) sum += partials[w * 2 * kIn + j];
    if (j % kIn < a.C) row[a.O * a.C + j / kIn * a.C + j % kIn] = sum;
  }
}

inline constexpr int kSumThreads = 8;  // of a row, for sum_rows_kernel

// Adds up the rows of float [count][width], in a fixed order: the first `size` columns into grad_w, the others into
// sums. A thread reads V columns, of which width is a multiple, and writes one. grid: (blocks of 8 V columns)
template <int V, class T>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(const float* rows, int count, int width, int size, T* grad_w, float* sums) {
  begin_kernel();
  constexpr int kColumns = kSumThreads * V, kLanes = kThreads / kSumThreads, kWarps = kThreads / 32;
  SHARED_ARRAY(float, of_warps, kWarps* kColumns);
  const int own = threadIdx.x % kSumThreads * V, column = blockIdx.x * kColumns + own;
  float sum[V] = {};
  for (int first = threadIdx.x / kSumThreads; first < count; first += kRowsAtOnce * kLanes) {
    Pack<float, V> packs[kRowsAtOnce];
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      const int r = first + k * kLanes;
      packs[k] = load_if<V>(rows + static_cast<int64_t>(r) * width + column, r < count && column < width);
    }
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k)
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] += float_of(packs[k].words[i]);
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
#pragma unroll
    for (int distance = kSumThreads; distance < 32; distance *= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], distance);
    if (threadIdx.x % 32 < kSumThreads) of_warps[threadIdx.x / 32 * kColumns + own + i] = sum[i];
  }
  __syncthreads();
  const int c = blockIdx.x * kColumns + threadIdx.x;
  if (threadIdx.x >= kColumns || c >= width) return;
  float total = 0.f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += of_warps[w * kColumns + threadIdx.x];
  if (c < size)
    grad_w[c] = round_to<T>(total);
  else
    sums[c - size] = total;
}

// Calls f with the BackwardTile, as a value, and returns what it returns; 0 where these kernels do not take the shape.
template <class F>
int with_backward_tile(int64_t O, int64_t C, F f) {
  if (O % 8 != 0 || C % 8 != 0 || O > 128 || C > 128) return 0;
  if (O <= 64 && C <= 32) return f(BackwardTile<64, 32, 128, 256, 2>());
  if (C <= 64) return f(BackwardTile<128, 64, 64, 512, 1>());
  return f(BackwardTile<128, 128, 64, 256, 1>());
}

// How many rows of partial results the kernel writes, one a block: at most as many blocks as run at a time, and for
// powers of two the same number of tiles each.
inline int backward_rows(int64_t M, int64_t O, int64_t C) {
  return with_backward_tile(O, C, [&](auto tile) {
    using Tile = decltype(tile);
    return std::min(ceil_div(M, Tile::kRows), 128 * Tile::kResident);
  });
}

}  // namespace fastcifar::cuda

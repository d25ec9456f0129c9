// The 1x1 convolution as three matrix products, with what surrounds it in the block: BN and ReLU are applied as an
// operand is loaded, statistics and masks are computed as the result is stored. 16-bit types whose rows are whole
// 16-byte vectors use tensor cores (mma.sync), everything else plain multiply-adds.
#pragma once
#include <algorithm>
#include <type_traits>

#include "cuda/statistics.cuh"
#include "cuda/tensor_cores.cuh"

namespace fastcifar::cuda {

enum class Product {
  kForward,     // v [P, N] = relu(norm(y)) [P, K] . w [N, K]^T, and the moments of v
  kGradInput,   // g [P, N] = grad_v [P, K] . w [K, N], masked by relu(norm(y)), and norm's two sums
  kGradWeight,  // [M, N] = grad_v [P, M]^T . relu(norm(y)) [P, N], a part of the P rows for each blockIdx.z
};

template <class T>
struct PointwiseArguments {
  const T *a, *b;  // the operands
  int M, N, K;     // of the product: rows, columns, what is summed over
  const T* y;      // kGradInput: what masks
  T* out;
  float* rows;                 // partial moments or sums; kGradWeight: partial products
  const float *scale, *shift;  // norm, on 16 bytes
  const float* mean;           // kGradInput
};

inline constexpr int kTileK = 32, kTileThreads = 256;  // kTileM, kTileN: common.h
static_assert(kTileThreads == kThreads, "the reductions of statistics.cuh are used");

// The tile of a 16-bit operand in shared memory. Its rows run as in device memory: along K, or along the other
// dimension. They are 16 bytes longer than needed, so that ldmatrix meets no bank twice.
template <int EXTENT, bool ALONG_K>
struct OperandTile {
  static constexpr int kRows = ALONG_K ? EXTENT : kTileK, kColumns = ALONG_K ? kTileK : EXTENT;
  static constexpr int kPitch = kColumns + 8, kPacks = kRows * kColumns / 8 / kTileThreads;
};

// Applies BN and ReLU to eight neighbouring elements and rounds them to T again, as the product reads them.
template <class T>
__device__ __forceinline__ void norm_relu(Pack<T, 8>& pack, const float (&scale)[8], const float (&shift)[8]) {
  float v[8];
  unpack(pack, v);
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = relu(fmaf(v[i], scale[i], shift[i]));
  pack = rounded<T>(v);
}

// Tensor cores. The 8 warps hold 4 x 2 blocks of 32 x 32 of the tile; acc: [16 rows][8 columns][fragment].
template <class T, Product PRODUCT>
__device__ __forceinline__ void multiply_tile(const PointwiseArguments<T>& a, int m0, int n0, int k_begin, int k_end,
                                              float (&acc)[2][4][4]) {
  using TileA = OperandTile<kTileM, PRODUCT != Product::kGradWeight>;
  using TileB = OperandTile<kTileN, PRODUCT == Product::kForward>;
  SHARED_ARRAY(uint16_t, shared_a, TileA::kRows* TileA::kPitch);
  SHARED_ARRAY(uint16_t, shared_b, TileB::kRows* TileB::kPitch);
  constexpr bool kAlongA = PRODUCT != Product::kGradWeight, kAlongB = PRODUCT == Product::kForward;
  const int lane = threadIdx.x % 32, warp_m = threadIdx.x / 32 / 2 * 32, warp_n = threadIdx.x / 32 % 2 * 32;

  Pack<T, 8> next_a[TileA::kPacks], next_b[TileB::kPacks];
  float scale_n[8] = {}, shift_n[8] = {};
  if constexpr (PRODUCT == Product::kGradWeight) {  // the BN is along N: the same for all packs of a thread
    const int n = n0 + static_cast<int>(threadIdx.x) % (kTileN / 8) * 8;
    if (n < a.N) {
      load<8>(a.scale + n, scale_n);
      load<8>(a.shift + n, shift_n);
    }
  }
  const auto fetch = [&](int k0) {
    float scale_k[8] = {}, shift_k[8] = {};
    if constexpr (PRODUCT == Product::kForward) {  // along K: the same for all packs of a tile
      const int k = k0 + static_cast<int>(threadIdx.x) % (kTileK / 8) * 8;
      if (k < k_end) {
        load<8>(a.scale + k, scale_k);
        load<8>(a.shift + k, shift_k);
      }
    }
#pragma unroll
    for (int i = 0; i < TileA::kPacks; ++i) {
      const int j = threadIdx.x + i * kTileThreads, row = j / (TileA::kColumns / 8),
                column = j % (TileA::kColumns / 8) * 8;
      const int m = m0 + (kAlongA ? row : column), k = k0 + (kAlongA ? column : row);
      const int64_t at = kAlongA ? static_cast<int64_t>(m) * a.K + k : static_cast<int64_t>(k) * a.M + m;
      next_a[i] = load_if<8>(a.a + at, m < a.M && k < k_end);
      if constexpr (PRODUCT == Product::kForward) norm_relu(next_a[i], scale_k, shift_k);
    }
#pragma unroll
    for (int i = 0; i < TileB::kPacks; ++i) {
      const int j = threadIdx.x + i * kTileThreads, row = j / (TileB::kColumns / 8),
                column = j % (TileB::kColumns / 8) * 8;
      const int n = n0 + (kAlongB ? row : column), k = k0 + (kAlongB ? column : row);
      const int64_t at = kAlongB ? static_cast<int64_t>(n) * a.K + k : static_cast<int64_t>(k) * a.N + n;
      const bool inside = n < a.N && k < k_end;
      next_b[i] = load_if<8>(a.b + at, inside);
      if (PRODUCT == Product::kGradWeight && inside) norm_relu(next_b[i], scale_n, shift_n);
    }
  };

  fetch(k_begin);
  for (int k0 = k_begin; k0 < k_end; k0 += kTileK) {
    __syncthreads();  // nobody reads the previous tile any more
#pragma unroll
    for (int i = 0; i < TileA::kPacks; ++i) {
      const int j = threadIdx.x + i * kTileThreads, row = j / (TileA::kColumns / 8),
                column = j % (TileA::kColumns / 8) * 8;
      *reinterpret_cast<Pack<T, 8>*>(shared_a + row * TileA::kPitch + column) = next_a[i];
    }
#pragma unroll
    for (int i = 0; i < TileB::kPacks; ++i) {
      const int j = threadIdx.x + i * kTileThreads, row = j / (TileB::kColumns / 8),
                column = j % (TileB::kColumns / 8) * 8;
      *reinterpret_cast<Pack<T, 8>*>(shared_b + row * TileB::kPitch + column) = next_b[i];
    }
    __syncthreads();
    if (k0 + kTileK < k_end) fetch(k0 + kTileK);
    const int in = lane % 8, first = lane / 8 % 2 * 8, second = lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kTileK; k += 16) {
      Fragment fa[2], fb[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // 16 rows each: matrices (m, k), (m + 8, k), (m, k + 8), (m + 8, k + 8)
        const int m = warp_m + i * 16;
        fa[i] = load_matrices<!kAlongA>(shared_a + (kAlongA ? (m + first + in) * TileA::kPitch + k + second
                                                            : (k + second + in) * TileA::kPitch + m + first));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // 16 columns each: matrices (k, n), (k + 8, n), (k, n + 8), (k + 8, n + 8)
        const int n = warp_n + i * 16;
        fb[i] = load_matrices<!kAlongB>(shared_b + (kAlongB ? (n + second + in) * TileB::kPitch + k + first
                                                            : (k + first + in) * TileB::kPitch + n + second));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          multiply_add<T>(acc[i][j], fa[i], fb[j / 2].at[j % 2 * 2], fb[j / 2].at[j % 2 * 2 + 1]);
    }
  }
}

// Plain multiply-adds: for float32, for rows that are no whole vectors and for GPUs before sm_80. A thread holds 8 x 4
// elements of the tile.
template <class T, Product PRODUCT>
__device__ __forceinline__ void multiply_tile(const PointwiseArguments<T>& a, int m0, int n0, int k_begin, int k_end,
                                              float (&acc)[8][4]) {
  constexpr int kStep = 16;
  SHARED_ARRAY(float, shared_a, kStep*(kTileM + 1));
  SHARED_ARRAY(float, shared_b, kStep*(kTileN + 1));
  const int tm = threadIdx.x / 16 * 8, tn = threadIdx.x % 16 * 4;
  for (int k0 = k_begin; k0 < k_end; k0 += kStep) {
    __syncthreads();
    for (int j = threadIdx.x; j < kTileM * kStep; j += kTileThreads) {
      const bool along = PRODUCT != Product::kGradWeight;
      const int mi = along ? j / kStep : j % kTileM, ki = along ? j % kStep : j / kTileM, m = m0 + mi, k = k0 + ki;
      float v = 0.f;
      if (m < a.M && k < k_end) {
        v = load_f32(a.a[along ? static_cast<int64_t>(m) * a.K + k : static_cast<int64_t>(k) * a.M + m]);
        if constexpr (PRODUCT == Product::kForward) {
          v = load_f32(round_to<T>(relu(fmaf(v, a.scale[k], a.shift[k]))));
        }
      }
      shared_a[ki * (kTileM + 1) + mi] = v;
    }
    for (int j = threadIdx.x; j < kTileN * kStep; j += kTileThreads) {
      const bool along = PRODUCT == Product::kForward;
      const int ni = along ? j / kStep : j % kTileN, ki = along ? j % kStep : j / kTileN, n = n0 + ni, k = k0 + ki;
      float v = 0.f;
      if (n < a.N && k < k_end) {
        v = load_f32(a.b[along ? static_cast<int64_t>(n) * a.K + k : static_cast<int64_t>(k) * a.N + n]);
        if constexpr (PRODUCT == Product::kGradWeight) {
          v = load_f32(round_to<T>(relu(fmaf(v, a.scale[n], a.shift[n]))));
        }
      }
      shared_b[ki * (kTileN + 1) + ni] = v;
    }
    __syncthreads();
    for (int k = 0; k < kStep; ++k) {
      float va[8], vb[4];
#pragma unroll
      for (int i = 0; i < 8; ++i) va[i] = shared_a[k * (kTileM + 1) + tm + i];
#pragma unroll
      for (int j = 0; j < 4; ++j) vb[j] = shared_b[k * (kTileN + 1) + tn + j];
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] = fmaf(va[i], vb[j], acc[i][j]);
    }
  }
}

// grid: (tiles of columns, blocks that share out the tiles of rows, parts of the sum)
template <class T, Product PRODUCT, bool TENSOR_CORES>
__global__ void __launch_bounds__(kTileThreads, 2) pointwise_kernel(const PointwiseArguments<T> a) {
  begin_kernel();
  constexpr int kPitch = kBlockChannels + 1;
  SHARED_ARRAY(float, stage, kTileM* kPitch);
  const Lanes<4> at;
  const int n0 = blockIdx.x * kTileN;
  const int k_tiles = ceil_div(a.K, kTileK), k_share = ceil_div(k_tiles, gridDim.z) * kTileK;
  const int k_begin = blockIdx.z * k_share, k_end = min(a.K, k_begin + k_share);

  RunningMoments<4> moments[2];  // of the tile's two halves of 32 columns
  float sums[2][2][4] = {}, scale[2][4], shift[2][4], mean[2][4];
  if constexpr (PRODUCT == Product::kGradInput) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int n = n0 + h * kBlockChannels + at.channel + v;
        scale[h][v] = n < a.N ? a.scale[n] : 0.f;
        shift[h][v] = n < a.N ? a.shift[n] : 0.f;
        mean[h][v] = n < a.N ? a.mean[n] : 0.f;
      }
  }
  for (int m0 = blockIdx.y * kTileM; m0 < a.M; m0 += gridDim.y * kTileM) {
    std::conditional_t<TENSOR_CORES, float[2][4][4], float[8][4]> acc = {};
    multiply_tile<T, PRODUCT>(a, m0, n0, k_begin, k_end, acc);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      __syncthreads();
      if constexpr (TENSOR_CORES) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        if (warp % 2 == h) {
#pragma unroll
          for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
              for (int e = 0; e < 4; ++e)
                stage[(warp / 2 * 32 + i * 16 + e / 2 * 8 + lane / 4) * kPitch + j * 8 + lane % 4 * 2 + e % 2] =
                    acc[i][j][e];
        }
      } else if (static_cast<int>(threadIdx.x) % 16 / 8 == h) {
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) stage[(threadIdx.x / 16 * 8 + i) * kPitch + threadIdx.x % 8 * 4 + j] = acc[i][j];
      }
      __syncthreads();
      // 32 lanes of rows, 4 columns a thread.
#pragma unroll
      for (int r = at.lane; r < kTileM; r += at.kCount) {
        const int m = m0 + r, n = n0 + h * kBlockChannels + at.channel, width = min(4, a.N - n);
        if (m >= a.M || width <= 0) continue;
        const int64_t o = static_cast<int64_t>(m) * a.N + n;
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = stage[r * kPitch + at.channel + i];
        if constexpr (PRODUCT == Product::kGradWeight) {
          float* part = a.rows + static_cast<int64_t>(blockIdx.z) * a.M * a.N + o;
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (i < width) part[i] = v[i];
          continue;
        }
        if constexpr (PRODUCT == Product::kGradInput) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (i >= width) continue;
            const float y = load_f32(a.y[o + i]);
            if (fmaf(y, scale[h][i], shift[h][i]) <= 0.f) v[i] = 0.f;
            v[i] = load_f32(round_to<T>(v[i]));  // as the next kernel will read it
            sums[h][0][i] += v[i];
            sums[h][1][i] = fmaf(v[i], y - mean[h][i], sums[h][1][i]);
          }
        }
        if (a.N % 4 == 0) {
          store<4>(a.out + o, v);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const T rounded = round_to<T>(v[i]);
            v[i] = load_f32(rounded);
            if (i < width) a.out[o + i] = rounded;
          }
        }
        if constexpr (PRODUCT == Product::kForward) {
          moments[h].start(v);
          moments[h].add(v);
        }
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    __syncthreads();
    if constexpr (PRODUCT == Product::kForward)
      write_block_moments(moments[h], at, n0 + h * kBlockChannels, a.N, a.rows);
    if constexpr (PRODUCT == Product::kGradInput) write_block_sums(sums[h], at, n0 + h * kBlockChannels, a.N, a.rows);
  }
}

// Writes mean, var, scale and shift of a BN whose partial moments are known, or, where rows is null, whose mean and var
// are known.
// grid: (channel blocks)
static __global__ void __launch_bounds__(kThreads) norm_kernel(const Norm norm, int C, float* scale, float* shift) {
  begin_kernel();
  SHARED_ARRAY(float, block_scale, kBlockChannels);
  SHARED_ARRAY(float, block_shift, kBlockChannels);
  resolve(norm, C, block_scale, block_shift);
  const int c = blockIdx.x * kBlockChannels + threadIdx.x;
  if (threadIdx.x < kBlockChannels && c < C) scale[c] = block_scale[threadIdx.x], shift[c] = block_shift[threadIdx.x];
}

struct ProductPlan {
  int columns, rows, parts;
};

// How many blocks a product gets. A product with statistics gets no more rows of blocks, each of which leaves a row of
// partial results, than the next kernel merges by itself.
inline ProductPlan product_plan(Product product, int64_t M, int64_t N, int64_t K) {
  ProductPlan p{ceil_div(N, kTileN), ceil_div(M, kTileM), 1};
  if (product == Product::kGradWeight)
    p.parts = std::min(ceil_div(K, kTileK), std::clamp(kTargetBlocks / (p.columns * p.rows), 1, 128));
  else
    p.rows = static_cast<int>(moment_rows(M, N));
  return p;
}

template <Product PRODUCT, class T>
void launch_product(const PointwiseArguments<T>& a, bool tensor_cores, cudaStream_t stream) {
  const ProductPlan p = product_plan(PRODUCT, a.M, a.N, a.K);
  const dim3 grid(p.columns, p.rows, p.parts);
  if constexpr (sizeof(T) == 2) {
    if (tensor_cores && a.M % 8 == 0 && a.N % 8 == 0 && a.K % 8 == 0) {
      LAUNCH((pointwise_kernel<T, PRODUCT, true>), grid, dim3(kTileThreads), stream, a);
      return;
    }
  }
  LAUNCH((pointwise_kernel<T, PRODUCT, false>), grid, dim3(kTileThreads), stream, a);
}

}  // namespace fastcifar::cuda

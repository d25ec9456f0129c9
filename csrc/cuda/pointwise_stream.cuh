// The 1x1 convolution of few channels, where the maps are large and the weight is small, with the BN before it and the
// moments of its result: a kernel that reads and writes each map once, at the speed of the memory. For 16-bit types
// whose rows are whole 16-byte vectors, on tensor cores.
//
// A block keeps its columns of the weight in shared memory. A warp owns 16 rows at a time and all that is summed over,
// and meets no other warp before the end. The maps do not pass through shared memory: the weight is the first operand
// of the tensor cores and the map the second, and what is summed over and the columns are taken in an order in which a
// lane's part of a fragment is neighbouring bytes of a row in device memory. With g = lane / 4 and q = lane % 4, of each
// 32 numbers that are summed over the lane has those from 8q on, for row g of eight: four for each of two fragments.
// Of the results it has the columns from V * g on, for rows 2q and 2q + 1 of eight: two in each of V / 2 fragments.
#pragma once
#include "cuda/pointwise.cuh"

namespace fastcifar::cuda {

template <class T>
struct StreamArguments {
  const T *a, *b;  // the operands: a [M, K], b [N, K]
  int M, N, K;
  Norm norm;  // of a
  T* out;
  float* rows;   // partial moments
  int num_rows;  // the rows that no block writes are left empty
};

// K_BLOCKS: of 32 numbers that are summed over. COLUMNS: of the block.
template <int K_BLOCKS, int COLUMNS>
struct StreamTile {
  static constexpr int kKBlocks = K_BLOCKS, kK = 32 * K_BLOCKS, kColumns = COLUMNS;
  static constexpr int kWarpColumns = 64, kColumnWarps = COLUMNS / kWarpColumns;
  static constexpr int V = kWarpColumns / 8;                                      // columns of a lane
  static constexpr int kRowWarps = kTileThreads / 32 / kColumnWarps, kRows = 16;  // of a warp at a time
  static constexpr int kDepth = 2;  // 32 numbers of each row that are on their way
  static constexpr int kTilesATurn = kDepth > K_BLOCKS ? kDepth / K_BLOCKS : 1;
  static_assert(kKBlocks * kTilesATurn % kDepth == 0, "a place of what is on its way is known when it is compiled");
};

// The block's columns of the weight, from n0 on, zeros behind the last column and row. In shared memory they are
// fragments, [warps of columns][blocks of 32][V / 2][two][lanes], each lane's 16 bytes: two columns, four numbers.
template <class T, class Tile>
struct StreamWeight {  // eight numbers of two columns are two fragments
  static constexpr int V = Tile::V, kAll = Tile::kColumns / 2 * Tile::kK / 8, kLoads = ceil_div(kAll, kTileThreads);
  Pack<T, 8> packs[kLoads][2];

  __device__ __forceinline__ void fetch(const T* w, int n0, int N, int K) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int j = threadIdx.x + i * kTileThreads, lane = j % 32, fragment = j / 32 % (V / 2);
      const int block = j / (16 * V) % Tile::kKBlocks, column_warp = j / (16 * V * Tile::kKBlocks);
      const int k = block * 32 + lane % 4 * 8;
      const int n = n0 + column_warp * Tile::kWarpColumns + lane / 4 * V + fragment * 2;
#pragma unroll
      for (int e = 0; e < 2; ++e)
        packs[i][e] = load_if<8>(w + static_cast<int64_t>(n + e) * K + k, j < kAll && n < N && k < K);
    }
  }
  __device__ __forceinline__ void put(Fragment* shared) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int j = threadIdx.x + i * kTileThreads;
      if (j >= kAll) break;
#pragma unroll
      for (int s = 0; s < 2; ++s)
        shared[j / 32 * 64 + s * 32 + j % 32] = {packs[i][0].words[2 * s], packs[i][1].words[2 * s],
                                                 packs[i][0].words[2 * s + 1], packs[i][1].words[2 * s + 1]};
    }
  }
};

// Adds up COUNT sums of the four lanes of a warp that have the same columns. Each of them keeps COUNT / 4, which are
// those from the returned one on.
template <int COUNT>
__device__ __forceinline__ int sum_over_lanes(float (&v)[COUNT]) {
  int first = 0;
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    const int mask = 2 >> step, half = COUNT >> (step + 1);
    const bool upper = (threadIdx.x & mask) != 0;
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
      if (i >= half) break;
      const float own = upper ? v[i + half] : v[i], given = upper ? v[i] : v[i + half];
      v[i] = own + __shfl_xor_sync(~0u, given, mask);
    }
    if (upper) first += half;
  }
  return first;
}

// grid: (blocks of columns, blocks that share out the rows)
template <class T, class Tile>
__global__ void __launch_bounds__(kTileThreads, 2) pointwise_stream_kernel(const StreamArguments<T> a) {
  begin_kernel();
  constexpr int kKBlocks = Tile::kKBlocks, kColumns = Tile::kColumns, kDepth = Tile::kDepth, V = Tile::V;
  constexpr int kWarpColumns = Tile::kWarpColumns, kColumnWarps = Tile::kColumnWarps, kRowWarps = Tile::kRowWarps;
  constexpr int kPartials = kTileThreads / 32 * kWarpColumns;  // numbers of a quantity of all warps
  using Columns = Pack<T, V>;
  SHARED_ARRAY(Fragment, weight, kColumns * Tile::kK / 8);
  SHARED_ARRAY(float, scale, Tile::kK);
  SHARED_ARRAY(float, shift, Tile::kK);
  SHARED_ARRAY(float, partials, 2 * kPartials);
  SHARED_ARRAY(Columns, pivots, kTileThreads / 32 * 8);  // the first row of each warp
  SHARED_ARRAY(float, counts, kTileThreads / 32);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column_warp = warp % kColumnWarps;
  const int g = lane / 4, q = lane % 4, n0 = blockIdx.x * kColumns;
  const int column = column_warp * kWarpColumns + g * V, n = n0 + column;  // the lane's first
  const int step = gridDim.y * kRowWarps * Tile::kRows;
  int m0 = (blockIdx.y * kRowWarps + warp / kColumnWarps) * Tile::kRows;
  constexpr uint32_t kBytes = sizeof(T);
  const uint32_t row_of_a = a.K * kBytes, row_of_out = a.N * kBytes;
  // Of the lane's first row of the tile: of a, its first numbers; of out, its columns.
  uint32_t at_a = (m0 + g) * row_of_a + q * 8 * kBytes, at_out = (m0 + 2 * q) * row_of_out + n * kBytes;

  Pack<T, 8> next[kDepth][2];  // of rows g and g + 8
  const auto fetch = [&](Pack<T, 8>(&to)[2], int tiles_ahead, int block) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int m = m0 + g + 8 * i + tiles_ahead * step;
      const uint32_t at = at_a + (tiles_ahead * step + 8 * i) * row_of_a + block * 32 * kBytes;
      to[i] = load_if<8>(at_byte(a.a, at), m < a.M && block * 32 + q * 8 < a.K);
    }
  };
#pragma unroll
  for (int d = 0; d < kDepth; ++d) fetch(next[d], d / kKBlocks, d % kKBlocks);
  StreamWeight<T, Tile> of_weight;
  of_weight.fetch(a.b, n0, a.N, a.K);
  resolve<Tile::kK>(a.norm, a.K, 0, blockIdx.x == 0 && blockIdx.y == 0, scale, shift);
  clear_other_rows<kColumns>(a.num_rows, n0, a.N, a.rows);
  of_weight.put(weight);
  __syncthreads();

  // Of the lane's columns: sums and sums of squares of the deviations from the warp's first row.
  float sums[2 * V] = {};
  float count = 0.f;  // rows of the warp
  while (m0 < a.M) {
#pragma unroll
    for (int turn = 0; turn < Tile::kTilesATurn; ++turn) {
      if (turn > 0 && m0 >= a.M) break;
      hide_value(m0);
      hide_value(at_a);
      hide_value(at_out);
      float acc[V / 2][2][4] = {};
#pragma unroll
      for (int block = 0; block < kKBlocks; ++block) {
        // What is read from shared memory is read here: kept from tile to tile, or read too early, it fills the registers.
        __syncwarp();
        Pack<T, 8>(&rows)[2] = next[(turn * kKBlocks + block) % kDepth];
        float block_scale[8], block_shift[8];
        load<8>(scale + block * 32 + q * 8, block_scale);
        load<8>(shift + block * 32 + q * 8, block_shift);
#pragma unroll
        for (int i = 0; i < 2; ++i) norm_relu(rows[i], block_scale, block_shift);
        const Fragment* fragments = weight + (column_warp * kKBlocks + block) * (V / 2) * 64 + lane;
#pragma unroll
        for (int f = 0; f < V / 2; ++f)
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            const Fragment columns = fragments[(f * 2 + s) * 32];
#pragma unroll
            for (int i = 0; i < 2; ++i)
              multiply_add<T>(acc[f][i], columns, rows[i].words[2 * s], rows[i].words[2 * s + 1]);
          }
        fetch(rows, (block + kDepth) / kKBlocks, (block + kDepth) % kKBlocks);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const bool is_row = m0 + 8 * i + 2 * q + e < a.M;
          float v[V];
#pragma unroll
          for (int c = 0; c < V; ++c) v[c] = acc[c / 2][i][c % 2 * 2 + e];
          const Columns pack = rounded<T>(v);
          unpack(pack, v);
          if (is_row && n < a.N) *reinterpret_cast<Columns*>(at_byte(a.out, at_out + (8 * i + e) * row_of_out)) = pack;
          Columns& pivot = pivots[warp * 8 + g];
          if (count == 0.f && i == 0 && e == 0) {
            if (q == 0) pivot = pack;
            __syncwarp();
          }
          float first[V];
          unpack(pivot, first);
#pragma unroll
          for (int c = 0; c < V; ++c) {
            const float d = kept_if(v[c] - first[c], is_row);
            sums[c] += d;
            sums[V + c] = fmaf(d, d, sums[V + c]);
          }
        }
      }
      count += static_cast<float>(min(Tile::kRows, a.M - m0));
      m0 += step;
      at_a += step * row_of_a;
      at_out += step * row_of_out;
    }
  }

  // The results of the warps are added up in their order.
  const int first = sum_over_lanes(sums);
#pragma unroll
  for (int i = 0; i < V / 2; ++i)
    partials[(first + i) / V * kPartials + warp * kWarpColumns + g * V + (first + i) % V] = sums[i];
  if (lane == 0) counts[warp] = count;
  __syncthreads();
  const auto partial = [&](int quantity, int row_warp, int c) {
    return partials[quantity * kPartials + (row_warp * kColumnWarps + c / kWarpColumns) * kWarpColumns +
                    c % kWarpColumns];
  };
  Moments all{0.f, 0.f, 0.f};
  if (threadIdx.x < kColumns) {
    const int c = threadIdx.x, in_warp = c % kWarpColumns;
    float pixels = 0.f, sum = 0.f, squares = 0.f;  // about the first warp's mean
#pragma unroll
    for (int w = 0; w < kRowWarps; ++w) {
      const float rows = counts[w * kColumnWarps];
      if (rows == 0.f) break;  // and the warps behind have none either
      const float d = partial(0, w, c) * (1.f / rows), m2 = partial(1, w, c) - partial(0, w, c) * d;
      const Columns& pivot = pivots[(w * kColumnWarps + c / kWarpColumns) * 8 + in_warp / V];
      const float of_warp = element_of<T>(pivot.words[in_warp % V / 2], in_warp % 2) + d;
      if (w == 0) all.mean = of_warp;
      const float shifted = of_warp - all.mean;
      pixels += rows;
      sum += rows * shifted;
      squares += m2 + rows * shifted * shifted;
    }
    const float moved = sum / pixels, m2 = squares - sum * moved;
    all = {pixels, all.mean + moved, m2 < 0.f ? 0.f : m2};
  }
  write_cluster_moments<kColumns>(all, n0, a.N, a.rows);
}

// Calls f with the StreamTile of a product, as a value.
template <class F>
void with_stream_tile(int N, int K, F f) {
  if (K <= 32) return f(StreamTile<1, 64>());
  if (K <= 64) return N <= 64 ? f(StreamTile<2, 64>()) : f(StreamTile<2, 128>());
  if (K <= 128) return N <= 64 ? f(StreamTile<4, 64>()) : f(StreamTile<4, 128>());
  return f(StreamTile<8, 64>());
}

// Measured on an H200 at batch 128, where all warps then have about five tiles: 240 blocks took 0.4 % of a step longer.
inline constexpr int kStreamBlocks = 208;
static_assert(kStreamBlocks <= kClusteredBlocks, "all of them run at a time");

// Launches a product, if these kernels take it.
template <class T>
bool launch_stream(const StreamArguments<T>& a, bool tensor_cores, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    if (tensor_cores && a.N % 8 == 0 && a.K % 8 == 0 && a.K <= 256) {
      with_stream_tile(a.N, a.K, [&](auto tile) {
        using Tile = decltype(tile);
        const int columns = ceil_div(a.N, Tile::kColumns);
        int blocks = std::min(ceil_div(a.M, Tile::kRows * Tile::kRowWarps), std::max(1, kStreamBlocks / columns));
        const int cluster = blocks_a_row(blocks);
        blocks = cluster > 1 ? whole_rows(blocks) : std::min(blocks, static_cast<int>(moment_rows(a.M, a.N)));
        LAUNCH_CLUSTERS((pointwise_stream_kernel<T, Tile>), cluster, dim3(columns, blocks), dim3(kTileThreads), stream,
                        a);
      });
      return true;
    }
  }
  return false;
}

}  // namespace fastcifar::cuda

// The first convolution, 3x3 over images of three channels, with the moments of its output; and its weight's gradient.
// Here are the kernels without tensor cores, for float32, for all other shapes and for older GPUs.
//
// A block owns 16 channels and goes from tile to tile. A tile of images lies in shared memory as float32 with a border,
// so that the nine numbers under a row of the weight lie side by side, and no pixel is a special case. While the block
// works on a tile, the next one is on its way to registers. A thread owns V channels of eight neighbouring pixels: it
// reads each number of the images once for all of them, and has 27 * V weights, or their gradients, in registers.
#include <algorithm>

#include "cuda/stem_tensor.cuh"
#include "cuda/stem_tiles.cuh"

namespace fastcifar::cuda {

namespace {

constexpr int kStemThreads = 512, kStemChannels = 16;
constexpr int kStemBlocks = 132;  // one an SM on an H200, whose registers it fills; a constant, as kTargetBlocks is
constexpr int kStrip = 8, kAcross = kTileWidth / kStrip;  // pixels of a thread; strips across
constexpr int kPitch = 104;  // floats of a tile's row in shared memory: 34 pixels, and two floats more

template <int V>
using StemLanes = Lanes<V, kStemThreads, kStemChannels>;  // a lane is a strip of pixels

// The images' tiles. V numbers a load: with V = 2 the images' width is even.
template <class T, int V>
struct ImageTiles : Tiles {
  static constexpr int kHeight = StemLanes<V>::kCount / kAcross, kFloats = (kHeight + 2) * kPitch;
  static constexpr int kRowLoads = kPitch / V, kLoads = ceil_div((kHeight + 2) * kRowLoads, kStemThreads);

  const T* x;
  Pack<T, V> next[kLoads];

  __device__ __forceinline__ ImageTiles(const T* images, const Geometry& s) : Tiles(s), x(images) {}

  // The first pixel of a lane's strip. It may lie beyond the image.
  __device__ __forceinline__ Place strip(int lane) const {
    return {at.n, at.y * kHeight + lane / kAcross, at.x * kTileWidth + lane % kAcross * kStrip};
  }

  __device__ __forceinline__ void fetch() {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int j = threadIdx.x + i * kStemThreads, row = j / kRowLoads;
      const int y = at.y * kHeight + row - 1;
      const int number = at.x * (3 * kTileWidth) + j % kRowLoads * V - 4;  // of row y; the tile's border begins at -3
      const bool inside = row < kHeight + 2 && static_cast<unsigned>(y) < static_cast<unsigned>(H) &&
                          static_cast<unsigned>(number) < static_cast<unsigned>(3 * W);
      next[i] = load_if<V>(at_byte(x, (static_cast<uint32_t>(at.n * H + y) * (3 * W) + number) * sizeof(T)), inside);
    }
  }
  __device__ __forceinline__ void put(float* tile) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int j = threadIdx.x + i * kStemThreads, row = j / kRowLoads, column = j % kRowLoads * V - 1;
      if (row >= kHeight + 2) break;
      float v[V];
      unpack(next[i], v);
#pragma unroll
      for (int k = 0; k < V; ++k)
        if (column + k >= 0) tile[row * kPitch + column + k] = v[k];
    }
  }

  // Calls f(pixel, tap, number of the images) for all taps of a lane's strip.
  template <class F>
  __device__ __forceinline__ static void for_taps(const float* tile, int lane, F f) {
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      const float* in = tile + (lane / kAcross + r) * kPitch + lane % kAcross * (3 * kStrip);
      float v[3 * kStrip + 8];
#pragma unroll
      for (int i = 0; i < 3 * kStrip + 8; i += 4) {
        float four[4];
        load<4>(in + i, four);
#pragma unroll
        for (int k = 0; k < 4; ++k) v[i + k] = four[k];
      }
#pragma unroll
      for (int p = 0; p < kStrip; ++p)
#pragma unroll
        for (int k = 0; k < kRowTaps; ++k) f(p, r * kRowTaps + k, v[3 * p + k]);
    }
  }
};

// The block's weights, float [27][kStemChannels] in shared memory, from [C][27] of type W.
template <int V, class W>
__device__ __forceinline__ void load_taps(const W* w, bool channels_last, int C, float* taps) {
  static_assert(kTaps * kStemChannels <= kStemThreads, "one load a thread");
  const int c0 = blockIdx.x * kStemChannels, i = threadIdx.x * V;
  if (i >= kTaps * min(kStemChannels, C - c0)) return;
  float v[V];
  unpack(load_if<V>(w + static_cast<int64_t>(c0) * kTaps + i, true), v);
#pragma unroll
  for (int k = 0; k < V; ++k) {
    const int place = (i + k) % kTaps;
    taps[(channels_last ? place : tap_at(place)) * kStemChannels + (i + k) / kTaps] = v[k];
  }
}

}  // namespace

// grid: (channel blocks, rows of partial moments). The rows from there to num_rows are left empty.
template <class T, int V>
__global__ void __launch_bounds__(kStemThreads, 1)
    stem_forward_kernel(const T* x, const void* w, StemWeight weight_is, T* u, float* rows, int num_rows,
                        const Geometry s) {
  begin_kernel();
  using Tiles = ImageTiles<T, V>;
  const StemLanes<V> at;
  const int c0 = blockIdx.x * kStemChannels, c = c0 + at.channel;
  Tiles tiles(x, s);
  tiles.fetch();
  SHARED_ARRAY(float, images, 2 * Tiles::kFloats);
  SHARED_ARRAY(float, taps, kTaps* kStemChannels);
  weight_is.wide ? load_taps<V>(static_cast<const float*>(w), weight_is.channels_last, s.C, taps)
                 : load_taps<V>(static_cast<const T*>(w), weight_is.channels_last, s.C, taps);
  __syncthreads();
  float weight[kTaps][V];
#pragma unroll
  for (int k = 0; k < kTaps; ++k) load<V>(taps + k * kStemChannels + at.channel, weight[k]);
  RunningMoments<V> moments;
  for (int turn = 0; tiles.more(); turn ^= 1) {
    float* tile = images + turn * Tiles::kFloats;  // the tile before may still be read, but not the one before that
    tiles.put(tile);
    __syncthreads();
    const auto [n, y0, x0] = tiles.strip(at.lane);
    tiles.advance();
    if (tiles.more()) tiles.fetch();
    if (c >= s.C || y0 >= s.H || x0 >= s.W) continue;
    float out[kStrip][V] = {};
    Tiles::for_taps(tile, at.lane, [&](int p, int k, float value) {
#pragma unroll
      for (int v = 0; v < V; ++v) out[p][v] = fmaf(value, weight[k][v], out[p][v]);
    });
    const uint32_t pixel = s.C * sizeof(T);
    const uint32_t u0 = static_cast<uint32_t>((n * s.H + y0) * s.W + x0) * pixel + c * sizeof(T);
    const auto finish = [&](int p) {
      store<V>(at_byte(u, u0 + p * pixel), out[p]);
      if (p == 0) moments.start(out[0]);
      moments.add(out[p]);
    };
    if (x0 + kStrip <= s.W) {
#pragma unroll
      for (int p = 0; p < kStrip; ++p) finish(p);
    } else {
#pragma unroll
      for (int p = 0; p < kStrip; ++p)
        if (x0 + p < s.W) finish(p);
    }
  }
  write_block_moments(moments, at, c0, s.C, rows);
  clear_other_rows<kStemChannels>(num_rows, c0, s.C, rows);
}

// Partial sums of the weight's gradient, float [rows][27][C]. THROUGH: grad lacks what comes through the moments of u.
// grid: (channel blocks, rows)
template <class T, int V, bool THROUGH>
__global__ void __launch_bounds__(kStemThreads, 1)
    stem_backward_kernel(const T* grad, const ThroughMoments of_u, const T* x, float* rows, const Geometry s) {
  begin_kernel();
  using Tiles = ImageTiles<T, V>;
  constexpr int kLanes = StemLanes<V>::kCount, kSums = kRowTaps * kStemChannels;
  const StemLanes<V> at;
  const int c0 = blockIdx.x * kStemChannels, c = c0 + at.channel;
  SHARED_ARRAY(float, shared, kLanes* kSums);  // first for two tiles
  static_assert(2 * Tiles::kFloats <= kLanes * kSums, "room for the tiles");
  Tiles tiles(x, s);
  Pack<T, V> next[kStrip], next_u[kStrip];
  constexpr bool kAhead = THROUGH && sizeof(T) == 2;  // else there are not enough registers
  int pixels = 0;                                     // of the strip
  uint32_t of_strip = 0;                              // its first byte
  const auto fetch_u = [&] {
#pragma unroll
    for (int p = 0; p < kStrip; ++p)
      next_u[p] = load_if<V>(at_byte(static_cast<const T*>(of_u.x), of_strip + p * s.C * sizeof(T)), p < pixels);
  };
  const auto fetch = [&] {
    tiles.fetch();
    const auto [n, y0, x0] = tiles.strip(at.lane);
    const uint32_t pixel = s.C * sizeof(T);
    of_strip = static_cast<uint32_t>((n * s.H + y0) * s.W + x0) * pixel + c * sizeof(T);
    pixels = c < s.C && y0 < s.H ? s.W - x0 : 0;
#pragma unroll
    for (int p = 0; p < kStrip; ++p) next[p] = load_if<V>(at_byte(grad, of_strip + p * pixel), p < pixels);
    if (kAhead) fetch_u();
  };
  SHARED_ARRAY(PartThroughMoments, parts, kStemChannels);
  if (THROUGH && threadIdx.x < kStemChannels) parts[threadIdx.x] = part_through(of_u, c0 + threadIdx.x, s.C);
  if (THROUGH) __syncthreads();
  float sums[kTaps][V] = {};
  fetch();
  for (int turn = 0; tiles.more(); turn ^= 1) {
    float* tile = shared + turn * Tiles::kFloats;
    tiles.put(tile);
    float g[kStrip][V];
    if (THROUGH && !kAhead) fetch_u();
#pragma unroll
    for (int p = 0; p < kStrip; ++p) {
      unpack(next[p], g[p]);
      if constexpr (THROUGH) {
        float u[V];
        unpack(next_u[p], u);
#pragma unroll
        for (int v = 0; v < V; ++v) g[p][v] = kept_if(with_part(g[p][v], u[v], parts[at.channel + v]), p < pixels);
      }
    }
    __syncthreads();
    tiles.advance();
    if (tiles.more()) fetch();
    Tiles::for_taps(tile, at.lane, [&](int p, int k, float value) {
#pragma unroll
      for (int v = 0; v < V; ++v) sums[k][v] = fmaf(g[p][v], value, sums[k][v]);
    });
  }
#pragma unroll
  for (int r = 0; r < 3; ++r) {
    __syncthreads();  // the tiles, or the sums before, may still be read
#pragma unroll
    for (int k = 0; k < kRowTaps; ++k)
#pragma unroll
      for (int v = 0; v < V; ++v)
        shared[at.lane * kSums + k * kStemChannels + at.channel + v] = sums[r * kRowTaps + k][v];
    __syncthreads();
    if (threadIdx.x < kSums) {
      float sum = 0.f;
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) sum += shared[lane * kSums + threadIdx.x];
      const int tap = r * kRowTaps + threadIdx.x / kStemChannels, channel = c0 + threadIdx.x % kStemChannels;
      if (channel < s.C) rows[(static_cast<int64_t>(blockIdx.y) * kTaps + tap) * s.C + channel] = sum;
    }
  }
}

// grid: (channel blocks, taps)
template <class W>
__global__ void __launch_bounds__(kThreads)
    stem_merge_kernel(const float* rows, int count, int C, bool channels_last, W* grad_w) {
  begin_kernel();
  const int c0 = blockIdx.x * kMergeChannels, c = c0 + threadIdx.x, tap = blockIdx.y;
  float sum[1];
  merge_sums<kMergeChannels>(
      count,
      [&](int i, int channel, int) {
        return rows[(static_cast<int64_t>(i) * kTaps + tap) * C + min(c0 + channel, C - 1)];
      },
      sum);
  const int place = channels_last ? tap : place_of(tap);
  if (threadIdx.x < kMergeChannels && c < C) grad_w[static_cast<int64_t>(c) * kTaps + place] = round_to<W>(sum[0]);
}

namespace {

// Calls f with the number of channels a thread, which is the number of the images' numbers a load too.
template <class F>
auto with_channels(const StemShape& s, F f) {
  return s.C % 2 == 0 && s.W % 2 == 0 ? f(std::integral_constant<int, 2>()) : f(std::integral_constant<int, 1>());
}

template <int V>
dim3 stem_grid(const StemShape& s) {
  const int64_t tiles =
      s.N * ceil_div(s.H, ImageTiles<float, V>::kHeight) * static_cast<int64_t>(ceil_div(s.W, kTileWidth));
  const int channel_blocks = ceil_div(s.C, kStemChannels);
  const int64_t most = std::min<int64_t>(moment_rows(s.N * s.H * s.W, s.C), std::max(1, kStemBlocks / channel_blocks));
  return dim3(channel_blocks, static_cast<unsigned>(std::min(tiles, most)));
}

// Whether the kernels of stem_tensor.cuh take it. A weight in float32 is not rounded.
bool is_tensor_work(Dtype dtype, StemWeight weight, const StemShape& s, bool tensor_cores) {
  return tensor_cores && dtype != Dtype::kFloat32 && !weight.wide && s.C % 8 == 0 && s.W % 2 == 0;
}

// Of blocks, of which an SM holds three: all of them run at a time, in clusters too.
constexpr int kTensorBlocks = 256;

struct TensorGrid {
  dim3 blocks;
  int cluster, rows;  // of partial results
};

TensorGrid tensor_grid(const StemShape& s) {
  const int64_t tiles = s.N * ceil_div(s.H, kTensorHeight) * static_cast<int64_t>(ceil_div(s.W, kTileWidth));
  const int channel_blocks = ceil_div(s.C, kBlockChannels);
  int blocks = static_cast<int>(std::min<int64_t>(tiles, std::max(1, kTensorBlocks / channel_blocks)));
  const int cluster = blocks_a_row(blocks);
  blocks = std::min(whole_rows(blocks), cluster * static_cast<int>(moment_rows(s.N * s.H * s.W, s.C)));
  return {dim3(channel_blocks, blocks), cluster, blocks / cluster};
}

// Calls f with a value of the element type, which has 16 bits.
template <class F>
void with_narrow_type(Dtype dtype, F f) {
  dtype == Dtype::kBFloat16 ? f(bf16()) : f(fp16());
}

// height: of a tile. blocks: that share out the tiles.
Geometry geometry(const StemShape& s, int height, unsigned blocks) {
  const int down = ceil_div(s.H, height), across = ceil_div(s.W, kTileWidth);
  return {static_cast<int>(s.N),
          static_cast<int>(s.C),
          static_cast<int>(s.H),
          static_cast<int>(s.W),
          down,
          across,
          place_of_tile(blocks, down, across)};
}
template <int V>
Geometry geometry(const StemShape& s) {
  return geometry(s, ImageTiles<float, V>::kHeight, stem_grid<V>(s).y);
}

void launch_merge(Dtype dtype, const float* rows, int count, StemWeight weight, void* grad_w, int C,
                  cudaStream_t stream) {
  with_type(weight.wide ? Dtype::kFloat32 : dtype, [&](auto t) {
    using W = decltype(t);
    LAUNCH(stem_merge_kernel<W>, dim3(ceil_div(C, kMergeChannels), kTaps), dim3(kThreads), stream, rows, count, C,
           weight.channels_last, static_cast<W*>(grad_w));
  });
}

}  // namespace

cudaError_t stem(Dtype dtype, const void* x, const void* w, StemWeight weight, void* u, float* u_rows,
                 const StemShape& s, bool tensor_cores, cudaStream_t stream) {
  const int num_rows = static_cast<int>(moment_rows(s.N * s.H * s.W, s.C));
  if (is_tensor_work(dtype, weight, s, tensor_cores)) {
    with_narrow_type(dtype, [&](auto t) {
      using T = decltype(t);
      const TensorGrid grid = tensor_grid(s);
      LAUNCH_CLUSTERS(stem_tensor_forward_kernel<T>, grid.cluster, grid.blocks, dim3(kThreads), stream,
                      static_cast<const T*>(x), static_cast<const T*>(w), weight.channels_last, static_cast<T*>(u),
                      u_rows, num_rows, geometry(s, kTensorHeight, grid.blocks.y));
    });
    return cudaGetLastError();
  }
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    with_channels(s, [&](auto channels) {
      constexpr int V = decltype(channels)::value;
      LAUNCH((stem_forward_kernel<T, V>), stem_grid<V>(s), dim3(kStemThreads), stream, static_cast<const T*>(x), w,
             weight, static_cast<T*>(u), u_rows, num_rows, geometry<V>(s));
    });
  });
  return cudaGetLastError();
}

int64_t stem_backward_workspace(Dtype dtype, StemWeight weight, const StemShape& s, bool tensor_cores) {
  const int64_t rows = is_tensor_work(dtype, weight, s, tensor_cores)
                           ? tensor_grid(s).rows
                           : with_channels(s, [&](auto V) { return stem_grid<decltype(V)::value>(s).y; });
  return rows * kTaps * s.C;
}

cudaError_t stem_backward(Dtype dtype, const void* grad_u, const ThroughMoments& of_u, const void* x, StemWeight weight,
                          void* grad_w, float* workspace, const StemShape& s, bool tensor_cores, cudaStream_t stream) {
  const int C = static_cast<int>(s.C);
  if (is_tensor_work(dtype, weight, s, tensor_cores)) {
    const TensorGrid grid = tensor_grid(s);
    with_narrow_type(dtype, [&](auto t) {
      using T = decltype(t);
      const auto launch = [&](auto through) {
        LAUNCH_CLUSTERS((stem_tensor_backward_kernel<T, decltype(through)::value>), grid.cluster, grid.blocks,
                        dim3(kThreads), stream, static_cast<const T*>(grad_u), of_u, static_cast<const T*>(x),
                        workspace, geometry(s, kTensorHeight, grid.blocks.y));
      };
      of_u.rows != nullptr ? launch(std::true_type()) : launch(std::false_type());
    });
    launch_merge(dtype, workspace, grid.rows, weight, grad_w, C, stream);
    return cudaGetLastError();
  }
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    with_channels(s, [&](auto channels) {
      constexpr int V = decltype(channels)::value;
      const dim3 grid = stem_grid<V>(s);
      const auto launch = [&](auto through) {
        LAUNCH((stem_backward_kernel<T, V, decltype(through)::value>), grid, dim3(kStemThreads), stream,
               static_cast<const T*>(grad_u), of_u, static_cast<const T*>(x), workspace, geometry<V>(s));
      };
      of_u.rows != nullptr ? launch(std::true_type()) : launch(std::false_type());
      launch_merge(dtype, workspace, static_cast<int>(grid.y), weight, grad_w, C, stream);
    });
  });
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

// depthwise_block on 8x8, 4x4 and 2x2 maps, one kernel each way, from Hopper on. A cluster of blocks owns a few channels
// of the whole batch, and a thread owns two of these channels of one image, or of half of one. So every statistic is a
// sum over one cluster, every tensor is read and written once, and between the statistics a thread keeps its pixels in
// registers. Elsewhere three kernels do this, each of which waits for the one before.
#pragma once
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/statistics.cuh"

namespace fastcifar::cuda {

inline constexpr int kPlaneVector = 2, kPlaneThreads = 128;
inline constexpr int kPlaneImages = 16;  // of a block
// Blocks an SM, as many as its registers hold without spilling; ptxas needs more of them for later architectures. Of
// one larger block an SM, in clusters of four, an H200 runs 124 at a time, and the last four of 128 took as long again.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 900
inline constexpr int kPlaneResident = 2;
#else
inline constexpr int kPlaneResident = 3;
#endif

// Before Hopper nobody launches these kernels: there is nothing to compile.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kHasPlanes = false;
#else
inline constexpr bool kHasPlanes = true;
#endif

// SIDE: height and width of the map. A block has the same number of images whatever their size: of larger ones it owns
// fewer channels, and a thread a strip of rows.
template <int STRIDE, int SIDE>
struct Plane {
  static constexpr int S = STRIDE, kSide = SIDE, kOutSide = (SIDE - 1) / S + 1;
  static constexpr int kStrips = SIDE > 4 ? 2 : 1;  // of an image, each of another thread
  static constexpr int kRows = kSide / kStrips, kOutRows = kOutSide / kStrips;
  static constexpr int kIn = kRows * kSide, kOut = kOutRows * kOutSide;  // pixels of a strip
  static constexpr int kLanes = kPlaneImages * kStrips, kGroups = kPlaneThreads / kLanes;
  static constexpr int kChannels = kGroups * kPlaneVector;  // of a cluster
};

// Calls f with a value of the element type and the Plane, and returns true, where these kernels are for the shape.
template <class F>
bool with_plane(Dtype dtype, const DwShape& s, F f) {
  if (s.N > kPlaneImages * kClusterBlocks || s.H != s.W || !is_from_hopper_on()) return false;
  bool done = false;
  with_type(dtype, [&](auto type) {
    const auto offer = [&](auto plane) {
      using P = decltype(plane);
      if (s.H == P::kSide && s.stride == P::S && s.C % P::kChannels == 0) f(type, plane), done = true;
    };
    offer(Plane<1, 2>());
    offer(Plane<1, 4>());
    offer(Plane<2, 4>());
    if constexpr (sizeof(type) == 2) {  // the pixels of half a float32 map do not fit the registers
      offer(Plane<1, 8>());
      offer(Plane<2, 8>());
    }
  });
  return done;
}

// The blocks of a cluster for N images: a power of two.
inline int plane_blocks(int64_t N) {
  int blocks = 1;
  while (blocks * kPlaneImages < N) blocks *= 2;
  return blocks;
}

// A thread's image, which there may not be, its strip of the image, and its channels, the kPlaneVector from `channel`
// on.
template <class P>
struct PlaneThread {
  int image, strip, own, channel;  // own: channel within the cluster's
  __device__ __forceinline__ PlaneThread() {
    const int lane = static_cast<int>(threadIdx.x) / P::kGroups;
    image = static_cast<int>(blockIdx.y) * kPlaneImages + lane / P::kStrips;
    strip = lane % P::kStrips;
    own = static_cast<int>(threadIdx.x) % P::kGroups * kPlaneVector;
    channel = static_cast<int>(blockIdx.x) * P::kChannels + own;
  }
  __device__ __forceinline__ bool writes_results() const { return image == 0 && strip == 0; }
};

template <class T>
using PlanePack = Pack<T, kPlaneVector>;

// All pixels of a strip, of the thread's channels; `first` is the first pixel's place in bytes.
template <int COUNT, class T>
__device__ __forceinline__ void load_plane(const T* from, bool is_image, uint32_t first, uint32_t pixel,
                                           PlanePack<T> (&to)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) to[i] = load_if<kPlaneVector>(at_byte(from, first + i * pixel), is_image);
}

// Leaves the packs as they are. Without it the compiler keeps what it has unpacked, which takes twice the registers.
template <int COUNT, class T>
__device__ __forceinline__ void keep_packed([[maybe_unused]] PlanePack<T> (&packs)[COUNT]) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(PlanePack<T>) == 4) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(packs[i].words[0]));
  }
#endif
}

// Sums over the block of Q numbers of each of a thread's channels: to(i, sum) gets each, i = q * kChannels + channel. The
// order of the sums is fixed.
template <class P, int Q, class F>
__device__ __forceinline__ void sum_block(float (&own)[Q][kPlaneVector], F to) {
  constexpr int kWarps = kPlaneThreads / 32;
  SHARED_ARRAY(float, of_warps, kWarps * Q * P::kChannels);
  const int warp = threadIdx.x / 32, in_warp = threadIdx.x % 32;
#pragma unroll
  for (int q = 0; q < Q; ++q)
#pragma unroll
    for (int v = 0; v < kPlaneVector; ++v) {
#pragma unroll
      for (int distance = P::kGroups; distance < 32; distance *= 2)
        own[q][v] += __shfl_xor_sync(~0u, own[q][v], distance);
      if (in_warp < P::kGroups) of_warps[(warp * Q + q) * P::kChannels + in_warp * kPlaneVector + v] = own[q][v];
    }
  __syncthreads();
  for (int i = threadIdx.x; i < Q * P::kChannels; i += kPlaneThreads) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += of_warps[w * Q * P::kChannels + i];
    to(i, sum);
  }
}

// Sums over the cluster: float [Q][kChannels] in shared memory. To be called once in a kernel for each Q. The thread has
// arrived at the cluster's barrier again when it returns: who calls it must wait there before it ends.
template <class P, int Q>
__device__ __forceinline__ const float* plane_sums(float (&own)[Q][kPlaneVector]) {
  SHARED_ARRAY(float, of_block, Q* P::kChannels);
  SHARED_ARRAY(float, totals, Q* P::kChannels);
  sum_block<P>(own, [&](int i, float sum) { of_block[i] = sum; });
  arrive_at_cluster();
  wait_for_cluster();
  for (int i = threadIdx.x; i < Q * P::kChannels; i += kPlaneThreads) {
    float sum = 0.f;
    for (int b = 0; b < cluster_blocks(); ++b) sum += IN_BLOCK(of_block, b)[i];
    totals[i] = sum;
  }
  arrive_at_cluster();
  __syncthreads();
  return totals;
}

struct PlaneStatistics {
  float mean[kPlaneVector], var[kPlaneVector];
};

// Mean and variance over the cluster of COUNT numbers of each of a thread's channels, if it has an image. A thread sums
// about its first number, the block about the mean of its first thread's, the cluster about that of its first block.
// WHICH sets the calls of a kernel apart. As after plane_sums, the thread has arrived at the barrier again.
template <int WHICH, class P, int COUNT>
__device__ __forceinline__ PlaneStatistics plane_statistics(const float (&x)[COUNT][kPlaneVector],
                                                            const PlaneThread<P>& at, int N) {
  SHARED_ARRAY(float, of_block, 3 * P::kChannels);  // pivot, sum, sum of squares
  SHARED_ARRAY(float, mean, P::kChannels);
  SHARED_ARRAY(float, var, P::kChannels);
  const bool is_image = at.image < N;
  float sums[2][kPlaneVector] = {};
#pragma unroll
  for (int v = 0; v < kPlaneVector; ++v) {
#pragma unroll
    for (int i = 1; i < COUNT; ++i) {
      const float d = x[i][v] - x[0][v];
      sums[0][v] += d;
      sums[1][v] = fmaf(d, d, sums[1][v]);
    }
    if (threadIdx.x < P::kGroups) of_block[at.own + v] = x[0][v] + sums[0][v] * (1.f / COUNT);
  }
  __syncthreads();
#pragma unroll
  for (int v = 0; v < kPlaneVector; ++v) {
    const float shift = x[0][v] - of_block[at.own + v], sum = sums[0][v];
    sums[0][v] = is_image ? fmaf(static_cast<float>(COUNT), shift, sum) : 0.f;
    sums[1][v] = is_image ? fmaf(fmaf(static_cast<float>(COUNT), shift, 2.f * sum), shift, sums[1][v]) : 0.f;
  }
  sum_block<P>(sums, [&](int i, float sum) { of_block[P::kChannels + i] = sum; });
  arrive_at_cluster();
  wait_for_cluster();
  const int c = threadIdx.x;
  if (c < P::kChannels) {
    float parts[kClusterBlocks][3];  // all loads are under way at once: each goes to another multiprocessor
#pragma unroll
    for (int b = 0; b < kClusterBlocks; ++b)
#pragma unroll
      for (int q = 0; q < 3; ++q) parts[b][q] = IN_BLOCK(of_block, min(b, cluster_blocks() - 1))[q * P::kChannels + c];
    const float pivot = parts[0][0];
    float sum = 0.f, squares = 0.f;
#pragma unroll
    for (int b = 0; b < kClusterBlocks; ++b) {
      const float count = static_cast<float>(max(0, min(kPlaneImages, N - b * kPlaneImages)) * P::kStrips * COUNT);
      if (count == 0.f) continue;  // the block has no image, or there is no such block
      const float shift = parts[b][0] - pivot;
      sum += fmaf(count, shift, parts[b][1]);
      squares += fmaf(fmaf(count, shift, 2.f * parts[b][1]), shift, parts[b][2]);
    }
    const float inverse = 1.f / static_cast<float>(N * P::kStrips * COUNT), shift = sum * inverse;
    const float m2 = squares - sum * shift;
    mean[c] = pivot + shift;
    var[c] = (m2 < 0.f ? 0.f : m2) * inverse;
  }
  arrive_at_cluster();
  __syncthreads();
  PlaneStatistics s;
#pragma unroll
  for (int v = 0; v < kPlaneVector; ++v) s.mean[v] = mean[at.own + v], s.var[v] = var[at.own + v];
  return s;
}

// gamma and beta of a BN for a thread's channels. To be read early: behind a barrier nothing would hide the wait.
struct PlaneParameters {
  float gamma[kPlaneVector], beta[kPlaneVector];
  __device__ __forceinline__ PlaneParameters(const float* gammas, const float* betas, int c) {
#pragma unroll
    for (int v = 0; v < kPlaneVector; ++v) gamma[v] = gammas[c + v], beta[v] = betas[c + v];
  }
};

// scale and shift of a BN for a thread's channels.
struct PlaneAffine {
  float scale[kPlaneVector], shift[kPlaneVector];
  __device__ __forceinline__ PlaneAffine(const PlaneParameters& p, const PlaneStatistics& s, float eps) {
#pragma unroll
    for (int v = 0; v < kPlaneVector; ++v) {
      const Affine a = affine_of(p.gamma[v], p.beta[v], s.mean[v], s.var[v], eps);
      scale[v] = a.scale;
      shift[v] = a.shift;
    }
  }
};

__device__ __forceinline__ PlaneStatistics read_statistics(const float* mean, const float* var, int c) {
  PlaneStatistics s;
#pragma unroll
  for (int v = 0; v < kPlaneVector; ++v) s.mean[v] = mean[c + v], s.var[v] = var[c + v];
  return s;
}
__device__ __forceinline__ void write_statistics(const PlaneStatistics& s, float* mean, float* var, int c) {
#pragma unroll
  for (int v = 0; v < kPlaneVector; ++v) mean[c + v] = s.mean[v], var[c + v] = s.var[v];
}

__device__ __forceinline__ void load_plane_taps(const float* w, int c, float (&to)[9][kPlaneVector]) {
#pragma unroll
  for (int k = 0; k < 9; ++k)
#pragma unroll
    for (int v = 0; v < kPlaneVector; ++v) to[k][v] = w[(c + v) * 9 + k];
}

// Numbers of ROWS x COLUMNS pixels of each strip, of the thread's channels, which the other threads of the image may
// read: in registers where there are none, else in shared memory.
template <class P, int ROWS, int COLUMNS>
class PlaneMap {
 public:
  __device__ __forceinline__ explicit PlaneMap(int strip) : strip_(strip) {
    if constexpr (kShared) {
      SHARED_ARRAY(float, numbers, ROWS * COLUMNS * kPlaneThreads * kPlaneVector);
      shared_ = numbers;
    }
  }

  __device__ __forceinline__ void set(int pixel, const float (&v)[kPlaneVector]) {
    if constexpr (kShared)
      *reinterpret_cast<Numbers*>(at(pixel, threadIdx.x)) = rounded<float>(v);
    else
      own_[pixel] = rounded<float>(v);
  }
  // To be called by all threads of the block between set and get.
  __device__ __forceinline__ void is_set() const {
    if constexpr (kShared) __syncthreads();
  }
  // Whether the pixel may be of the map; its numbers are zeros where it turns out not to be. Rows count from the strip's
  // first; the last of the strip above is -1.
  __device__ __forceinline__ bool get(int row, int column, float (&to)[kPlaneVector]) const {
    if (column < 0 || column >= COLUMNS) return false;
    const bool here = row >= 0 && row < ROWS;
    if constexpr (kShared) {
      const int other = row < 0 ? -1 : 1, strip = strip_ + other;
      if (here)
        load<kPlaneVector>(at(row * COLUMNS + column, threadIdx.x), to);
      else
        unpack(load_if<kPlaneVector>(at((row - other * ROWS) * COLUMNS + column, threadIdx.x + other * P::kGroups),
                                     strip >= 0 && strip < P::kStrips),
               to);
      return true;
    } else {
      if (here) unpack(own_[row * COLUMNS + column], to);
      return here;
    }
  }

 private:
  static constexpr bool kShared = P::kStrips > 1;
  using Numbers = Pack<float, kPlaneVector>;
  __device__ __forceinline__ float* at(int pixel, int thread) const {
    return shared_ + (pixel * kPlaneThreads + thread) * kPlaneVector;
  }
  int strip_;
  float* shared_ = nullptr;
  Numbers own_[kShared ? 1 : ROWS * COLUMNS];
};

// The n-th pixel of a strip column by column: the fewest numbers are read long before they are used again.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ constexpr int by_columns(int n) {
  return n % ROWS * COLUMNS + n / ROWS;
}

// grid of both: (groups of kChannels channels, the blocks of one cluster)
template <class T, class P>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneResident)
    depthwise_plane_forward(const BlockForward b, int N, int C) {
  if (!kHasPlanes) return;
  begin_kernel();
  constexpr int V = kPlaneVector;
  const PlaneThread<P> at;
  const int c = at.channel;
  const bool is_image = at.image < N;
  const uint32_t pixel = C * sizeof(T), own = c * sizeof(T);  // bytes
  const uint32_t strip = at.image * P::kStrips + at.strip;
  PlanePack<T> packs[P::kIn];
  load_plane(static_cast<const T*>(b.u), is_image, strip * P::kIn * pixel + own, pixel, packs);
  float w[9][V];
  load_plane_taps(b.w, c, w);
  const PlaneParameters of_norm0(b.gamma0, b.beta0, c), of_norm1(b.gamma1, b.beta1, c);

  float x[P::kIn][V], out[P::kOut][V] = {};
#pragma unroll
  for (int i = 0; i < P::kIn; ++i) unpack(packs[i], x[i]);
  PlaneStatistics of_u;
  if (b.u_mean != nullptr) {
    of_u = read_statistics(b.u_mean, b.u_var, c);
  } else {
    of_u = plane_statistics<0>(x, at, N);
    wait_for_cluster();
  }
  const PlaneAffine norm0(of_norm0, of_u, b.eps);
  PlaneMap<P, P::kRows, P::kSide> h(at.strip);
#pragma unroll
  for (int i = 0; i < P::kIn; ++i) {
#pragma unroll
    for (int v = 0; v < V; ++v) x[i][v] = relu(fmaf(x[i][v], norm0.scale[v], norm0.shift[v]));
    h.set(i, x[i]);
  }
  h.is_set();
  const uint32_t first_out = strip * P::kOut * pixel + own;
  if (is_image) {
#pragma unroll
    for (int n = 0; n < P::kOut; ++n) {
      const int o = by_columns<P::kOutRows, P::kOutSide>(n);
#pragma unroll
      for (int k = 0; k < 9; ++k) {
        const int row = o / P::kOutSide * P::S - 1 + k / 3, column = o % P::kOutSide * P::S - 1 + k % 3;
        float seen[V];
        if (!h.get(row, column, seen)) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) out[o][v] = fmaf(seen[v], w[k][v], out[o][v]);
      }
      store<V>(at_byte(static_cast<T*>(b.y), first_out + o * pixel), out[o]);
    }
  }
  const PlaneStatistics of_y = plane_statistics<1>(out, at, N);
  const PlaneAffine norm1(of_norm1, of_y, b.eps);
  if (is_image) {
#pragma unroll
    for (int o = 0; o < P::kOut; ++o) {
#pragma unroll
      for (int v = 0; v < V; ++v) out[o][v] = relu(fmaf(out[o][v], norm1.scale[v], norm1.shift[v]));
      store<V>(at_byte(static_cast<T*>(b.z), first_out + o * pixel), out[o]);
    }
  }
  if (at.writes_results()) {
    write_statistics(of_u, b.mean0, b.var0, c);
    write_statistics(of_y, b.mean1, b.var1, c);
  }
  wait_for_cluster();
}

// The gradient of a BN's input is scale * g + slope * (x - mean) + offset. sums: those of g and of g * (x - mean), from
// plane_sums. The first image's threads write the gradients of gamma and beta.
struct PlaneNormGrad {
  float slope[kPlaneVector], offset[kPlaneVector];
  template <class P>
  __device__ __forceinline__ PlaneNormGrad(const float* sums, const PlaneAffine& norm, const PlaneStatistics& s,
                                           float eps, int count, const PlaneThread<P>& at, float* grad_gamma,
                                           float* grad_beta) {
    const float inverse = 1.f / static_cast<float>(count);
#pragma unroll
    for (int v = 0; v < kPlaneVector; ++v) {
      const float sum = sums[at.own + v], product = sums[P::kChannels + at.own + v];
      const float rstd = 1.f / sqrtf(s.var[v] + eps);
      slope[v] = -norm.scale[v] * rstd * rstd * product * inverse;
      offset[v] = -norm.scale[v] * sum * inverse;
      if (at.writes_results()) grad_gamma[at.channel + v] = product * rstd, grad_beta[at.channel + v] = sum;
    }
  }
};

template <class T, class P>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneResident)
    depthwise_plane_backward(const BlockBackward b, int N, int C) {
  if (!kHasPlanes) return;
  begin_kernel();
  constexpr int V = kPlaneVector, S = P::S;
  const PlaneThread<P> at;
  const int c = at.channel;
  const bool is_image = at.image < N;
  const uint32_t pixel = C * sizeof(T), own = c * sizeof(T);  // bytes
  const uint32_t strip = at.image * P::kStrips + at.strip;
  const uint32_t first_in = strip * P::kIn * pixel + own, first_out = strip * P::kOut * pixel + own;
  const PlaneStatistics of_u = read_statistics(b.mean0, b.var0, c), of_y = read_statistics(b.mean1, b.var1, c);
  const PlaneParameters of_norm0(b.gamma0, b.beta0, c), of_norm1(b.gamma1, b.beta1, c);
  PlanePack<T> grads[P::kOut], ys[P::kOut], packs[P::kIn];
  load_plane(static_cast<const T*>(b.grad_z), is_image, first_out, pixel, grads);
  load_plane(static_cast<const T*>(b.y), is_image, first_out, pixel, ys);
  load_plane(static_cast<const T*>(b.u), is_image, first_in, pixel, packs);
  const PlaneAffine norm0(of_norm0, of_u, b.eps), norm1(of_norm1, of_y, b.eps);

  // Pixel o's y, less its mean, and the gradient of norm1's output.
  const auto unpack_out = [&](int o, float (&y)[V], float (&g)[V]) {
    unpack(grads[o], g);
    unpack(ys[o], y);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (fmaf(y[v], norm1.scale[v], norm1.shift[v]) <= 0.f) g[v] = 0.f;
      y[v] -= of_y.mean[v];
    }
  };
  float sums1[2][V] = {};
#pragma unroll
  for (int o = 0; o < P::kOut; ++o) {
    float y[V], g[V];
    unpack_out(o, y, g);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      sums1[0][v] += g[v];
      sums1[1][v] = fmaf(g[v], y[v], sums1[1][v]);
    }
  }
  float w[9][V];
  load_plane_taps(b.w, c, w);
  PlaneNormGrad grad1(plane_sums<P>(sums1), norm1, of_y, b.eps, N * P::kStrips * P::kOut, at, b.grad_gamma1,
                      b.grad_beta1);
  if (!is_image) {  // its gradients are zeros, and stay so
#pragma unroll
    for (int v = 0; v < V; ++v) grad1.slope[v] = grad1.offset[v] = 0.f;
  }
  keep_packed(grads);
  keep_packed(ys);
  PlaneMap<P, P::kOutRows, P::kOutSide> dy(at.strip);
#pragma unroll
  for (int o = 0; o < P::kOut; ++o) {
    float y[V], g[V];
    unpack_out(o, y, g);
#pragma unroll
    for (int v = 0; v < V; ++v) g[v] = fmaf(norm1.scale[v], g[v], fmaf(grad1.slope[v], y[v], grad1.offset[v]));
    dy.set(o, g);
  }
  dy.is_set();
  // The gradient of norm0's output waits in registers for norm0's sums; of a strip's many pixels rounded, as in memory.
  using Kept = std::conditional_t<(P::kStrips > 1), T, float>;
  Pack<Kept, V> kept[P::kIn];
  float sums[11][V] = {};  // the taps of grad_w, norm0's two
#pragma unroll
  for (int n = 0; n < P::kIn; ++n) {
    const int i = by_columns<P::kRows, P::kSide>(n);
    float x[V], h[V], dx[V] = {};
    unpack(packs[i], x);
#pragma unroll
    for (int v = 0; v < V; ++v) h[v] = relu(fmaf(x[v], norm0.scale[v], norm0.shift[v]));
#pragma unroll
    for (int k = 0; k < 9; ++k) {  // output (row + 1 - kh) / S, where S divides it, saw this pixel through tap kh
      const int row = i / P::kSide + 1 - k / 3, column = i % P::kSide + 1 - k % 3;
      float g[V];
      if (row % S != 0 || column % S != 0 || !dy.get(row / S, column / S, g)) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        dx[v] = fmaf(g[v], w[k][v], dx[v]);
        sums[k][v] = fmaf(g[v], h[v], sums[k][v]);
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (h[v] <= 0.f) dx[v] = 0.f;
      sums[9][v] += dx[v];
      sums[10][v] = fmaf(dx[v], x[v] - of_u.mean[v], sums[10][v]);
    }
    kept[i] = rounded<Kept>(dx);
  }
  keep_packed(packs);
  wait_for_cluster();
  const float* totals = plane_sums<P>(sums);
  if (blockIdx.y == 0)
    for (int i = threadIdx.x; i < 9 * P::kChannels; i += kPlaneThreads)
      b.grad_w[(c - at.own + i % P::kChannels) * 9 + i / P::kChannels] = totals[i];
  const PlaneNormGrad grad0(totals + 9 * P::kChannels, norm0, of_u, b.eps, N * P::kStrips * P::kIn, at, b.grad_gamma0,
                            b.grad_beta0);
  if (is_image) {
#pragma unroll
    for (int i = 0; i < P::kIn; ++i) {
      float x[V], dx[V];
      unpack(packs[i], x);
      unpack(kept[i], dx);
#pragma unroll
      for (int v = 0; v < V; ++v)
        dx[v] = fmaf(norm0.scale[v], dx[v], fmaf(grad0.slope[v], x[v] - of_u.mean[v], grad0.offset[v]));
      store<V>(at_byte(static_cast<T*>(b.grad_u), first_in + i * pixel), dx);
    }
  }
  wait_for_cluster();
}

}  // namespace fastcifar::cuda

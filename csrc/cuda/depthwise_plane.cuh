// depthwise_block on 4x4 and 2x2 maps, one kernel each way, from Hopper on. A cluster of blocks owns kPlaneChannels
// channels of the whole batch, and a thread owns two of these channels of one image. So every statistic is a sum over
// one cluster, every tensor is read and written once, and between the statistics a thread keeps its pixels in
// registers. Elsewhere three kernels do this, each of which waits for the one before.
#pragma once
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/statistics.cuh"

namespace fastcifar::cuda {

inline constexpr int kPlaneVector = 2, kPlaneChannels = 16, kPlaneGroups = kPlaneChannels / kPlaneVector;
inline constexpr int kPlaneThreads = 128, kPlaneLanes = kPlaneThreads / kPlaneGroups;
inline constexpr int64_t kPlaneImages = kPlaneLanes * kClusterBlocks;
// Blocks an SM, as many as its registers hold without spilling; ptxas needs more of them for later architectures. Of
// one larger block an SM, in clusters of four, an H200 runs 124 at a time, and the last four of 128 took as long again.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 900
inline constexpr int kPlaneResident = 2;
#else
inline constexpr int kPlaneResident = 3;
#endif

// Calls f with stride and width of the map as types, and returns true, where these kernels are for the shape.
template <class F>
bool with_plane(const DwShape& s, F f) {
  if (s.N > kPlaneImages || s.C % kPlaneChannels != 0 || s.H != s.W || !is_from_hopper_on()) return false;
  if (s.H == 4 && s.stride == 1) return f(std::integral_constant<int, 1>(), std::integral_constant<int, 4>()), true;
  if (s.H == 4 && s.stride == 2) return f(std::integral_constant<int, 2>(), std::integral_constant<int, 4>()), true;
  if (s.H == 2 && s.stride == 1) return f(std::integral_constant<int, 1>(), std::integral_constant<int, 2>()), true;
  return false;
}

// The blocks of a cluster for N images: a power of two.
inline int plane_blocks(int64_t N) {
  int blocks = 1;
  while (blocks * kPlaneLanes < N) blocks *= 2;
  return blocks;
}

// A thread's image, which there may not be, and its channels, the kPlaneVector from `channel` on.
struct PlaneThread {
  int image, own, channel;  // own: channel within the cluster's
  __device__ __forceinline__ PlaneThread()
      : image(static_cast<int>(blockIdx.y) * kPlaneLanes + static_cast<int>(threadIdx.x) / kPlaneGroups),
        own(static_cast<int>(threadIdx.x) % kPlaneGroups * kPlaneVector),
        channel(static_cast<int>(blockIdx.x) * kPlaneChannels + own) {}
  __device__ __forceinline__ bool writes_results() const { return image == 0; }
};

template <class T>
using PlanePack = Pack<T, kPlaneVector>;

// All pixels of an image, of the thread's channels; `first` is the first pixel's place in bytes.
template <int COUNT, class T>
__device__ __forceinline__ void load_plane(const T* from, bool is_image, uint32_t first, uint32_t pixel,
                                           PlanePack<T> (&to)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) to[i] = load_if<kPlaneVector>(at_byte(from, first + i * pixel), is_image);
}

// Sums over the block of Q numbers of each of a thread's channels: to(i, sum) gets each, i = q * kPlaneChannels +
// channel. The order of the sums is fixed.
template <int Q, class F>
__device__ __forceinline__ void sum_block(float (&own)[Q][kPlaneVector], F to) {
  constexpr int kWarps = kPlaneThreads / 32;
  SHARED_ARRAY(float, of_warps, kWarps * Q * kPlaneChannels);
  const int warp = threadIdx.x / 32, in_warp = threadIdx.x % 32;
#pragma unroll
  for (int q = 0; q < Q; ++q)
#pragma unroll
    for (int v = 0; v < kPlaneVector; ++v) {
#pragma unroll
      for (int distance = kPlaneGroups; distance < 32; distance *= 2)
        own[q][v] += __shfl_xor_sync(~0u, own[q][v], distance);
      if (in_warp < kPlaneGroups) of_warps[(warp * Q + q) * kPlaneChannels + in_warp * kPlaneVector + v] = own[q][v];
    }
  __syncthreads();
  for (int i = threadIdx.x; i < Q * kPlaneChannels; i += kPlaneThreads) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += of_warps[w * Q * kPlaneChannels + i];
    to(i, sum);
  }
}

// Sums over the cluster: float [Q][kPlaneChannels] in shared memory. To be called once in a kernel for each Q. The
// thread has arrived at the cluster's barrier again when it returns: who calls it must wait there before it ends.
template <int Q>
__device__ __forceinline__ const float* plane_sums(float (&own)[Q][kPlaneVector]) {
  SHARED_ARRAY(float, of_block, Q* kPlaneChannels);
  SHARED_ARRAY(float, totals, Q* kPlaneChannels);
  sum_block(own, [&](int i, float sum) { of_block[i] = sum; });
  arrive_at_cluster();
  wait_for_cluster();
  for (int i = threadIdx.x; i < Q * kPlaneChannels; i += kPlaneThreads) {
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
// about its first number, the block about that of its first thread, the cluster about that of its first block: numbers
// about another one differ by the exact difference of the two. WHICH sets the calls of a kernel apart. As after
// plane_sums, the thread has arrived at the barrier again.
template <int WHICH, int COUNT>
__device__ __forceinline__ PlaneStatistics plane_statistics(const float (&x)[COUNT][kPlaneVector],
                                                            const PlaneThread& at, int N) {
  SHARED_ARRAY(float, of_block, 3 * kPlaneChannels);  // pivot, sum, sum of squares
  SHARED_ARRAY(float, mean, kPlaneChannels);
  SHARED_ARRAY(float, var, kPlaneChannels);
  const bool is_image = at.image < N;
  if (threadIdx.x < kPlaneGroups) {
#pragma unroll
    for (int v = 0; v < kPlaneVector; ++v) of_block[at.own + v] = x[0][v];
  }
  __syncthreads();
  float sums[2][kPlaneVector] = {};
#pragma unroll
  for (int v = 0; v < kPlaneVector; ++v) {
    const float shift = x[0][v] - of_block[at.own + v];
    float sum = 0.f, squares = 0.f;
#pragma unroll
    for (int i = 1; i < COUNT; ++i) {
      const float d = x[i][v] - x[0][v];
      sum += d;
      squares = fmaf(d, d, squares);
    }
    if (is_image) {
      sums[0][v] = fmaf(static_cast<float>(COUNT), shift, sum);
      sums[1][v] = fmaf(fmaf(static_cast<float>(COUNT), shift, 2.f * sum), shift, squares);
    }
  }
  sum_block(sums, [&](int i, float sum) { of_block[kPlaneChannels + i] = sum; });
  arrive_at_cluster();
  wait_for_cluster();
  const int c = threadIdx.x;
  if (c < kPlaneChannels) {
    const float pivot = IN_BLOCK(of_block, 0)[c];
    float sum = 0.f, squares = 0.f;
    for (int b = 0; b < cluster_blocks(); ++b) {
      const float count = static_cast<float>(max(0, min(kPlaneLanes, N - b * kPlaneLanes)) * COUNT);
      if (count == 0.f) break;
      const float* const part = IN_BLOCK(of_block, b);
      const float shift = part[c] - pivot, part_sum = part[kPlaneChannels + c];
      sum += fmaf(count, shift, part_sum);
      squares += fmaf(fmaf(count, shift, 2.f * part_sum), shift, part[2 * kPlaneChannels + c]);
    }
    const float inverse = 1.f / static_cast<float>(N * COUNT), shift = sum * inverse;
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

// scale and shift of a BN for a thread's channels.
struct PlaneAffine {
  float scale[kPlaneVector], shift[kPlaneVector];
  __device__ __forceinline__ PlaneAffine(const float* gamma, const float* beta, const PlaneStatistics& s, float eps,
                                         int c) {
#pragma unroll
    for (int v = 0; v < kPlaneVector; ++v) {
      const Affine a = affine_of(gamma[c + v], beta[c + v], s.mean[v], s.var[v], eps);
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

// grid of both: (groups of kPlaneChannels channels, the blocks of one cluster)
template <class T, int S, int PLANE>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneResident)
    depthwise_plane_forward(const BlockForward b, int N, int C) {
  begin_kernel();
  constexpr int V = kPlaneVector, kIn = PLANE * PLANE, kSide = (PLANE - 1) / S + 1, kOut = kSide * kSide;
  const PlaneThread at;
  const int c = at.channel;
  const bool is_image = at.image < N;
  const uint32_t pixel = C * sizeof(T), own = c * sizeof(T);  // bytes
  PlanePack<T> packs[kIn];
  load_plane(static_cast<const T*>(b.u), is_image, at.image * kIn * pixel + own, pixel, packs);
  float w[9][V];
  load_plane_taps(b.w, c, w);

  float h[kIn][V], out[kOut][V] = {};
#pragma unroll
  for (int i = 0; i < kIn; ++i) unpack(packs[i], h[i]);
  PlaneStatistics of_u;
  if (b.u_mean != nullptr) {
    of_u = read_statistics(b.u_mean, b.u_var, c);
  } else {
    of_u = plane_statistics<0>(h, at, N);
    wait_for_cluster();
  }
  const PlaneAffine norm0(b.gamma0, b.beta0, of_u, b.eps, c);
#pragma unroll
  for (int i = 0; i < kIn; ++i)
#pragma unroll
    for (int v = 0; v < V; ++v) h[i][v] = relu(fmaf(h[i][v], norm0.scale[v], norm0.shift[v]));
  const uint32_t first_out = at.image * kOut * pixel + own;
  if (is_image) {
#pragma unroll
    for (int o = 0; o < kOut; ++o) {
#pragma unroll
      for (int k = 0; k < 9; ++k) {
        const int i = o / kSide * S - 1 + k / 3, j = o % kSide * S - 1 + k % 3;
        if (i < 0 || i >= PLANE || j < 0 || j >= PLANE) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) out[o][v] = fmaf(h[i * PLANE + j][v], w[k][v], out[o][v]);
      }
      store<V>(at_byte(static_cast<T*>(b.y), first_out + o * pixel), out[o]);
    }
  }
  const PlaneStatistics of_y = plane_statistics<1>(out, at, N);
  const PlaneAffine norm1(b.gamma1, b.beta1, of_y, b.eps, c);
  if (is_image) {
#pragma unroll
    for (int o = 0; o < kOut; ++o) {
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
  __device__ __forceinline__ PlaneNormGrad(const float* sums, const PlaneAffine& norm, const PlaneStatistics& s,
                                           float eps, int count, const PlaneThread& at, float* grad_gamma,
                                           float* grad_beta) {
    const float inverse = 1.f / static_cast<float>(count);
#pragma unroll
    for (int v = 0; v < kPlaneVector; ++v) {
      const float sum = sums[at.own + v], product = sums[kPlaneChannels + at.own + v];
      const float rstd = 1.f / sqrtf(s.var[v] + eps);
      slope[v] = -norm.scale[v] * rstd * rstd * product * inverse;
      offset[v] = -norm.scale[v] * sum * inverse;
      if (at.writes_results()) grad_gamma[at.channel + v] = product * rstd, grad_beta[at.channel + v] = sum;
    }
  }
};

template <class T, int S, int PLANE>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneResident)
    depthwise_plane_backward(const BlockBackward b, int N, int C) {
  begin_kernel();
  constexpr int V = kPlaneVector, kIn = PLANE * PLANE, kSide = (PLANE - 1) / S + 1, kOut = kSide * kSide;
  const PlaneThread at;
  const int c = at.channel;
  const bool is_image = at.image < N;
  const uint32_t pixel = C * sizeof(T), own = c * sizeof(T);  // bytes
  const uint32_t first_in = at.image * kIn * pixel + own, first_out = at.image * kOut * pixel + own;
  PlanePack<T> grads[kOut], ys[kOut], packs[kIn];
  load_plane(static_cast<const T*>(b.grad_z), is_image, first_out, pixel, grads);
  load_plane(static_cast<const T*>(b.y), is_image, first_out, pixel, ys);
  load_plane(static_cast<const T*>(b.u), is_image, first_in, pixel, packs);
  const PlaneStatistics of_u = read_statistics(b.mean0, b.var0, c), of_y = read_statistics(b.mean1, b.var1, c);
  const PlaneAffine norm0(b.gamma0, b.beta0, of_u, b.eps, c), norm1(b.gamma1, b.beta1, of_y, b.eps, c);

  float dy[kOut][V], sums1[2][V] = {};  // dy: first the gradient of norm1's output
#pragma unroll
  for (int o = 0; o < kOut; ++o) {
    float y[V];
    unpack(grads[o], dy[o]);
    unpack(ys[o], y);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (fmaf(y[v], norm1.scale[v], norm1.shift[v]) <= 0.f) dy[o][v] = 0.f;
      sums1[0][v] += dy[o][v];
      sums1[1][v] = fmaf(dy[o][v], y[v] - of_y.mean[v], sums1[1][v]);
    }
  }
  float w[9][V];
  load_plane_taps(b.w, c, w);
  const PlaneNormGrad grad1(plane_sums(sums1), norm1, of_y, b.eps, N * kOut, at, b.grad_gamma1, b.grad_beta1);
#pragma unroll
  for (int o = 0; o < kOut; ++o) {
    float y[V];
    unpack(ys[o], y);
#pragma unroll
    for (int v = 0; v < V; ++v)
      dy[o][v] =
          is_image ? fmaf(norm1.scale[v], dy[o][v], fmaf(grad1.slope[v], y[v] - of_y.mean[v], grad1.offset[v])) : 0.f;
  }
  float dx[kIn][V], sums[11][V] = {};  // the taps of grad_w, norm0's two
#pragma unroll
  for (int i = 0; i < kIn; ++i) {
    float x[V], h[V];
    unpack(packs[i], x);
#pragma unroll
    for (int v = 0; v < V; ++v) h[v] = relu(fmaf(x[v], norm0.scale[v], norm0.shift[v])), dx[i][v] = 0.f;
#pragma unroll
    for (int k = 0; k < 9; ++k) {  // output (row + 1 - kh) / S, where S divides it, saw this pixel through tap kh
      const int row = i / PLANE + 1 - k / 3, column = i % PLANE + 1 - k % 3;
      if (row < 0 || column < 0 || row % S != 0 || column % S != 0 || row / S >= kSide || column / S >= kSide) continue;
      const float (&g)[V] = dy[row / S * kSide + column / S];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        dx[i][v] = fmaf(g[v], w[k][v], dx[i][v]);
        sums[k][v] = fmaf(g[v], h[v], sums[k][v]);
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (h[v] <= 0.f) dx[i][v] = 0.f;
      sums[9][v] += dx[i][v];
      sums[10][v] = fmaf(dx[i][v], x[v] - of_u.mean[v], sums[10][v]);
    }
  }
  wait_for_cluster();
  const float* totals = plane_sums(sums);
  if (blockIdx.y == 0)
    for (int i = threadIdx.x; i < 9 * kPlaneChannels; i += kPlaneThreads)
      b.grad_w[(c - at.own + i % kPlaneChannels) * 9 + i / kPlaneChannels] = totals[i];
  const PlaneNormGrad grad0(totals + 9 * kPlaneChannels, norm0, of_u, b.eps, N * kIn, at, b.grad_gamma0, b.grad_beta0);
  if (is_image) {
#pragma unroll
    for (int i = 0; i < kIn; ++i) {
      float x[V];
      unpack(packs[i], x);
#pragma unroll
      for (int v = 0; v < V; ++v)
        dx[i][v] = fmaf(norm0.scale[v], dx[i][v], fmaf(grad0.slope[v], x[v] - of_u.mean[v], grad0.offset[v]));
      store<V>(at_byte(static_cast<T*>(b.grad_u), first_in + i * pixel), dx[i]);
    }
  }
  wait_for_cluster();
}

}  // namespace fastcifar::cuda

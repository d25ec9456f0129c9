// depthwise_block on 4x4 and 2x2 maps, one kernel each way. A block owns kPlaneChannels channels of the whole batch, so
// that every statistic is a sum over one block. It passes three times over what it owns, which lies in the caches, where
// other maps take three kernels: on small maps a launch takes longer than a pass.
#pragma once
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/statistics.cuh"

namespace fastcifar::cuda {

inline constexpr int kPlaneVector = 2, kPlaneChannels = 8, kPlaneGroups = kPlaneChannels / kPlaneVector;
inline constexpr int kPlaneThreads = 256, kPlaneLanes = kPlaneThreads / kPlaneGroups;
// With more images the whole GPU, in three kernels, takes less time than the blocks that there are for the channels.
inline constexpr int64_t kPlaneImages = 256;

// Calls f with stride and width of the map as types, and returns true, where these kernels are for the shape.
template <class F>
bool with_plane(const DwShape& s, F f) {
  if (s.N > kPlaneImages || s.C % kPlaneChannels != 0 || s.H != s.W) return false;
  if (s.H == 4 && s.stride == 1) return f(std::integral_constant<int, 1>(), std::integral_constant<int, 4>()), true;
  if (s.H == 4 && s.stride == 2) return f(std::integral_constant<int, 2>(), std::integral_constant<int, 4>()), true;
  if (s.H == 2 && s.stride == 1) return f(std::integral_constant<int, 1>(), std::integral_constant<int, 2>()), true;
  return false;
}

// A thread's images are lane, lane + kPlaneLanes, ...; its channels are the kPlaneVector from `channel` on.
struct PlaneThread {
  int lane, own, channel;  // own: channel within the block's
  __device__ __forceinline__ PlaneThread()
      : lane(static_cast<int>(threadIdx.x) / kPlaneGroups),
        own(static_cast<int>(threadIdx.x) % kPlaneGroups * kPlaneVector),
        channel(static_cast<int>(blockIdx.x) * kPlaneChannels + own) {}
};

template <class T>
using PlanePack = Pack<T, kPlaneVector>;

// All pixels of an image, of the thread's channels; `first` is the first pixel's place in bytes.
template <int COUNT, class T>
__device__ __forceinline__ void load_plane(const T* from, uint32_t first, uint32_t pixel, PlanePack<T> (&to)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) to[i] = load_if<kPlaneVector>(at_byte(from, first + i * pixel), true);
}

// Sums over the block of Q numbers of each of a thread's channels: float [Q][kPlaneChannels] in shared memory, until
// the next call for as many. The order of the sums is fixed.
template <int Q>
__device__ __forceinline__ const float* plane_sums(float (&own)[Q][kPlaneVector]) {
  constexpr int kWarps = kPlaneThreads / 32;
  SHARED_ARRAY(float, of_warps, kWarps * Q * kPlaneChannels);
  SHARED_ARRAY(float, totals, Q* kPlaneChannels);
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
    totals[i] = sum;
  }
  __syncthreads();
  return totals;
}

struct PlaneStatistics {
  float mean[kPlaneVector], var[kPlaneVector];
};

// Mean and variance of `count` numbers a channel, about the mean of the first thread's, which has at least one.
__device__ __forceinline__ PlaneStatistics plane_statistics(const RunningMoments<kPlaneVector>& moments,
                                                            const PlaneThread& at, int count) {
  SHARED_ARRAY(float, pivots, kPlaneChannels);
  if (at.lane == 0) {
#pragma unroll
    for (int v = 0; v < kPlaneVector; ++v) pivots[at.own + v] = moments.get(v).mean;
  }
  __syncthreads();
  float sums[2][kPlaneVector], pivot[kPlaneVector];
#pragma unroll
  for (int v = 0; v < kPlaneVector; ++v) {
    const Moments m = moments.get(v);
    pivot[v] = pivots[at.own + v];  // read now: the next call overwrites it
    const float d = m.mean - pivot[v];
    sums[0][v] = m.count * d;
    sums[1][v] = fmaf(m.count * d, d, m.m2);
  }
  const float* totals = plane_sums(sums);
  PlaneStatistics s;
#pragma unroll
  for (int v = 0; v < kPlaneVector; ++v) {
    const float sum = totals[at.own + v], mean = sum / static_cast<float>(count);
    const float m2 = totals[kPlaneChannels + at.own + v] - sum * mean;
    s.mean[v] = pivot[v] + mean;
    s.var[v] = (m2 < 0.f ? 0.f : m2) / static_cast<float>(count);
  }
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

// grid of both: (groups of kPlaneChannels channels)
template <class T, int S, int PLANE>
__global__ void __launch_bounds__(kPlaneThreads, 1) depthwise_plane_forward(const BlockForward b, int N, int C) {
  begin_kernel();
  constexpr int V = kPlaneVector, kIn = PLANE * PLANE, kSide = (PLANE - 1) / S + 1, kOut = kSide * kSide;
  const PlaneThread at;
  const int c = at.channel;
  const T* u = static_cast<const T*>(b.u);
  T *y = static_cast<T*>(b.y), *z = static_cast<T*>(b.z);
  const uint32_t pixel = C * sizeof(T), own = c * sizeof(T);  // bytes

  PlaneStatistics of_u;
  if (b.u_mean != nullptr) {
    of_u = read_statistics(b.u_mean, b.u_var, c);
  } else {
    RunningMoments<V> moments;
    for (int n = at.lane; n < N; n += kPlaneLanes) {
      PlanePack<T> packs[kIn];
      load_plane(u, n * kIn * pixel + own, pixel, packs);
#pragma unroll
      for (int i = 0; i < kIn; ++i) {
        float x[V];
        unpack(packs[i], x);
        if (i == 0) moments.start(x);
        moments.add(x);
      }
    }
    of_u = plane_statistics(moments, at, N * kIn);
  }
  const PlaneAffine norm0(b.gamma0, b.beta0, of_u, b.eps, c);
  float w[9][V];
  load_plane_taps(b.w, c, w);
  RunningMoments<V> moments;
  for (int n = at.lane; n < N; n += kPlaneLanes) {
    PlanePack<T> packs[kIn];
    load_plane(u, n * kIn * pixel + own, pixel, packs);
    float h[kIn][V];
#pragma unroll
    for (int i = 0; i < kIn; ++i) {
      unpack(packs[i], h[i]);
#pragma unroll
      for (int v = 0; v < V; ++v) h[i][v] = relu(fmaf(h[i][v], norm0.scale[v], norm0.shift[v]));
    }
#pragma unroll
    for (int o = 0; o < kOut; ++o) {
      float out[V] = {};
#pragma unroll
      for (int k = 0; k < 9; ++k) {
        const int i = o / kSide * S - 1 + k / 3, j = o % kSide * S - 1 + k % 3;
        if (i < 0 || i >= PLANE || j < 0 || j >= PLANE) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) out[v] = fmaf(h[i * PLANE + j][v], w[k][v], out[v]);
      }
      store<V>(at_byte(y, (n * kOut + o) * pixel + own), out);
      if (o == 0) moments.start(out);
      moments.add(out);
    }
  }
  const PlaneStatistics of_y = plane_statistics(moments, at, N * kOut);
  const PlaneAffine norm1(b.gamma1, b.beta1, of_y, b.eps, c);
  for (int n = at.lane; n < N; n += kPlaneLanes) {
    PlanePack<T> packs[kOut];
    load_plane(static_cast<const T*>(y), n * kOut * pixel + own, pixel, packs);  // as this thread has written it
#pragma unroll
    for (int o = 0; o < kOut; ++o) {
      float out[V];
      unpack(packs[o], out);
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] = relu(fmaf(out[v], norm1.scale[v], norm1.shift[v]));
      store<V>(at_byte(z, (n * kOut + o) * pixel + own), out);
    }
  }
  if (at.lane > 0) return;
  write_statistics(of_u, b.mean0, b.var0, c);
  write_statistics(of_y, b.mean1, b.var1, c);
}

// The gradient of a BN's input is scale * g + slope * x + offset. sums: those of g and of g * (x - mean), from
// plane_sums. The first lane writes the gradients of gamma and beta.
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
      offset[v] = -norm.scale[v] * sum * inverse - slope[v] * s.mean[v];
      if (at.lane == 0) grad_gamma[at.channel + v] = product * rstd, grad_beta[at.channel + v] = sum;
    }
  }
};

template <class T, int S, int PLANE>
__global__ void __launch_bounds__(kPlaneThreads, 1) depthwise_plane_backward(const BlockBackward b, int N, int C) {
  begin_kernel();
  constexpr int V = kPlaneVector, kIn = PLANE * PLANE, kSide = (PLANE - 1) / S + 1, kOut = kSide * kSide;
  const PlaneThread at;
  const int c = at.channel;
  const T *grad_z = static_cast<const T*>(b.grad_z), *u = static_cast<const T*>(b.u), *y = static_cast<const T*>(b.y);
  T* grad_u = static_cast<T*>(b.grad_u);
  const uint32_t pixel = C * sizeof(T), own = c * sizeof(T);  // bytes
  const PlaneStatistics of_u = read_statistics(b.mean0, b.var0, c), of_y = read_statistics(b.mean1, b.var1, c);
  const PlaneAffine norm1(b.gamma1, b.beta1, of_y, b.eps, c);

  float sums1[2][V] = {};
  for (int n = at.lane; n < N; n += kPlaneLanes) {
    PlanePack<T> grads[kOut], ys[kOut];
    load_plane(grad_z, n * kOut * pixel + own, pixel, grads);
    load_plane(y, n * kOut * pixel + own, pixel, ys);
#pragma unroll
    for (int o = 0; o < kOut; ++o) {
      float g[V], out[V];
      unpack(grads[o], g);
      unpack(ys[o], out);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float masked = fmaf(out[v], norm1.scale[v], norm1.shift[v]) <= 0.f ? 0.f : g[v];
        sums1[0][v] += masked;
        sums1[1][v] = fmaf(masked, out[v] - of_y.mean[v], sums1[1][v]);
      }
    }
  }
  const PlaneNormGrad grad1(plane_sums(sums1), norm1, of_y, b.eps, N * kOut, at, b.grad_gamma1, b.grad_beta1);

  const PlaneAffine norm0(b.gamma0, b.beta0, of_u, b.eps, c);
  float w[9][V];
  load_plane_taps(b.w, c, w);
  float sums[11][V] = {};  // the taps of grad_w, norm0's two
  for (int n = at.lane; n < N; n += kPlaneLanes) {
    PlanePack<T> grads[kOut], ys[kOut], packs[kIn];
    load_plane(grad_z, n * kOut * pixel + own, pixel, grads);
    load_plane(y, n * kOut * pixel + own, pixel, ys);
    load_plane(u, n * kIn * pixel + own, pixel, packs);
    float dy[kOut][V];
#pragma unroll
    for (int o = 0; o < kOut; ++o) {
      float out[V];
      unpack(grads[o], dy[o]);
      unpack(ys[o], out);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float g = fmaf(out[v], norm1.scale[v], norm1.shift[v]) <= 0.f ? 0.f : dy[o][v];
        dy[o][v] = fmaf(norm1.scale[v], g, fmaf(grad1.slope[v], out[v], grad1.offset[v]));
      }
    }
#pragma unroll
    for (int i = 0; i < kIn; ++i) {
      float x[V], h[V], dx[V] = {};
      unpack(packs[i], x);
#pragma unroll
      for (int v = 0; v < V; ++v) h[v] = relu(fmaf(x[v], norm0.scale[v], norm0.shift[v]));
#pragma unroll
      for (int k = 0; k < 9; ++k) {  // output (row + 1 - kh) / S, where S divides it, saw this pixel through tap kh
        const int row = i / PLANE + 1 - k / 3, column = i % PLANE + 1 - k % 3;
        if (row < 0 || column < 0 || row % S != 0 || column % S != 0 || row / S >= kSide || column / S >= kSide)
          continue;
        const float (&g)[V] = dy[row / S * kSide + column / S];
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
      store<V>(at_byte(grad_u, (n * kIn + i) * pixel + own), dx);
    }
  }
  const float* totals = plane_sums(sums);
  for (int i = threadIdx.x; i < 9 * kPlaneChannels; i += kPlaneThreads)
    b.grad_w[(blockIdx.x * kPlaneChannels + i % kPlaneChannels) * 9 + i / kPlaneChannels] = totals[i];
  const PlaneNormGrad grad0(totals + 9 * kPlaneChannels, norm0, of_u, b.eps, N * kIn, at, b.grad_gamma0, b.grad_beta0);
  for (int n = at.lane; n < N; n += kPlaneLanes) {
    PlanePack<T> grads[kIn], packs[kIn];
    load_plane(static_cast<const T*>(grad_u), n * kIn * pixel + own, pixel, grads);  // as this thread has written it
    load_plane(u, n * kIn * pixel + own, pixel, packs);
#pragma unroll
    for (int i = 0; i < kIn; ++i) {
      float g[V], x[V];
      unpack(grads[i], g);
      unpack(packs[i], x);
#pragma unroll
      for (int v = 0; v < V; ++v) g[v] = fmaf(norm0.scale[v], g[v], fmaf(grad0.slope[v], x[v], grad0.offset[v]));
      store<V>(at_byte(grad_u, (n * kIn + i) * pixel + own), g);
    }
  }
}

}  // namespace fastcifar::cuda

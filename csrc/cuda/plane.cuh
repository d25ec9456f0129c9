// What those kernels share that keep small maps, from Hopper on. A cluster of blocks owns a few channels of the whole
// batch, and a thread owns two of these channels of one image, or of half of one. So every statistic is a sum over one
// cluster, every tensor is read and written once, and between the statistics a thread keeps its pixels in registers.
// Elsewhere two or three kernels do this, each of which waits for the one before.
#pragma once
#include "cuda/statistics.cuh"

namespace fastcifar::cuda {

inline constexpr int kPlaneVector = 2, kPlaneThreads = 128;
// Blocks an SM, as many as its registers hold without spilling; ptxas needs more of them for later architectures. Of
// one larger block an SM, in clusters of four, an H200 runs 124 at a time, and the last four of 128 took as long again.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 900
inline constexpr int kPlaneResident = 2;
#else
inline constexpr int kPlaneResident = 3;
#endif

// How the threads of a cluster share what it owns: 128 images at most, of maps that are cut into STRIPS strips of rows,
// each of another thread; and 16 channels, of which a pixel has 32 bytes in 16 bits: a memory sector. With eight
// channels, which is what clusters of eight blocks hold of two strips, the L2 moves twice as much.
template <int STRIPS, int BLOCKS>
struct PlaneLanes {
  static constexpr int kStrips = STRIPS, kBlocks = BLOCKS;  // of a cluster, at most
  static constexpr int kImages = 128 / kBlocks;             // of a block
  static constexpr int kLanes = kImages * kStrips, kGroups = kPlaneThreads / kLanes;
  static constexpr int kChannels = kGroups * kPlaneVector;
};

// Whether clusters can keep the maps of N images, C channels each.
template <class P>
bool keeps(int64_t N, int64_t C) {
  return N <= P::kImages * P::kBlocks && C % P::kChannels == 0 && P::kBlocks <= most_cluster_blocks();
}

// The blocks of a cluster for N images: a power of two.
template <class P>
int plane_blocks(int64_t N) {
  int blocks = 1;
  while (blocks * P::kImages < N) blocks *= 2;
  return blocks;
}

// The grid of these kernels: (groups of kChannels channels, the blocks of one cluster).
template <class P>
dim3 plane_grid(int64_t N, int64_t C) {
  return dim3(ceil_div(C, P::kChannels), plane_blocks<P>(N));
}

// A thread's image, which there may not be, its strip of the image, and its channels, the kPlaneVector from `channel`
// on.
template <class P>
struct PlaneThread {
  int image, strip, own, channel;  // own: channel within the cluster's
  __device__ __forceinline__ PlaneThread() {
    const int lane = static_cast<int>(threadIdx.x) / P::kGroups;
    image = static_cast<int>(blockIdx.y) * P::kImages + lane / P::kStrips;
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

// Leaves the packs as they are. Without it the compiler keeps what it has computed of them, which takes up to twice the
// registers.
template <int COUNT, class T>
__device__ __forceinline__ void keep_packed([[maybe_unused]] PlanePack<T> (&packs)[COUNT]) {
#if defined(__CUDA_ARCH__)
#pragma unroll
  for (int i = 0; i < COUNT; ++i)
    for (uint32_t& word : packs[i].words) asm volatile("" : "+r"(word));
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

// Sums over the cluster of Q numbers of each of a thread's channels. Those of the first two are returned, float
// [2][kChannels] in shared memory; of the others each goes to to(i, sum) in one thread of the cluster, i = q * kChannels +
// channel, while the first are still on their way. To be called once in a kernel for each Q. The thread has arrived at the
// cluster's barrier again when it returns: who calls it must wait there before it arrives anew or ends.
template <class P, int Q, class F>
__device__ __forceinline__ const float* plane_sums(float (&own)[Q][kPlaneVector], F to) {
  constexpr int kTotals = 2 * P::kChannels, kFirstOther = ceil_div(kTotals, 32) * 32;  // no warp does both
  constexpr int kOthers = kPlaneThreads - kFirstOther;
  SHARED_ARRAY(float, of_block, Q* P::kChannels);
  SHARED_ARRAY(float, totals, kTotals);
  sum_block<P>(own, [&](int i, float sum) { of_block[i] = sum; });
  arrive_at_cluster();
  wait_for_cluster();
  const int thread = threadIdx.x, blocks = cluster_blocks();
  const auto of_cluster = [&](int i) {
    float sum = 0.f;
    if constexpr (P::kBlocks < kClusterBlocks * P::kStrips) {  // where that is taken, loads at once would spill
#pragma unroll 1
      for (int b = 0; b < blocks; ++b) sum += IN_BLOCK(of_block, b)[i];
    } else {
      float parts[P::kBlocks];  // all loads are under way at once: each goes to another multiprocessor
#pragma unroll
      for (int b = 0; b < P::kBlocks; ++b) parts[b] = IN_BLOCK(of_block, min(b, blocks - 1))[i];
#pragma unroll
      for (int b = 0; b < P::kBlocks; ++b) sum += b < blocks ? parts[b] : 0.f;
    }
    return sum;
  };
  if (thread < kTotals) totals[thread] = of_cluster(thread);
  for (int i = kTotals + (thread - kFirstOther) * blocks + static_cast<int>(blockIdx.y);
       thread >= kFirstOther && i < Q * P::kChannels; i += kOthers * blocks)
    to(i, of_cluster(i));
  arrive_at_cluster();
  __syncthreads();
  return totals;
}

struct PlaneStatistics {
  float mean[kPlaneVector], var[kPlaneVector];
};

// Mean and variance over the cluster of COUNT numbers of each of a thread's channels, if it has an image. A thread sums
// about its first number, the block about the mean of its first thread's, the cluster about that of its first block.
// WHICH is another number in each call of a kernel, so that each has shared arrays of its own. As after plane_sums, the thread has arrived at the barrier again.
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
  // A channel's blocks are shared by kShares lanes of the first warp. All loads are under way at once: each goes to another
  // multiprocessor.
  constexpr int kShares = P::kBlocks / kClusterBlocks;
  static_assert(kShares == 1 || kShares * P::kChannels == 32, "whole warps meet");
  const int thread = threadIdx.x, c = thread % P::kChannels, first = thread / P::kChannels * kClusterBlocks;
  if (thread < kShares * P::kChannels) {
    float parts[kClusterBlocks][3];
#pragma unroll
    for (int b = 0; b < kClusterBlocks; ++b)
#pragma unroll
      for (int q = 0; q < 3; ++q)
        parts[b][q] = IN_BLOCK(of_block, min(first + b, cluster_blocks() - 1))[q * P::kChannels + c];
    float pivot = parts[0][0], sum = 0.f, squares = 0.f;
    if constexpr (kShares > 1) pivot = __shfl_sync(~0u, pivot, c);
#pragma unroll
    for (int b = 0; b < kClusterBlocks; ++b) {
      const float count =
          static_cast<float>(max(0, min(P::kImages, N - (first + b) * P::kImages)) * P::kStrips * COUNT);
      if (count == 0.f) continue;  // the block has no image, or there is no such block
      const float shift = parts[b][0] - pivot;
      sum += fmaf(count, shift, parts[b][1]);
      squares += fmaf(fmaf(count, shift, 2.f * parts[b][1]), shift, parts[b][2]);
    }
    if constexpr (kShares > 1) {
      sum += __shfl_xor_sync(~0u, sum, P::kChannels);
      squares += __shfl_xor_sync(~0u, squares, P::kChannels);
    }
    const float inverse = 1.f / static_cast<float>(N * P::kStrips * COUNT), shift = sum * inverse;
    const float m2 = squares - sum * shift;
    if (first == 0) {
      mean[c] = pivot + shift;
      var[c] = (m2 < 0.f ? 0.f : m2) * inverse;
    }
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

}  // namespace fastcifar::cuda

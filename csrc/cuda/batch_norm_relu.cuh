// BatchNorm in training mode and ReLU over x [M, C]: kernels that read each element once, 16 bytes a thread and load.
#pragma once
#include <algorithm>

#include "cuda/statistics.cuh"

namespace fastcifar::cuda {

// Rows of x that a thread has on their way at once: independent loads before the first use.
inline constexpr int kUnroll = 4;

inline int stream_rows(int64_t M, int64_t C, int V, int blocks = kTargetBlocks) {
  const int lanes = kThreads / (kBlockChannels / V);
  return std::min(ceil_div(M, lanes), std::max(1, blocks / ceil_div(C, kBlockChannels)));
}

// Calls f with the number of elements a load, as a type: 16 bytes of them where C is a multiple, else 1.
template <class T, class F>
auto with_width(int64_t C, F f) {
  constexpr int V = 16 / sizeof(T);
  return C % V == 0 ? f(std::integral_constant<int, V>()) : f(std::integral_constant<int, 1>());
}

// Calls prepare(), in which the threads of the block may meet, and then f(row, numbers of each input) for this thread's
// rows of [M, C], V channels from c on. The loads of kUnroll rows are written before the first use, because the compiler
// may not move a load over a store: their pointers may alias. The first ones are on their way during prepare().
template <int V, class T, class Prepare, class F, class... Inputs>
__device__ __forceinline__ void for_rows(Lanes<V> at, int M, int C, int c, Prepare prepare, F f,
                                         const Inputs*... inputs) {
  constexpr int kInputs = sizeof...(Inputs);
  constexpr int kRows = V > 1 ? kUnroll : 1;  // of odd widths, where nothing is fast: four rows spill on sm_100
  const T* const from[kInputs] = {inputs...};
  const int step = gridDim.y * at.kCount;
  Pack<T, V> packs[kRows][kInputs];
  const auto fetch = [&](int first) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int m = first + i * step;
#pragma unroll
      for (int k = 0; k < kInputs; ++k)
        packs[i][k] = load_if<V>(from[k] + static_cast<int64_t>(m) * C + c, m < M && c < C);
    }
  };
  int first = blockIdx.y * at.kCount + at.lane;
  fetch(first);
  prepare();
  if (c >= C) return;
  while (first < M) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int m = first + i * step;
      if (m >= M) break;
      float v[kInputs][V];
#pragma unroll
      for (int k = 0; k < kInputs; ++k) unpack(packs[i][k], v[k]);
      f(m, v);
    }
    first += kRows * step;
    fetch(first);
  }
}

// grid of all: (channel blocks, rows of partial results)
template <class T, int V>
__global__ void __launch_bounds__(kThreads) moments_kernel(const T* x, int M, int C, float* rows) {
  begin_kernel();
  const Lanes<V> at;
  const int c = blockIdx.x * kBlockChannels + at.channel;
  RunningMoments<V> moments;
  const auto add = [&](int, const float (&v)[1][V]) {
    moments.start(v[0]);
    moments.add(v[0]);
  };
  for_rows<V, T>(at, M, C, c, [] {}, add, x);
  write_block_moments(moments, at, blockIdx.x * kBlockChannels, C, rows);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) norm_relu_kernel(const T* x, T* z, int M, int C, const Norm norm) {
  begin_kernel();
  const Lanes<V> at;
  const int c = blockIdx.x * kBlockChannels + at.channel;
  float a[V], b[V];
  const auto prepare = [&] { resolve(norm, C, at, a, b); };
  const auto apply = [&](int m, float (&v)[1][V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) v[0][i] = relu(fmaf(v[0][i], a[i], b[i]));
    store<V>(z + static_cast<int64_t>(m) * C + c, v[0]);
  };
  for_rows<V, T>(at, M, C, c, prepare, apply, x);
}

// Partial sums of g and of g * (x - mean), float [rows][2][C]; g is grad_z where the ReLU let x through, else 0.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    norm_relu_sums_kernel(const T* grad_z, const T* x, int M, int C, const NormGrad norm, float* rows) {
  begin_kernel();
  const Lanes<V> at;
  const int c = blockIdx.x * kBlockChannels + at.channel;
  float sums[2][V] = {}, a[V], b[V], mu[V];
  const auto prepare = [&] {
    read_channels(norm.mean, C, at, mu);
    resolve(known_norm(norm), C, at, a, b);
  };
  const auto add = [&](int, const float (&inputs)[2][V]) {
    const float (&g)[V] = inputs[0], (&v)[V] = inputs[1];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float masked = fmaf(v[i], a[i], b[i]) <= 0.f ? 0.f : g[i];
      sums[0][i] += masked;
      sums[1][i] = fmaf(masked, v[i] - mu[i], sums[1][i]);
    }
  };
  for_rows<V, T>(at, M, C, c, prepare, add, grad_z, x);
  write_block_sums(sums, at, blockIdx.x * kBlockChannels, C, rows);
}

// Writes grad_x, which may be grad itself. MASKED: grad is the gradient of the norm's output times its scale; otherwise
// that of the ReLU's output. Where grad_w is not null, the rows of blocks also merge its nine taps, sums 0 to 8 of each row
// of partial sums.
template <class T, int V, bool MASKED>
__global__ void __launch_bounds__(kThreads, 2)  // with 64 registers, as ptxas chooses for sm_80, one spills
    norm_backward_kernel(const T* grad, const T* x, T* grad_x, int M, int C, const NormGrad norm, float* grad_w) {
  begin_kernel();
  const Lanes<V> at;
  const int c = blockIdx.x * kBlockChannels + at.channel;
  ThreadNormGrad<V> own;
  const auto prepare = [&] { own.resolve(norm, at, C); };
  const auto apply = [&](int m, float (&inputs)[2][V]) {
    float (&g)[V] = inputs[0], (&v)[V] = inputs[1];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if constexpr (!MASKED) g[i] = fmaf(v[i], own.scale[i], own.shift[i]) <= 0.f ? 0.f : own.scale[i] * g[i];
      g[i] += fmaf(own.slope[i], v[i] - own.mean[i], own.offset[i]);
    }
    store<V>(grad_x + static_cast<int64_t>(m) * C + c, g);
  };
  for_rows<V, T>(at, M, C, c, prepare, apply, grad, x);
  if (grad_w != nullptr)
    for (int tap = blockIdx.y; tap < 9; tap += gridDim.y)
      write_grad_w(norm.rows, norm.num_rows, norm.stride, tap, C, grad_w);
}

// Writes grad with what comes through the moments of x.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    whole_gradient_kernel(const T* grad, const T* x, T* whole, int M, int C, const ThroughMoments moments) {
  begin_kernel();
  const Lanes<V> at;
  const int c = blockIdx.x * kBlockChannels + at.channel;
  PartThroughMoments parts[V];
  const auto prepare = [&] {
#pragma unroll
    for (int i = 0; i < V; ++i) parts[i] = part_through(moments, c + i, C);
  };
  const auto apply = [&](int m, float (&inputs)[2][V]) {
    float (&g)[V] = inputs[0];
#pragma unroll
    for (int i = 0; i < V; ++i) g[i] = with_part(g[i], inputs[1][i], parts[i]);
    store<V>(whole + static_cast<int64_t>(m) * C + c, g);
  };
  for_rows<V, T>(at, M, C, c, prepare, apply, grad, x);
}

// Rows of blocks that reduce, in whole clusters.
inline int reducing_rows(int64_t M, int64_t C, int V, int blocks = kTargetBlocks) {
  return whole_rows(stream_rows(M, C, V, blocks));
}

template <class T>
PartialRows launch_moments(const T* x, int64_t M, int64_t C, float* workspace, cudaStream_t stream) {
  return with_width<T>(C, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const int rows = reducing_rows(M, C, V), cluster = blocks_a_row(rows);
    LAUNCH_CLUSTERS((moments_kernel<T, V>), cluster, dim3(ceil_div(C, kBlockChannels), rows), dim3(kThreads), stream, x,
                    static_cast<int>(M), static_cast<int>(C), workspace);
    return merge_moment_rows({workspace, rows / cluster}, static_cast<int>(C), stream);
  });
}

template <class T>
void launch_norm_relu(const T* x, T* z, int64_t M, int64_t C, const Norm& norm, cudaStream_t stream) {
  with_width<T>(C, [&](auto width) {
    constexpr int V = decltype(width)::value;
    LAUNCH((norm_relu_kernel<T, V>), dim3(ceil_div(C, kBlockChannels), stream_rows(M, C, V)), dim3(kThreads), stream, x,
           z, static_cast<int>(M), static_cast<int>(C), norm);
  });
}

template <class T>
PartialRows launch_norm_relu_sums(const T* grad_z, const T* x, int64_t M, int64_t C, const NormGrad& norm,
                                  float* workspace, cudaStream_t stream) {
  return with_width<T>(C, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const int rows = reducing_rows(M, C, V, kClusteredBlocks), cluster = blocks_a_row(rows);
    LAUNCH_CLUSTERS((norm_relu_sums_kernel<T, V>), cluster, dim3(ceil_div(C, kBlockChannels), rows), dim3(kThreads),
                    stream, grad_z, x, static_cast<int>(M), static_cast<int>(C), norm, workspace);
    return merge_sum_rows({workspace, rows / cluster}, 2, static_cast<int>(C), stream);
  });
}

template <bool MASKED, class T>
void launch_norm_backward(const T* grad, const T* x, T* grad_x, int64_t M, int64_t C, const NormGrad& norm,
                          float* grad_w, cudaStream_t stream) {
  with_width<T>(C, [&](auto width) {
    constexpr int V = decltype(width)::value;
    LAUNCH((norm_backward_kernel<T, V, MASKED>), dim3(ceil_div(C, kBlockChannels), stream_rows(M, C, V)),
           dim3(kThreads), stream, grad, x, grad_x, static_cast<int>(M), static_cast<int>(C), norm, grad_w);
  });
}

template <class T>
void launch_whole_gradient(const T* grad, const ThroughMoments& moments, T* whole, int64_t M, int64_t C,
                           cudaStream_t stream) {
  with_width<T>(C, [&](auto width) {
    constexpr int V = decltype(width)::value;
    LAUNCH((whole_gradient_kernel<T, V>), dim3(ceil_div(C, kBlockChannels), stream_rows(M, C, V)), dim3(kThreads),
           stream, grad, static_cast<const T*>(moments.x), whole, static_cast<int>(M), static_cast<int>(C), moments);
  });
}

// Floats for the rows of `quantities` sums of a streaming kernel, and one row more to merge them into.
inline int64_t stream_workspace(int64_t M, int64_t C, int quantities) {
  return (stream_rows(M, C, 1) + 1) * quantities * C;  // V = 1 has the fewest lanes, so the most rows
}

}  // namespace fastcifar::cuda

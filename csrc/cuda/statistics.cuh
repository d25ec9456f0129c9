// Reductions for each channel, without atomics. A thread sums, a block adds its threads' sums up in shared memory, a
// cluster of blocks, if the blocks form clusters, adds up its blocks', and writes one row of partial results. Each
// block of the next kernel merges the rows in their order before it starts, so that no kernel is launched for the
// merging alone, unless there are too many rows.
#pragma once
#include "device.cuh"

namespace fastcifar::cuda {

// Count, mean and sum of squared deviations. A row of partial moments is float [3][C].
struct Moments {
  float count, mean, m2;
};

// Running moments of one thread, about its first value, which is given to start() as well as to add(). The error of the
// variance is count * epsilon of it however large the mean is; that of a plain sum of squares is (mean / deviation)^2
// times as large.
template <int V>
struct RunningMoments {
  float count = 0.f, pivot[V], sum[V], squares[V];

  __device__ __forceinline__ void start(const float (&v)[V]) {
    if (count > 0.f) return;
#pragma unroll
    for (int i = 0; i < V; ++i) pivot[i] = v[i], sum[i] = 0.f, squares[i] = 0.f;
  }
  __device__ __forceinline__ void add(const float (&v)[V]) {
    count += 1.f;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float d = v[i] - pivot[i];
      sum[i] += d;
      squares[i] = fmaf(d, d, squares[i]);
    }
  }
  __device__ __forceinline__ Moments get(int i) const {
    if (count == 0.f) return {0.f, 0.f, 0.f};
    const float mean = sum[i] * (1.f / count);  // one division for all channels
    return {count, pivot[i] + mean, squares[i] - sum[i] * mean};
  }
};

// How many rows a thread has on their way at once as it merges them. In place of rows behind the last, the last is read
// again and zeros are added: what is loaded or added under a condition is waited for row by row.
inline constexpr int kRowsAtOnce = 8;

// Calls f(first row, number of rows, as a type) for groups of a part's rows, which are every PARTS-th from `part` on. Where
// no part has a second row, a group is one row.
template <int PARTS, class F>
__device__ __forceinline__ void for_row_groups(int count, int part, F f) {
  if (count <= PARTS) return f(part, std::integral_constant<int, 1>());
  for (int first = part; first < count; first += kRowsAtOnce * PARTS)
    f(first, std::integral_constant<int, kRowsAtOnce>());
}

// The channels of a block that does nothing else than merge. They are 32 bytes of a row, which memory gives at once, and
// few enough that up to 256 rows are all on their way at once.
inline constexpr int kMergeChannels = 8;

// Merges `count` moments of each of the block's channels, about the first of them (which must not be empty). get(i,
// channel) gives the i-th. All threads of the block call it; the result is thread channel's, for the first threads.
template <int THREADS = kThreads, int CHANNELS = kBlockChannels, class Get>
__device__ __forceinline__ Moments merge_moments(int count, Get get) {
  constexpr int kParts = THREADS / CHANNELS;
  SHARED_ARRAY(float, sums, kParts * 3 * CHANNELS);
  const int channel = threadIdx.x % CHANNELS, part = threadIdx.x / CHANNELS;
  const float pivot = get(0, channel).mean;
  float n = 0.f, sum = 0.f, squares = 0.f;
  for_row_groups<kParts>(count, part, [&](int first, auto group) {
    constexpr int kRows = decltype(group)::value;
    Moments rows[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) rows[k] = get(min(first + k * kParts, count - 1), channel);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const bool is_row = first + k * kParts < count;
      const float d = kept_if(rows[k].mean - pivot, is_row), pixels = kept_if(rows[k].count, is_row);
      n += pixels;
      sum += pixels * d;
      squares += kept_if(rows[k].m2, is_row) + pixels * d * d;
    }
  });
  __syncthreads();  // the array may still be read from an earlier call
  sums[(part * 3 + 0) * CHANNELS + channel] = n;
  sums[(part * 3 + 1) * CHANNELS + channel] = sum;
  sums[(part * 3 + 2) * CHANNELS + channel] = squares;
  __syncthreads();
  if (part > 0) return {};
#pragma unroll
  for (int p = 1; p < kParts; ++p) {
    n += sums[(p * 3 + 0) * CHANNELS + channel];
    sum += sums[(p * 3 + 1) * CHANNELS + channel];
    squares += sums[(p * 3 + 2) * CHANNELS + channel];
  }
  const float mean = sum / n, m2 = squares - sum * mean;
  return {n, pivot + mean, m2 < 0.f ? 0.f : m2};
}

// The same for Q plain sums of `count` rows: get(i, channel, q).
template <int CHANNELS = kBlockChannels, int Q, class Get>
__device__ __forceinline__ void merge_sums(int count, Get get, float (&sums)[Q]) {
  constexpr int kParts = kThreads / CHANNELS;
  SHARED_ARRAY(float, of_parts, Q* kThreads);
  const int channel = threadIdx.x % CHANNELS, part = threadIdx.x / CHANNELS;
#pragma unroll
  for (int q = 0; q < Q; ++q) sums[q] = 0.f;
  for_row_groups<kParts>(count, part, [&](int first, auto group) {
    constexpr int kRows = decltype(group)::value;
    float rows[kRows][Q];
#pragma unroll
    for (int k = 0; k < kRows; ++k)
#pragma unroll
      for (int q = 0; q < Q; ++q) rows[k][q] = get(min(first + k * kParts, count - 1), channel, q);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const bool is_row = first + k * kParts < count;
#pragma unroll
      for (int q = 0; q < Q; ++q) sums[q] += kept_if(rows[k][q], is_row);
    }
  });
  __syncthreads();  // the array may still be read from an earlier call
#pragma unroll
  for (int q = 0; q < Q; ++q) of_parts[q * kThreads + threadIdx.x] = sums[q];
  __syncthreads();
  if (part > 0) return;
#pragma unroll
  for (int q = 0; q < Q; ++q)
#pragma unroll
    for (int p = 1; p < kParts; ++p) sums[q] += of_parts[q * kThreads + p * CHANNELS + channel];
}

// The moments of channel c; of the last channel, where there is no channel c.
__device__ __forceinline__ Moments read_moments(const float* rows, int i, int c, int C) {
  const float* row = rows + static_cast<int64_t>(i) * 3 * C + min(c, C - 1);
  return {row[0], row[C], row[2 * C]};
}
__device__ __forceinline__ void write_moments(float* rows, int i, int c, int C, Moments m) {
  if (c >= C) return;
  float* row = rows + static_cast<int64_t>(i) * 3 * C + c;
  row[0] = m.count;
  row[C] = m.mean;
  row[2 * C] = m.m2;
}

// Writes moments of no numbers to the rows that no block or cluster of the grid writes, of the CHANNELS channels from c0 on.
template <int CHANNELS>
__device__ __forceinline__ void clear_other_rows(int num_rows, int c0, int C, float* rows) {
  for (int row = gridDim.y / cluster_blocks() + blockIdx.y; row < num_rows; row += gridDim.y)
    if (threadIdx.x < CHANNELS) write_moments(rows, row, c0 + threadIdx.x, C, {0.f, 0.f, 0.f});
}

// Merges the moments of the blocks of a cluster, of kClusterBlocks or of one, and writes them as its row, for the
// channels from c0 on. m: of channel threadIdx.x of the block, for the first threads.
template <int CHANNELS>
__device__ __forceinline__ void write_cluster_moments(const Moments& m, int c0, int C, float* rows) {
  if (cluster_blocks() == 1) {
    if (threadIdx.x < CHANNELS) write_moments(rows, blockIdx.y, c0 + threadIdx.x, C, m);
    return;
  }
  SHARED_ARRAY(float, of_block, 3 * CHANNELS);
  if (threadIdx.x < CHANNELS) write_moments(of_block, 0, threadIdx.x, CHANNELS, m);
  arrive_at_cluster();
  wait_for_cluster();
  if (blockIdx.y % kClusterBlocks == 0 && threadIdx.x < CHANNELS) {
    Moments others[kClusterBlocks - 1];  // all loads are under way at once: each goes to another multiprocessor
#pragma unroll
    for (int b = 1; b < kClusterBlocks; ++b)
      others[b - 1] = read_moments(IN_BLOCK(of_block, b), 0, threadIdx.x, CHANNELS);
    float count = m.count, sum = 0.f, squares = m.m2;
#pragma unroll
    for (int b = 1; b < kClusterBlocks; ++b) {
      const Moments& other = others[b - 1];
      const float d = other.mean - m.mean;
      count += other.count;
      sum += other.count * d;
      squares += other.m2 + other.count * d * d;
    }
    const float shift = sum / count, m2 = squares - sum * shift;
    write_moments(rows, blockIdx.y / kClusterBlocks, c0 + threadIdx.x, C, {count, m.mean + shift, m2 < 0.f ? 0.f : m2});
  }
  arrive_at_cluster();
  wait_for_cluster();
}

// Merges the moments of the block's threads, then of the cluster's blocks, and writes the cluster's row.
template <int V, int THREADS, int CHANNELS>
__device__ __forceinline__ void write_block_moments(const RunningMoments<V>& own, Lanes<V, THREADS, CHANNELS> at,
                                                    int c0, int C, float* rows) {
  constexpr int kPitch = 3 * CHANNELS + 1;  // odd: lanes that write at the same time use different banks
  SHARED_ARRAY(float, shared, at.kCount* kPitch);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const Moments m = own.get(i);
    float* to = shared + at.lane * kPitch + at.channel + i;
    to[0] = m.count;
    to[CHANNELS] = m.mean;
    to[2 * CHANNELS] = m.m2;
  }
  __syncthreads();
  const Moments m = merge_moments<THREADS, CHANNELS>(at.kCount, [&](int i, int channel) -> Moments {
    const float* from = shared + i * kPitch + channel;
    return {from[0], from[CHANNELS], from[2 * CHANNELS]};
  });
  write_cluster_moments<CHANNELS>(m, c0, C, rows);
}

// The same in a kernel without clusters: writes row blockIdx.y. sums: of the deviations from the thread's own pivot, and
// of their squares. The first lane must have a pixel.
template <int V>
__device__ __forceinline__ void write_block_moments(int count, const float (&pivot)[V], float (&sums)[2][V],
                                                    Lanes<V> at, int c0, int C, float* rows) {
  constexpr int kGroups = Lanes<V>::kGroups, kWarps = kThreads / 32;
  SHARED_ARRAY(float, common, kBlockChannels);  // the first lane's pivots
  SHARED_ARRAY(float, of_warps, kWarps * 3 * kBlockChannels);
  if (at.lane == 0) {
#pragma unroll
    for (int v = 0; v < V; ++v) common[at.channel + v] = pivot[v];
  }
  __syncthreads();
  float own[3][V];  // pixels, and the sums about the common pivot
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const float shift = pivot[v] - common[at.channel + v], pixels = static_cast<float>(count);
    own[0][v] = pixels;
    own[1][v] = fmaf(pixels, shift, sums[0][v]);
    own[2][v] = fmaf(fmaf(pixels, shift, 2.f * sums[0][v]), shift, sums[1][v]);
  }
#pragma unroll
  for (int q = 0; q < 3; ++q)
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int distance = kGroups; distance < 32; distance *= 2) own[q][v] += __shfl_xor_sync(~0u, own[q][v], distance);
      if (kGroups == 32 || threadIdx.x % 32 < kGroups)
        of_warps[(threadIdx.x / 32 * 3 + q) * kBlockChannels + at.channel + v] = own[q][v];
    }
  __syncthreads();
  if (threadIdx.x >= kBlockChannels) return;
  float all[3] = {};
#pragma unroll
  for (int q = 0; q < 3; ++q)
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all[q] += of_warps[(w * 3 + q) * kBlockChannels + threadIdx.x];
  const float shift = all[1] / all[0], m2 = all[2] - all[1] * shift;
  write_moments(rows, blockIdx.y, c0 + threadIdx.x, C, {all[0], common[threadIdx.x] + shift, m2 < 0.f ? 0.f : m2});
}

// Adds up Q sums a channel of the blocks of a cluster, of kClusterBlocks or of one, and writes them as its row of
// float [rows][Q][C], for the channels from c0 on. get(j) gives the block's sum j / CHANNELS of channel j % CHANNELS.
template <int Q, int CHANNELS, class Get>
__device__ __forceinline__ void write_cluster_sums(Get get, int c0, int C, float* rows) {
  const int64_t row = static_cast<int>(blockIdx.y) / (cluster_blocks() == 1 ? 1 : kClusterBlocks);
  const auto write = [&](int j, float sum) {
    const int c = c0 + j % CHANNELS;
    if (c < C) rows[(row * Q + j / CHANNELS) * C + c] = sum;
  };
  SHARED_ARRAY(float, of_block, Q* CHANNELS);
  for (int j = threadIdx.x; j < Q * CHANNELS; j += kThreads) {
    const float sum = get(j);
    if (cluster_blocks() == 1)
      write(j, sum);
    else
      of_block[j] = sum;
  }
  if (cluster_blocks() == 1) return;
  arrive_at_cluster();
  wait_for_cluster();
  const int rank = static_cast<int>(blockIdx.y) % kClusterBlocks;
  for (int j = rank * kThreads + threadIdx.x; j < Q * CHANNELS; j += kClusterBlocks * kThreads) {
    float sum = 0.f;
#pragma unroll
    for (int b = 0; b < kClusterBlocks; ++b) sum += IN_BLOCK(of_block, b)[j];
    write(j, sum);
  }
  arrive_at_cluster();
  wait_for_cluster();
}

// Adds up the sums of the block's threads, then of the cluster's blocks, and writes the cluster's row.
template <int Q, int V>
__device__ __forceinline__ void write_block_sums(const float (&own)[Q][V], Lanes<V> at, int c0, int C, float* rows) {
  constexpr int kLanes = Lanes<V>::kCount;
  SHARED_ARRAY(float, shared, kLanes * Q * kBlockChannels);
#pragma unroll
  for (int q = 0; q < Q; ++q)
#pragma unroll
    for (int i = 0; i < V; ++i) shared[(at.lane * Q + q) * kBlockChannels + at.channel + i] = own[q][i];
  __syncthreads();
  const auto sum_of_lanes = [&](int j) {
    float sum = 0.f;
#pragma unroll
    for (int l = 0; l < kLanes; ++l) sum += shared[l * Q * kBlockChannels + j];
    return sum;
  };
  write_cluster_sums<Q, kBlockChannels>(sum_of_lanes, c0, C, rows);
}

// A BatchNorm in training mode, as a kernel needs it to compute scale and shift of y = scale * x + shift.
struct Norm {
  const float *gamma, *beta;
  float eps;
  const float* rows;  // partial moments to merge; null: the statistics are known
  int num_rows;
  const float *known_mean, *known_var;
  float *mean, *var;  // where the first row of blocks writes them, if anywhere
};

// A BN whose statistics are merged from partial moments, and written to mean and var.
inline Norm norm_of(const float* gamma, const float* beta, float eps, PartialRows moments, float* mean, float* var) {
  Norm norm{};
  norm.gamma = gamma;
  norm.beta = beta;
  norm.eps = eps;
  norm.rows = moments.data;
  norm.num_rows = moments.count;
  norm.mean = mean;
  norm.var = var;
  return norm;
}

// A BN whose statistics are known.
FC_HD Norm known_norm(const float* gamma, const float* beta, float eps, const float* mean, const float* var) {
  return {gamma, beta, eps, nullptr, 0, mean, var, nullptr, nullptr};
}

// BN 1 of a block, in training.
inline Norm norm1_of(const BlockForward& b, PartialRows moments_of_y) {
  return norm_of(b.gamma1, b.beta1, b.eps, moments_of_y, b.mean1, b.var1);
}

struct Affine {
  float scale, shift;
};
__device__ __forceinline__ Affine affine_of(float gamma, float beta, float mean, float var, float eps) {
  const float scale = gamma / sqrtf(var + eps);
  return {scale, fmaf(-mean, scale, beta)};
}

// Scale and shift of the CHANNELS channels from c0 on, in shared memory. is_writer: whether this block writes mean and
// var of these channels, if they are wanted.
template <int CHANNELS>
__device__ __forceinline__ void resolve(const Norm& norm, int C, int c0, bool is_writer, float* scale, float* shift) {
  const int channel = threadIdx.x, c = c0 + channel;
  const bool is_channel = channel < CHANNELS && c < C;
  float mean = 0.f, var = 0.f, gamma = 0.f, beta = 0.f;
  if (is_channel) {  // before the barriers of the merge, behind which nothing would hide the wait
    gamma = norm.gamma[c];
    beta = norm.beta[c];
    if (norm.rows == nullptr) mean = norm.known_mean[c], var = norm.known_var[c];
  }
  if (norm.rows != nullptr) {
    const Moments m = merge_moments<kThreads, CHANNELS>(
        norm.num_rows, [&](int i, int ch) { return read_moments(norm.rows, i, c0 + ch, C); });
    mean = m.mean;
    var = m.m2 / m.count;
  }
  if (channel < CHANNELS) {
    if (is_writer && is_channel && norm.mean != nullptr) norm.mean[c] = mean, norm.var[c] = var;
    const Affine a = is_channel ? affine_of(gamma, beta, mean, var, norm.eps) : Affine{0.f, 0.f};
    scale[channel] = a.scale;
    shift[channel] = a.shift;
  }
  __syncthreads();
}

// Scale and shift of the block's channels, in shared memory.
__device__ __forceinline__ void resolve(const Norm& norm, int C, float* scale, float* shift) {
  resolve<kBlockChannels>(norm, C, blockIdx.x * kBlockChannels, blockIdx.y == 0, scale, shift);
}

// Scale and shift of a thread's channels.
template <int V>
__device__ __forceinline__ void resolve(const Norm& norm, int C, Lanes<V> at, float (&scale)[V], float (&shift)[V]) {
  SHARED_ARRAY(float, of_scale, kBlockChannels);
  SHARED_ARRAY(float, of_shift, kBlockChannels);
  resolve(norm, C, of_scale, of_shift);
#pragma unroll
  for (int i = 0; i < V; ++i) scale[i] = of_scale[at.channel + i], shift[i] = of_shift[at.channel + i];
}

// A thread's channels of float [C], where there are such channels.
template <int V>
__device__ __forceinline__ void read_channels(const float* from, int C, Lanes<V> at, float (&to)[V]) {
  const int c = blockIdx.x * kBlockChannels + at.channel;
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = c < C ? from[c + i] : 0.f;
}

// Writes one tap of grad_w, float [C][9], for the block's channels: the merged rows of partial sums.
template <int CHANNELS = kBlockChannels>
__device__ __forceinline__ void write_grad_w(const float* rows, int num_rows, int quantities, int tap, int C,
                                             float* grad_w) {
  const int c0 = blockIdx.x * CHANNELS;
  float sum[1];
  merge_sums<CHANNELS>(
      num_rows,
      [&](int i, int channel, int) {
        return rows[(static_cast<int64_t>(i) * quantities + tap) * C + min(c0 + channel, C - 1)];
      },
      sum);
  const int c = c0 + threadIdx.x;
  if (threadIdx.x < CHANNELS && c < C) grad_w[static_cast<int64_t>(c) * 9 + tap] = sum[0];
}

// A BatchNorm's backward: with g the gradient of scale * x + shift, grad_x = scale * g + slope * (x - mean) + offset.
// With slope * x, the difference of two large numbers was 40 times less exact where a channel has only two pixels.
struct NormGrad {
  const float *gamma, *beta, *mean, *var;
  float eps;
  const float* rows;  // float [num_rows][stride][C]: at `first` the sum of g, behind it that of g * (x - mean)
  int num_rows, stride, first;
  float inverse_count;
  float *grad_gamma, *grad_beta;
};

// The backward of a BN over `count` numbers a channel. Who calls sets `rows` and `num_rows`, of rows that hold the two sums
// alone.
inline NormGrad norm_grad_of(const float* gamma, const float* beta, const float* mean, const float* var, float eps,
                             int64_t count, float* grad_gamma, float* grad_beta) {
  NormGrad norm{};
  norm.gamma = gamma;
  norm.beta = beta;
  norm.mean = mean;
  norm.var = var;
  norm.eps = eps;
  norm.stride = 2;
  norm.inverse_count = 1.f / static_cast<float>(count);
  norm.grad_gamma = grad_gamma;
  norm.grad_beta = grad_beta;
  return norm;
}

// The part of the gradient of x that comes through its moments is constant + (x - mean) * factor: for each channel these
// three, from the first row of the moments and the first row of their gradient.
struct PartThroughMoments {
  float mean, factor, constant;
};
__device__ __forceinline__ PartThroughMoments part_through(const ThroughMoments& moments, int c, int C) {
  if (c >= C) return {0.f, 0.f, 0.f};
  return {moments.rows[C + c], 2.f * moments.grad_rows[2 * C + c], moments.grad_rows[C + c] / moments.rows[c]};
}
__device__ __forceinline__ float with_part(float grad, float x, const PartThroughMoments& part) {
  return grad + fmaf(x - part.mean, part.factor, part.constant);
}

// The BN itself, whose statistics are known.
__device__ __forceinline__ Norm known_norm(const NormGrad& norm) {
  return known_norm(norm.gamma, norm.beta, norm.eps, norm.mean, norm.var);
}

template <int CHANNELS = kBlockChannels>
__device__ __forceinline__ void resolve(const NormGrad& norm, int C, float* scale, float* shift, float* slope,
                                        float* offset) {
  const int c0 = blockIdx.x * CHANNELS, c = c0 + threadIdx.x;
  const bool is_channel = threadIdx.x < CHANNELS && c < C;
  float gamma = 0.f, beta = 0.f, mean = 0.f, var = 0.f;
  // Before the barriers of the merge: behind them nothing would hide the wait.
  if (is_channel) gamma = norm.gamma[c], beta = norm.beta[c], mean = norm.mean[c], var = norm.var[c];
  float sums[2];  // of g, and of g * (x - mean)
  merge_sums<CHANNELS>(
      norm.num_rows,
      [&](int i, int channel, int q) {
        return norm.rows[(static_cast<int64_t>(i) * norm.stride + norm.first + q) * C + min(c0 + channel, C - 1)];
      },
      sums);
  if (threadIdx.x < CHANNELS) {
    float out[4] = {};
    if (is_channel) {
      const float rstd = 1.f / sqrtf(var + norm.eps);
      const Affine a = affine_of(gamma, beta, mean, var, norm.eps);
      out[0] = a.scale;
      out[1] = a.shift;
      out[2] = -a.scale * rstd * rstd * sums[1] * norm.inverse_count;
      out[3] = -a.scale * sums[0] * norm.inverse_count;
      if (blockIdx.y == 0) norm.grad_gamma[c] = sums[1] * rstd, norm.grad_beta[c] = sums[0];
    }
    scale[threadIdx.x] = out[0];
    shift[threadIdx.x] = out[1];
    slope[threadIdx.x] = out[2];
    offset[threadIdx.x] = out[3];
  }
  __syncthreads();
}

// What a thread's channels need of a NormGrad. All threads of the block must resolve one, because they merge the sums.
template <int V>
struct ThreadNormGrad {
  float mean[V], scale[V], shift[V], slope[V], offset[V];

  __device__ __forceinline__ void resolve(const NormGrad& norm, Lanes<V> at, int C) {
    SHARED_ARRAY(float, of_scale, kBlockChannels);
    SHARED_ARRAY(float, of_shift, kBlockChannels);
    SHARED_ARRAY(float, of_slope, kBlockChannels);
    SHARED_ARRAY(float, of_offset, kBlockChannels);
    read_channels(norm.mean, C, at, mean);
    cuda::resolve(norm, C, of_scale, of_shift, of_slope, of_offset);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      scale[i] = of_scale[at.channel + i];
      shift[i] = of_shift[at.channel + i];
      slope[i] = of_slope[at.channel + i];
      offset[i] = of_offset[at.channel + i];
    }
  }
};

}  // namespace fastcifar::cuda

#include "cuda/launch.h"
#include "cuda/statistics.cuh"

namespace fastcifar::cuda {

// grid: (channel blocks)
__global__ void __launch_bounds__(kThreads) merge_moments_kernel(float* rows, int count, int C) {
  begin_kernel();
  const int c0 = blockIdx.x * kMergeChannels;
  const Moments m = merge_moments<kThreads, kMergeChannels>(
      count, [&](int i, int channel) { return read_moments(rows, i, c0 + channel, C); });
  if (threadIdx.x < kMergeChannels) write_moments(rows, count, c0 + threadIdx.x, C, m);
}

// grid: (channel blocks, quantities)
__global__ void __launch_bounds__(kThreads) merge_sums_kernel(float* rows, int count, int quantities, int C) {
  begin_kernel();
  const int c0 = blockIdx.x * kMergeChannels, c = c0 + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(quantities) * C;
  float* column = rows + static_cast<int64_t>(blockIdx.y) * C;
  float sum[1];
  merge_sums<kMergeChannels>(
      count, [&](int i, int channel, int) { return column[i * stride + min(c0 + channel, C - 1)]; }, sum);
  if (threadIdx.x < kMergeChannels && c < C) column[count * stride + c] = sum[0];
}

PartialRows merge_moment_rows(PartialRows rows, int C, cudaStream_t stream) {
  if (rows.count <= kMaxInlineRows) return rows;
  LAUNCH(merge_moments_kernel, dim3(ceil_div(C, kMergeChannels)), dim3(kThreads), stream, rows.data, rows.count, C);
  return {rows.data + static_cast<int64_t>(rows.count) * 3 * C, 1};
}

PartialRows merge_sum_rows(PartialRows rows, int quantities, int C, cudaStream_t stream) {
  if (rows.count <= kMaxInlineRows) return rows;
  LAUNCH(merge_sums_kernel, dim3(ceil_div(C, kMergeChannels), quantities), dim3(kThreads), stream, rows.data,
         rows.count, quantities, C);
  return {rows.data + static_cast<int64_t>(rows.count) * quantities * C, 1};
}

}  // namespace fastcifar::cuda

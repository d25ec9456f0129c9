#include <algorithm>
#include <vector>

#include "cuda/device.cuh"

namespace fastcifar::cuda {

namespace {

constexpr int kStatistics = 64;  // of one launch: a kernel's arguments are at most 4 KB. The network has 54.

struct StatisticsTable {
  RunningStatistic of[kStatistics];
  float momentum;
};
static_assert(sizeof(StatisticsTable) <= 4096, "a kernel's arguments");

}  // namespace

// A row of blocks for each statistic, a thread for each channel: all loads are under way at once.
__global__ void __launch_bounds__(kThreads) update_statistics_kernel(const StatisticsTable table) {
  begin_kernel();
  const RunningStatistic& s = table.of[blockIdx.y];
  const int c = blockIdx.x * kThreads + threadIdx.x;
  if (c >= s.channels) return;
  // The arithmetic of the kernel for the CPU, and of torch.lerp.
  const bool small = fabsf(table.momentum) < 0.5f;
  const float start = s.running[c], end = __fmul_rn(s.batch[c], s.factor);
  s.running[c] = fmaf(small ? table.momentum : table.momentum - 1.f, end - start, small ? start : end);
}

cudaError_t update_statistics(const std::vector<RunningStatistic>& statistics, float momentum, cudaStream_t stream) {
  StatisticsTable table{};
  table.momentum = momentum;
  for (size_t first = 0; first < statistics.size(); first += kStatistics) {
    const int count = static_cast<int>(std::min<size_t>(statistics.size() - first, kStatistics));
    int channels = 0;
    for (int i = 0; i < count; ++i) {
      table.of[i] = statistics[first + i];
      channels = std::max(channels, table.of[i].channels);
    }
    LAUNCH(update_statistics_kernel, dim3(ceil_div(channels, kThreads), count), dim3(kThreads), stream, table);
  }
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

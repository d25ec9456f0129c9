#include "update_statistics.h"

#include <torch/csrc/stable/library.h>

#include "cpu/update_statistics_kernel.h"

namespace {
using namespace fastcifar;

// In one thread: all statistics of a network are some 20,000 numbers, and a team takes longer to wake.
void update(std::vector<Tensor> running_means, std::vector<Tensor> running_vars, std::vector<Tensor> means,
            std::vector<Tensor> variances, std::vector<int64_t> counts, double momentum) {
  for (const RunningStatistic& s : prepare_update_statistics(running_means, running_vars, means, variances, counts))
    FASTCIFAR_KERNEL(update_statistics)(s, static_cast<float>(momentum));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kUpdateStatisticsSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) { m.impl("update_statistics", TORCH_BOX(&update)); }

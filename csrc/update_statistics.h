// update_statistics: what both backends check.
#pragma once
#include <vector>

#include "checks.h"

namespace fastcifar {

inline constexpr const char* kUpdateStatisticsSchemas[] = {
    "update_statistics(Tensor(a!)[] running_means, Tensor(b!)[] running_vars, Tensor[] means, Tensor[] variances,"
    " int[] counts, float momentum) -> ()",
};

inline constexpr int64_t kMostChannels = int64_t{1} << 30;  // of one tensor: the kernels count them in 32 bits

inline std::vector<RunningStatistic> prepare_update_statistics(const std::vector<Tensor>& running_means,
                                                               const std::vector<Tensor>& running_vars,
                                                               const std::vector<Tensor>& means,
                                                               const std::vector<Tensor>& variances,
                                                               const std::vector<int64_t>& counts) {
  const char* op = "update_statistics";
  const size_t norms = running_means.size();
  const auto listed = [&](const char* name, size_t size) {
    STD_TORCH_CHECK(size == norms, op, ": ", name, " must have as many entries as running_means, ", norms, ", got ",
                    size);
  };
  listed("running_vars", running_vars.size());
  listed("means", means.size());
  listed("variances", variances.size());
  listed("counts", counts.size());

  std::vector<RunningStatistic> statistics;
  statistics.reserve(2 * norms);
  for (size_t i = 0; i < norms; ++i) {
    const int64_t channels = running_means[i].numel(), count = counts[i];
    const auto check = [&](const char* name, const Tensor& t) {
      STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == channels, op, ": ", name, "[", i, "] must be [", channels, "], got ",
                      shape_text(t));
      STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, op, ": ", name, "[", i, "] must be Float, got ",
                      torch::headeronly::toString(t.scalar_type()));
      STD_TORCH_CHECK(channels <= kMostChannels, op, ": ", name, "[", i, "] has ", channels, " channels; at most ",
                      kMostChannels);
      STD_TORCH_CHECK(t.is_contiguous(), op, ": ", name, "[", i, "] must be contiguous");
      check_device(op, name, t, running_means[0]);
    };
    check("running_means", running_means[i]);
    check("running_vars", running_vars[i]);
    check("means", means[i]);
    check("variances", variances[i]);
    STD_TORCH_CHECK(count >= 1, op, ": counts[", i, "] must be at least 1, got ", count);
    if (channels == 0) continue;
    const auto add = [&](const Tensor& running, const Tensor& batch, double factor) {
      statistics.push_back({static_cast<float*>(running.mutable_data_ptr()),
                            static_cast<const float*>(batch.const_data_ptr()), static_cast<int>(channels),
                            static_cast<float>(factor)});
    };
    add(running_means[i], means[i], 1);
    add(running_vars[i], variances[i], static_cast<double>(count) / static_cast<double>(count > 1 ? count - 1 : 1));
  }
  return statistics;
}

}  // namespace fastcifar

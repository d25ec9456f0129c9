#include "cuda/op.h"

#include "update_statistics.h"

namespace fastcifar::cuda {
namespace {

void update_statistics_cuda(std::vector<Tensor> running_means, std::vector<Tensor> running_vars,
                            std::vector<Tensor> means, std::vector<Tensor> variances, std::vector<int64_t> counts,
                            double momentum) {
  const auto statistics = prepare_update_statistics(running_means, running_vars, means, variances, counts);
  const DeviceStream stream(running_means[0]);
  check_launch("update_statistics", update_statistics(statistics, static_cast<float>(momentum), stream));
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kUpdateStatisticsSchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) { m.impl("update_statistics", TORCH_BOX(&fastcifar::cuda::update_statistics_cuda)); }

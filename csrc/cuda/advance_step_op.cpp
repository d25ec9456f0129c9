#include "cuda/op.h"

#include "advance_step.h"

namespace fastcifar::cuda {
namespace {

void advance_step_cuda(const Tensor& counters, const Tensor& lrs, const Tensor& lr) {
  check_advance_step(counters, lrs, lr);
  const DeviceStream stream(counters);
  const StepOfRun step{static_cast<int64_t*>(counters.mutable_data_ptr()), floats(lrs), mutable_floats(lr),
                       lrs.numel()};
  check_launch("advance_step", advance_step(step, stream));
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kAdvanceStepSchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) { m.impl("advance_step", TORCH_BOX(&fastcifar::cuda::advance_step_cuda)); }

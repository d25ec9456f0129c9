#include "cuda/device.cuh"

namespace fastcifar::cuda {

// One thread.
__global__ void advance_step_kernel(const StepOfRun step) {
  begin_kernel();
  fastcifar::advance_step(step);
}

cudaError_t advance_step(const StepOfRun& step, cudaStream_t stream) {
  LAUNCH(advance_step_kernel, dim3(1), dim3(1), stream, step);
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

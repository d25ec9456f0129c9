#include "cuda/mixup_cross_entropy.cuh"

namespace fastcifar::cuda {

namespace {

struct LossResults {
  float *loss, *correct;
  double* sums;
  float* normalizer;

  template <class T>
  __device__ __forceinline__ void row(int b, int lane, const T*, float log_sum_exp, const RowTargets&,
                                      const Targets&) const {
    if (lane == 0) normalizer[b] = log_sum_exp;
  }
  __device__ __forceinline__ void batch(double loss_sum, double num_correct, int rows) const {
    *loss = static_cast<float>(loss_sum / rows);
    *correct = static_cast<float>(num_correct);
    sums[0] = loss_sum;
    sums[1] = num_correct;
  }
};

}  // namespace

// A thread a logit.
template <class T>
__global__ void __launch_bounds__(kThreads)
    loss_backward_kernel(const float* grad_loss, const T* logits, const float* normalizer, const Targets t, T* grad) {
  begin_kernel();
  const unsigned i = blockIdx.x * kThreads + threadIdx.x, classes = t.classes;
  if (i >= static_cast<unsigned>(t.rows) * classes) return;
  const unsigned b = i / classes, k = i % classes;
  const float scale = *grad_loss / static_cast<float>(t.rows);
  grad[i] = logit_gradient(logits[i], k, normalizer[b], targets_of(t, b), t, scale);
}

int64_t mixup_cross_entropy_workspace(int64_t rows) {
  const int blocks = loss_blocks(rows);
  return blocks == 1 ? 0 : blocks * (sizeof(LossSums) / sizeof(double));
}

cudaError_t mixup_cross_entropy(Dtype dtype, const void* logits, const Targets& t, float* loss, float* correct,
                                double* sums, float* normalizer, double* workspace, cudaStream_t stream) {
  const LossResults results{loss, correct, sums, normalizer};
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    launch_loss(static_cast<const T*>(logits), t, results, workspace, stream);
  });
  return cudaGetLastError();
}

cudaError_t mixup_cross_entropy_backward(Dtype dtype, const float* grad_loss, const void* logits,
                                         const float* normalizer, const Targets& t, void* grad_logits,
                                         cudaStream_t stream) {
  const int64_t count = static_cast<int64_t>(t.rows) * t.classes;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    LAUNCH(loss_backward_kernel<T>, dim3(ceil_div(count, kThreads)), dim3(kThreads), stream, grad_loss,
           static_cast<const T*>(logits), normalizer, t, static_cast<T*>(grad_logits));
  });
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

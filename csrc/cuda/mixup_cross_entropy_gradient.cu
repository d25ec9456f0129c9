#include "cuda/mixup_cross_entropy.cuh"

namespace fastcifar::cuda {

namespace {

template <class T>
struct LossGradient : LossTotals {
  const float* grad_loss;
  T* grad;

  __device__ __forceinline__ void row(int b, int lane, const T* logits, float log_sum_exp, const RowTargets& row,
                                      const Targets& t) const {
    T* to = grad + static_cast<int64_t>(b) * t.classes;
    const float scale = *grad_loss / static_cast<float>(t.rows);
#pragma unroll 4
    for (int k = lane; k < t.classes; k += kRowLanes) to[k] = logit_gradient(logits[k], k, log_sum_exp, row, t, scale);
  }
};

}  // namespace

cudaError_t mixup_cross_entropy_gradient(Dtype dtype, const void* logits, const Targets& t, const float* grad_loss,
                                         void* grad_logits, double* totals, double* workspace, cudaStream_t stream) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const LossGradient<T> results{{totals}, grad_loss, static_cast<T*>(grad_logits)};
    launch_loss(static_cast<const T*>(logits), t, results, workspace, stream);
  });
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

#include "cuda/batch_norm_relu.cuh"

namespace fastcifar::cuda {

int64_t batch_norm_relu_workspace(int64_t M, int64_t C) { return stream_workspace(M, C, 3); }

cudaError_t batch_norm_relu(Dtype dtype, const void* x, const float* gamma, const float* beta, float eps, void* z,
                            float* mean, float* var, float* workspace, int64_t M, int64_t C, cudaStream_t stream) {
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    const PartialRows rows = launch_moments(static_cast<const T*>(x), M, C, workspace, stream);
    const Norm norm = norm_of(gamma, beta, eps, rows, mean, var);
    launch_norm_relu(static_cast<const T*>(x), static_cast<T*>(z), M, C, norm, stream);
  });
  return cudaGetLastError();
}

int64_t batch_norm_relu_backward_workspace(int64_t M, int64_t C) { return stream_workspace(M, C, 2); }

cudaError_t batch_norm_relu_backward(Dtype dtype, const void* grad_z, const void* x, const float* gamma,
                                     const float* beta, const float* mean, const float* var, float eps, void* grad_x,
                                     float* grad_gamma, float* grad_beta, float* workspace, int64_t M, int64_t C,
                                     cudaStream_t stream) {
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    NormGrad norm = norm_grad_of(gamma, beta, mean, var, eps, M, grad_gamma, grad_beta);
    const PartialRows rows =
        launch_norm_relu_sums(static_cast<const T*>(grad_z), static_cast<const T*>(x), M, C, norm, workspace, stream);
    norm.rows = rows.data;
    norm.num_rows = rows.count;
    launch_norm_backward<false>(static_cast<const T*>(grad_z), static_cast<const T*>(x), static_cast<T*>(grad_x), M, C,
                                norm, nullptr, stream);
  });
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

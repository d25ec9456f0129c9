#include "cuda/dwconv3x3_backward.cuh"
#include "cuda/dwconv3x3_forward.cuh"

namespace fastcifar::cuda {

// grid: (channel blocks, taps)
__global__ void __launch_bounds__(kThreads) grad_w_kernel(const float* rows, int num_rows, int C, float* grad_w) {
  begin_kernel();
  write_grad_w(rows, num_rows, kQuantities<false>, blockIdx.y, C, grad_w);
}

cudaError_t dwconv3x3(Dtype dtype, const void* x, const float* w, void* y, const DwShape& s, cudaStream_t stream) {
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    ForwardArguments<T> a{};
    a.x = static_cast<const T*>(x);
    a.w = w;
    a.y = static_cast<T*>(y);
    a.s = geometry(s);
    launch_forward<Forward::kPlain>(a, s, stream);
  });
  return cudaGetLastError();
}

int64_t dwconv3x3_backward_workspace(const DwShape& s) {
  return partial_rows<Pass::kBackward>(s) * kQuantities<false> * s.C;
}

cudaError_t dwconv3x3_backward(Dtype dtype, const void* grad_y, const void* x, const float* w, void* grad_x,
                               float* grad_w, float* workspace, const DwShape& s, cudaStream_t stream) {
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    BackwardArguments<T> a{};
    a.grad = static_cast<const T*>(grad_y);
    a.x = static_cast<const T*>(x);
    a.w = w;
    a.grad_x = static_cast<T*>(grad_x);
    a.rows = grad_w != nullptr ? workspace : nullptr;
    a.s = geometry(s);
    launch_backward<false>(a, s, stream);
  });
  if (grad_w != nullptr) {
    const int rows = partial_rows<Pass::kBackward>(s);
    LAUNCH(grad_w_kernel, dim3(ceil_div(s.C, kBlockChannels), 9), dim3(kThreads), stream, workspace, rows,
           static_cast<int>(s.C), grad_w);
  }
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

#include "cuda/dwconv3x3_forward.cuh"

namespace fastcifar::cuda {

cudaError_t dwconv3x3_affine_relu(Dtype dtype, const void* u, const float* scale0, const float* shift0, const float* w,
                                  const float* scale1, const float* shift1, void* z, const DwShape& s,
                                  cudaStream_t stream) {
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    ForwardArguments<T> a{};
    a.x = static_cast<const T*>(u);
    a.w = w;
    a.y = static_cast<T*>(z);
    a.s = geometry(s);
    a.scale0 = scale0;
    a.shift0 = shift0;
    a.scale1 = scale1;
    a.shift1 = shift1;
    launch_forward<Forward::kEval>(a, s, stream);
  });
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

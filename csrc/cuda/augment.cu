#include "cuda/device.cuh"

namespace fastcifar::cuda {

namespace {

struct AugmentArguments {
  const uint8_t* images;
  const int64_t *index, *top, *left;
  const bool* flip;
  const int64_t* partner;
  const float *lam, *table;
  int64_t num_images;
  unsigned batch;
  int size, padding;
};

__device__ __forceinline__ int64_t clamp(int64_t v, int64_t most) { return v < 0 ? 0 : v > most ? most : v; }

// The normalised pixel of a row of the batch at (row, column) of its crop.
__device__ __forceinline__ void crop_pixel(const AugmentArguments& a, int b, int row, int column, float (&v)[3]) {
  const int64_t image = clamp(a.index[b], a.num_images - 1);
  const int i = row + clamp(a.top[b], 2 * a.padding) - a.padding;
  const int j = (a.flip[b] ? a.size - 1 - column : column) + clamp(a.left[b], 2 * a.padding) - a.padding;
  const bool inside = i >= 0 && i < a.size && j >= 0 && j < a.size;
  const uint8_t* p = a.images + (image * a.size * a.size + i * a.size + j) * 3;
#pragma unroll
  for (int c = 0; c < 3; ++c) v[c] = a.table[(inside ? p[c] : 0) * 3 + c];
}

}  // namespace

// A thread a pixel; numbers out of range are clamped (the host can't read them without waiting). The products and their
// sum are rounded one by one, as PyTorch rounds them.
template <class T>
__global__ void __launch_bounds__(kThreads) augment_kernel(const AugmentArguments a, T* out) {
  const unsigned pixel = blockIdx.x * kThreads + threadIdx.x, size = a.size;
  if (pixel >= a.batch * size * size) return;
  const int b = pixel / (size * size), row = pixel / size % size, column = pixel % size;
  float v[3];
  crop_pixel(a, b, row, column, v);
  if (a.partner != nullptr) {
    const int other = static_cast<int>(clamp(a.partner[b], a.batch - 1));
    float p[3];
    crop_pixel(a, other, row, column, p);
    const float lam = *a.lam;
#pragma unroll
    for (int c = 0; c < 3; ++c) v[c] = __fadd_rn(__fmul_rn(lam, v[c]), __fmul_rn(1.f - lam, p[c]));
  }
#pragma unroll
  for (int c = 0; c < 3; ++c) out[static_cast<int64_t>(pixel) * 3 + c] = round_to<T>(v[c]);
}

cudaError_t augment(Dtype dtype, const uint8_t* images, const int64_t* index, const int64_t* top, const int64_t* left,
                    const bool* flip, const int64_t* partner, const float* lam, const float* table, void* out,
                    int64_t num_images, int64_t batch, int size, int padding, cudaStream_t stream) {
  const AugmentArguments a{images, index, top, left, flip, partner, lam, table, num_images, static_cast<unsigned>(batch), size, padding};
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    LAUNCH(augment_kernel<T>, dim3(ceil_div(batch * size * size, kThreads)), dim3(kThreads), stream, a,
           static_cast<T*>(out));
  });
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

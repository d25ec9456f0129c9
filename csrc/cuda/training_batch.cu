#include "cuda/device.cuh"

namespace fastcifar::cuda {

namespace {

__device__ __forceinline__ int64_t clamp(int64_t v, int64_t most) { return v < 0 ? 0 : v > most ? most : v; }

__device__ __forceinline__ bool within(int at, int64_t first, int64_t length) {
  return at >= first && at < first + length;
}

// Where row b of the batch lies in the epoch's draws.
struct BatchStart {
  int64_t step, first, last;
  __device__ __forceinline__ explicit BatchStart(const EpochBatch& a)
      : step(clamp(*a.step, (a.num_draws - 1) / a.batch_size)), first(step * a.batch_size), last(a.num_draws - 1) {}
  __device__ __forceinline__ int64_t at(int64_t b) const { return clamp(first + b, last); }
};

// The normalised pixel of an image of the epoch at (row, column) of its crop.
__device__ __forceinline__ void crop_pixel(const EpochBatch& a, int64_t position, int64_t image, int row, int column,
                                           float (&v)[3]) {
  const int i = row + static_cast<int>(clamp(a.top[position], 2 * a.padding)) - a.padding;
  const int j = (a.flip[position] ? a.size - 1 - column : column) +
                static_cast<int>(clamp(a.left[position], 2 * a.padding)) - a.padding;
  const bool inside = i >= 0 && i < a.size && j >= 0 && j < a.size;
  const uint8_t* p = a.images + (image * a.size * a.size + i * a.size + j) * 3;
#pragma unroll
  for (int c = 0; c < 3; ++c) v[c] = a.table[(inside ? p[c] : 0) * 3 + c];
  if (a.hole != nullptr && within(row, a.hole[2 * position], a.hole_size) &&
      within(column, a.hole[2 * position + 1], a.hole_size)) {
    v[0] = v[1] = v[2] = 0.f;
  }
}

}  // namespace

// One thread for each pixel; the thread of an image's first pixel writes its labels. Only shapes come from the host, so
// that a captured launch makes the next batch once the step in device memory has moved on. Numbers out of range are
// clamped, because the host can't read them without waiting. Products and sum are rounded one by one, as in PyTorch.
template <class T>
__global__ void __launch_bounds__(kThreads) training_batch_kernel(const EpochBatch a, T* out) {
  begin_kernel();
  const unsigned pixel = blockIdx.x * kThreads + threadIdx.x, size = a.size;
  const BatchStart start(a);
  if (pixel == 0 && a.lam != nullptr) *a.out_lam = a.lam[start.step];
  if (pixel >= static_cast<unsigned>(a.rows) * size * size) return;
  const int b = pixel / (size * size), row = pixel / size % size, column = pixel % size;
  const int64_t position = start.at(b), image = clamp(a.index[position], a.num_images - 1);
  const bool first_pixel = row == 0 && column == 0;
  if (first_pixel) a.out_labels[b] = a.labels[image];
  float v[3];
  crop_pixel(a, position, image, row, column, v);
  if (a.partner != nullptr) {
    const int64_t other_position = start.at(clamp(a.partner[position], a.rows - 1));
    const int64_t other_image = clamp(a.index[other_position], a.num_images - 1);
    if (first_pixel) a.out_partner_labels[b] = a.labels[other_image];
    const int64_t* box = a.box == nullptr ? nullptr : a.box + 4 * start.step;
    if (box == nullptr) {
      float p[3];
      crop_pixel(a, other_position, other_image, row, column, p);
      const float lam = a.lam[start.step];
#pragma unroll
      for (int c = 0; c < 3; ++c) v[c] = __fadd_rn(__fmul_rn(lam, v[c]), __fmul_rn(1.f - lam, p[c]));
    } else if (row >= box[0] && row < box[1] && column >= box[2] && column < box[3]) {
      crop_pixel(a, other_position, other_image, row, column, v);
    }
  }
#pragma unroll
  for (int c = 0; c < 3; ++c) out[static_cast<int64_t>(pixel) * 3 + c] = round_to<T>(v[c]);
}

cudaError_t training_batch(Dtype dtype, const EpochBatch& batch, void* out, cudaStream_t stream) {
  const int64_t pixels = static_cast<int64_t>(batch.rows) * batch.size * batch.size;
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    // Without a pixel there still is a lambda to write.
    LAUNCH(training_batch_kernel<T>, dim3(pixels == 0 ? 1 : ceil_div(pixels, kThreads)), dim3(kThreads), stream, batch,
           static_cast<T*>(out));
  });
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

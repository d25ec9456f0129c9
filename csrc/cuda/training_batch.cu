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

// What the epoch drew for an image.
struct Draw {
  int64_t image, top, left, hole_row, hole_column;
  bool flip;
  __device__ __forceinline__ Draw(const EpochBatch& a, int64_t position)
      : image(clamp(a.index[position], a.num_images - 1)), top(clamp(a.top[position], 2 * a.padding)),
        left(clamp(a.left[position], 2 * a.padding)), hole_row(a.hole != nullptr ? a.hole[2 * position] : 0),
        hole_column(a.hole != nullptr ? a.hole[2 * position + 1] : 0), flip(a.flip[position]) {}
};

// The pixel of an image of the epoch at (row, column) of its crop.
struct Pixel {
  uint8_t bytes[3];
  bool is_cut;
  __device__ __forceinline__ Pixel(const EpochBatch& a, const Draw& d, int row, int column) {
    const int i = row + static_cast<int>(d.top) - a.padding;
    const int j = (d.flip ? a.size - 1 - column : column) + static_cast<int>(d.left) - a.padding;
    const bool inside = i >= 0 && i < a.size && j >= 0 && j < a.size;
    const uint8_t* p = a.images + (inside ? (d.image * a.size * a.size + i * a.size + j) * 3 : 0);
#pragma unroll
    for (int c = 0; c < 3; ++c) bytes[c] = inside ? p[c] : 0;
    is_cut = a.hole != nullptr && within(row, d.hole_row, a.hole_size) && within(column, d.hole_column, a.hole_size);
  }
  __device__ __forceinline__ void normalize(const EpochBatch& a, float (&v)[3]) const {
#pragma unroll
    for (int c = 0; c < 3; ++c) v[c] = a.table[bytes[c] * 3 + c];
    if (is_cut) v[0] = v[1] = v[2] = 0.f;
  }
};

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
  const int64_t position = start.at(b);
  const bool has_partner = a.partner != nullptr;
  // One load waits for the other along a chain: what both images need is on its way at each step of the chain.
  const Draw own(a, position);
  Draw other = own;
  if (has_partner) other = Draw(a, start.at(clamp(a.partner[position], a.rows - 1)));
  Pixel pixel_of(a, own, row, column), pixel_of_other = pixel_of;
  if (has_partner) pixel_of_other = Pixel(a, other, row, column);
  if (has_partner && a.box != nullptr) {
    const int64_t* box = a.box + 4 * start.step;
    if (row >= box[0] && row < box[1] && column >= box[2] && column < box[3]) pixel_of = pixel_of_other;
  }
  float v[3];
  pixel_of.normalize(a, v);
  if (has_partner && a.box == nullptr) {
    float p[3];
    pixel_of_other.normalize(a, p);
    const float lam = a.lam[start.step];
#pragma unroll
    for (int c = 0; c < 3; ++c) v[c] = __fadd_rn(__fmul_rn(lam, v[c]), __fmul_rn(1.f - lam, p[c]));
  }
  if (row == 0 && column == 0) {
    a.out_labels[b] = a.labels[own.image];
    if (has_partner) a.out_partner_labels[b] = a.labels[other.image];
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

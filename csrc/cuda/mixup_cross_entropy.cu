#include "cuda/device.cuh"

namespace fastcifar::cuda {

namespace {

constexpr int kRowLanes = 8;  // threads of a row: a hundred classes are 13 numbers each
constexpr int kLossThreads = 1024;
constexpr int kRows = kLossThreads / kRowLanes;  // rows a block has at work
constexpr int kOneBlock = 8 * kRows;             // up to here one block does all rows, and there is no second kernel

// Sums over rows.
struct LossSums {
  double loss, correct, partner_correct;
  __device__ __forceinline__ void add(const LossSums& other) {
    loss += other.loss;
    correct += other.correct;
    partner_correct += other.partner_correct;
  }
};

// The sum over the 32 lanes of a warp. Its order is fixed.
__device__ __forceinline__ LossSums warp_sum(LossSums sums) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    sums.add({__shfl_xor_sync(~0u, sums.loss, distance), __shfl_xor_sync(~0u, sums.correct, distance),
              __shfl_xor_sync(~0u, sums.partner_correct, distance)});
  }
  return sums;
}

struct LossResults {
  float *loss, *correct;
  double* sums;
};

__device__ __forceinline__ void write_results(const LossResults& to, const LossSums& sums, const Targets& t) {
  const double lam = t.lam != nullptr ? *t.lam : 1.f;
  const double correct = sums.partner_correct + lam * (sums.correct - sums.partner_correct);
  *to.loss = static_cast<float>(sums.loss / t.rows);
  *to.correct = static_cast<float>(correct);
  to.sums[0] = sums.loss;
  to.sums[1] = correct;
}

template <class T>
__device__ __forceinline__ float logit(const T* row, int64_t label, int classes) {
  return label >= 0 && label < classes ? load_f32(row[label]) : NAN;
}

}  // namespace

// kRowLanes neighbouring threads work on a row. They read it twice, the second time from the L1 cache. If there is one
// block it writes the results; otherwise each block writes its sums into a row of `partials`. The order of sums is
// fixed.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    loss_kernel(const T* logits, const Targets t, float* normalizer, LossSums* partials, const LossResults results) {
  begin_kernel();
  SHARED_ARRAY(LossSums, shared, kRows);
  const int lane = threadIdx.x % kRowLanes, group = threadIdx.x / kRowLanes;
  const float lam = t.lam != nullptr ? *t.lam : 1.f;
  LossSums total{0, 0, 0};
  for (int first = blockIdx.x * kRows; first < t.rows; first += gridDim.x * kRows) {
    const bool live = first + group < t.rows;
    const int b = live ? first + group : t.rows - 1;  // all lanes of a warp take part in its exchanges
    const T* row = logits + static_cast<int64_t>(b) * t.classes;
    const int64_t label = t.labels[b], partner = t.partner_labels[b];
    const float own = logit(row, label, t.classes), others = logit(row, partner, t.classes);

    float most = -INFINITY;
    int predicted = t.classes;
#pragma unroll 4
    for (int k = lane; k < t.classes; k += kRowLanes) {
      const float v = load_f32(row[k]);
      if (v > most || predicted == t.classes) most = v, predicted = k;
    }
#pragma unroll
    for (int distance = kRowLanes / 2; distance > 0; distance /= 2) {
      const float v = __shfl_xor_sync(~0u, most, distance);
      const int k = __shfl_xor_sync(~0u, predicted, distance);
      if (v > most || (v == most && k < predicted)) most = v, predicted = k;  // of equal ones the first
    }
    float exponentials = 0.f, sum = 0.f;
#pragma unroll 4
    for (int k = lane; k < t.classes; k += kRowLanes) {
      const float x = load_f32(row[k]) - most;
      exponentials += expf(x);
      sum += x;
    }
#pragma unroll
    for (int distance = kRowLanes / 2; distance > 0; distance /= 2) {
      exponentials += __shfl_xor_sync(~0u, exponentials, distance);
      sum += __shfl_xor_sync(~0u, sum, distance);
    }
    if (lane == 0 && live) {
      const float log_sum = logf(exponentials);
      const float target = lam == 1.f ? own - most : lam * (own - most) + (1.f - lam) * (others - most);
      float loss = log_sum - (1.f - t.smoothing) * target;
      if (t.smoothing > 0.f) loss -= t.smoothing / static_cast<float>(t.classes) * sum;  // 0 * -infinity is no number
      normalizer[b] = most + log_sum;
      total.add({loss, predicted == label ? 1. : 0., predicted == partner ? 1. : 0.});
    }
  }
  if (lane == 0) shared[group] = total;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  LossSums sums = shared[threadIdx.x];
#pragma unroll
  for (int i = 32; i < kRows; i += 32) sums.add(shared[threadIdx.x + i]);
  sums = warp_sum(sums);
  if (threadIdx.x > 0) return;
  if (gridDim.x == 1)
    write_results(results, sums, t);
  else
    partials[blockIdx.x] = sums;
}

// One warp.
__global__ void __launch_bounds__(32)
    sum_losses_kernel(const LossSums* partials, int count, const Targets t, const LossResults results) {
  begin_kernel();
  LossSums sums{0, 0, 0};
  for (int i = threadIdx.x; i < count; i += 32) sums.add(partials[i]);
  sums = warp_sum(sums);
  if (threadIdx.x == 0) write_results(results, sums, t);
}

// A thread a logit.
template <class T>
__global__ void __launch_bounds__(kThreads)
    loss_backward_kernel(const float* grad_loss, const T* logits, const float* normalizer, const Targets t, T* grad) {
  begin_kernel();
  const unsigned i = blockIdx.x * kThreads + threadIdx.x, classes = t.classes;
  if (i >= static_cast<unsigned>(t.rows) * classes) return;
  const unsigned b = i / classes, k = i % classes;
  const float lam = t.lam != nullptr ? *t.lam : 1.f, there = 1.f - t.smoothing;
  float target = t.smoothing / static_cast<float>(t.classes);
  if (t.labels[b] == k) target += there * lam;
  if (t.partner_labels[b] == k) target += there * (1.f - lam);
  const float probability = expf(load_f32(logits[i]) - normalizer[b]);
  grad[i] = round_to<T>((probability - target) * (*grad_loss / static_cast<float>(t.rows)));
}

namespace {
int num_blocks(int64_t rows) { return rows <= kOneBlock ? 1 : ceil_div(rows, kRows); }
}  // namespace

int64_t mixup_cross_entropy_workspace(int64_t rows) {
  return num_blocks(rows) == 1 ? 0 : num_blocks(rows) * (sizeof(LossSums) / sizeof(double));
}

cudaError_t mixup_cross_entropy(Dtype dtype, const void* logits, const Targets& t, float* loss, float* correct,
                                double* sums, float* normalizer, double* workspace, cudaStream_t stream) {
  const int blocks = num_blocks(t.rows);
  const LossResults results{loss, correct, sums};
  auto* partials = reinterpret_cast<LossSums*>(workspace);
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    LAUNCH(loss_kernel<T>, dim3(blocks), dim3(kLossThreads), stream, static_cast<const T*>(logits), t, normalizer,
           partials, results);
  });
  if (blocks > 1) LAUNCH(sum_losses_kernel, dim3(1), dim3(32), stream, partials, blocks, t, results);
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

// The loss of a batch, for the op that returns it and for the op that only leaves its gradient.
#pragma once
#include "cuda/device.cuh"

namespace fastcifar::cuda {

inline constexpr int kRowLanes = 8;  // threads of a row: a hundred classes are 13 numbers each
inline constexpr int kLossThreads = 1024;
inline constexpr int kRows = kLossThreads / kRowLanes;  // rows a block has at work
inline constexpr int kOneBlock = 8 * kRows;  // up to here one block does all rows, and there is no second kernel

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

// The labels of a row, and the weight of the first.
struct RowTargets {
  int64_t label, partner;
  float lam;
};

__device__ __forceinline__ RowTargets targets_of(const Targets& t, int b) {
  return {t.labels[b], t.partner_labels[b], t.lam != nullptr ? *t.lam : 1.f};
}

// Results::batch of an op that adds the sums to an epoch's totals.
struct LossTotals {
  double* totals;

  __device__ __forceinline__ void batch(double loss, double correct, int) const {
    totals[0] += loss;
    totals[1] += correct;
  }
};

template <class Results>
__device__ __forceinline__ void write_results(const Results& results, const LossSums& sums, const Targets& t) {
  const double lam = t.lam != nullptr ? *t.lam : 1.f;
  results.batch(sums.loss, sums.partner_correct + lam * (sums.correct - sums.partner_correct), t.rows);
}

template <class T>
__device__ __forceinline__ float logit(const T* row, int64_t label, int classes) {
  return label >= 0 && label < classes ? load_f32(row[label]) : NAN;
}

// The gradient of logit k of a row. scale: the gradient of the row's loss. The sums are fused multiply-adds by name:
// left to the compiler, the kernels that compute it need not give the same bits.
template <class T>
__device__ __forceinline__ T logit_gradient(T value, int k, float normalizer, const RowTargets& row, const Targets& t,
                                            float scale) {
  const float there = 1.f - t.smoothing;
  float target = t.smoothing / static_cast<float>(t.classes);
  if (row.label == k) target = fmaf(there, row.lam, target);
  if (row.partner == k) target = fmaf(there, 1.f - row.lam, target);
  const float probability = expf(load_f32(value) - normalizer);
  return round_to<T>((probability - target) * scale);
}

// What the sums get from a row, and its log-sum-exp.
struct RowLoss {
  float log_sum_exp;
  LossSums sums;
};

// LANES neighbouring threads work on a row. They read it twice, the second time from the L1 cache, and each gets the
// result.
template <int LANES, class T>
__device__ __forceinline__ RowLoss row_loss(const T* row, int lane, const RowTargets& targets, const Targets& t) {
  const auto [label, partner, lam] = targets;
  const float own = logit(row, label, t.classes), others = logit(row, partner, t.classes);

  float most = -INFINITY;
  int predicted = t.classes;
#pragma unroll 4
  for (int k = lane; k < t.classes; k += LANES) {
    const float v = load_f32(row[k]);
    if (v > most || predicted == t.classes) most = v, predicted = k;
  }
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2) {
    const float v = __shfl_xor_sync(~0u, most, distance);
    const int k = __shfl_xor_sync(~0u, predicted, distance);
    if (v > most || (v == most && k < predicted)) most = v, predicted = k;  // of equal ones the first
  }
  float exponentials = 0.f, sum = 0.f;
#pragma unroll 4
  for (int k = lane; k < t.classes; k += LANES) {
    const float x = load_f32(row[k]) - most;
    exponentials += expf(x);
    sum += x;
  }
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2) {
    exponentials += __shfl_xor_sync(~0u, exponentials, distance);
    sum += __shfl_xor_sync(~0u, sum, distance);
  }
  const float log_sum = logf(exponentials);
  const float target = lam == 1.f ? own - most : lam * (own - most) + (1.f - lam) * (others - most);
  float loss = log_sum - (1.f - t.smoothing) * target;
  if (t.smoothing > 0.f) loss -= t.smoothing / static_cast<float>(t.classes) * sum;  // 0 * -infinity is no number
  return {most + log_sum, {loss, predicted == label ? 1. : 0., predicted == partner ? 1. : 0.}};
}

// kRowLanes neighbouring threads work on a row, and give it with its log-sum-exp to Results::row. If there is one block
// it gives the sums to Results::batch; otherwise each block writes its sums into a row of `partials`. The order of sums
// is fixed.
template <class T, class Results>
__global__ void __launch_bounds__(kLossThreads)
    loss_kernel(const T* logits, const Targets t, LossSums* partials, const Results results) {
  begin_kernel();
  SHARED_ARRAY(LossSums, shared, kRows);
  const int lane = threadIdx.x % kRowLanes, group = threadIdx.x / kRowLanes;
  LossSums total{0, 0, 0};
  for (int first = blockIdx.x * kRows; first < t.rows; first += gridDim.x * kRows) {
    const bool live = first + group < t.rows;
    const int b = live ? first + group : t.rows - 1;  // all lanes of a warp take part in its exchanges
    const T* row = logits + static_cast<int64_t>(b) * t.classes;
    const RowTargets targets = targets_of(t, b);
    const RowLoss of_row = row_loss<kRowLanes>(row, lane, targets, t);
    if (live) results.row(b, lane, row, of_row.log_sum_exp, targets, t);
    if (live && lane == 0) total.add(of_row.sums);
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
template <class Results>
__device__ __forceinline__ void sum_losses(const LossSums* partials, int count, const Targets& t,
                                           const Results& results) {
  LossSums sums{0, 0, 0};
  for (int i = threadIdx.x; i < count; i += 32) sums.add(partials[i]);
  sums = warp_sum(sums);
  if (threadIdx.x == 0) write_results(results, sums, t);
}

template <class Results>
__global__ void __launch_bounds__(32)
    sum_losses_kernel(const LossSums* partials, int count, const Targets t, const Results results) {
  begin_kernel();
  sum_losses(partials, count, t, results);
}

inline int loss_blocks(int64_t rows) { return rows <= kOneBlock ? 1 : ceil_div(rows, kRows); }

template <class T, class Results>
void launch_loss(const T* logits, const Targets& t, const Results& results, double* workspace, cudaStream_t stream) {
  const int blocks = loss_blocks(t.rows);
  auto* partials = reinterpret_cast<LossSums*>(workspace);
  LAUNCH((loss_kernel<T, Results>), dim3(blocks), dim3(kLossThreads), stream, logits, t, partials, results);
  if (blocks > 1) LAUNCH(sum_losses_kernel<Results>, dim3(1), dim3(32), stream, partials, blocks, t, results);
}

}  // namespace fastcifar::cuda

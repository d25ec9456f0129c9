// The classifier and its loss in one kernel: logits, what mixup_cross_entropy_gradient does with them, and the gradient
// of the pooled activations, in place of four kernels that wait for each other.
//
// A block has 16 images, which are the rows of a fragment of the tensor cores, and all classes. Both products take
// their operands from device memory in an order in which a lane's part is 16 neighbouring bytes; see
// pointwise_stream.cuh for g and q. Of each 32 channels that the logits are summed over the lane has those from 8q on,
// of a row and of a class g of eight. For the gradient of the pooled activations it has eight channels from 8g on, of
// classes 2q and 2q + 1 of eight: of each channel a pair, for a fragment of its own. So of the results it has 16
// neighbouring channels from 16q on, of rows g and g + 8.
#include <algorithm>

#include "cuda/mixup_cross_entropy.cuh"
#include "cuda/tensor_cores.cuh"

namespace fastcifar::cuda {

namespace {

constexpr int kImages = 16, kWarps = kImages;  // of a block; the loss of an image is a warp's
constexpr int kMostClasses = 128, kLaneClasses = kMostClasses / 32;
constexpr int kParts = 4;  // of the sum over the channels. The warps of a part share the classes, eight at a time.
constexpr int kPartWarps = kWarps / kParts, kTiles = kMostClasses / 8 / kPartWarps;
constexpr int kWarpChannels = 64, kSteps = kMostClasses / 16;  // of the gradient of the pooled activations
constexpr int kDepth = 2;                                      // parts of a sum whose operands are on their way
// Of a row in shared memory: so that neither the stores of pairs nor ldmatrix meet a bank twice.
constexpr int kPartPitch = kMostClasses + 8, kGradPitch = kMostClasses + 8;

template <class T>
struct ClassifierArguments {
  const T *pooled, *weight, *bias;
  int channels;
  const float* grad_loss;
  T *grad_pooled, *grad_logits;
};

// The first (0) or second (1) elements of two words.
__device__ __forceinline__ uint32_t pair_of(uint32_t a, uint32_t b, int which) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(a, b, which == 0 ? 0x5410 : 0x7632);
#else
  return which == 0 ? (a & 0xffffu) | b << 16 : a >> 16 | (b & 0xffff0000u);
#endif
}

}  // namespace

// grid: (1, blocks of kImages), in clusters. A cluster adds its sums to the totals, or writes them into its row of
// `partials` if there are others.
template <class T>
__global__ void __launch_bounds__(32 * kWarps) classifier_loss_kernel(const ClassifierArguments<T> a, const Targets t,
                                                                      LossSums* partials, const LossTotals totals) {
  begin_kernel();
  SHARED_ARRAY(float, parts, kParts * kImages * kPartPitch);
  SHARED_ARRAY(T, logits, kImages * kMostClasses);
  SHARED_ARRAY(uint16_t, grads, kImages* kGradPitch);
  SHARED_ARRAY(LossSums, of_rows, kImages);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int first_row = blockIdx.y * kImages;
  constexpr uint32_t kBytes = sizeof(T);
  const uint32_t pitch = a.channels * kBytes;

  // What the loss needs of device memory.
  const int b = first_row + warp;
  const bool is_row = b < t.rows;
  const RowTargets targets = targets_of(t, min(b, t.rows - 1));
  const float grad_loss = *a.grad_loss;
  Pack<T, 1> bias[kLaneClasses];
#pragma unroll
  for (int i = 0; i < kLaneClasses; ++i) bias[i] = load_if<1>(a.bias + lane + 32 * i, lane + 32 * i < t.classes);

  const int part = warp / kPartWarps, part_warp = warp % kPartWarps, part_channels = a.channels / kParts;
  float of_part[kTiles][4] = {};
  {
    Pack<T, 8> rows[kDepth][2], classes[kDepth][kTiles];
    const auto fetch = [&](int d, int k) {  // k: the first of 32 channels of the part
      as_it_is(k);
      const uint32_t column = (part * part_channels + k + q * 8) * kBytes;
      const bool inside = k < part_channels;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int m = first_row + g + 8 * i;
        rows[d][i] = load_if<8>(at_byte(a.pooled, m * pitch + column), inside && m < t.rows);
      }
#pragma unroll
      for (int f = 0; f < kTiles; ++f) {
        const int n = (f * kPartWarps + part_warp) * 8 + g;
        classes[d][f] = load_if<8>(at_byte(a.weight, n * pitch + column), inside && n < t.classes);
      }
    };
#pragma unroll
    for (int d = 0; d < kDepth; ++d) fetch(d, d * 32);
#pragma unroll 1
    for (int k = 0; k < part_channels; k += kDepth * 32) {
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const Fragment two{rows[d][0].words[2 * s], rows[d][1].words[2 * s], rows[d][0].words[2 * s + 1],
                             rows[d][1].words[2 * s + 1]};
#pragma unroll
          for (int f = 0; f < kTiles; ++f)
            multiply_add<T>(of_part[f], two, classes[d][f].words[2 * s], classes[d][f].words[2 * s + 1]);
        }
        fetch(d, k + (d + kDepth) * 32);
      }
    }
  }

  // The weight's rows for the second product are on their way while the loss is computed.
  int k0 = warp * kWarpChannels;
  Pack<T, 8> next[kDepth][4];
  const auto fetch = [&](Pack<T, 8>(&to)[4], int channel, int step) {
    as_it_is(channel);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = step * 16 + i / 2 * 8 + 2 * q + i % 2;
      to[i] =
          load_if<8>(at_byte(a.weight, n * pitch + (channel + g * 8) * kBytes), n < t.classes && channel < a.channels);
    }
  };
#pragma unroll
  for (int d = 0; d < kDepth; ++d) fetch(next[d], k0, d);

#pragma unroll
  for (int f = 0; f < kTiles; ++f)
#pragma unroll
    for (int e = 0; e < 2; ++e)
      *reinterpret_cast<Pack<float, 2>*>(parts + (part * kImages + 8 * e + g) * kPartPitch +
                                         (f * kPartWarps + part_warp) * 8 +
                                         2 * q) = {{bits_of(of_part[f][2 * e]), bits_of(of_part[f][2 * e + 1])}};
  __syncthreads();

  T* const row = logits + warp * kMostClasses;
#pragma unroll
  for (int i = 0; i < kLaneClasses; ++i) {
    const int k = lane + 32 * i;
    float value = 0.f, of_bias[1];
#pragma unroll
    for (int p = 0; p < kParts; ++p) value += parts[(p * kImages + warp) * kPartPitch + k];
    unpack(bias[i], of_bias);
    row[k] = round_to<T>(value + of_bias[0]);
  }
  __syncwarp();
  const RowLoss of_row = row_loss<32>(row, lane, targets, t);  // also where there is no image: all lanes take part
  const float scale = grad_loss / static_cast<float>(t.rows);
#pragma unroll
  for (int i = 0; i < kLaneClasses; ++i) {
    const int k = lane + 32 * i;
    T grad{};
    if (is_row && k < t.classes) {
      grad = logit_gradient(row[k], k, of_row.log_sum_exp, targets, t, scale);
      a.grad_logits[static_cast<int64_t>(b) * t.classes + k] = grad;
    }
    grads[warp * kGradPitch + k] = grad.bits;
  }
  if (lane == 0) of_rows[warp] = is_row ? of_row.sums : LossSums{0, 0, 0};
  __syncthreads();
  arrive_at_cluster();

  const int in = lane % 8, first = lane / 8 % 2 * 8, second = lane / 16 * 8;
#pragma unroll 1
  for (; k0 < a.channels; k0 += kWarps * kWarpChannels) {
    float acc[8][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {  // matrices (m, k), (m + 8, k), (m, k + 8), (m + 8, k + 8)
      const Fragment rows = load_matrices<false>(grads + (first + in) * kGradPitch + step * 16 + second);
      Pack<T, 8>(&classes)[4] = next[step % kDepth];
#pragma unroll
      for (int c = 0; c < 8; ++c)
        multiply_add<T>(acc[c], rows, pair_of(classes[0].words[c / 2], classes[1].words[c / 2], c % 2),
                        pair_of(classes[2].words[c / 2], classes[3].words[c / 2], c % 2));
      const int ahead = step + kDepth;
      fetch(classes, k0 + ahead / kSteps * kWarps * kWarpChannels, ahead % kSteps);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int m = first_row + g + e / 2 * 8;
      float v[8];
#pragma unroll
      for (int c = 0; c < 8; ++c) v[c] = acc[c][e];
      if (m < t.rows)
        *reinterpret_cast<Pack<T, 8>*>(at_byte(a.grad_pooled, m * pitch + (k0 + (2 * q + e % 2) * 8) * kBytes)) =
            rounded<T>(v);
    }
  }

  wait_for_cluster();
  const int blocks = cluster_blocks(), cluster = blockIdx.y / blocks;
  if (blockIdx.y % blocks == 0 && warp == 0) {
    LossSums sums{0, 0, 0};
    for (int i = lane; i < blocks * kImages; i += 32) sums.add(IN_BLOCK(of_rows, i / kImages)[i % kImages]);
    sums = warp_sum(sums);
    if (lane == 0) {
      if (static_cast<int>(gridDim.y) == blocks)
        write_results(totals, sums, t);
      else
        partials[cluster] = sums;
    }
  }
  arrive_at_cluster();
  wait_for_cluster();
}

bool classifier_gradient_suits(Dtype dtype, int64_t channels, int64_t classes) {
  return dtype != Dtype::kFloat32 && channels % (kParts * 32) == 0 && classes <= kMostClasses;
}

int64_t classifier_gradient_workspace(int64_t rows) {
  return ceil_div(rows, kImages) * (sizeof(LossSums) / sizeof(double));
}

cudaError_t classifier_gradient(Dtype dtype, const Classifier& c, const Targets& t, cudaStream_t stream) {
  const int blocks = ceil_div(t.rows, kImages), cluster = is_from_hopper_on() ? std::min(blocks, kClusterBlocks) : 1;
  const int clusters = ceil_div(blocks, cluster);
  auto* partials = reinterpret_cast<LossSums*>(c.workspace);
  const LossTotals totals{c.totals};
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2) {
      const ClassifierArguments<T> a{static_cast<const T*>(c.pooled),
                                     static_cast<const T*>(c.weight),
                                     static_cast<const T*>(c.bias),
                                     c.channels,
                                     c.grad_loss,
                                     static_cast<T*>(c.grad_pooled),
                                     static_cast<T*>(c.grad_logits)};
      LAUNCH_CLUSTERS(classifier_loss_kernel<T>, cluster, dim3(1, clusters * cluster), dim3(32 * kWarps), stream, a, t,
                      partials, totals);
    }
  });
  if (clusters > 1) LAUNCH(sum_losses_kernel<LossTotals>, dim3(1), dim3(32), stream, partials, clusters, t, totals);
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

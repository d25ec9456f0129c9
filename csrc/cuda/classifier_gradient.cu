// The classifier, its loss and all gradients in one kernel, in place of five kernels of which most wait for each other.
//
// A cluster has up to 128 images and all classes, and each of its blocks every eighth slice of 128 channels. Between its
// four steps a block reads what the other blocks have:
//   the logits of all images, summed over the block's own channels;
//   of 16 images the sums over all channels, the loss, and the gradient of the logits;
//   the gradients of all images;
//   the gradient of its own channels, of the pooled activations or of the weight.
// The last two products have their operands in shared memory already. Where there is room, two clusters take the same
// images and compute the same logits, and then one of these two products each, because a product of one block fills its
// multiprocessor.
//
// In shared memory a row's channels are in an order in which a lane's results of four fragments are neighbours: of each
// 32, words (pairs) 0, 4, 8 and 12 come first. For the sum over channels the order does not matter.
#include "cuda/mixup_cross_entropy.cuh"
#include "cuda/tensor_cores.cuh"

namespace fastcifar::cuda {

namespace {

constexpr int kTile = 128;                                         // images of a cluster, classes, channels of a slice
constexpr int kImages = kTile / kClusterBlocks, kWarps = kImages;  // of a block; the loss of an image is a warp's
constexpr int kLaneClasses = kTile / 32, kPacks = kTile * kTile / (8 * 32 * kWarps);  // of a thread
constexpr int kPitch = kTile + 8;  // so that neither ldmatrix nor the stores meet a bank twice
constexpr int kClusters = 14;      // that run at a time, one block a multiprocessor: an H100 has room for 15

template <class T>
struct ClassifierArguments {
  const T *pooled, *weight, *bias;
  int channels;
  const float* grad_loss;
  T *grad_pooled, *grad_weight, *grad_bias;
  // Where there are several clusters of images, theirs: [clusters], and [clusters][classes * channels + kTile], of
  // grad_weight and grad_bias.
  LossSums* losses;
  float* parts;
};

template <class T>
struct ClassifierShared {
  uint16_t pooled[kTile * kPitch], weight[kTile * kPitch], grads[kTile * kPitch];  // grads: [image][class]
  float sums[kTile * kPitch];                                                      // over the block's own channels
  T logits[kImages * kTile];
  LossSums losses[kImages];
};

// acc += a . b for rows m0 to m0 + 31 of a and columns n0 to n0 + 31 of b. a lies as [m][k] or, turned, as [k][m]; b as
// [n][k] or, turned, as [k][n].
template <class T, bool A_TURNED, bool B_TURNED>
__device__ __forceinline__ void multiply(const uint16_t* a, int m0, const uint16_t* b, int n0, float (&acc)[2][4][4]) {
  const int lane = threadIdx.x % 32, in = lane % 8, first = lane / 8 % 2 * 8, second = lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kTile; k += 16) {
    Fragment left[2], right[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int m = m0 + 16 * i, n = n0 + 16 * i;
      // matrices (m, k), (m + 8, k), (m, k + 8), (m + 8, k + 8)
      left[i] = load_matrices<A_TURNED>(A_TURNED ? a + (k + second + in) * kPitch + m + first
                                                 : a + (m + first + in) * kPitch + k + second);
      // matrices (k, n), (k + 8, n), (k, n + 8), (k + 8, n + 8)
      right[i] = load_matrices<B_TURNED>(B_TURNED ? b + (k + first + in) * kPitch + n + second
                                                  : b + (n + second + in) * kPitch + k + first);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        multiply_add<T>(acc[i][j], left[i], right[j / 2].at[j % 2 * 2], right[j / 2].at[j % 2 * 2 + 1]);
  }
}

}  // namespace

// grid: (1 or 2, clusters of images times kClusterBlocks). Of two, x is 0 for the gradient of the pooled activations and the
// losses, 1 for those of weight and bias.
template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    classifier_loss_kernel(const ClassifierArguments<T> a, const Targets t, const LossTotals totals) {
  if constexpr (!has_clusters()) return;
  begin_kernel();
  LARGE_SHARED(ClassifierShared<T>, shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int m0 = warp % 4 * 32, n0 = warp / 4 * 32;  // of a product a warp has 32 x 32 results
  const int cluster = blockIdx.y / kClusterBlocks, rank = blockIdx.y % kClusterBlocks;
  const int first_image = cluster * kTile, own = rank * kImages + warp;  // own: the warp's image, and its class
  const bool has_losses = blockIdx.x == 0 && rank == 0 && warp == 0, is_alone = gridDim.y == kClusterBlocks;
  constexpr uint32_t kBytes = sizeof(T);
  const uint32_t pitch = a.channels * kBytes;

  // What the loss needs of device memory.
  const int b = first_image + own;
  const bool is_image = b < t.rows;
  const RowTargets targets = targets_of(t, min(b, t.rows - 1));
  const float grad_loss = *a.grad_loss;
  Pack<T, 1> bias[kLaneClasses];
#pragma unroll
  for (int i = 0; i < kLaneClasses; ++i) {
    const int k = lane * kLaneClasses + i;
    bias[i] = load_if<1>(a.bias + k, k < t.classes);
  }

  int there = -1;  // the slice in shared memory
  const auto bring = [&](int slice) {
    if (slice == there) return;
    there = slice;
    Pack<T, 8> images[kPacks], classes[kPacks];
    const auto row = [](int i) { return static_cast<int>(threadIdx.x) / 8 + i % 2 * (kTile / 2); };
    const auto channel = [](int i) { return static_cast<int>(threadIdx.x) % 8 * 8 + i / 2 * (kTile / 2); };
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const uint32_t column = (slice * kTile + channel(i)) * kBytes;
      const int m = first_image + row(i), n = row(i);
      images[i] = load_if<8>(at_byte(a.pooled, m * pitch + column), m < t.rows);
      classes[i] = load_if<8>(at_byte(a.weight, n * pitch + column), n < t.classes);
    }
    __syncthreads();  // the slice before may still be read
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int place = (row(i) * kPitch + channel(i) / 32 * 32) / 2 + channel(i) / 8 % 4;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        reinterpret_cast<uint32_t*>(shared->pooled)[place + 4 * k] = images[i].words[k];
        reinterpret_cast<uint32_t*>(shared->weight)[place + 4 * k] = classes[i].words[k];
      }
    }
    __syncthreads();
  };

  float of_slices[2][4][4] = {};
  for (int slice = rank; slice < a.channels / kTile; slice += kClusterBlocks) {
    bring(slice);
    multiply<T, false, false>(shared->pooled, m0, shared->weight, n0, of_slices);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        *reinterpret_cast<Pack<float, 2>*>(shared->sums + (m0 + 16 * i + 8 * e + g) * kPitch + n0 + 8 * j + 2 * q) = {
            {bits_of(of_slices[i][j][2 * e]), bits_of(of_slices[i][j][2 * e + 1])}};
  arrive_at_cluster();
  wait_for_cluster();

  // All loads are under way at once, and each block begins with its own numbers, so that no block is asked by all.
  Pack<float, kLaneClasses> sums[kClusterBlocks];
#pragma unroll
  for (int i = 0; i < kClusterBlocks; ++i)
    sums[i] =
        load_if<kLaneClasses>(IN_BLOCK(shared, (rank + i) % kClusterBlocks)->sums + own * kPitch + lane * kLaneClasses,
                              lane * kLaneClasses < t.classes);
  float value[kLaneClasses] = {};
#pragma unroll
  for (int k = 0; k < kLaneClasses; ++k) {
    float of_bias[1];
    unpack(bias[k], of_bias);
#pragma unroll
    for (int i = 0; i < kClusterBlocks; ++i) value[k] += float_of(sums[i].words[k]);
    value[k] += of_bias[0];
  }
  T* const row = shared->logits + warp * kTile;
  store<kLaneClasses>(row + lane * kLaneClasses, value);
  __syncwarp();
  const RowLoss of_row = row_loss<32>(row, lane, targets, t);  // also where there is no image: all lanes take part
  const float scale = grad_loss / static_cast<float>(t.rows);
#pragma unroll
  for (int i = 0; i < kLaneClasses; ++i) {
    const int k = lane + 32 * i;
    T grad{};
    if (is_image && k < t.classes) grad = logit_gradient(row[k], k, of_row.log_sum_exp, targets, t, scale);
    shared->grads[own * kPitch + k] = grad.bits;
  }
  if (lane == 0) shared->losses[warp] = is_image ? of_row.sums : LossSums{0, 0, 0};
  arrive_at_cluster();
  wait_for_cluster();

  Pack<T, 8> grads[kPacks];
  const int column = threadIdx.x % (kTile / 8) * 8;
  const auto row_of = [&](int i) {
    return static_cast<int>(threadIdx.x) / (kTile / 8) + (i + rank / 2) % kPacks * (kTile / kPacks);
  };
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int m = row_of(i);
    grads[i] = *reinterpret_cast<const Pack<T, 8>*>(IN_BLOCK(shared, m / kImages)->grads + m * kPitch + column);
  }
  LossSums losses{0, 0, 0};
  if (has_losses) {
#pragma unroll
    for (int m = 0; m < kTile; m += 32) losses.add(IN_BLOCK(shared, (m + lane) / kImages)->losses[lane % kImages]);
    losses = warp_sum(losses);
  }
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int m = row_of(i);
    if (m / kImages != rank) *reinterpret_cast<Pack<T, 8>*>(shared->grads + m * kPitch + column) = grads[i];
  }
  arrive_at_cluster();  // nothing of another block is read from here on
  __syncthreads();

  if (has_losses && lane == 0) {
    if (is_alone)
      write_results(totals, losses, t);
    else
      a.losses[cluster] = losses;
  }
  const int size = t.classes * a.channels;
  float* const part = a.parts + static_cast<int64_t>(cluster) * (size + kTile);
  if (blockIdx.x == gridDim.x - 1) {
    float sum = 0.f;
#pragma unroll
    for (int m = 0; m < kTile; m += 32) sum += load_f32(T{shared->grads[(m + lane) * kPitch + own]});
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    if (lane == 0) {
      if (!is_alone)
        part[size + own] = sum;
      else if (own < t.classes)
        a.grad_bias[own] = round_to<T>(sum);
    }
  }
#pragma unroll 1
  for (int slice = there; slice >= 0; slice -= kClusterBlocks) {
    bring(slice);
#pragma unroll 1
    for (int product = blockIdx.x; product < 2; product += gridDim.x) {
      const bool of_pooled = product == 0;
      float acc[2][4][4] = {};
      if (of_pooled)
        multiply<T, false, true>(shared->grads, m0, shared->weight, n0, acc);
      else
        multiply<T, true, true>(shared->grads, m0, shared->pooled, n0, acc);
      const int channel = slice * kTile + n0 + 8 * q;
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float v[8];
#pragma unroll
          for (int c = 0; c < 8; ++c) v[c] = acc[i][c / 2][2 * e + c % 2];
          const int m = m0 + 16 * i + 8 * e + g, image = first_image + m;  // m: of the weight, the class
          if (of_pooled) {
            if (image < t.rows)
              *reinterpret_cast<Pack<T, 8>*>(at_byte(a.grad_pooled, image * pitch + channel * kBytes)) = rounded<T>(v);
          } else if (m < t.classes) {
            if (is_alone)
              *reinterpret_cast<Pack<T, 8>*>(at_byte(a.grad_weight, m * pitch + channel * kBytes)) = rounded<T>(v);
            else
              *reinterpret_cast<Pack<float, 8>*>(part + m * a.channels + channel) = rounded<float>(v);
          }
        }
    }
  }
  wait_for_cluster();
}

// Adds up what `count` clusters have. A thread has four neighbouring numbers.
template <class T>
__global__ void __launch_bounds__(kThreads)
    merge_classifier_kernel(const ClassifierArguments<T> a, int count, const Targets t, const LossTotals totals) {
  begin_kernel();
  if (blockIdx.x == 0 && threadIdx.x < 32) sum_losses(a.losses, count, t, totals);
  const int size = t.classes * a.channels, column = (blockIdx.x * kThreads + threadIdx.x) * 4;
  if (column >= size + kTile) return;
  float sum[4] = {};
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    float v[4];
    load<4>(a.parts + static_cast<int64_t>(i) * (size + kTile) + column, v);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum[k] += v[k];
  }
  if (column < size) {
    store<4>(a.grad_weight + column, sum);
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int n = column - size + k;
    if (n < t.classes) a.grad_bias[n] = round_to<T>(sum[k]);
  }
}

bool classifier_gradient_suits(Dtype dtype, int64_t channels, int64_t classes) {
  return dtype != Dtype::kFloat32 && channels % kTile == 0 && classes <= kTile && is_from_hopper_on() &&
         has_shared_memory(sizeof(ClassifierShared<bf16>));
}

int64_t classifier_gradient_workspace(int64_t rows, int64_t channels, int64_t classes) {
  return ceil_div(rows, kTile) *
         (static_cast<int64_t>(sizeof(LossSums) / sizeof(double)) + (classes * channels + kTile) / 2);
}

cudaError_t classifier_gradient(Dtype dtype, const Classifier& c, const Targets& t, cudaStream_t stream) {
  const int clusters = ceil_div(t.rows, kTile), size = t.classes * c.channels + kTile;
  auto* parts = reinterpret_cast<float*>(c.workspace);  // at the beginning, which lies on 16 bytes
  auto* losses = reinterpret_cast<LossSums*>(parts + static_cast<int64_t>(clusters) * size);
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
                                     static_cast<T*>(c.grad_weight),
                                     static_cast<T*>(c.grad_bias),
                                     losses,
                                     parts};
      const int at_once = 2 * clusters <= kClusters ? 2 : 1;
      LAUNCH_LARGE(classifier_loss_kernel<T>, kClusterBlocks, ClassifierShared<T>,
                   dim3(at_once, clusters * kClusterBlocks), dim3(32 * kWarps), stream, a, t, totals);
      if (clusters > 1)
        LAUNCH(merge_classifier_kernel<T>, dim3(ceil_div(size, 4 * kThreads)), dim3(kThreads), stream, a, clusters, t,
               totals);
    }
  });
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

#include "cuda/batch_norm_relu.cuh"
#include "cuda/plane.cuh"

namespace fastcifar::cuda {

namespace {

// Calls f(pixel, numbers) for up to kUnroll pixels of image n from `first` on, V channels from c on. As in for_rows all
// are loaded before the first is used.
template <int V, class T, class F>
__device__ __forceinline__ void for_pixels(const T* x, int n, int first, int pixels, int C, int c, F f) {
  Pack<T, V> packs[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i)
    packs[i] = load_if<V>(x + (static_cast<int64_t>(n) * pixels + first + i) * C + c, first + i < pixels);
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    if (first + i >= pixels) break;
    float v[V];
    unpack(packs[i], v);
    f(first + i, v);
  }
}

// grid: (channel blocks, rows of images)
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    pool_kernel(const T* x, T* pooled, int N, int pixels, int C, const Norm norm) {
  begin_kernel();
  const Lanes<V> at;
  const int c = blockIdx.x * kBlockChannels + at.channel;
  float a[V], b[V];
  resolve(norm, C, at, a, b);
  if (c >= C) return;
  const float share = 1.f / static_cast<float>(pixels);
  for (int n = blockIdx.y * at.kCount + at.lane; n < N; n += gridDim.y * at.kCount) {
    float sum[V] = {};
    for (int first = 0; first < pixels; first += kUnroll)
      for_pixels<V>(x, n, first, pixels, C, c, [&](int, const float (&v)[V]) {
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] += relu(fmaf(v[i], a[i], b[i]));
      });
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] *= share;
    store<V>(pooled + static_cast<int64_t>(n) * C + c, sum);
  }
}

// As norm_relu_sums_kernel, where all pixels of an image have the gradient of its mean.
//
// grid of this and the next: (channel blocks, rows of pieces of maps)
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    pool_sums_kernel(const T* grad, const T* x, int N, int pixels, int C, const NormGrad norm, float* rows) {
  begin_kernel();
  const Lanes<V> at;
  const int c = blockIdx.x * kBlockChannels + at.channel;
  float sums[2][V] = {}, a[V], b[V], mu[V];
  read_channels(norm.mean, C, at, mu);
  resolve(known_norm(norm), C, at, a, b);
  if (c < C) {
    const float share = 1.f / static_cast<float>(pixels);
    const int across = ceil_div(pixels, kUnroll);
    for (int piece = blockIdx.y * at.kCount + at.lane; piece < N * across; piece += gridDim.y * at.kCount) {
      const int n = piece / across;
      float g[V];
      unpack(load_if<V>(grad + static_cast<int64_t>(n) * C + c, true), g);
      float passed[V] = {}, deviations[V] = {};  // of the pixels that the ReLU let through
      for_pixels<V>(x, n, piece % across * kUnroll, pixels, C, c, [&](int, const float (&v)[V]) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const bool is_cut = fmaf(v[i], a[i], b[i]) <= 0.f;
          passed[i] += is_cut ? 0.f : 1.f;
          deviations[i] += is_cut ? 0.f : v[i] - mu[i];
        }
      });
#pragma unroll
      for (int i = 0; i < V; ++i) {
        g[i] *= share;
        sums[0][i] = fmaf(g[i], passed[i], sums[0][i]);
        sums[1][i] = fmaf(g[i], deviations[i], sums[1][i]);
      }
    }
  }
  write_block_sums(sums, at, blockIdx.x * kBlockChannels, C, rows);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    pool_backward_kernel(const T* grad, const T* x, T* grad_x, int N, int pixels, int C, const NormGrad norm) {
  begin_kernel();
  const Lanes<V> at;
  ThreadNormGrad<V> own;
  own.resolve(norm, at, C);
  const int c = blockIdx.x * kBlockChannels + at.channel;
  if (c >= C) return;
  const float share = 1.f / static_cast<float>(pixels);
  const int across = ceil_div(pixels, kUnroll);
  for (int piece = blockIdx.y * at.kCount + at.lane; piece < N * across; piece += gridDim.y * at.kCount) {
    const int n = piece / across;
    float g[V];
    unpack(load_if<V>(grad + static_cast<int64_t>(n) * C + c, true), g);
#pragma unroll
    for (int i = 0; i < V; ++i) g[i] *= share * own.scale[i];
    for_pixels<V>(x, n, piece % across * kUnroll, pixels, C, c, [&](int pixel, float (&v)[V]) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float masked = fmaf(v[i], own.scale[i], own.shift[i]) <= 0.f ? 0.f : g[i];
        v[i] = masked + fmaf(own.slope[i], v[i] - own.mean[i], own.offset[i]);
      }
      store<V>(grad_x + (static_cast<int64_t>(n) * pixels + pixel) * C + c, v);
    });
  }
}

// A map of PIXELS pixels, of which a thread has all.
template <int PIXELS>
struct PoolPlane : PlaneLanes<1, kClusterBlocks> {
  static constexpr int kPixels = PIXELS;
};

// Calls f with the PoolPlane, and returns true, where clusters keep the maps: 2x2 and 4x4 are what networks have there.
template <class F>
bool with_pool_plane(int64_t N, int64_t pixels, int64_t C, F f) {
  const auto offer = [&](auto plane) {
    using P = decltype(plane);
    const bool is_kept = pixels == P::kPixels && keeps<P>(N, C);
    if (is_kept) f(plane);
    return is_kept;
  };
  return offer(PoolPlane<4>()) || offer(PoolPlane<16>());
}

// grid of both: plane_grid
template <class T, class P>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneResident)
    pool_plane_forward(const T* x, T* pooled, int N, int C, const Norm norm) {
  if constexpr (!has_clusters(P::kBlocks)) return;
  begin_kernel();
  constexpr int V = kPlaneVector;
  const PlaneThread<P> at;
  const bool is_image = at.image < N;
  const uint32_t pixel = C * sizeof(T), own = at.channel * sizeof(T);  // bytes
  PlanePack<T> packs[P::kPixels];
  load_plane(x, is_image, at.image * P::kPixels * pixel + own, pixel, packs);
  const PlaneParameters parameters(norm.gamma, norm.beta, at.channel);
  float v[P::kPixels][V];
#pragma unroll
  for (int p = 0; p < P::kPixels; ++p) unpack(packs[p], v[p]);
  const PlaneStatistics of_x = plane_statistics<0>(v, at, N);
  const PlaneAffine affine(parameters, of_x, norm.eps);
  if (is_image) {
    float sum[V] = {};
#pragma unroll
    for (int i = 0; i < V; ++i) {
#pragma unroll
      for (int p = 0; p < P::kPixels; ++p) sum[i] += relu(fmaf(v[p][i], affine.scale[i], affine.shift[i]));
      sum[i] *= 1.f / P::kPixels;
    }
    store<V>(at_byte(pooled, at.image * pixel + own), sum);
  }
  if (at.writes_results()) write_statistics(of_x, norm.mean, norm.var, at.channel);
  wait_for_cluster();
}

template <class T, class P>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneResident)
    pool_plane_backward(const T* grad, const T* x, T* grad_x, int N, int C, const NormGrad norm) {
  if constexpr (!has_clusters(P::kBlocks)) return;
  begin_kernel();
  constexpr int V = kPlaneVector;
  const PlaneThread<P> at;
  const bool is_image = at.image < N;
  const uint32_t pixel = C * sizeof(T), own = at.channel * sizeof(T);  // bytes
  const uint32_t first = at.image * P::kPixels * pixel + own;
  const PlaneStatistics of_x = read_statistics(norm.mean, norm.var, at.channel);
  const PlaneParameters parameters(norm.gamma, norm.beta, at.channel);
  PlanePack<T> packs[P::kPixels];
  load_plane(x, is_image, first, pixel, packs);
  float g[V];
  unpack(load_if<V>(at_byte(grad, at.image * pixel + own), is_image), g);
  const PlaneAffine affine(parameters, of_x, norm.eps);
  float passed[V] = {}, deviations[V] = {};  // as in pool_sums_kernel
#pragma unroll
  for (int p = 0; p < P::kPixels; ++p) {
    float v[V];
    unpack(packs[p], v);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const bool is_cut = fmaf(v[i], affine.scale[i], affine.shift[i]) <= 0.f;
      passed[i] += is_cut ? 0.f : 1.f;
      deviations[i] += is_cut ? 0.f : v[i] - of_x.mean[i];
    }
  }
  float sums[2][V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    g[i] *= 1.f / P::kPixels;
    sums[0][i] = g[i] * passed[i];
    sums[1][i] = g[i] * deviations[i];
  }
  const PlaneNormGrad through(plane_sums<P>(sums, [](int, float) {}), affine, of_x, norm.eps, N * P::kPixels, at,
                              norm.grad_gamma, norm.grad_beta);
  keep_packed(packs);
  if (is_image) {
#pragma unroll
    for (int p = 0; p < P::kPixels; ++p) {
      float v[V];
      unpack(packs[p], v);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float masked = fmaf(v[i], affine.scale[i], affine.shift[i]) <= 0.f ? 0.f : affine.scale[i] * g[i];
        v[i] = masked + fmaf(through.slope[i], v[i] - of_x.mean[i], through.offset[i]);
      }
      store<V>(at_byte(grad_x, first + p * pixel), v);
    }
  }
  wait_for_cluster();
}

}  // namespace

int64_t batch_norm_relu_pool_workspace(int64_t N, int64_t pixels, int64_t C) {
  return stream_workspace(N * pixels, C, 3);
}

// With the moments of x given one kernel; else one on small maps, two on others.
cudaError_t batch_norm_relu_pool(Dtype dtype, const void* x, PartialRows moments, const float* gamma, const float* beta,
                                 float eps, void* pooled, float* mean, float* var, float* workspace, int64_t N,
                                 int64_t pixels, int64_t C, cudaStream_t stream) {
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    const T* in = static_cast<const T*>(x);
    T* out = static_cast<T*>(pooled);
    const int images = static_cast<int>(N), channels = static_cast<int>(C);
    const auto keep = [&](auto plane) {
      using P = decltype(plane);
      LAUNCH_CLUSTERS((pool_plane_forward<T, P>), plane_blocks<P>(N), plane_grid<P>(N, C), dim3(kPlaneThreads), stream,
                      in, out, images, channels, norm_of(gamma, beta, eps, {}, mean, var));
    };
    if (moments.data == nullptr) {
      if (with_pool_plane(N, pixels, C, keep)) return;
      moments = launch_moments(in, N * pixels, C, workspace, stream);
    }
    const Norm norm = norm_of(gamma, beta, eps, moments, mean, var);
    with_width<T>(C, [&](auto width) {
      constexpr int V = decltype(width)::value;
      LAUNCH((pool_kernel<T, V>), dim3(ceil_div(C, kBlockChannels), stream_rows(N, C, V)), dim3(kThreads), stream, in,
             out, images, static_cast<int>(pixels), channels, norm);
    });
  });
  return cudaGetLastError();
}

int64_t batch_norm_relu_pool_backward_workspace(int64_t N, int64_t pixels, int64_t C) {
  return stream_workspace(N * ceil_div(pixels, kUnroll), C, 2);
}

// One kernel on small maps, two on others: the BN's sums; its gradient.
cudaError_t batch_norm_relu_pool_backward(Dtype dtype, const void* grad, const void* x, const float* gamma,
                                          const float* beta, const float* mean, const float* var, float eps,
                                          void* grad_x, float* grad_gamma, float* grad_beta, float* workspace,
                                          int64_t N, int64_t pixels, int64_t C, cudaStream_t stream) {
  NormGrad norm = norm_grad_of(gamma, beta, mean, var, eps, N * pixels, grad_gamma, grad_beta);
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    const T *grads = static_cast<const T*>(grad), *in = static_cast<const T*>(x);
    T* out = static_cast<T*>(grad_x);
    const int images = static_cast<int>(N), channels = static_cast<int>(C);
    const auto keep = [&](auto plane) {
      using P = decltype(plane);
      LAUNCH_CLUSTERS((pool_plane_backward<T, P>), plane_blocks<P>(N), plane_grid<P>(N, C), dim3(kPlaneThreads), stream,
                      grads, in, out, images, channels, norm);
    };
    if (with_pool_plane(N, pixels, C, keep)) return;
    with_width<T>(C, [&](auto width) {
      constexpr int V = decltype(width)::value;
      const int blocks = ceil_div(C, kBlockChannels), map = static_cast<int>(pixels);
      const int64_t all = N * ceil_div(pixels, kUnroll);
      const int rows = reducing_rows(all, C, V), cluster = blocks_a_row(rows);
      LAUNCH_CLUSTERS((pool_sums_kernel<T, V>), cluster, dim3(blocks, rows), dim3(kThreads), stream, grads, in, images,
                      map, channels, norm, workspace);
      const PartialRows sums = merge_sum_rows({workspace, rows / cluster}, 2, channels, stream);
      norm.rows = sums.data;
      norm.num_rows = sums.count;
      LAUNCH((pool_backward_kernel<T, V>), dim3(blocks, stream_rows(all, C, V)), dim3(kThreads), stream, grads, in, out,
             images, map, channels, norm);
    });
  });
  return cudaGetLastError();
}

}  // namespace fastcifar::cuda

// depthwise_block on 8x8, 4x4 and 2x2 maps, one kernel each way, from Hopper on.
#pragma once
#include <type_traits>

#include "cuda/plane.cuh"

namespace fastcifar::cuda {

// SIDE: height and width of the map. BLOCKS: of a cluster, at most.
template <int STRIDE, int SIDE, int BLOCKS = kClusterBlocks>
struct Plane : PlaneLanes<(SIDE > 4 ? 2 : 1), BLOCKS> {
  static constexpr int S = STRIDE, kSide = SIDE, kOutSide = (SIDE - 1) / S + 1;
  static constexpr int kRows = kSide / Plane::kStrips, kOutRows = kOutSide / Plane::kStrips;
  static constexpr int kIn = kRows * kSide, kOut = kOutRows * kOutSide;  // pixels of a strip
};

// Calls f with a value of the element type and the Plane, and returns true, where these kernels are for the shape.
template <class F>
bool with_plane(Dtype dtype, const DwShape& s, F f) {
  bool done = false;
  with_type(dtype, [&](auto type) {
    const auto offer = [&](auto plane) {
      using P = decltype(plane);
      const bool is_shape = s.H == P::kSide && s.W == P::kSide && s.stride == P::S;
      if (is_shape && keeps<P>(s.N, s.C)) f(type, plane), done = true;
    };
    offer(Plane<1, 2>());
    offer(Plane<1, 4>());
    offer(Plane<2, 4>());
    if constexpr (sizeof(type) == 2) {  // the pixels of half a float32 map do not fit the registers
      if (most_cluster_blocks() > kClusterBlocks) {
        offer(Plane<1, 8, 16>());
        offer(Plane<2, 8, 16>());
      } else {
        offer(Plane<1, 8>());
        offer(Plane<2, 8>());
      }
    }
  });
  return done;
}

__device__ __forceinline__ void load_plane_taps(const float* w, int c, float (&to)[9][kPlaneVector]) {
#pragma unroll
  for (int k = 0; k < 9; ++k)
#pragma unroll
    for (int v = 0; v < kPlaneVector; ++v) to[k][v] = w[(c + v) * 9 + k];
}

// Numbers of ROWS x COLUMNS pixels of each strip, of the thread's channels, which the other threads of the image may
// read: in registers where there are none, else in shared memory.
template <class P, int ROWS, int COLUMNS>
class PlaneMap {
 public:
  __device__ __forceinline__ explicit PlaneMap(int strip) : strip_(strip) {
    if constexpr (kShared) {
      SHARED_ARRAY(float, numbers, ROWS * COLUMNS * kPlaneThreads * kPlaneVector);
      shared_ = numbers;
    }
  }

  __device__ __forceinline__ void set(int pixel, const float (&v)[kPlaneVector]) {
    if constexpr (kShared)
      *reinterpret_cast<Numbers*>(at(pixel, threadIdx.x)) = rounded<float>(v);
    else
      own_[pixel] = rounded<float>(v);
  }
  // To be called by all threads of the block between set and get.
  __device__ __forceinline__ void sync() const {
    if constexpr (kShared) __syncthreads();
  }
  // Whether the pixel may be of the map; its numbers are zeros where it turns out not to be. Rows count from the strip's
  // first; the last of the strip above is -1.
  __device__ __forceinline__ bool get(int row, int column, float (&to)[kPlaneVector]) const {
    if (column < 0 || column >= COLUMNS) return false;
    const bool here = row >= 0 && row < ROWS;
    if constexpr (kShared) {
      const int other = row < 0 ? -1 : 1, strip = strip_ + other;
      if (here)
        load<kPlaneVector>(at(row * COLUMNS + column, threadIdx.x), to);
      else
        unpack(load_if<kPlaneVector>(at((row - other * ROWS) * COLUMNS + column, threadIdx.x + other * P::kGroups),
                                     strip >= 0 && strip < P::kStrips),
               to);
      return true;
    } else {
      if (here) unpack(own_[row * COLUMNS + column], to);
      return here;
    }
  }

 private:
  static constexpr bool kShared = P::kStrips > 1;
  using Numbers = Pack<float, kPlaneVector>;
  __device__ __forceinline__ float* at(int pixel, int thread) const {
    return shared_ + (pixel * kPlaneThreads + thread) * kPlaneVector;
  }
  int strip_;
  float* shared_ = nullptr;
  Numbers own_[kShared ? 1 : ROWS * COLUMNS];
};

// The n-th pixel of a strip column by column: the fewest numbers are read long before they are used again.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ constexpr int by_columns(int n) {
  return n % ROWS * COLUMNS + n / ROWS;
}

// grid of both: plane_grid
template <class T, class P>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneResident)
    depthwise_plane_forward(const BlockForward b, int N, int C) {
  if constexpr (!has_clusters(P::kBlocks)) return;
  begin_kernel();
  constexpr int V = kPlaneVector;
  const PlaneThread<P> at;
  const int c = at.channel;
  const bool is_image = at.image < N;
  const uint32_t pixel = C * sizeof(T), own = c * sizeof(T);  // bytes
  const uint32_t strip = at.image * P::kStrips + at.strip;
  PlanePack<T> packs[P::kIn];
  load_plane(static_cast<const T*>(b.u), is_image, strip * P::kIn * pixel + own, pixel, packs);
  float w[9][V];
  load_plane_taps(b.w, c, w);
  const PlaneParameters of_norm0(b.gamma0, b.beta0, c), of_norm1(b.gamma1, b.beta1, c);

  float x[P::kIn][V], out[P::kOut][V] = {};
#pragma unroll
  for (int i = 0; i < P::kIn; ++i) unpack(packs[i], x[i]);
  PlaneStatistics of_u;
  if (b.u_mean != nullptr) {
    of_u = read_statistics(b.u_mean, b.u_var, c);
  } else {
    of_u = plane_statistics<0>(x, at, N);
    wait_for_cluster();
  }
  const PlaneAffine norm0(of_norm0, of_u, b.eps);
  PlaneMap<P, P::kRows, P::kSide> h(at.strip);
#pragma unroll
  for (int i = 0; i < P::kIn; ++i) {
#pragma unroll
    for (int v = 0; v < V; ++v) x[i][v] = relu(fmaf(x[i][v], norm0.scale[v], norm0.shift[v]));
    h.set(i, x[i]);
  }
  h.sync();
  const uint32_t first_out = strip * P::kOut * pixel + own;
  if (is_image) {
#pragma unroll
    for (int n = 0; n < P::kOut; ++n) {
      const int o = by_columns<P::kOutRows, P::kOutSide>(n);
#pragma unroll
      for (int k = 0; k < 9; ++k) {
        const int row = o / P::kOutSide * P::S - 1 + k / 3, column = o % P::kOutSide * P::S - 1 + k % 3;
        float seen[V];
        if (!h.get(row, column, seen)) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) out[o][v] = fmaf(seen[v], w[k][v], out[o][v]);
      }
      store<V>(at_byte(static_cast<T*>(b.y), first_out + o * pixel), out[o]);
    }
  }
  const PlaneStatistics of_y = plane_statistics<1>(out, at, N);
  const PlaneAffine norm1(of_norm1, of_y, b.eps);
  if (is_image) {
#pragma unroll
    for (int o = 0; o < P::kOut; ++o) {
#pragma unroll
      for (int v = 0; v < V; ++v) out[o][v] = relu(fmaf(out[o][v], norm1.scale[v], norm1.shift[v]));
      store<V>(at_byte(static_cast<T*>(b.z), first_out + o * pixel), out[o]);
    }
  }
  if (at.writes_results()) {
    write_statistics(of_u, b.mean0, b.var0, c);
    write_statistics(of_y, b.mean1, b.var1, c);
  }
  wait_for_cluster();
}

template <class T, class P>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneResident)
    depthwise_plane_backward(const BlockBackward b, int N, int C) {
  if constexpr (!has_clusters(P::kBlocks)) return;
  begin_kernel();
  constexpr int V = kPlaneVector, S = P::S;
  const PlaneThread<P> at;
  const int c = at.channel;
  const bool is_image = at.image < N;
  const uint32_t pixel = C * sizeof(T), own = c * sizeof(T);  // bytes
  const uint32_t strip = at.image * P::kStrips + at.strip;
  const uint32_t first_in = strip * P::kIn * pixel + own, first_out = strip * P::kOut * pixel + own;
  const PlaneStatistics of_u = read_statistics(b.mean0, b.var0, c), of_y = read_statistics(b.mean1, b.var1, c);
  const PlaneParameters of_norm0(b.gamma0, b.beta0, c), of_norm1(b.gamma1, b.beta1, c);
  PlanePack<T> grads[P::kOut], ys[P::kOut], packs[P::kIn];
  load_plane(static_cast<const T*>(b.grad_z), is_image, first_out, pixel, grads);
  load_plane(static_cast<const T*>(b.y), is_image, first_out, pixel, ys);
  load_plane(static_cast<const T*>(b.u), is_image, first_in, pixel, packs);
  const PlaneAffine norm0(of_norm0, of_u, b.eps), norm1(of_norm1, of_y, b.eps);

  // Pixel o's y, less its mean, and the gradient of norm1's output.
  const auto unpack_out = [&](int o, float (&y)[V], float (&g)[V]) {
    unpack(grads[o], g);
    unpack(ys[o], y);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (fmaf(y[v], norm1.scale[v], norm1.shift[v]) <= 0.f) g[v] = 0.f;
      y[v] -= of_y.mean[v];
    }
  };
  float sums1[2][V] = {};
#pragma unroll
  for (int o = 0; o < P::kOut; ++o) {
    float y[V], g[V];
    unpack_out(o, y, g);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      sums1[0][v] += g[v];
      sums1[1][v] = fmaf(g[v], y[v], sums1[1][v]);
    }
  }
  float w[9][V];
  load_plane_taps(b.w, c, w);
  PlaneNormGrad grad1(plane_sums<P>(sums1, [](int, float) {}), norm1, of_y, b.eps, N * P::kStrips * P::kOut, at,
                      b.grad_gamma1, b.grad_beta1);
  if (!is_image) {  // its gradients are zeros, and stay so
#pragma unroll
    for (int v = 0; v < V; ++v) grad1.slope[v] = grad1.offset[v] = 0.f;
  }
  keep_packed(grads);
  keep_packed(ys);
  PlaneMap<P, P::kOutRows, P::kOutSide> dy(at.strip);
#pragma unroll
  for (int o = 0; o < P::kOut; ++o) {
    float y[V], g[V];
    unpack_out(o, y, g);
#pragma unroll
    for (int v = 0; v < V; ++v) g[v] = fmaf(norm1.scale[v], g[v], fmaf(grad1.slope[v], y[v], grad1.offset[v]));
    dy.set(o, g);
  }
  dy.sync();
  // The gradient of norm0's output waits in registers for norm0's sums; of a strip's many pixels rounded, as in memory.
  using Kept = std::conditional_t<(P::kStrips > 1), T, float>;
  Pack<Kept, V> kept[P::kIn];
  float sums[11][V] = {};  // norm0's two, the taps of grad_w
#pragma unroll
  for (int n = 0; n < P::kIn; ++n) {
    const int i = by_columns<P::kRows, P::kSide>(n);
    float x[V], h[V], dx[V] = {};
    unpack(packs[i], x);
#pragma unroll
    for (int v = 0; v < V; ++v) h[v] = relu(fmaf(x[v], norm0.scale[v], norm0.shift[v]));
#pragma unroll
    for (int k = 0; k < 9; ++k) {  // output (row + 1 - kh) / S, where S divides it, saw this pixel through tap kh
      const int row = i / P::kSide + 1 - k / 3, column = i % P::kSide + 1 - k % 3;
      float g[V];
      if (row % S != 0 || column % S != 0 || !dy.get(row / S, column / S, g)) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        dx[v] = fmaf(g[v], w[k][v], dx[v]);
        sums[2 + k][v] = fmaf(g[v], h[v], sums[2 + k][v]);
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (h[v] <= 0.f) dx[v] = 0.f;
      sums[0][v] += dx[v];
      sums[1][v] = fmaf(dx[v], x[v] - of_u.mean[v], sums[1][v]);
    }
    kept[i] = rounded<Kept>(dx);
  }
  keep_packed(packs);
  wait_for_cluster();
  const float* totals = plane_sums<P>(
      sums, [&](int i, float sum) { b.grad_w[(c - at.own + i % P::kChannels) * 9 + i / P::kChannels - 2] = sum; });
  const PlaneNormGrad grad0(totals, norm0, of_u, b.eps, N * P::kStrips * P::kIn, at, b.grad_gamma0, b.grad_beta0);
  if (is_image) {
#pragma unroll
    for (int i = 0; i < P::kIn; ++i) {
      float x[V], dx[V];
      unpack(packs[i], x);
      unpack(kept[i], dx);
#pragma unroll
      for (int v = 0; v < V; ++v)
        dx[v] = fmaf(norm0.scale[v], dx[v], fmaf(grad0.slope[v], x[v] - of_u.mean[v], grad0.offset[v]));
      store<V>(at_byte(static_cast<T*>(b.grad_u), first_in + i * pixel), dx);
    }
  }
  wait_for_cluster();
}

}  // namespace fastcifar::cuda

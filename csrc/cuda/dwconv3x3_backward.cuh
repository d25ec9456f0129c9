// The backward of the depthwise 3x3 convolution in one sweep, plain and fused with the BN and ReLU before and after it.
#pragma once
#include "cuda/dwconv3x3_tile.cuh"

namespace fastcifar::cuda {

template <class T>
struct BackwardArguments {
  const T* grad;  // plain: gradient of y; fused: of z = relu(norm1(y))
  const T* x;     // plain: the convolution's input; fused: u, its input before norm0 and ReLU
  const T* y;     // fused
  const float* w;
  T* grad_x;    // fused: gradient of norm0's output, masked by the ReLU, times norm0's scale; null: not wanted
  float* rows;  // partial sums, see kQuantities; null: not wanted
  DwGeometry s;
  TileGrid tiles;
  NormGrad norm1;                              // fused
  const float *gamma0, *beta0, *mean0, *var0;  // fused
  float eps;
};

// The 9 taps of grad_w; fused: also norm0's two sums.
template <bool FUSED>
inline constexpr int kQuantities = FUSED ? 11 : 9;

// One sweep over cells of S x S inputs, as many as there are outputs: x, the mask and the sums are needed at the centre
// only, so that the gradient of y alone has a halo: one pixel around the tile, for S = 2 only below and to the right.
//
// Two blocks an SM, 128 registers each, but one where that spills: float32, fused, with stride 1 and tiles that hang over
// the map; a whole 4x4 map (with ptxas for sm_90 only fused with stride 1); on sm_120 float32, fused, with stride 2. One
// block an SM is enough up to batch 128, where there are no more blocks.
template <class T, int S, int PLANE, bool WHOLE, bool FUSED>
constexpr int backward_blocks() {
  if (sizeof(T) == 4 && S == 1 && PLANE == 0 && !WHOLE && FUSED) return 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
  return PLANE == 4 || (S == 2 && FUSED && sizeof(T) == 4) ? 1 : 2;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
  return PLANE == 4 ? 1 : 2;
#else
  return PLANE == 4 && S == 1 && FUSED ? 1 : 2;
#endif
}

// grid: (channel blocks, rows of partial results)
template <class T, int V, int S, int R, int PLANE, bool WHOLE, bool FUSED>
__global__ void __launch_bounds__(kThreads, (backward_blocks<T, S, PLANE, WHOLE, FUSED>()))
    dwconv3x3_backward(const BackwardArguments<T> a) {
  begin_kernel();
  constexpr int kBefore = S == 1 ? 1 : 0, kWindow = kBefore + 2;  // columns and rows of dy that one cell touches
  constexpr int kRows = R - 1 + kWindow, kQ = kQuantities<FUSED>;
  constexpr bool kFast = WHOLE && std::is_same_v<T, bf16>;  // else there are not enough registers
  constexpr int kSide = PLANE ? (PLANE - 1) / S + 1 : 1;    // of a whole map of dy
  const int C = a.s.C, H = PLANE ? PLANE : a.s.H, W = PLANE ? PLANE : a.s.W;
  const int Ho = PLANE ? (PLANE - 1) / S + 1 : a.s.Ho, Wo = PLANE ? (PLANE - 1) / S + 1 : a.s.Wo;
  const Lanes<V> at;
  const int c = blockIdx.x * kBlockChannels + at.channel;

  SHARED_ARRAY(float, taps, 9 * kBlockChannels);
  const Taps own_taps(a.w, C);
  float mean1[V], scale1[V], shift1[V], slope1[V], offset1[V], scale0[V], shift0[V], mean0[V];
  if constexpr (FUSED) {
    float var0[V], gamma0[V], beta0[V];
    read_channels(a.mean0, C, at, mean0);
    read_channels(a.var0, C, at, var0);
    read_channels(a.gamma0, C, at, gamma0);
    read_channels(a.beta0, C, at, beta0);
    read_channels(a.norm1.mean, C, at, mean1);
    SHARED_ARRAY(float, scale, kBlockChannels);
    SHARED_ARRAY(float, shift, kBlockChannels);
    SHARED_ARRAY(float, slope, kBlockChannels);
    SHARED_ARRAY(float, offset, kBlockChannels);
    resolve(a.norm1, C, scale, shift, slope, offset);
    load<V>(scale + at.channel, scale1);
    load<V>(shift + at.channel, shift1);
    load<V>(slope + at.channel, slope1);
    load<V>(offset + at.channel, offset1);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const Affine norm0 = affine_of(gamma0[v], beta0[v], mean0[v], var0[v], a.eps);
      scale0[v] = norm0.scale;
      shift0[v] = norm0.shift;
    }
  }
  own_taps.share(taps);
  float sums[kQ][V] = {};
  if (c < C) {
    float w[9][V];
#pragma unroll
    for (int k = 0; k < 9; ++k) load<V>(taps + k * kBlockChannels + at.channel, w[k]);
    const bool wants_dx = FUSED || a.grad_x != nullptr;
    const int64_t pixel = C * sizeof(T), line = W * pixel, line_out = Wo * pixel;  // bytes
    for (int t = blockIdx.y * at.kCount + at.lane; t < a.tiles.count; t += gridDim.y * at.kCount) {
      const TileGrid::Place place = PLANE ? TileGrid::Place{t, 0, 0} : a.tiles.place(t);
      const int n = place.image, i0 = place.strip * R, j0 = place.column,
                end = PLANE ? Wo : min(j0 + a.tiles.columns, Wo);
      // The next column of pixels to be read and to be written, and of gradients: its first row that is inside. From it the
      // others are reached by distances that all threads share.
      const uint32_t first_cell = (static_cast<uint32_t>((n * H + i0 * S) * W + j0 * S) * C + c) * sizeof(T);
      const uint32_t first_dy = (static_cast<uint32_t>((n * Ho + i0) * Wo + j0) * C + c) * sizeof(T);
      Cursor<const T, kFast> cells(a.x, first_cell), dy(a.grad, first_dy), y(FUSED ? a.y : nullptr, first_dy);
      Cursor<T, kFast> dx_out(a.grad_x, first_cell);
      if (PLANE == 0 && kBefore) dy.move(-pixel), y.move(FUSED ? -pixel : 0);
      const auto inside = [&](int i, int ow) {
        const bool always = WHOLE && i >= kBefore && i < kRows - 1;
        return static_cast<unsigned>(ow) < static_cast<unsigned>(Wo) &&
               (always || static_cast<unsigned>(i0 - kBefore + i) < static_cast<unsigned>(Ho));
      };
      const auto fetch_dy = [&](int ow, Pack<T, V>(&grads)[kRows], Pack<T, V>(&ys)[kRows]) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int64_t row = (i - kBefore) * line_out;
          grads[i] = load_if<V>(dy.at(row), inside(i, ow));
          if constexpr (FUSED) ys[i] = load_if<V>(y.at(row), inside(i, ow));
        }
        dy.move(pixel);
        if constexpr (FUSED) y.move(pixel);
      };
      const auto is_pixel = [&](int r, int p, int j, int q) {
        return WHOLE || ((i0 + r) * S + p < H && j * S + q < W);
      };
      const auto fetch_x = [&](int j, Pack<T, V>(&to)[R][S][S]) {
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int p = 0; p < S; ++p)
#pragma unroll
            for (int q = 0; q < S; ++q)
              to[r][p][q] = load_if<V>(cells.at((r * S + p) * line + q * pixel), is_pixel(r, p, j, q));
        cells.move(S * pixel);
      };
      const auto convert = [&](int ow, const Pack<T, V>(&grads)[kRows], const Pack<T, V>(&ys)[kRows],
                               float (&to)[kRows][V]) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          unpack(grads[i], to[i]);
          if constexpr (FUSED) {
            float own[V];
            unpack(ys[i], own);
#pragma unroll
            for (int v = 0; v < V; ++v) {
              const float g = fmaf(own[v], scale1[v], shift1[v]) <= 0.f ? 0.f : to[i][v];
              to[i][v] = kept_if(fmaf(scale1[v], g, fmaf(slope1[v], own[v] - mean1[v], offset1[v])), inside(i, ow));
            }
          }
        }
      };
      // Columns j - kBefore to j + 1 of dy.
      float window[kWindow][kRows][V];
      // Computes a column of cells. `which`: where in the window its columns begin.
      const auto finish = [&](int j, const Pack<T, V>(&pixels)[R][S][S], auto which) {
        constexpr int first = decltype(which)::value;
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int p = 0; p < S; ++p)
#pragma unroll
            for (int q = 0; q < S; ++q) {
              if (!is_pixel(r, p, j, q)) continue;
              float x[V], v0[V], dx[V] = {};
              unpack(pixels[r][p][q], x);
#pragma unroll
              for (int v = 0; v < V; ++v) v0[v] = FUSED ? relu(fmaf(x[v], scale0[v], shift0[v])) : x[v];
          // Output (ih + 1 - kh) / S, where S divides it, saw input row ih through tap kh.
#pragma unroll
              for (int kh = 0; kh < 3; ++kh) {
                if ((p + 1 - kh) % S != 0) continue;
#pragma unroll
                for (int kw = 0; kw < 3; ++kw) {
                  if ((q + 1 - kw) % S != 0) continue;
                  const float (&g)[V] =
                      window[(first + kBefore + (q + 1 - kw) / S) % kWindow][r + kBefore + (p + 1 - kh) / S];
#pragma unroll
                  for (int v = 0; v < V; ++v) {
                    dx[v] = fmaf(g[v], w[kh * 3 + kw][v], dx[v]);
                    sums[kh * 3 + kw][v] = fmaf(g[v], v0[v], sums[kh * 3 + kw][v]);
                  }
                }
              }
              if constexpr (FUSED) {
#pragma unroll
                for (int v = 0; v < V; ++v) {
                  if (v0[v] <= 0.f) dx[v] = 0.f;
                  sums[9][v] += dx[v];
                  sums[10][v] = fmaf(dx[v], x[v] - mean0[v], sums[10][v]);
                  dx[v] *= scale0[v];
                }
              }
              if (wants_dx) store<V>(dx_out.at((r * S + p) * line + q * pixel), dx);
            }
        if (wants_dx) dx_out.move(S * pixel);
      };
      if constexpr (PLANE > 0) {
        Pack<T, V> grads[kSide][kRows], ys[kSide][kRows], xs[kSide][R][S][S];
#pragma unroll
        for (int j = 0; j < kSide; ++j) {
          fetch_dy(j, grads[j], ys[j]);
          fetch_x(j, xs[j]);
        }
#pragma unroll
        for (int j = 0; j < kSide; ++j) {
#pragma unroll
          for (int k = 0; k < kWindow; ++k) {
            const int ow = j - kBefore + k;
            if (ow >= 0 && ow < kSide) {
              convert(ow, grads[ow], ys[ow], window[k]);
              continue;
            }
#pragma unroll
            for (int i = 0; i < kRows; ++i)
#pragma unroll
              for (int v = 0; v < V; ++v) window[k][i][v] = 0.f;
          }
          finish(j, xs[j], std::integral_constant<int, 0>());
        }
      } else {
        Pack<T, V> grads[kRows], ys[kRows], xs[R][S][S];
        constexpr bool kXAhead = S == 1 && sizeof(T) == 2;  // else there are not enough registers
        if (kXAhead) fetch_x(j0, xs);
#pragma unroll
        for (int k = 0; k < kWindow; ++k) {
          fetch_dy(j0 - kBefore + k, grads, ys);
          if (k + 1 < kWindow) convert(j0 - kBefore + k, grads, ys, window[k]);
        }
        int j = j0;
        constexpr int kTurns = kFast ? kWindow : 1;
        // Returns whether the column was the tile's last.
        const auto take = [&](auto which) {
          constexpr int turn = decltype(which)::value;
          if (!kXAhead) fetch_x(j, xs);
          Pack<T, V> pixels[R][S][S];
#pragma unroll
          for (int r = 0; r < R; ++r)
#pragma unroll
            for (int p = 0; p < S; ++p)
#pragma unroll
              for (int q = 0; q < S; ++q) pixels[r][p][q] = xs[r][p][q];
          convert(j + 1, grads, ys, window[(turn + kWindow - 1) % kWindow]);
          if (j + 1 < end) {
            fetch_dy(j + 2, grads, ys);
            if (kXAhead) fetch_x(j + 1, xs);
          }
          finish(j, pixels, which);
          if constexpr (kTurns == 1) move_columns(window);
          return ++j == end;
        };
        take_in_turns<kTurns>(take);
      }
    }
  }
  if (FUSED || a.rows != nullptr) write_block_sums(sums, at, blockIdx.x * kBlockChannels, C, a.rows);
}

template <bool FUSED, class T>
void launch_backward(BackwardArguments<T> a, const DwShape& s, cudaStream_t stream) {
  with_tile<FUSED ? Pass::kFusedBackward : Pass::kBackward>(s, [&](auto tile) {
    using Is = decltype(tile);
    const Plan p = plan<Is>(s, true);
    a.tiles = p.tiles;
    LAUNCH((dwconv3x3_backward<T, Is::V, Is::S, Is::R, Is::PLANE, Is::WHOLE, FUSED>),
           dim3(ceil_div(s.C, kBlockChannels), p.rows), dim3(kThreads), stream, a);
  });
}

}  // namespace fastcifar::cuda

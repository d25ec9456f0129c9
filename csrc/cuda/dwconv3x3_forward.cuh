// The forward of the depthwise 3x3 convolution, plain and fused with the BN and ReLU before and after it.
#pragma once
#include "cuda/dwconv3x3_tile.cuh"

namespace fastcifar::cuda {

enum class Forward {
  kPlain,  // y = dwconv(x)
  kTrain,  // y = dwconv(relu(norm(x))) and the moments of y
  kEval,   // y = relu(scale1 * dwconv(relu(scale0 * x + shift0)) + shift1)
};

template <class T>
struct ForwardArguments {
  const T* x;
  const float* w;
  T* y;
  DwGeometry s;
  int columns;                                     // of a tile
  Norm norm;                                       // kTrain
  float* rows;                                     // kTrain: partial moments of y, a row for each blockIdx.y
  const float *scale0, *shift0, *scale1, *shift1;  // kEval
};

// grid: (channel blocks, rows of partial results)
template <class T, int V, int S, int R, int PLANE, Forward MODE>
__global__ void __launch_bounds__(kThreads, 2) dwconv3x3_forward(const ForwardArguments<T> a) {
  begin_kernel();
  constexpr int kRows = (R - 1) * S + 3;  // of inputs
  const int C = a.s.C, H = PLANE ? PLANE : a.s.H, W = PLANE ? PLANE : a.s.W;
  const int Ho = PLANE ? (PLANE - 1) / S + 1 : a.s.Ho, Wo = PLANE ? (PLANE - 1) / S + 1 : a.s.Wo;
  const Lanes<V> at;
  const int c = blockIdx.x * kBlockChannels + at.channel;

  SHARED_ARRAY(float, taps, 9 * kBlockChannels);
  const Taps own_taps(a.w, C);
  float scale0[V], shift0[V], scale1[V], shift1[V];
  if constexpr (MODE == Forward::kTrain) resolve(a.norm, C, at, scale0, shift0);
  own_taps.share(taps);
  RunningMoments<V> moments;
  if (c < C) {
    float w[9][V];
#pragma unroll
    for (int k = 0; k < 9; ++k) load<V>(taps + k * kBlockChannels + at.channel, w[k]);
    if constexpr (MODE == Forward::kEval) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        scale0[v] = a.scale0[c + v];
        shift0[v] = a.shift0[c + v];
        scale1[v] = a.scale1[c + v];
        shift1[v] = a.shift1[c + v];
      }
    }
    const uint32_t pixel = C * sizeof(T), line = W * pixel, line_out = Wo * pixel;  // bytes
    const int across = PLANE ? 1 : ceil_div(Wo, a.columns), down = PLANE ? 1 : ceil_div(Ho, R);
    for (int t = blockIdx.y * at.kCount + at.lane; t < a.s.N * down * across; t += gridDim.y * at.kCount) {
      const int n = t / across / down, oh0 = t / across % down * R, ow0 = PLANE ? 0 : t % across * a.columns;
      const int end = PLANE ? Wo : min(ow0 + a.columns, Wo);
      const uint32_t x0 = static_cast<uint32_t>((n * H + oh0 * S - 1) * W) * pixel + c * sizeof(T);  // may wrap around
      uint32_t y0 = static_cast<uint32_t>((n * Ho + oh0) * Wo + ow0) * pixel + c * sizeof(T);
      const auto inside = [&](int i, int iw) {
        return static_cast<unsigned>(iw) < static_cast<unsigned>(W) &&
               static_cast<unsigned>(oh0 * S - 1 + i) < static_cast<unsigned>(H);
      };
      const auto fetch = [&](int iw, Pack<T, V>(&to)[kRows]) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) to[i] = load_if<V>(at_byte(a.x, x0 + i * line + iw * pixel), inside(i, iw));
      };
      const auto convert = [&](int iw, const Pack<T, V>(&from)[kRows], float (&to)[kRows][V]) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          unpack(from[i], to[i]);
          if constexpr (MODE != Forward::kPlain) {
#pragma unroll
            for (int v = 0; v < V; ++v) to[i][v] = kept_if(relu(fmaf(to[i][v], scale0[v], shift0[v])), inside(i, iw));
          }
        }
      };
      // Columns ow * S - 1 to ow * S + 1 of the inputs; the last S of them come in with each output column.
      float window[3][kRows][V];
      Pack<T, V> next[PLANE ? PLANE : 3][kRows];
      const auto column = [&](int ow, int k, float (&to)[kRows][V]) {
        const int iw = ow * S - 1 + k;
        if (PLANE == 0) return convert(iw, next[k], to);
        if (iw >= 0 && iw < W) return convert(iw, next[PLANE ? iw : 0], to);
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
          for (int v = 0; v < V; ++v) to[i][v] = 0.f;
      };
#pragma unroll
      for (int k = 0; k < (PLANE ? PLANE : 3); ++k) fetch(PLANE ? k : ow0 * S - 1 + k, next[k]);
#pragma unroll
      for (int k = 0; k < 3 - S; ++k) column(ow0, k, window[k + S]);
#pragma unroll(PLANE ? PLANE : 1)
      for (int ow = ow0; ow < end; ++ow, y0 += pixel) {
#pragma unroll
        for (int k = 0; k < 3 - S; ++k)
#pragma unroll
          for (int i = 0; i < kRows; ++i)
#pragma unroll
            for (int v = 0; v < V; ++v) window[k][i][v] = window[k + S][i][v];
#pragma unroll
        for (int k = 3 - S; k < 3; ++k) {
          column(ow, k, window[k]);
          if (PLANE == 0 && ow + 1 < end) fetch((ow + 1) * S - 1 + k, next[PLANE ? 0 : k]);
        }
#pragma unroll
        for (int r = 0; r < R; ++r) {
          float out[V] = {};
#pragma unroll
          for (int kh = 0; kh < 3; ++kh)
#pragma unroll
            for (int kw = 0; kw < 3; ++kw)
#pragma unroll
              for (int v = 0; v < V; ++v) out[v] = fmaf(window[kw][r * S + kh][v], w[kh * 3 + kw][v], out[v]);
          if (oh0 + r >= Ho) continue;
          if constexpr (MODE == Forward::kEval) {
#pragma unroll
            for (int v = 0; v < V; ++v) out[v] = relu(fmaf(out[v], scale1[v], shift1[v]));
          }
          store<V>(at_byte(a.y, y0 + r * line_out), out);
          if constexpr (MODE == Forward::kTrain) {
            if (r == 0 && ow == ow0) moments.start(out);
            moments.add(out);
          }
        }
      }
    }
  }
  if constexpr (MODE == Forward::kTrain) write_block_moments(moments, at, blockIdx.x * kBlockChannels, C, a.rows);
}

template <Forward MODE, class T>
void launch_forward(ForwardArguments<T> a, const DwShape& s, cudaStream_t stream) {
  with_tile<Pass::kForward>(s, [&](auto tile) {
    using Is = decltype(tile);
    const Plan p = plan<Is>(s, MODE == Forward::kTrain);
    a.columns = p.columns;
    LAUNCH((dwconv3x3_forward<T, Is::V, Is::S, Is::R, Is::PLANE, MODE>), dim3(ceil_div(s.C, kBlockChannels), p.rows),
           dim3(kThreads), stream, a);
  });
}

}  // namespace fastcifar::cuda

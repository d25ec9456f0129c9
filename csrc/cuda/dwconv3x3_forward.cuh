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
  TileGrid tiles;
  Norm norm;                                       // kTrain
  float* rows;                                     // kTrain: partial moments of y, a row for each blockIdx.y
  const float *scale0, *shift0, *scale1, *shift1;  // kEval
};

// grid: (channel blocks, rows of partial results)
template <class T, int V, int S, int R, int PLANE, bool WHOLE, Forward MODE>
__global__ void __launch_bounds__(kThreads, 2) dwconv3x3_forward(const ForwardArguments<T> a) {
  begin_kernel();
  constexpr int kRows = (R - 1) * S + 3;           // of inputs
  constexpr int kTurns = S == 1 ? 3 : 2;           // columns of outputs until a column of inputs has the same registers
  constexpr bool kFast = WHOLE && sizeof(T) == 2;  // else there are not enough registers
  constexpr int kAhead = kFast ? kTurns : 1;       // columns of outputs whose inputs are on their way
  const int C = a.s.C, H = PLANE ? PLANE : a.s.H, W = PLANE ? PLANE : a.s.W;
  const int Ho = PLANE ? (PLANE - 1) / S + 1 : a.s.Ho, Wo = PLANE ? (PLANE - 1) / S + 1 : a.s.Wo;
  const Lanes<V> at;
  const int c = blockIdx.x * kBlockChannels + at.channel;

  SHARED_ARRAY(float, taps, 9 * kBlockChannels);
  const Taps own_taps(a.w, C);
  float scale0[V], shift0[V], scale1[V], shift1[V];
  if constexpr (MODE == Forward::kTrain) resolve(a.norm, C, at, scale0, shift0);
  own_taps.share(taps);
  float moments[2][V] = {}, pivot[V] = {};  // sums of the deviations from the first output, and of their squares
  int count = 0;
  bool is_first = true;
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
    const int64_t pixel = C * sizeof(T), line = W * pixel, line_out = Wo * pixel;  // bytes
    for (int t = blockIdx.y * at.kCount + at.lane; t < a.tiles.count; t += gridDim.y * at.kCount) {
      const TileGrid::Place place = PLANE ? TileGrid::Place{t, 0, 0} : a.tiles.place(t);
      const int n = place.image, oh0 = place.strip * R, ow0 = place.column,
                end = PLANE ? Wo : min(ow0 + a.tiles.columns, Wo);
      // The next pixel to be read of row 1, which is inside, and the next to be written of row 0. From them all others are
      // reached by distances that all threads share.
      Cursor<const T, kFast> x(a.x, (static_cast<uint32_t>((n * H + oh0 * S) * W + ow0 * S) * C + c) * sizeof(T));
      Cursor<T, kFast> y(a.y, (static_cast<uint32_t>((n * Ho + oh0) * Wo + ow0) * C + c) * sizeof(T));
      if (PLANE == 0) x.move(-pixel);
      count += (end - ow0) * (WHOLE ? R : min(R, Ho - oh0));
      const auto inside = [&](int i, int iw) {
        const bool always = WHOLE && i > 0 && (S == 2 || i < kRows - 1);
        return static_cast<unsigned>(iw) < static_cast<unsigned>(W) &&
               (always || static_cast<unsigned>(oh0 * S - 1 + i) < static_cast<unsigned>(H));
      };
      const auto fetch = [&](int iw, Pack<T, V>(&to)[kRows]) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) to[i] = load_if<V>(x.at((i - 1) * line), inside(i, iw));
        x.move(pixel);
      };
      const auto convert = [&](int iw, const Pack<T, V>(&from)[kRows], float (&to)[kRows][V]) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          unpack(from[i], to[i]);
          if constexpr (MODE != Forward::kPlain) {
#pragma unroll
            for (int v = 0; v < V; ++v) to[i][v] = relu(fmaf(to[i][v], scale0[v], inside(i, iw) ? shift0[v] : 0.f));
          }
        }
      };
      // Computes a column of outputs from the three columns of inputs that it sees. The thread's first has turn 0.
      const auto finish = [&]([[maybe_unused]] int turn, const float (&left)[kRows][V], const float (&here)[kRows][V],
                              const float (&right)[kRows][V]) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          float out[V] = {};
#pragma unroll
          for (int kh = 0; kh < 3; ++kh)
#pragma unroll
            for (int v = 0; v < V; ++v) {
              out[v] = fmaf(left[r * S + kh][v], w[kh * 3][v], out[v]);
              out[v] = fmaf(here[r * S + kh][v], w[kh * 3 + 1][v], out[v]);
              out[v] = fmaf(right[r * S + kh][v], w[kh * 3 + 2][v], out[v]);
            }
          if (!WHOLE && oh0 + r >= Ho) continue;
          if constexpr (MODE == Forward::kEval) {
#pragma unroll
            for (int v = 0; v < V; ++v) out[v] = relu(fmaf(out[v], scale1[v], shift1[v]));
          }
          store<V>(y.at(r * line_out), out);
          if constexpr (MODE == Forward::kTrain) {
#pragma unroll
            for (int v = 0; v < V; ++v) {
              if (r == 0 && turn == 0 && is_first) pivot[v] = out[v];
              const float d = out[v] - pivot[v];
              moments[0][v] += d;
              moments[1][v] = fmaf(d, d, moments[1][v]);
            }
          }
        }
        if (turn == 0) is_first = false;
        y.move(pixel);
      };
      float window[3][kRows][V];
      if constexpr (PLANE > 0) {
        Pack<T, V> next[PLANE][kRows];
#pragma unroll
        for (int k = 0; k < PLANE; ++k) fetch(k, next[k]);
        const auto column = [&](int iw, float (&to)[kRows][V]) {
          if (iw >= 0 && iw < W) return convert(iw, next[iw], to);
#pragma unroll
          for (int i = 0; i < kRows; ++i)
#pragma unroll
            for (int v = 0; v < V; ++v) to[i][v] = 0.f;
        };
#pragma unroll
        for (int ow = 0; ow < Wo; ++ow) {
#pragma unroll
          for (int k = 0; k < 3; ++k) column(ow * S - 1 + k, window[k]);
          finish(ow, window[0], window[1], window[2]);
        }
      } else {
        Pack<T, V> first[3 - S][kRows], next[kAhead][S][kRows];
        const auto fetch_new = [&](int ow, Pack<T, V>(&to)[S][kRows]) {
#pragma unroll
          for (int k = 0; k < S; ++k) fetch(ow * S + 2 - S + k, to[k]);
        };
#pragma unroll
        for (int k = 0; k < 3 - S; ++k) fetch(ow0 * S - 1 + k, first[k]);
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
          if (ow0 + k < end) fetch_new(ow0 + k, next[k]);
#pragma unroll
        for (int k = 0; k < 3 - S; ++k) convert(ow0 * S - 1 + k, first[k], window[k]);
        int ow = ow0;
        // Computes a column. Returns whether it was the tile's last.
        const auto take = [&](auto which) {
          constexpr int turn = decltype(which)::value;
          constexpr int left = S == 1 ? turn : turn * 2, here = S == 1 ? (turn + 1) % 3 : 1;
          constexpr int right = S == 1 ? (turn + 2) % 3 : 2 - left;
          Pack<T, V>(&own)[S][kRows] = next[turn % kAhead];
          if constexpr (S == 2) convert(ow * S, own[0], window[here]);
          convert(ow * S + 1, own[S - 1], window[right]);
          if (ow + kAhead < end) fetch_new(ow + kAhead, own);
          finish(turn, window[left], window[here], window[right]);
          return ++ow == end;
        };
        take_in_turns<kTurns>(take);
      }
    }
  }
  if constexpr (MODE == Forward::kTrain)
    write_block_moments(count, pivot, moments, at, blockIdx.x * kBlockChannels, C, a.rows);
}

template <Forward MODE, class T>
void launch_forward(ForwardArguments<T> a, const DwShape& s, cudaStream_t stream) {
  with_tile<Pass::kForward>(s, [&](auto tile) {
    using Is = decltype(tile);
    const Plan p = plan<Is>(s, MODE == Forward::kTrain);
    a.tiles = p.tiles;
    LAUNCH((dwconv3x3_forward<T, Is::V, Is::S, Is::R, Is::PLANE, Is::WHOLE, MODE>),
           dim3(ceil_div(s.C, kBlockChannels), p.rows), dim3(kThreads), stream, a);
  });
}

}  // namespace fastcifar::cuda

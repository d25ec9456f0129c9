// The 3x3 depthwise sweeps of the plain op. They read memory directly: one strip of R rows after another, and within a
// strip one vector of channels after another. So the images are walked through from end to end, and the rows that two
// strips share are still in a near cache.
//
// A row is a pointer to the vector of channels of its first pixel; pixels lie `step` elements apart. For a row outside
// the map the pointer leads to a row of zeros. Left and right of the map nothing is read: those products are left out.
#pragma once
#include "cpu/taps.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Asks for the memory of the next strip while this strip is worked on: `bytes` with each column, in the order of
// addresses. The strip's own order, one vector of every pixel, leaves gaps that the caches' prefetchers do not follow.
// Maps of 8x8 and more ran at 0.35 to 0.7 of a copy's speed without this and at 0.65 to 1 with it. Smaller maps are 4
// to 8 % slower with it, at 0.35 to 0.9 of a copy's speed.
template <int bytes, bool write>
struct Prefetch {
  const char* next;
  FC_INLINE void operator()() {
    for (int byte = 0; byte < bytes; byte += 64) __builtin_prefetch(next + byte, write, write ? 3 : 2);
    next += bytes;
  }
};

template <int n, class T, class Lanes>
FC_INLINE void load_column(const T* const* rows, int64_t at, Lanes lanes, Vec* column) {
  for (int r = 0; r < n; ++r) column[r] = load(rows[r] + at, lanes);
}

// R rows of the convolution with stride 1, from R + 2 rows of pixels. Each column of pixels is loaded once and added to
// all sums that it is part of.
template <int R, class T, class Lanes, class... Ahead>
FC_INLINE void convolve_rows1(const T* const* in, T* const* out, int64_t width, int64_t step, const TapVectors& w,
                              Lanes lanes, Ahead&... ahead) {
  Vec column[R + 2], sum[R], next[R];
  (ahead(), ...);
  load_column<R + 2>(in, 0, lanes, column);
  for (int r = 0; r < R; ++r) {
    sum[r] = w.template first<1>(column + r);
    next[r] = w.template first<0>(column + r);
  }
  for (int64_t x = 1; x < width; ++x) {
    (ahead(), ...);
    load_column<R + 2>(in, x * step, lanes, column);
    for (int r = 0; r < R; ++r) {
      store(out[r] + (x - 1) * step, w.template add<2>(column + r, sum[r]), lanes);
      sum[r] = w.template add<1>(column + r, next[r]);
      next[r] = w.template first<0>(column + r);
    }
  }
  for (int r = 0; r < R; ++r) store(out[r] + (width - 1) * step, sum[r], lanes);
}

// R rows of the convolution with stride 2, from 2R + 1 rows of pixels.
template <int R, class T, class Lanes, class... Ahead>
FC_INLINE void convolve_rows2(const T* const* in, T* const* out, int64_t width, int64_t step, const TapVectors& w,
                              Lanes lanes, Ahead&... ahead) {
  Vec column[2 * R + 1], sum[R];
  for (int r = 0; r < R; ++r) sum[r] = Vec{};
  int64_t x = 0;
  for (; x < width / 2; ++x) {
    (ahead(), ...);
    load_column<2 * R + 1>(in, 2 * x * step, lanes, column);
    for (int r = 0; r < R; ++r) sum[r] = w.template add<1>(column + 2 * r, sum[r]);
    load_column<2 * R + 1>(in, (2 * x + 1) * step, lanes, column);
    for (int r = 0; r < R; ++r) {
      store(out[r] + x * step, w.template add<2>(column + 2 * r, sum[r]), lanes);
      sum[r] = w.template first<0>(column + 2 * r);
    }
  }
  if (width % 2) {
    load_column<2 * R + 1>(in, 2 * x * step, lanes, column);
    for (int r = 0; r < R; ++r) store(out[r] + x * step, w.template add<1>(column + 2 * r, sum[r]), lanes);
  }
}

// The transposed convolution with stride 2: 2R rows from R + 1 rows of gradients. A quad of 2x2 pixels depends on the
// 2x2 gradients at its place, to the right, below, and below to the right: its four pixels meet them under one, two,
// two and four taps. The pointer of an output row outside the map is null.
template <int R, class T, class Lanes, class... Ahead>
FC_INLINE void convolve_transposed_rows2(const T* const* in, T* const* out, int64_t width, int64_t step,
                                         const TapVectors& w, Lanes lanes, Ahead&... ahead) {
  const auto& t = w.tap;
  const int64_t in_width = (width + 1) / 2;
  Vec here[R + 1], right[R + 1];
  load_column<R + 1>(in, 0, lanes, here);
  for (int64_t x = 0; x < in_width; ++x) {
    (ahead(), ...);
    const int64_t left_at = 2 * x * step, right_at = left_at + step;
    const bool has_right = 2 * x + 1 < width;
    for (int r = 0; r <= R; ++r) right[r] = x + 1 < in_width ? load(in[r] + (x + 1) * step, lanes) : Vec{};
    for (int r = 0; r < R; ++r) {
      store(out[2 * r] + left_at, t[1][1] * here[r], lanes);
      if (has_right) store(out[2 * r] + right_at, t[1][2] * here[r] + t[1][0] * right[r], lanes);
      if (!out[2 * r + 1]) continue;
      store(out[2 * r + 1] + left_at, t[2][1] * here[r] + t[0][1] * here[r + 1], lanes);
      if (!has_right) continue;
      store(out[2 * r + 1] + right_at,
            (t[2][2] * here[r] + t[2][0] * right[r]) + (t[0][2] * here[r + 1] + t[0][0] * right[r + 1]), lanes);
    }
    for (int r = 0; r <= R; ++r) here[r] = right[r];
  }
}

// The gradients of the nine taps.
struct TapSums {
  Vec tap[3][3] = {};
  // Three pixels one above the other meet a gradient under column k of the taps.
  template <int k>
  FC_INLINE void add(const Vec* pixels, Vec grad) {
    for (int r = 0; r < 3; ++r) tap[r][k] = pixels[r] * grad + tap[r][k];
  }
  FC_INLINE void add_to(float* sums, int64_t pitch) const {
    for (int k = 0; k < 9; ++k) accumulate(sums + k * pitch, tap[k / 3][k % 3]);
  }
};

// For the convolution with stride 1, from R + 2 rows of pixels and R rows of gradients.
template <int R, class T, class Lanes, class... Ahead>
FC_INLINE void add_weight_gradient1(const T* const* in, const T* const* grad, int64_t width, int64_t step,
                                    TapSums& sums, Lanes lanes, Ahead&... ahead) {
  Vec column[R + 2], before[R], here[R], after[R];
  for (int r = 0; r < R; ++r) before[r] = Vec{};
  load_column<R>(grad, 0, lanes, here);
  for (int64_t x = 0; x < width; ++x) {
    (ahead(), ...);
    load_column<R + 2>(in, x * step, lanes, column);
    for (int r = 0; r < R; ++r) {
      after[r] = x + 1 < width ? load(grad[r] + (x + 1) * step, lanes) : Vec{};
      sums.template add<0>(column + r, after[r]);
      sums.template add<1>(column + r, here[r]);
      sums.template add<2>(column + r, before[r]);
      before[r] = here[r], here[r] = after[r];
    }
  }
}

// For the convolution with stride 2, from 2R + 1 rows of pixels and R rows of gradients.
template <int R, class T, class Lanes, class... Ahead>
FC_INLINE void add_weight_gradient2(const T* const* in, const T* const* grad, int64_t width, int64_t step,
                                    TapSums& sums, Lanes lanes, Ahead&... ahead) {
  const int64_t grad_width = (width + 1) / 2;
  Vec column[2 * R + 1], here[R], after[R];
  load_column<R>(grad, 0, lanes, here);
  for (int64_t x = 0; x < grad_width; ++x) {
    (ahead(), ...);
    load_column<2 * R + 1>(in, 2 * x * step, lanes, column);
    for (int r = 0; r < R; ++r) sums.template add<1>(column + 2 * r, here[r]);
    if (2 * x + 1 == width) break;
    load_column<2 * R + 1>(in, (2 * x + 1) * step, lanes, column);
    for (int r = 0; r < R; ++r) {
      after[r] = x + 1 < grad_width ? load(grad[r] + (x + 1) * step, lanes) : Vec{};
      sums.template add<2>(column + 2 * r, here[r]);
      sums.template add<0>(column + 2 * r, after[r]);
      here[r] = after[r];
    }
  }
}

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA

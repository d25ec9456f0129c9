// Products of float32 matrices that lie in a cache, for kernels that compute a factor as they load it and use the
// product before it leaves the cache.
#pragma once
#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Rows and vectors of the product that the registers hold, with a row of the right factor and one number of the left.
#if defined(__AVX512F__)
constexpr int kSumRows = 12, kSumVectors = 2;
#else
constexpr int kSumRows = 6, kSumVectors = 2;
#endif
// Columns of a panel: the right factor and the product are worked on in panels.
constexpr int kPanel = kSumVectors * kLanes;
// Products that are added up from zero before the sum is added to a longer one: that is more exact than one chain.
constexpr int64_t kChain = 256;

// A number of rows that the compiler knows.
template <int n>
struct Rows {
  static constexpr int count = n;
};

// Calls f(first row, Rows<n>) for groups of kSumRows rows, then of four, two and one.
template <class F>
FC_INLINE void for_row_groups(int64_t num_rows, F f) {
  int64_t row = 0;
  for (; row + kSumRows <= num_rows; row += kSumRows) f(row, Rows<kSumRows>{});
  for (; row + 4 <= num_rows; row += 4) f(row, Rows<4>{});
  for (; row + 2 <= num_rows; row += 2) f(row, Rows<2>{});
  if (row < num_rows) f(row, Rows<1>{});
}

// The left factor: its number of row r at step i is first[r * pitch + i] or, transposed, first[i * pitch + r].
template <bool transposed>
struct Left {
  const float* first;
  int64_t pitch;

  FC_INLINE const float* at(int64_t row, int64_t step) const {
    return first + (transposed ? step * pitch + row : row * pitch + step);
  }
};

template <int R, bool transposed>
FC_INLINE void multiply_group(Left<transposed> left, int64_t row, const float* right, int64_t right_pitch,
                              int64_t first, int64_t end, float* out, int64_t out_pitch, bool add) {
  Vec sum[R][kSumVectors];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kSumVectors; ++v) sum[r][v] = Vec{};
  }
  const float* a[R];
  for (int r = 0; r < R; ++r) a[r] = left.at(row + r, first);
  const float* b = right + first * right_pitch;
  for (int64_t i = first; i < end; ++i, b += right_pitch) {
    Vec columns[kSumVectors];
    for (int v = 0; v < kSumVectors; ++v) columns[v] = load(b + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec factor = broadcast(transposed ? a[0][r] : a[r][0]);
      for (int v = 0; v < kSumVectors; ++v) sum[r][v] = factor * columns[v] + sum[r][v];
    }
    if constexpr (transposed) {
      a[0] += left.pitch;
    } else {
      for (int r = 0; r < R; ++r) ++a[r];
    }
  }
  for (int r = 0; r < R; ++r) {
    float* p = out + (row + r) * out_pitch;
    for (int v = 0; v < kSumVectors; ++v) {
      store(p + v * kLanes, add ? load(p + v * kLanes) + sum[r][v] : sum[r][v]);
    }
  }
}

// One panel of a product: out [num_rows][kPanel] = left [num_rows][steps] . right [steps][kPanel], or with `add` out +=.
template <bool transposed>
FC_INLINE void multiply_panel(int64_t num_rows, int64_t steps, Left<transposed> left, const float* right,
                              int64_t right_pitch, float* out, int64_t out_pitch, bool add) {
  for (int64_t first = 0; first < steps; first += kChain) {
    const int64_t end = first + kChain < steps ? first + kChain : steps;
    for_row_groups(num_rows, [&](int64_t row, auto rows) FC_LAMBDA {
      multiply_group<decltype(rows)::count>(left, row, right, right_pitch, first, end, out, out_pitch,
                                            add || first > 0);
    });
  }
}

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA

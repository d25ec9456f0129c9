#include "cpu/separable_block_kernel.h"

#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Rows and vectors of the output that the registers hold: 4 x 2 sums, with 2 operands and a broadcast one beside them.
constexpr int kRows = 4, kVectors = 2;
// Products of a sum that are added up from zero before they are added to it: that is more exact than one chain.
constexpr int64_t kChain = 256;

// Calls f(row, a type with `count` rows) for groups of kRows rows, and for the rest one by one.
template <int n>
struct Group {
  static constexpr int count = n;
};
template <class F>
FC_INLINE void for_groups(int64_t first, int64_t end, F f) {
  int64_t row = first;
  for (; row + kRows <= end; row += kRows) f(row, Group<kRows>{});
  for (; row < end; ++row) f(row, Group<1>{});
}

// Calls f(first column, a type with `count` vectors, Full or Tail) over n columns.
template <class F>
FC_INLINE void for_columns(int64_t n, F f) {
  int64_t column = 0;
  for (; column + kVectors * kLanes <= n; column += kVectors * kLanes) f(column, Group<kVectors>{}, Full{});
  for_vectors(static_cast<int>(n - column),
              [&](int offset, auto lanes) FC_LAMBDA { f(column + offset, Group<1>{}, lanes); });
}

template <int rows, int vectors>
struct Sums {
  Vec total[rows][vectors] = {}, part[rows][vectors] = {};

  FC_INLINE void close() {
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < vectors; ++v) total[r][v] += part[r][v], part[r][v] = Vec{};
    }
  }
};

template <class T>
void multiply_rows(int64_t first, int64_t end, int64_t k, int64_t n, const T* x, const float* matrix, int64_t pitch,
                   T* out) {
  for_groups(first, end, [&](int64_t row, auto group) FC_LAMBDA {
    constexpr int R = decltype(group)::count;
    for_columns(n, [&](int64_t column, auto vectors, auto lanes) FC_LAMBDA {
      constexpr int V = decltype(vectors)::count;
      Sums<R, V> sums;
      for (int64_t begin = 0; begin < k; begin += kChain) {
        const int64_t stop = begin + kChain < k ? begin + kChain : k;
        for (int64_t i = begin; i < stop; ++i) {
          Vec b[V];
          for (int v = 0; v < V; ++v) b[v] = load(matrix + i * pitch + column + v * kLanes);
          for (int r = 0; r < R; ++r) {
            const Vec a = broadcast(to_f32(x[(row + r) * k + i]));
            for (int v = 0; v < V; ++v) sums.part[r][v] = a * b[v] + sums.part[r][v];
          }
        }
        sums.close();
      }
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) store(out + (row + r) * n + column + v * kLanes, sums.total[r][v], lanes);
      }
    });
  });
}

template <class T>
void multiply_transposed(int64_t first, int64_t end, int64_t rows, int64_t m, int64_t n, const T* a, const T* b,
                         float* out, int64_t pitch) {
  for_groups(first, end, [&](int64_t row, auto group) FC_LAMBDA {
    constexpr int R = decltype(group)::count;
    for_columns(n, [&](int64_t column, auto vectors, auto lanes) FC_LAMBDA {
      constexpr int V = decltype(vectors)::count;
      Sums<R, V> sums;
      for (int64_t begin = 0; begin < rows; begin += kChain) {
        const int64_t stop = begin + kChain < rows ? begin + kChain : rows;
        for (int64_t i = begin; i < stop; ++i) {
          Vec values[V];
          for (int v = 0; v < V; ++v) values[v] = load(b + i * n + column + v * kLanes, lanes);
          for (int r = 0; r < R; ++r) {
            const Vec factor = broadcast(to_f32(a[i * m + row + r]));
            for (int v = 0; v < V; ++v) sums.part[r][v] = factor * values[v] + sums.part[r][v];
          }
        }
        sums.close();
      }
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) store(out + (row + r) * pitch + column + v * kLanes, sums.total[r][v]);
      }
    });
  });
}

}  // namespace

void multiply_rows(Element element, int64_t first, int64_t end, int64_t k, int64_t n, const void* x,
                   const float* matrix, int64_t pitch, void* out) {
  if (element == Element::f32) {
    multiply_rows(first, end, k, n, static_cast<const float*>(x), matrix, pitch, static_cast<float*>(out));
  } else {
    multiply_rows(first, end, k, n, static_cast<const bf16*>(x), matrix, pitch, static_cast<bf16*>(out));
  }
}

void multiply_transposed(Element element, int64_t first, int64_t end, int64_t rows, int64_t m, int64_t n, const void* a,
                         const void* b, float* out, int64_t pitch) {
  if (element == Element::f32) {
    multiply_transposed(first, end, rows, m, n, static_cast<const float*>(a), static_cast<const float*>(b), out, pitch);
  } else {
    multiply_transposed(first, end, rows, m, n, static_cast<const bf16*>(a), static_cast<const bf16*>(b), out, pitch);
  }
}

}  // namespace fastcifar::FASTCIFAR_ISA

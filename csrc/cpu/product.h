// Products of matrices that lie in a cache, for kernels that compute a factor as they load it and use the product
// before it leaves the cache.
//
// The numbers are float32 or, where the processor multiplies them, pairs of bfloat16: a pair holds two consecutive steps
// of a sum. A right factor lies in panels of kPanel columns.
#pragma once
#include <utility>

#include "cpu/ahead.h"
#include "cpu/tiles.h"
#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Rows and vectors of the product that the registers hold, with a row of the right factor and one number of the left.
#if defined(__AVX512F__) || defined(FASTCIFAR_EMULATED)
constexpr int kSumRows = 12, kSumVectors = 2;
#else
constexpr int kSumRows = 6, kSumVectors = 2;
#endif
constexpr int kPanel = kSumVectors * kLanes;
// Steps that are added up from zero before the sum is added to a longer one: that is more exact than one chain.
constexpr int64_t kChain = 256;

// Two bfloat16, the first step in the lower half.
struct Pair {
  uint32_t bits;
};

template <class Number>
constexpr int kStepsOf = 1;
template <>
constexpr int kStepsOf<Pair> = 2;

FC_INLINE Vec multiply_add(float a, Vec b, Vec sum) { return broadcast(a) * b + sum; }
FC_INLINE Vec multiply_add(Pair a, Vec b, Vec sum) {
  const VecBits as = VecBits{} + a.bits;
#if defined(__AVX512BF16__)
  return reinterpret_cast<Vec>(
      _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(as), reinterpret_cast<__m512bh>(b)));
#else
  const VecBits bs = reinterpret_cast<VecBits>(b), upper = VecBits{} + 0xffff0000u;
  sum = reinterpret_cast<Vec>(as & upper) * reinterpret_cast<Vec>(bs & upper) + sum;
  return reinterpret_cast<Vec>(as << 16) * reinterpret_cast<Vec>(bs << 16) + sum;
#endif
}
FC_INLINE Vec load_numbers(const float* p) { return load(p); }
FC_INLINE Vec load_numbers(const Pair* p) { return load(reinterpret_cast<const float*>(p)); }

FC_INLINE void store(Pair* p, VecBits pairs) { store(reinterpret_cast<float*>(p), reinterpret_cast<Vec>(pairs)); }
FC_INLINE void store(float* p, VecBits numbers) { store(p, reinterpret_cast<Vec>(numbers)); }

// The lanes of two vectors that a sequence names: the second vector's lanes come behind the first one's.
template <class V, int... lane>
FC_INLINE V shuffled(V first, V second, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(first, second, lane...);
#else
  return __builtin_shuffle(first, second, V{lane...});  // GCC has the other one from 12 on
#endif
}

// The bfloat16 numbers of two steps in pairs.
FC_INLINE VecBits pair_up(Vec first, Vec second) {
  return __builtin_convertvector(narrow(first), VecBits) | reinterpret_cast<VecBits>(rounded<bf16>(second));
}

typedef uint16_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t WordsInMemory __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));

template <int... lane>
FC_INLINE void pair_up(Words a, Words b, VecBits& low, VecBits& high, std::integer_sequence<int, lane...>) {
  constexpr int n = 2 * kLanes;
  low = reinterpret_cast<VecBits>(shuffled(a, b, std::integer_sequence<int, (lane % 2 * n + lane / 2)...>{}));
  high = reinterpret_cast<VecBits>(shuffled(a, b, std::integer_sequence<int, (lane % 2 * n + lane / 2 + kLanes)...>{}));
}
// The same of 2 * kLanes numbers in memory.
FC_INLINE void pair_up(const bf16* first, const bf16* second, VecBits& low, VecBits& high) {
  pair_up(*reinterpret_cast<const WordsInMemory*>(first), *reinterpret_cast<const WordsInMemory*>(second), low, high,
          std::make_integer_sequence<int, 2 * kLanes>{});
}

// 2 * kLanes bfloat16 numbers that lie one after the other.
FC_INLINE VecBits load_bits(const bf16* p) {
  return reinterpret_cast<VecBits>(load(reinterpret_cast<const float*>(p)));
}

// Exchanges row r's lane l for row l's lane r where they differ in the bit `distance`.
template <int distance, int... lane>
FC_INLINE void exchange(VecBits* rows, std::integer_sequence<int, lane...>) {
  for (int r = 0; r < kLanes; ++r) {
    if (r & distance) continue;
    const VecBits upper = rows[r], lower = rows[r + distance];
    rows[r] =
        shuffled(upper, lower, std::integer_sequence<int, (lane & distance ? kLanes + lane - distance : lane)...>{});
    rows[r + distance] =
        shuffled(upper, lower, std::integer_sequence<int, (lane & distance ? kLanes + lane : lane + distance)...>{});
  }
}

// Transposes a square of kLanes rows.
template <int distance = kLanes / 2>
FC_INLINE void transpose(VecBits* rows) {
  exchange<distance>(rows, std::make_integer_sequence<int, kLanes>{});
  if constexpr (distance > 1) transpose<distance / 2>(rows);
}

// Calls f(first row, Count<n>) for groups of kSumRows rows, then of four, two and one.
template <class F>
FC_INLINE void for_row_groups(int64_t num_rows, F f) {
  int64_t row = 0;
  for (; row + kSumRows <= num_rows; row += kSumRows) f(row, Count<kSumRows>{});
  for (; row + 4 <= num_rows; row += 4) f(row, Count<4>{});
  for (; row + 2 <= num_rows; row += 2) f(row, Count<2>{});
  if (row < num_rows) f(row, Count<1>{});
}

// A left factor: its number of row r at step i is first[r * pitch + i] or, transposed, first[i * pitch + r].
template <class Number, bool transposed>
struct Left {
  const Number* first;
  int64_t pitch;

  FC_INLINE const Number* at(int64_t row, int64_t step) const {
    return first + (transposed ? step * pitch + row : row * pitch + step);
  }
};

template <int R, class Number, bool transposed>
FC_INLINE void multiply_group(Left<Number, transposed> left, int64_t row, const Number* right, int64_t first,
                              int64_t end, float* out, bool add) {
  Vec sum[R][kSumVectors];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kSumVectors; ++v) sum[r][v] = Vec{};
  }
  const Number* a[R];
  for (int r = 0; r < R; ++r) a[r] = left.at(row + r, first);
  const Number* b = right + first * kPanel;
  for (int64_t i = first; i < end; ++i, b += kPanel) {
    Vec columns[kSumVectors];
    for (int v = 0; v < kSumVectors; ++v) columns[v] = load_numbers(b + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Number factor = transposed ? a[0][r] : a[r][0];
      for (int v = 0; v < kSumVectors; ++v) sum[r][v] = multiply_add(factor, columns[v], sum[r][v]);
    }
    if constexpr (transposed) {
      a[0] += left.pitch;
    } else {
      for (int r = 0; r < R; ++r) ++a[r];
    }
  }
  for (int r = 0; r < R; ++r) {
    float* p = out + (row + r) * kPanel;
    for (int v = 0; v < kSumVectors; ++v) {
      store(p + v * kLanes, add ? load(p + v * kLanes) + sum[r][v] : sum[r][v]);
    }
  }
}

// One panel of a product: out [num_rows][kPanel] = left [num_rows][steps] . right [steps][kPanel], or with `add` out +=.
template <class Number, bool transposed>
FC_INLINE void multiply_panel(int64_t num_rows, int64_t steps, Left<Number, transposed> left, const Number* right,
                              float* out, bool add) {
  for (int64_t first = 0; first < steps; first += kChain / kStepsOf<Number>) {
    const int64_t next = first + kChain / kStepsOf<Number>, end = next < steps ? next : steps;
    for_row_groups(num_rows, [&](int64_t row, auto rows) FC_LAMBDA {
      multiply_group<decltype(rows)::value>(left, row, right, first, end, out, add || first > 0);
    });
  }
}

#if defined(FASTCIFAR_HAVE_TILES)
// The same in the tile registers. left [num_rows][pitch] is row by row, `steps` are a multiple of kTileSteps. It reads
// and writes whole tiles: the rows up to the next multiple of 2 * kTileRows must exist.
FC_INLINE void multiply_panel_in_tiles(int64_t num_rows, int64_t steps, const Pair* left, int64_t pitch,
                                       const Pair* right, float* out, bool add, Ahead& ahead) {
  static_assert(kPanel == 2 * kTileColumns);
  for (int64_t row = 0; row < num_rows; row += 2 * kTileRows) {
    float *upper = out + row * kPanel, *lower = upper + kTileRows * kPanel;
    if (add) {
      tile_load<0>(upper, kPanel), tile_load<1>(upper + kTileColumns, kPanel);
      tile_load<2>(lower, kPanel), tile_load<3>(lower + kTileColumns, kPanel);
    } else {
      tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    }
    for (int64_t i = 0; i < steps; i += kTileSteps) {
      ahead.step();
      tile_load<4>(left + row * pitch + i, pitch), tile_load<5>(left + (row + kTileRows) * pitch + i, pitch);
      tile_load<6>(right + i * kPanel, kPanel), tile_load<7>(right + i * kPanel + kTileColumns, kPanel);
      tile_multiply<0, 4, 6>(), tile_multiply<1, 4, 7>(), tile_multiply<2, 5, 6>(), tile_multiply<3, 5, 7>();
    }
    tile_store<0>(upper, kPanel), tile_store<1>(upper + kTileColumns, kPanel);
    tile_store<2>(lower, kPanel), tile_store<3>(lower + kTileColumns, kPanel);
  }
}
#endif

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA

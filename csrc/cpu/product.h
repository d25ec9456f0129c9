// Products of matrices that lie in a cache, for kernels that compute a factor as they load it and use the product
// before it leaves the cache.
//
// The numbers are float32 or, where the processor multiplies them, pairs of bfloat16: a pair holds two consecutive steps
// of a sum. For the tile registers, which know no float32, a float32 is the sum of three bfloat16, its parts. A right factor
// lies in panels of kPanel columns.
#pragma once
#include <iterator>

#include "cpu/lines.h"
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
constexpr int kFewSumRows = kSumRows * 2 / 3;  // still enough sums to keep all units for multiply-adds busy
constexpr int kPanel = kSumVectors * kLanes;
// Steps that are added up from zero before the sum is added to a longer one: that is more exact than one chain.
constexpr int64_t kChain = 256;

// Two float32 numbers: pairs of their largest parts, of those in the middle and of the smallest.
struct SplitPair {
  Pair parts[3];
};

// The steps of a sum that a Number holds, and the parts that hold them.
template <class Number>
constexpr int kStepsOf = 2;
template <>
constexpr int kStepsOf<float> = 1;
template <class Number>
constexpr int kPartsOf = sizeof(Number) / sizeof(float);

// A row of a factor lies part by part, not Number by Number: all that are the largest, then all in the middle, then the
// smallest. So row[i] of SplitPair means nothing; parts_of(row) are the largest.
template <class Number>
FC_INLINE auto parts_of(Number* row) {
  if constexpr (kPartsOf<Number> == 1) {
    return row;
  } else {
    return row->parts;
  }
}

// A vector as the sum of its parts. Three bfloat16 hold the 24 bits of a float32 exactly. (But an infinity, or what is
// rounded to one, has NaN among its parts, so that a product is NaN where it would be infinite; and numbers under 2^-110
// lose bits, since the tile registers take what is subnormal for zero.)
template <class Number>
struct Parts {
  Vec of[kPartsOf<Number>];

  FC_INLINE explicit Parts(Vec v) {
    for (int i = 0; i + 1 < kPartsOf<Number>; ++i) {
      of[i] = reinterpret_cast<Vec>((reinterpret_cast<VecBits>(v) + 0x8000u) & 0xffff0000u);
      v -= of[i];
    }
    of[kPartsOf<Number> - 1] = v;
  }
};
// Pairs of parts of two vectors: nothing is rounded.
FC_INLINE VecBits pair_up_parts(Vec first, Vec second) {
  return reinterpret_cast<VecBits>(first) >> 16 | reinterpret_cast<VecBits>(second);
}

// Whether pairs are multiplied faster than float32.
#if defined(__AVX512BF16__) || defined(FASTCIFAR_EMULATED)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

FC_INLINE Vec multiply_add(float a, Vec b, Vec sum) { return broadcast(a) * b + sum; }
FC_INLINE Vec multiply_add(VecBits as, Vec b, Vec sum) {  // pairs with pairs
#if defined(__AVX512BF16__)
  return reinterpret_cast<Vec>(
      _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(as), reinterpret_cast<__m512bh>(b)));
#else
  const VecBits bs = reinterpret_cast<VecBits>(b), upper = VecBits{} + 0xffff0000u;
  sum = reinterpret_cast<Vec>(as & upper) * reinterpret_cast<Vec>(bs & upper) + sum;
  return reinterpret_cast<Vec>(as << 16) * reinterpret_cast<Vec>(bs << 16) + sum;
#endif
}
FC_INLINE Vec multiply_add(Pair a, Vec b, Vec sum) { return multiply_add(VecBits{} + a.bits, b, sum); }
FC_INLINE Vec load_numbers(const float* p) { return load(p); }
FC_INLINE Vec load_numbers(const Pair* p) { return load(reinterpret_cast<const float*>(p)); }

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

// How many of the rows that are left are multiplied together: kSumRows or, where that leaves a rest, kFewSumRows; at last
// four, two and one.
FC_INLINE int64_t rows_of_group(int64_t left) {
  if (left % kSumRows == 0) return kSumRows;
  int64_t rows = kFewSumRows;
  while (rows > left) rows /= 2;
  return rows;
}
FC_INLINE int64_t num_row_groups(int64_t num_rows) {
  int64_t groups = 0;
  for (int64_t row = 0; row < num_rows; row += rows_of_group(num_rows - row)) ++groups;
  return groups;
}

// Calls f(first row, Count<n>) for each group, and meanwhile() before it.
template <class Meanwhile, class F>
FC_INLINE void for_row_groups(int64_t num_rows, Meanwhile meanwhile, F f) {
  for (int64_t row = 0, rows; row < num_rows; row += rows) {
    meanwhile();
    rows = rows_of_group(num_rows - row);
    if (rows == kSumRows) {
      f(row, Count<kSumRows>{});
    } else if (rows == kFewSumRows) {
      f(row, Count<kFewSumRows>{});
    } else if (rows == 4) {
      f(row, Count<4>{});
    } else if (rows == 2) {
      f(row, Count<2>{});
    } else {
      f(row, Count<1>{});
    }
  }
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
  // A pointer for each third row: with one for each row they are more than the registers, and are loaded in each step.
  constexpr int kRows = transposed ? R : 3;
  const Number* a[(R + kRows - 1) / kRows];
  for (int r = 0; r < R; r += kRows) a[r / kRows] = left.at(row + r, first);
  const Number* b = right + first * kPanel;
  for (int64_t i = first; i < end; ++i, b += kPanel) {
    Vec columns[kSumVectors];
    for (int v = 0; v < kSumVectors; ++v) columns[v] = load_numbers(b + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Number factor = a[r / kRows][r % kRows * (transposed ? 1 : left.pitch)];
      for (int v = 0; v < kSumVectors; ++v) sum[r][v] = multiply_add(factor, columns[v], sum[r][v]);
    }
    for (const Number*& p : a) p += transposed ? left.pitch : 1;
  }
  for (int r = 0; r < R; ++r) {
    float* p = out + (row + r) * kPanel;
    for (int v = 0; v < kSumVectors; ++v) {
      store(p + v * kLanes, add ? load(p + v * kLanes) + sum[r][v] : sum[r][v]);
    }
  }
}

// How often multiply_panel calls its `meanwhile`.
template <class Number>
FC_INLINE int64_t group_products(int64_t num_rows, int64_t steps) {
  return (steps * kStepsOf<Number> + kChain - 1) / kChain * num_row_groups(num_rows);
}

// One panel of a product: out [num_rows][kPanel] = left [num_rows][steps] . right [steps][kPanel], or with `add` out +=.
// Calls meanwhile() before each group of rows: the processor computes ahead, so that what is small is done while the
// products before it are still computed.
template <class Number, bool transposed, class Meanwhile>
FC_INLINE void multiply_panel(int64_t num_rows, int64_t steps, Left<Number, transposed> left, const Number* right,
                              float* out, bool add, Meanwhile meanwhile) {
  for (int64_t first = 0; first < steps; first += kChain / kStepsOf<Number>) {
    const int64_t next = first + kChain / kStepsOf<Number>, end = next < steps ? next : steps;
    for_row_groups(num_rows, meanwhile, [&](int64_t row, auto rows) FC_LAMBDA {
      multiply_group<decltype(rows)::value>(left, row, right, first, end, out, add || first > 0);
    });
  }
}

#if defined(FASTCIFAR_HAVE_TILES)
// A left factor that is multiplied with one panel after the other (and is too large for the L1 cache), or a part of one
// that stays there while the panels pass by.
enum class LeftFactor { passes, stays };

// The products of parts that make a product of numbers, in their order, each by the parts that are loaded for it (kKept:
// that part is in its registers). Of float32 they are six: those of parts whose numbers add up to more than 2 lie below
// the last bit. What is loaded twice is a part of the factor that is in the L1 cache.
constexpr int kKept = -1;
struct PartsToLoad {
  int left, right;
};
template <class Number, LeftFactor kind>
constexpr PartsToLoad kProducts[] = {{0, 0}};
template <>
constexpr PartsToLoad kProducts<SplitPair, LeftFactor::stays>[] = {{0, 2},     {kKept, 1}, {1, kKept},
                                                                   {kKept, 0}, {2, kKept}, {0, kKept}};
template <>
constexpr PartsToLoad kProducts<SplitPair, LeftFactor::passes>[] = {{2, 0},     {1, kKept}, {kKept, 1},
                                                                    {0, kKept}, {kKept, 2}, {kKept, 0}};

// How often multiply_panel_in_tiles calls its `meanwhile`.
template <class Number>
FC_INLINE int64_t tile_products(int64_t num_rows, int64_t steps) {
  return (num_rows + 2 * kTileRows - 1) / (2 * kTileRows) * (steps / kTileSteps) *
         static_cast<int64_t>(std::size(kProducts<Number, LeftFactor::stays>));
}

// The same in the tile registers. left [num_rows][pitch] is row by row, `steps` are a multiple of kTileSteps. It reads
// and writes whole tiles: the rows up to the next multiple of 2 * kTileRows must exist. Calls meanwhile() with every four
// products, 64 cycles: the vector units work by the side of the tile registers if their instructions come in small pieces.
template <LeftFactor kind, class Number, class Meanwhile>
FC_INLINE void multiply_panel_in_tiles(int64_t num_rows, int64_t steps, const Number* left, int64_t pitch,
                                       const Number* right, float* out, bool add, Meanwhile meanwhile) {
  static_assert(kPanel == 2 * kTileColumns);
  const int64_t left_pitch = kPartsOf<Number> * pitch, right_pitch = kPartsOf<Number> * kPanel;
  for (int64_t row = 0; row < num_rows; row += 2 * kTileRows) {
    float *upper = out + row * kPanel, *lower = upper + kTileRows * kPanel;
    if (add) {
      tile_load<0>(upper, kPanel), tile_load<1>(upper + kTileColumns, kPanel);
      tile_load<2>(lower, kPanel), tile_load<3>(lower + kTileColumns, kPanel);
    } else {
      tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    }
    for (int64_t i = 0; i < steps; i += kTileSteps) {
      // A loop over the products, since `meanwhile` is long: six of it would not fit the cache of instructions.
      for (const PartsToLoad& parts : kProducts<Number, kind>) {
        if constexpr (kind == LeftFactor::stays) meanwhile();
        if (parts.left != kKept) {
          const Pair *at = parts_of(left + row * pitch) + parts.left * pitch + i, *below = at + kTileRows * left_pitch;
          if constexpr (kind == LeftFactor::stays) {
            tile_load<4>(at, left_pitch), tile_load<5>(below, left_pitch);
          } else {
            tile_load_once<4>(at, left_pitch), tile_load_once<5>(below, left_pitch);
          }
        }
        if (parts.right != kKept) {
          const Pair* at = parts_of(right + i * kPanel) + parts.right * kPanel;
          tile_load<6>(at, right_pitch), tile_load<7>(at + kTileColumns, right_pitch);
        }
        tile_multiply<0, 4, 6>(), tile_multiply<1, 4, 7>(), tile_multiply<2, 5, 6>(), tile_multiply<3, 5, 7>();
        if constexpr (kind == LeftFactor::passes) meanwhile();
      }
    }
    tile_store<0>(upper, kPanel), tile_store<1>(upper + kTileColumns, kPanel);
    tile_store<2>(lower, kPanel), tile_store<3>(lower + kTileColumns, kPanel);
  }
}
#endif

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA

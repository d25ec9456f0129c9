// Two vectors that lie next to each other in memory, and pairs of bfloat16. In bfloat16 two of the widest vectors are one
// cache line, which is read, written and rounded by one instruction.
#pragma once
#include <utility>

#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Two bfloat16, the first one in the lower half.
struct Pair {
  uint32_t bits;
};

// The lanes of two vectors that a sequence names: the second vector's lanes come behind the first one's.
template <class V, int... lane>
FC_INLINE V shuffled(V first, V second, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(first, second, lane...);
#else
  return __builtin_shuffle(first, second, V{lane...});  // GCC has the other one from 12 on
#endif
}

typedef uint16_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t WordsInMemory __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));

// Pairs number i of row a with number i of row b, of 2 * kLanes in each: low has the first kLanes pairs, high the others.
template <int... lane>
FC_INLINE void pair_up(Words a, Words b, VecBits& low, VecBits& high, std::integer_sequence<int, lane...>) {
  constexpr int n = 2 * kLanes;
  low = reinterpret_cast<VecBits>(shuffled(a, b, std::integer_sequence<int, (lane % 2 * n + lane / 2)...>{}));
  high = reinterpret_cast<VecBits>(shuffled(a, b, std::integer_sequence<int, (lane % 2 * n + lane / 2 + kLanes)...>{}));
}
FC_INLINE void pair_up(VecBits first, VecBits second, VecBits& low, VecBits& high) {
  pair_up(reinterpret_cast<Words>(first), reinterpret_cast<Words>(second), low, high,
          std::make_integer_sequence<int, 2 * kLanes>{});
}
// The same of kLanes float32 numbers in each, which are rounded.
FC_INLINE VecBits pair_up(Vec first, Vec second) {
  return __builtin_convertvector(narrow(first), VecBits) | reinterpret_cast<VecBits>(rounded<bf16>(second));
}

// 2 * kLanes bfloat16 numbers that lie one after the other.
FC_INLINE VecBits load_bits(const bf16* p) {
  return reinterpret_cast<VecBits>(*reinterpret_cast<const WordsInMemory*>(p));
}
FC_INLINE void store(bf16* p, VecBits numbers) {
  *reinterpret_cast<WordsInMemory*>(p) = reinterpret_cast<Words>(numbers);
}
FC_INLINE void store(Pair* p, VecBits pairs) { store(reinterpret_cast<float*>(p), reinterpret_cast<Vec>(pairs)); }
FC_INLINE void store(float* p, VecBits numbers) { store(p, reinterpret_cast<Vec>(numbers)); }

FC_INLINE void store(float* p, Vec low, Vec high) { store(p, low), store(p + kLanes, high); }

// A line: two vectors of numbers of type T, in an order of their own. In bfloat16 it is that of even and odd places:
// those are widened by a shift and by a mask, where the numbers as they lie take shuffles.
template <class T>
struct Line {
  Vec vectors[2];

  static FC_INLINE Line load(const T* p) {
    return {{FASTCIFAR_ISA::load(p, Full{}), FASTCIFAR_ISA::load(p + kLanes, Full{})}};
  }
  // Of one float32 number for each place.
  static FC_INLINE Line of(const float* p) { return {{FASTCIFAR_ISA::load(p), FASTCIFAR_ISA::load(p + kLanes)}}; }
  // Writes two vectors of numbers as they lie, and returns what memory holds then.
  static FC_INLINE Line store(T* p, Vec low, Vec high) {
    FASTCIFAR_ISA::store(p, low, Full{}), FASTCIFAR_ISA::store(p + kLanes, high, Full{});
    return {{rounded<T>(low), rounded<T>(high)}};
  }
  FC_INLINE void accumulate_to(float* sums) const {
    accumulate(sums, vectors[0]), accumulate(sums + kLanes, vectors[1]);
  }
};

#if defined(__AVX512BF16__) || defined(FASTCIFAR_EMULATED)
// 2 * kLanes numbers, rounded, one after the other.
FC_INLINE VecBits narrow(Vec low, Vec high) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<VecBits>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
#else
  bf16 numbers[2 * kLanes];
  store(numbers, low, Full{}), store(numbers + kLanes, high, Full{});
  return load_bits(numbers);
#endif
}
FC_INLINE void store(bf16* p, Vec low, Vec high) { store(p, narrow(low, high)); }

template <int... lane>
FC_INLINE void part_by_parity(Vec low, Vec high, Vec& even, Vec& odd, std::integer_sequence<int, lane...>) {
  const VecBits a = reinterpret_cast<VecBits>(low), b = reinterpret_cast<VecBits>(high);
  even = reinterpret_cast<Vec>(shuffled(a, b, std::integer_sequence<int, 2 * lane...>{}));
  odd = reinterpret_cast<Vec>(shuffled(a, b, std::integer_sequence<int, (2 * lane + 1)...>{}));
}
template <int... lane>
FC_INLINE void merge_parities(Vec even, Vec odd, Vec& low, Vec& high, std::integer_sequence<int, lane...>) {
  const VecBits a = reinterpret_cast<VecBits>(even), b = reinterpret_cast<VecBits>(odd);
  low = reinterpret_cast<Vec>(shuffled(a, b, std::integer_sequence<int, (lane % 2 * kLanes + lane / 2)...>{}));
  high =
      reinterpret_cast<Vec>(shuffled(a, b, std::integer_sequence<int, (lane % 2 * kLanes + (lane + kLanes) / 2)...>{}));
}

template <>
struct Line<bf16> {
  Vec vectors[2];

  static FC_INLINE Line widened(VecBits bits) {
    return {{reinterpret_cast<Vec>(bits << 16), reinterpret_cast<Vec>(bits & 0xffff0000u)}};
  }
  static FC_INLINE Line load(const bf16* p) { return widened(load_bits(p)); }
  static FC_INLINE Line of(const float* p) {
    Line line;
    part_by_parity(FASTCIFAR_ISA::load(p), FASTCIFAR_ISA::load(p + kLanes), line.vectors[0], line.vectors[1],
                   std::make_integer_sequence<int, kLanes>{});
    return line;
  }
  static FC_INLINE Line store(bf16* p, Vec low, Vec high) {
    const VecBits bits = narrow(low, high);
    FASTCIFAR_ISA::store(p, bits);
    return widened(bits);
  }
  FC_INLINE void accumulate_to(float* sums) const {
    Vec low, high;
    merge_parities(vectors[0], vectors[1], low, high, std::make_integer_sequence<int, kLanes>{});
    accumulate(sums, low), accumulate(sums + kLanes, high);
  }
};

template <int... lane>
FC_INLINE void pair_up_parities(Words even, Words odd, VecBits& low, VecBits& high,
                                std::integer_sequence<int, lane...>) {
  constexpr int n = kLanes;
  low = reinterpret_cast<VecBits>(
      shuffled(even, odd, std::integer_sequence<int, (lane / 2 % 2 * 2 * n + lane % 2 * n + lane / 4)...>{}));
  high = reinterpret_cast<VecBits>(
      shuffled(even, odd, std::integer_sequence<int, (lane / 2 % 2 * 2 * n + lane % 2 * n + lane / 4 + n / 2)...>{}));
}
// Two rows of a line in pairs, as they lie.
FC_INLINE void store_pairs(Pair* p, const Line<bf16>& first, const Line<bf16>& second) {
  const Words even = reinterpret_cast<Words>(narrow(first.vectors[0], second.vectors[0])),
              odd = reinterpret_cast<Words>(narrow(first.vectors[1], second.vectors[1]));
  VecBits low, high;
  pair_up_parities(even, odd, low, high, std::make_integer_sequence<int, 2 * kLanes>{});
  store(p, low), store(p + kLanes, high);
}
#else
FC_INLINE void store(bf16* p, Vec low, Vec high) { store(p, low, Full{}), store(p + kLanes, high, Full{}); }

FC_INLINE void store_pairs(Pair* p, const Line<bf16>& first, const Line<bf16>& second) {
  store(p, pair_up(first.vectors[0], second.vectors[0]));
  store(p + kLanes, pair_up(first.vectors[1], second.vectors[1]));
}
#endif

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA

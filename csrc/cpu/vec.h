// One vector of float32 lanes, so that each kernel is written once and compiled for each instruction set.
//
// GCC's vector types do the arithmetic (clang knows them too): a * b + c becomes one fused instruction where there is
// one. Intrinsics stand only where the compiler finds no good code by itself.
#pragma once
#include <cstdint>
#include <cstring>

#include "common.h"
#include "cpu/range.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define FC_INLINE inline __attribute__((always_inline))
#define FC_LAMBDA __attribute__((always_inline))

namespace fastcifar::FASTCIFAR_ISA {
namespace {

#if defined(__AVX512F__) || defined(FASTCIFAR_EMULATED)  // emulated: the compiler takes several narrow registers
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecBits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfBits __attribute__((vector_size(kLanes * 2)));
typedef float VecInMemory __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint16_t HalfBitsInMemory __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

// A number that the compiler knows.
template <int n>
struct Count {
  static constexpr int value = n;
};

// How many lanes of a vector meet memory: all of them, or the last few channels.
struct Full {
  static constexpr bool full = true;
};
struct Tail {
  static constexpr bool full = false;
  int lanes;  // 1 .. kLanes - 1
};

// Calls f(offset, Full or Tail) for each vector of `channels` consecutive channels.
template <class F>
FC_INLINE void for_vectors(int channels, F f) {
  int offset = 0;
  for (; offset + kLanes <= channels; offset += kLanes) f(offset, Full{});
  if (offset < channels) f(offset, Tail{channels - offset});
}

FC_INLINE float sum_of(Vec v) {
  float sum = 0.f;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

FC_INLINE Vec broadcast(float v) { return v - Vec{}; }  // v + Vec{} would turn -0 into 0
FC_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecInMemory*>(p); }
FC_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecInMemory*>(p) = v; }

// A product that is not fused with the addition after it, where PyTorch rounds it.
FC_INLINE Vec product(Vec a, Vec b) {
  Vec v = a * b;
#if defined(__x86_64__)
  asm("" : "+x"(v));
#else
  asm("" : "+m"(v));
#endif
  return v;
}

// Adds a part to a long sum. In float32 it is more exact to sum each part from zero than to sum in one chain.
FC_INLINE void accumulate(float* sum, Vec part) { store(sum, load(sum) + part); }

FC_INLINE Vec widen(HalfBits half) {
#if defined(__AVX512BW__)
  // Moves each number into the upper half of its lane: one instruction instead of a conversion and a shift.
  const __m512i lanes = _mm512_castsi256_si512(reinterpret_cast<__m256i>(half));
  const __m512i from = _mm512_slli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 16);
  return reinterpret_cast<Vec>(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, from, lanes));
#else
  return reinterpret_cast<Vec>(__builtin_convertvector(half, VecBits) << 16);
#endif
}

// Round to nearest even; NaN stays NaN.
FC_INLINE HalfBits narrow(Vec v) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<HalfBits>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v)));
#else
  const VecBits b = reinterpret_cast<VecBits>(v);
  const VecBits rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  const VecBits safe = (b & 0x7fffffffu) > 0x7f800000u ? VecBits{} + 0x7fc0u : rounded;
  return __builtin_convertvector(safe, HalfBits);
#endif
}

FC_INLINE Vec load(const float* p, Full) { return load(p); }
FC_INLINE Vec load(const bf16* p, Full) { return widen(*reinterpret_cast<const HalfBitsInMemory*>(p)); }
FC_INLINE void store(float* p, Vec v, Full) { store(p, v); }
FC_INLINE void store(bf16* p, Vec v, Full) { *reinterpret_cast<HalfBitsInMemory*>(p) = narrow(v); }

#if defined(__AVX512F__)
FC_INLINE __mmask16 mask_of(Tail t) { return static_cast<__mmask16>((1u << t.lanes) - 1u); }
FC_INLINE Vec load(const float* p, Tail t) { return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(mask_of(t), p)); }
FC_INLINE Vec load(const bf16* p, Tail t) {
  return widen(reinterpret_cast<HalfBits>(_mm256_maskz_loadu_epi16(mask_of(t), p)));
}
FC_INLINE void store(float* p, Vec v, Tail t) { _mm512_mask_storeu_ps(p, mask_of(t), reinterpret_cast<__m512>(v)); }
FC_INLINE void store(bf16* p, Vec v, Tail t) {
  _mm256_mask_storeu_epi16(p, mask_of(t), reinterpret_cast<__m256i>(narrow(v)));
}
#else
FC_INLINE Vec load(const float* p, Tail t) {
  float lanes[kLanes] = {};
  for (int i = 0; i < t.lanes; ++i) lanes[i] = p[i];
  return load(lanes);
}
FC_INLINE Vec load(const bf16* p, Tail t) {
  bf16 lanes[kLanes] = {};
  for (int i = 0; i < t.lanes; ++i) lanes[i] = p[i];
  return load(lanes, Full{});
}
FC_INLINE void store(float* p, Vec v, Tail t) {
  for (int i = 0; i < t.lanes; ++i) p[i] = v[i];
}
FC_INLINE void store(bf16* p, Vec v, Tail t) {
  const HalfBits half = narrow(v);
  for (int i = 0; i < t.lanes; ++i) p[i].bits = half[i];
}
#endif

// max(0, v), NaN where v is NaN as in PyTorch: the x86 instruction returns its second operand then.
FC_INLINE Vec relu(Vec v) {
#if defined(__AVX512F__)
  // Not _mm512_max_ps: GCC 12's own header warns there.
  return reinterpret_cast<Vec>(_mm512_maskz_max_ps(0xffff, _mm512_setzero_ps(), reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(_mm256_max_ps(_mm256_setzero_ps(), reinterpret_cast<__m256>(v)));
#else
  return v <= Vec{} ? Vec{} : v;
#endif
}

// Calls f with a number of the element type.
template <class F>
void with_type(Element element, F f) {
  element == Element::f32 ? f(float()) : f(bf16());
}

// Up to eight of `count` rows or images, evenly spread, whose mean is a pivot. One may lie far from the mean, and sums of
// differences from it lose as many digits as the square of that distance has.
struct Sample {
  int64_t count, size;
  explicit Sample(int64_t count) : count(count), size(count < 8 ? count : 8) {}
  int64_t operator[](int64_t i) const { return (2 * i + 1) * count / (2 * size); }
};

// Adds x - pivot and its square to sums, for statistics.
FC_INLINE void add_offset(Vec x, Vec pivot, Vec& sum, Vec& square) {
  const Vec offset = x - pivot;
  sum += offset;
  square = offset * offset + square;
}

// v as it will be when it is read back from memory of type T.
template <class T>
FC_INLINE Vec rounded(Vec v);
template <>
FC_INLINE Vec rounded<float>(Vec v) {
  return v;
}
template <>
FC_INLINE Vec rounded<bf16>(Vec v) {
  return widen(narrow(v));
}

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA

// Element types and shapes for the CPU kernels, the CUDA kernels and the emulator that runs the CUDA kernels on the
// host. It includes no header of torch or CUDA, and compiles with g++ and nvcc.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FC_HD __host__ __device__ __forceinline__
#else
#define FC_HD inline __attribute__((always_inline))
#endif

namespace fastcifar {

// The same two bytes as c10::BFloat16 / __nv_bfloat16 and c10::Half / __half.
struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

FC_HD uint32_t bits_of(float v) {
  uint32_t b;
  memcpy(&b, &v, 4);
  return b;
}
FC_HD float float_of(uint32_t b) {
  float v;
  memcpy(&v, &b, 4);
  return v;
}

FC_HD float to_f32(float v) { return v; }
FC_HD float to_f32(bf16 v) { return float_of(static_cast<uint32_t>(v.bits) << 16); }
FC_HD float to_f32(fp16 v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  const uint32_t magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // infinity, NaN
  if (magnitude >= 0x400u) return float_of(sign | ((magnitude << 13) + 0x38000000u));
  const float subnormal = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24
  return float_of(sign | bits_of(subnormal));
}

// Round to nearest even; NaN stays NaN (quiet).
template <class T>
FC_HD T from_f32(float v);
template <>
FC_HD float from_f32<float>(float v) {
  return v;
}
template <>
FC_HD bf16 from_f32<bf16>(float v) {
  const uint32_t b = bits_of(v);
  const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  return bf16{static_cast<uint16_t>((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
}
template <>
FC_HD fp16 from_f32<fp16>(float v) {
  const uint32_t b = bits_of(v);
  const uint32_t sign = (b >> 16) & 0x8000u;
  const uint32_t magnitude = b & 0x7fffffffu;
  uint32_t h;
  if (magnitude > 0x7f800000u) {
    h = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // >= 65520 rounds to infinity
    h = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // normal: >= 2^-14
    const uint32_t m = magnitude - 0x38000000u;
    h = (m + 0xfffu + ((m >> 13) & 1u)) >> 13;
  } else {  // the addition aligns the mantissa to 2^-24 and rounds to nearest even
    h = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  }
  return fp16{static_cast<uint16_t>(sign | h)};
}

// A 3x3 depthwise convolution with padding 1: x [N,C,H,W] -> y [N,C,Ho,Wo], both channels_last.
struct DwShape {
  int64_t N, C, H, W, Ho, Wo;
  int stride;
};

inline int64_t output_pixels(const DwShape& s) { return s.N * s.Ho * s.Wo; }

// On a GPU a pointwise product is cut into tiles of kTileM pixels and kTileN channels.
inline constexpr int kTileM = 128, kTileN = 64;
// Blocks a reducing kernel asks for, two an SM on an H200. A constant, not the device's own count: the number of
// partial sums, and so the last bit of the result, depends on the shape alone.
inline constexpr int kTargetBlocks = 264;
// Rows of partial results, one of a block or of a cluster: more than this and a kernel merges them first, unless another
// op left them, since every block of the consumer reads all rows of its channels. On an H200 reading 66 rows took a consumer 3 to 4.5 us, and merging them takes 2 to 3.
inline constexpr int kMaxInlineRows = 40;
// The most rows of partial moments that an op leaves for the next one.
inline constexpr int kMaxMomentRows = 64;

// How many rows of partial moments a stem or a separable_block leaves for the next op, of `pixels` pixels and
// `channels` channels. On a GPU each block writes one row. The CPU returns as many, all but the first empty: an op has
// the same shapes on every device. fastcifar/ops/_moments.py computes the same number.
inline int64_t moment_rows(int64_t pixels, int64_t channels) {
  const int64_t tiles = (pixels + kTileM - 1) / kTileM, columns = (channels + kTileN - 1) / kTileN;
  int64_t most = kTargetBlocks / columns;
  if (most < 1) most = 1;
  if (most > kMaxMomentRows) most = kMaxMomentRows;
  return tiles < most ? tiles : most;
}

// One tensor of sgd, as the kernels of both backends see it.
struct SgdTensor {
  float* param;
  const void* grad;  // float32 or, where narrow_grad, of the rounded copies' type
  float* momentum;   // null: without momentum
  void* rounded;     // null: no copy
  int64_t size;
  float decay;
  bool narrow_grad;
};

struct SgdSettings {
  const float *lr, *grad_scale, *found_inf;  // each one number; grad_scale, found_inf: null where not given
  float momentum;
  bool nesterov;
};

// A mean or a variance of update_statistics: running moves towards batch * factor.
struct RunningStatistic {
  float* running;
  const float* batch;
  int channels;
  float factor;
};

// The counters [2] of advance_step, the learning rates of all steps, and the place for that of the next step.
struct StepOfRun {
  int64_t* counters;
  const float* lrs;
  float* lr;
  int64_t steps;
};

// One function for both backends: the learning rate of the run's step counters[1], clamped; then both are one more.
FC_HD void advance_step(const StepOfRun& s) {
  const int64_t step = s.counters[1], last = s.steps - 1;
  *s.lr = s.lrs[step < 0 ? 0 : step > last ? last : step];
  s.counters[0] += 1;
  s.counters[1] = step + 1;
}

}  // namespace fastcifar

// Tensors as the kernels see them.
#pragma once
#include "checks.h"
#include "cpu/range.h"

namespace fastcifar {

inline Element element_of(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float ? Element::f32 : Element::bf16;
}

inline const void* data(const Tensor& t) { return t.const_data_ptr(); }
inline void* mutable_data(const Tensor& t) { return t.mutable_data_ptr(); }
inline const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
inline float* mutable_floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

inline Tensor zero(Tensor t) { return torch::stable::zero_(t); }

}  // namespace fastcifar

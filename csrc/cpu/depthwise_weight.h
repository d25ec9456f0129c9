// Depthwise weights between PyTorch's [C, 1, 3, 3] and the kernels' float32 [9][pitch].
#pragma once
#include "cpu/data.h"
#include "cpu/parallel.h"

namespace fastcifar {

// The nine taps, each a row of all channels, padded with zeros to whole blocks.
struct Taps {
  int64_t pitch;
  Scratch memory;

  Taps(const Tensor& w, int64_t channels) : pitch(round_up(channels, kBlock)), memory(Scratch::zeros(9 * pitch)) {
    if (element_of(w) == Element::f32) {
      fill(static_cast<const float*>(w.const_data_ptr()), channels);
    } else {
      fill(static_cast<const bf16*>(w.const_data_ptr()), channels);
    }
  }
  const float* get() const { return memory.get(); }

 private:
  template <class T>
  void fill(const T* w, int64_t channels) {
    for (int64_t k = 0; k < 9; ++k) {
      float* row = memory.get() + k * pitch;
      for (int64_t c = 0; c < channels; ++c) row[c] = to_f32(w[c * 9 + k]);
    }
  }
};

template <class T>
void write_weight_gradient(const float* sums, int64_t pitch, int64_t channels, T* grad_w) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t k = 0; k < 9; ++k) grad_w[c * 9 + k] = from_f32<T>(sums[k * pitch + c]);
  }
}

// sums: float32 [9][pitch].
inline void write_weight_gradient(const float* sums, int64_t pitch, const Tensor& grad_w) {
  if (element_of(grad_w) == Element::f32) {
    write_weight_gradient(sums, pitch, grad_w.size(0), static_cast<float*>(grad_w.mutable_data_ptr()));
  } else {
    write_weight_gradient(sums, pitch, grad_w.size(0), static_cast<bf16*>(grad_w.mutable_data_ptr()));
  }
}

}  // namespace fastcifar

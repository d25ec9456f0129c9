#include "dwconv3x3_affine_relu.h"

#include <torch/csrc/stable/library.h>

#include "cpu/depthwise_block_kernel.h"
#include "cpu/depthwise_weight.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

Tensor forward(const Tensor& u, const Tensor& scale0, const Tensor& shift0, const Tensor& w, const Tensor& scale1,
               const Tensor& shift1, int64_t stride) {
  const auto a = prepare_dwconv3x3_affine_relu(Backend::cpu, u, scale0, shift0, w, scale1, shift1, stride);
  const DwShape& s = a.shape;
  const Taps taps(a.w, s.C);
  const int64_t pitch = taps.pitch, bytes = s.H * s.W * s.C * static_cast<int64_t>(u.element_size());
  const auto columns = [&](const Tensor& scale, const Tensor& shift) {
    Scratch memory = Scratch::zeros(kColumns * pitch);
    std::memcpy(memory.get() + kScale * pitch, floats(scale), s.C * sizeof(float));
    std::memcpy(memory.get() + kShift * pitch, floats(shift), s.C * sizeof(float));
    return memory;
  };
  const Scratch columns0 = columns(a.scale0, a.shift0), columns1 = columns(a.scale1, a.shift1);
  const Cut parts = cut(s.N, s.C, bytes);
  const void* us = data(a.u);
  void* zs = mutable_data(a.z);
  parallel(parts.size(), s.N * bytes, [&](int64_t begin, int64_t end) {
    const Scratch ring(ring_floats(s.W));
    for (int64_t part = begin; part < end; ++part) {
      FASTCIFAR_KERNEL(dwconv3x3_affine_relu)(element_of(u), s, parts[part], us, columns0.get(), taps.get(), pitch,
                                              columns1.get(), zs, ring.get());
    }
  });
  return a.z;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kDwconv3x3AffineReluSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) { m.impl("dwconv3x3_affine_relu", TORCH_BOX(&forward)); }

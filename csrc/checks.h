// Argument checks and output allocation, the same for CPU and CUDA. Every message names op, argument and value.
#pragma once
#include "stable.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>

#include "common.h"

namespace fastcifar {
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// For which kernels the arguments are: those for CUDA also take float16. (It is not the tensors' device: under the
// emulator of tests/ the CUDA kernels run on host memory.)
enum class Backend { cpu, cuda };

inline std::string shape_text(const int64_t* begin, const int64_t* end) {
  std::ostringstream text;
  text << '[';
  for (const int64_t* n = begin; n < end; ++n) text << (n > begin ? ", " : "") << *n;
  text << ']';
  return text.str();
}

inline std::string shape_text(const Tensor& t) { return shape_text(t.sizes().begin(), t.sizes().end()); }

// The stable Tensor has no is_contiguous(memory_format); the stride of a dimension of size 1 does not matter.
inline bool is_channels_last(const Tensor& t) {
  const int order[4] = {1, 3, 2, 0};
  int64_t expected = 1;
  for (const int d : order) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

inline Tensor channels_last(const Tensor& t) {
  return is_channels_last(t) ? t : torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
}

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline void check_device(const char* op, const char* name, const Tensor& t, const Tensor& first) {
  STD_TORCH_CHECK(t.is_cuda() == first.is_cuda() && (!t.is_cuda() || t.get_device() == first.get_device()), op, ": ",
                  name, " is on another device than the first argument");
}

// An activation: 4-D, of a dtype with kernels. Returns it in channels_last memory.
inline Tensor check_activation(Backend backend, const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4, op, ": ", name, " must be [N, C, H, W], got ", shape_text(t));
  const ScalarType dtype = t.scalar_type();
  const bool half = backend == Backend::cuda && dtype == ScalarType::Half;
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || half, op, ": ", name,
                  " must be float32", backend == Backend::cuda ? ", bfloat16 or float16" : " or bfloat16", ", got ",
                  torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(t.size(1) >= 1 && t.size(2) >= 1 && t.size(3) >= 1, op, ": ", name,
                  " must have at least one channel and one pixel, got ", shape_text(t));
  return channels_last(t);
}

// An activation or gradient that must match `like` in shape [N, C, H, W] and dtype.
inline Tensor check_matching(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape,
                             const Tensor& like) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  int64_t d = 0;
  for (const int64_t n : shape) same = same && t.size(d++) == n;
  STD_TORCH_CHECK(same, op, ": ", name, " must be ", shape_text(shape.begin(), shape.end()), ", got ", shape_text(t));
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), op, ": ", name, " must be ",
                  torch::headeronly::toString(like.scalar_type()), " like the first argument, got ",
                  torch::headeronly::toString(t.scalar_type()));
  check_device(op, name, t, like);
  return channels_last(t);
}

// A parameter or statistic of each channel: float32 [C].
inline Tensor check_per_channel(const char* op, const char* name, const Tensor& t, int64_t channels, const Tensor& x) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == channels, op, ": ", name, " must be [", channels, "], got ",
                  shape_text(t));
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32, got ",
                  torch::headeronly::toString(t.scalar_type()));
  check_device(op, name, t, x);
  return dense(t);
}

// A depthwise weight: [C, 1, 3, 3], float32 or x's dtype.
inline Tensor check_depthwise_weight(const char* op, const Tensor& w, const Tensor& x) {
  const int64_t c = x.size(1);
  STD_TORCH_CHECK(w.dim() == 4 && w.size(0) == c && w.size(1) == 1 && w.size(2) == 3 && w.size(3) == 3, op,
                  ": w must be [", c, ", 1, 3, 3], got ", shape_text(w));
  STD_TORCH_CHECK(w.scalar_type() == ScalarType::Float || w.scalar_type() == x.scalar_type(), op,
                  ": w must be float32 or the activations' ", torch::headeronly::toString(x.scalar_type()), ", got ",
                  torch::headeronly::toString(w.scalar_type()));
  check_device(op, "w", w, x);
  return dense(w);
}

inline DwShape check_stride(const char* op, const Tensor& x, int64_t stride) {
  STD_TORCH_CHECK(stride == 1 || stride == 2, op, ": stride must be 1 or 2, got ", stride);
  return DwShape{x.size(0),
                 x.size(1),
                 x.size(2),
                 x.size(3),
                 (x.size(2) - 1) / stride + 1,
                 (x.size(3) - 1) / stride + 1,
                 static_cast<int>(stride)};
}

// A new tensor on the device of `like`. (An op allocates dozens, and torch::stable::empty, which goes through the
// dispatcher, takes several times as long.)
inline Tensor empty_strided(size_t dims, const int64_t* sizes, const int64_t* strides, ScalarType dtype,
                            const Tensor& like) {
  int32_t device, index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(dims), sizes, strides,
                                                         static_cast<int32_t>(dtype), device, index, &made));
  return Tensor(made);
}

// Contiguous, of up to four dimensions.
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  int64_t strides[4], stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= sizes.begin()[d] > 1 ? sizes.begin()[d] : 1) strides[d] = stride;
  return empty_strided(sizes.size(), sizes.begin(), strides, dtype, like);
}

inline Tensor empty_channels_last(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w,
                                  std::optional<ScalarType> dtype = std::nullopt) {
  const auto one = [](int64_t size) { return size > 1 ? size : 1; };
  const int64_t sizes[4] = {n, c, h, w}, strides[4] = {one(h) * one(w) * one(c), 1, one(w) * one(c), one(c)};
  return empty_strided(4, sizes, strides, dtype.value_or(like.scalar_type()), like);
}

// An output of `like`'s dtype in channels_last memory: in `given`, or in new memory.
inline Tensor placed(const char* op, const char* name, const std::optional<Tensor>& given,
                     std::initializer_list<int64_t> shape, const Tensor& like) {
  const int64_t* n = shape.begin();
  if (!given.has_value()) return empty_channels_last(like, n[0], n[1], n[2], n[3]);
  check_matching(op, name, *given, shape, like);
  STD_TORCH_CHECK(is_channels_last(*given), op, ": ", name, " must be in channels_last memory, got strides ",
                  shape_text(given->strides().begin(), given->strides().end()));
  const uintptr_t beyond = reinterpret_cast<uintptr_t>(given->const_data_ptr()) % 16;
  STD_TORCH_CHECK(beyond == 0, op, ": ", name, " must begin on 16 bytes, got a tensor that begins ", beyond, " beyond");
  return *given;
}

inline Tensor empty_per_channel(const Tensor& like, int64_t channels) {
  return empty({channels}, ScalarType::Float, like);
}

// Stands for a gradient that is not wanted.
inline Tensor no_gradient(const Tensor& like) { return empty({0}, like.scalar_type(), like); }

inline Tensor empty_weight(const Tensor& w) { return empty({w.size(0), 1, 3, 3}, w.scalar_type(), w); }

}  // namespace fastcifar

// What every *_op.cpp needs: the library to register in, the current stream, and the launchers' preconditions.
#pragma once
#include "stable.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "cuda/launch.h"

// The schemas that an op of this library was built with, and the op's kernels. The CPU library declares the ops; the
// schemas here go into a namespace of their own, where Python compares them with its own. The emulator of the tests
// builds the same files for CPU tensors, beside the real library.
#if defined(FASTCIFAR_EMULATED)
#define FASTCIFAR_CUDA_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar_emulated, m)
#define FASTCIFAR_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(fastcifar_emulated, CPU, m)
#else
#define FASTCIFAR_CUDA_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar_cuda, m)
#define FASTCIFAR_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(fastcifar, CUDA, m)
#endif

#if !defined(FASTCIFAR_EMULATED)
// Weak, because a torch without CUDA does not have it; the library loads there too, and the tests look at it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace fastcifar::cuda {

// Makes the tensor's device the current one for as long as it lives: PyTorch does not do that for custom ops.
class DeviceStream {
 public:
#if defined(FASTCIFAR_EMULATED)
  explicit DeviceStream(const Tensor&) {}
#else
  explicit DeviceStream(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
#endif
  operator cudaStream_t() const { return stream_; }

 private:
#if !defined(FASTCIFAR_EMULATED)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_ = nullptr;
};

// mma.sync of the shapes and types used begins with sm_80.
inline bool has_tensor_cores() {
#if defined(FASTCIFAR_EMULATED)
  return true;
#else
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 8;
#endif
}

inline void check_launch(const char* op, cudaError_t error) {
#if !defined(FASTCIFAR_EMULATED)
  STD_TORCH_CHECK(error == cudaSuccess, op, ": launching its CUDA kernels failed: ", cudaGetErrorString(error));
#endif
  (void)op, (void)error;
}

inline Dtype dtype_of(ScalarType t) {
  return t == ScalarType::Float ? Dtype::kFloat32 : t == ScalarType::BFloat16 ? Dtype::kBFloat16 : Dtype::kFloat16;
}
inline Dtype dtype_of(const Tensor& t) { return dtype_of(t.scalar_type()); }

// An activation that the kernels can read. It begins on 16 bytes (a view into another tensor may begin anywhere, and is
// copied) and has less than 4 GiB (the kernels count bytes in 32 bits).
inline Tensor readable(const char* op, const Tensor& t) {
  const int64_t bytes = t.numel() * (t.scalar_type() == ScalarType::Float ? 4 : 2);
  STD_TORCH_CHECK(bytes < int64_t{1} << 32, op, ": an activation of shape ", shape_text(t), " has ", bytes,
                  " bytes; the CUDA kernels take less than 4 GiB: use smaller batches");
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 ? t : torch::stable::clone(t);
}

inline const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
inline float* mutable_floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }
inline double* mutable_doubles(const Tensor& t) { return static_cast<double*>(t.mutable_data_ptr()); }

inline Tensor empty_floats(const Tensor& like, int64_t count) { return empty_per_channel(like, count); }

// A depthwise weight in float32. The gradient of a narrower weight is computed in float32 too, and rounded afterwards.
inline Tensor float_weight(const Tensor& w) {
  return w.scalar_type() == ScalarType::Float ? w : torch::stable::to(w, ScalarType::Float);
}
inline Tensor weight_gradient(const Tensor& float_gradient, const Tensor& w) {
  return w.scalar_type() == ScalarType::Float ? float_gradient : torch::stable::to(float_gradient, w.scalar_type());
}
inline Tensor empty_float_weight(const Tensor& w) { return empty({w.size(0), 1, 3, 3}, ScalarType::Float, w); }

inline void zero(Tensor t) { torch::stable::zero_(t); }

}  // namespace fastcifar::cuda

// The functions of the driver that PyTorch and Triton call.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "gpu.h"

using namespace fake;

namespace {
CUcontext context() { return reinterpret_cast<CUcontext>(16); }
CUresult result(cudaError_t error) { return static_cast<CUresult>(error); }
const void* named(const char* name) { return new std::string(name); }  // a kernel's handle, which is never freed
CUresult anything() { return CUDA_SUCCESS; }
}  // namespace

API CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int* version) { return result(cudaDriverGetVersion(version)); }
API CUresult cuDeviceGetCount(int* n) { return result(cudaGetDeviceCount(n)); }
API CUresult cuDeviceGet(CUdevice* device, int index) {
  *device = index;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetName(char* text, int size, CUdevice) {
  snprintf(text, size, "Fake GPU");
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  return result(cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(attribute), device));
}
API CUresult cuDevicePrimaryCtxRetain(CUcontext* found, CUdevice) {
  *found = context();
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0, *active = 1;
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetCurrent(CUcontext* found) {
  *found = context();
  return CUDA_SUCCESS;
}
API CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
API CUresult cuCtxPushCurrent_v2(CUcontext) { return CUDA_SUCCESS; }
API CUresult cuCtxPopCurrent_v2(CUcontext* found) { return cuCtxGetCurrent(found); }
API CUresult cuCtxGetDevice(CUdevice* device) {
  *device = current_device();
  return CUDA_SUCCESS;
}
API CUresult cuCtxSynchronize() { return result(cudaDeviceSynchronize()); }
API CUresult cuCtxGetLimit(size_t* value, CUlimit) {
  *value = 1 << 20;
  return CUDA_SUCCESS;
}
API CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
API CUresult cuGetErrorString(CUresult, const char** text) {
  *text = "an error of the fake GPU";
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorName(CUresult error, const char** text) { return cuGetErrorString(error, text); }
API CUresult cuStreamGetCtx(CUstream, CUcontext* found) { return cuCtxGetCurrent(found); }
API CUresult cuStreamSynchronize(CUstream stream) { return result(cudaStreamSynchronize(stream)); }
API CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
    *static_cast<CUdeviceptr*>(value) = pointer;
  else
    *static_cast<int*>(value) = 0;
  return CUDA_SUCCESS;
}
API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  return result(copy(to, reinterpret_cast<const void*>(from), bytes, nullptr, false, "cuMemcpyDtoH"));
}
API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  return result(copy(reinterpret_cast<void*>(to), from, bytes, stream, true, "cuMemcpyHtoDAsync"));
}

// ---- kernels, as Triton loads and launches them ----

API CUresult cuModuleLoadData(CUmodule* module, const void*) {
  *module = reinterpret_cast<CUmodule>(16);
  return CUDA_SUCCESS;
}
API CUresult cuModuleLoad(CUmodule* module, const char* path) { return cuModuleLoadData(module, path); }
API CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
  return cuModuleLoadData(module, image);
}
API CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
API CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  *function = static_cast<CUfunction>(const_cast<void*>(named(name)));
  return CUDA_SUCCESS;
}
API CUresult cuLibraryLoadData(CUlibrary* library, const void*, CUjit_option*, void**, unsigned, CUlibraryOption*,
                               void**, unsigned) {
  *library = reinterpret_cast<CUlibrary>(16);
  return CUDA_SUCCESS;
}
API CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary, const char* name) {
  *kernel = static_cast<CUkernel>(const_cast<void*>(named(name)));
  return CUDA_SUCCESS;
}
API CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  *function = reinterpret_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetName(const char** name, CUfunction function) {
  *name = reinterpret_cast<const std::string*>(function)->c_str();
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
           : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS            ? 32
                                                                : 0;
  return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
API CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
API CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                            unsigned bz, unsigned shared_bytes, CUstream stream, void**, void**) {
  const auto& name = *reinterpret_cast<const std::string*>(function);
  return result(launch(name, dim3(gx, gy, gz), dim3(bx, by, bz), shared_bytes, stream));
}
API CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction function, void** arguments, void** extra) {
  return cuLaunchKernel(function, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ,
                        c->sharedMemBytes, c->hStream, arguments, extra);
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  *blocks = 2;
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction, const CUlaunchConfig*) {
  *clusters = 66;
  return CUDA_SUCCESS;
}

// PyTorch looks functions of the driver up by name. What is not here does nothing.
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult* status) {
  void* found = dlsym(RTLD_DEFAULT, name);
  *function = found ? found : reinterpret_cast<void*>(anything);
  if (status) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

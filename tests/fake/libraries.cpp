// cuBLAS and cuDNN: handles, descriptors without content, and one kernel for each product and convolution.
//
// Their headers are not part of the CUDA toolkit. Only the arguments that are used here are declared: a callee that
// declares fewer arguments than it gets is sound in the C calling conventions of Linux.
#include <cstdlib>
#include <cstring>

#include "gpu.h"

using namespace fake;

namespace {

struct Handle {
  void* stream = nullptr;
  void* workspace = nullptr;
  int math_mode = 0, pointer_mode = 0;
};

int make(Handle** handle, const char* call) {
  if (forbidden(call)) return 1;
  *handle = new Handle;
  return 0;
}

// Notes in the graph, if the stream is captured, that a product has its workspace there.
void note_workspace(const void* handle, const void* workspace) {
  const Stream* stream = stream_of(handle);
  if (!stream || !stream->capture) return;
  if (workspace) stream->capture->graph->workspaces.insert(workspace);
}

int product(const Handle* handle, const char* call, int m, int n, int k) {
  const Lock lock(state().lock);
  const Stream* stream = stream_of(handle->stream);
  if (stream && stream->capture && !handle->workspace) violation("cuBLAS would allocate its workspace in a capture");
  note_workspace(handle->stream, handle->workspace);
  enqueue(handle->stream, "kernel",
          std::string(call) + " " + std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k));
  return 0;
}

template <class T>
int blank(T** descriptor) {
  *descriptor = static_cast<T*>(calloc(1, 1024));
  return 0;
}

}  // namespace

// ---- cuBLAS ----

API int cublasCreate_v2(Handle** handle) { return make(handle, "cublasCreate"); }
API int cublasDestroy_v2(Handle* handle) {
  delete handle;
  return 0;
}
API int cublasSetStream_v2(Handle* handle, void* stream) {
  handle->stream = stream, handle->workspace = nullptr;  // as in cuBLAS: the workspace is its own again
  return 0;
}
API int cublasSetWorkspace_v2(Handle* handle, void* workspace, size_t) {
  handle->workspace = workspace;
  return 0;
}
API int cublasSetMathMode(Handle* handle, int mode) {
  handle->math_mode = mode;
  return 0;
}
API int cublasGetMathMode(const Handle* handle, int* mode) {
  *mode = handle->math_mode;
  return 0;
}
API int cublasSetPointerMode_v2(Handle* handle, int mode) {
  handle->pointer_mode = mode;
  return 0;
}
API int cublasGetPointerMode_v2(const Handle* handle, int* mode) {
  *mode = handle->pointer_mode;
  return 0;
}
API int cublasSetSmCountTarget(Handle*, int) { return 0; }
#define PRODUCT(name) \
  API int name(const Handle* handle, int, int, int m, int n, int k) { return product(handle, #name, m, n, k); }
PRODUCT(cublasGemmEx)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasDgemmStridedBatched)
API int cublasSgemv_v2(const Handle* handle, int, int m, int n) { return product(handle, "cublasSgemv", m, n, 1); }

API size_t cublasLtGetVersion() { return 130101; }
struct Layout {
  uint64_t rows, columns;
};
API int cublasLtMatrixLayoutCreate(Layout** layout, int, uint64_t rows, uint64_t columns, int64_t) {
  *layout = new Layout{rows, columns};
  return 0;
}
API int cublasLtMatrixLayoutDestroy(Layout* layout) {
  delete layout;
  return 0;
}
API int cublasLtMatrixLayoutSetAttribute() { return 0; }
API int cublasLtMatmulDescCreate(void** description) { return blank(description); }
API int cublasLtMatmulDescDestroy(void* description) {
  free(description);
  return 0;
}
API int cublasLtMatmulDescSetAttribute() { return 0; }
API int cublasLtMatmulPreferenceCreate(void** preference) { return blank(preference); }
API int cublasLtMatmulPreferenceDestroy(void* preference) {
  free(preference);
  return 0;
}
API int cublasLtMatmulPreferenceSetAttribute() { return 0; }
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* results,
                                       int* found) {
  memset(results, 0, 80);  // of a cublasLtMatmulHeuristicResult_t: an algorithm of 64 bytes, its workspace, its status
  *found = 1;
  return 0;
}
API int cublasLtMatmul(void*, void*, const void*, const void*, const Layout* a, const void*, const Layout* b,
                       const void*, const void*, const Layout*, void*, const Layout* d, const void*, void* workspace,
                       size_t, void* stream) {
  const Lock lock(state().lock);
  note_workspace(stream, workspace);
  const auto shape = [](const Layout* l) { return std::to_string(l->rows) + "x" + std::to_string(l->columns); };
  enqueue(stream, "kernel", "cublasLtMatmul " + shape(a) + " " + shape(b) + " " + shape(d));
  return 0;
}

// ---- cuDNN ----

API size_t cudnnGetVersion() { return 92400; }
API size_t cudnnGetCudartVersion() { return CUDART_VERSION; }
API const char* cudnnGetErrorString(int) { return "an error of the fake GPU"; }
API void cudnnGetLastErrorString(char* text, size_t size) {
  if (size) *text = 0;
}
API int cudnnGetProperty(int which, int* value) {
  *value = which == 0 ? 9 : which == 1 ? 24 : 0;
  return 0;
}
API int cudnnCreate(Handle** handle) { return make(handle, "cudnnCreate"); }
API int cudnnSetStream(Handle* handle, void* stream) {
  handle->stream = stream;
  return 0;
}
API int cudnnGetStream(const Handle* handle, void** stream) {
  *stream = handle->stream;
  return 0;
}

// The backend's descriptors: every question is answered with one engine and no numbers.
API int cudnnBackendCreateDescriptor(int, void** descriptor) { return blank(descriptor); }
API int cudnnBackendDestroyDescriptor(void* descriptor) {
  free(descriptor);
  return 0;
}
API int cudnnBackendFinalize() { return 0; }
API int cudnnBackendSetAttribute() { return 0; }
API int cudnnBackendGetAttribute(void*, int attribute, int type, int64_t wanted, int64_t* count, void* values) {
  constexpr int kResultsOfHeuristics = 202, kInt64 = 3, kDescriptor = 15;
  int64_t found = 0;
  if (attribute == kResultsOfHeuristics)
    found = 1;
  else if (type == kDescriptor)
    found = values && wanted > 0;
  else if (type == kInt64)
    found = wanted > 0;
  if (type == kInt64 && found && values) *static_cast<int64_t*>(values) = 0;
  if (count) *count = found;
  return 0;
}
API int cudnnBackendExecute(const Handle* handle) {
  enqueue(handle->stream, "kernel", "cudnn convolution");
  return 0;
}
#define DESCRIPTOR(name)                                                                 \
  API int cudnnCreate##name##Descriptor(void** descriptor) { return blank(descriptor); } \
  API int cudnnDestroy##name##Descriptor(void* descriptor) {                             \
    free(descriptor);                                                                    \
    return 0;                                                                            \
  }
DESCRIPTOR(Tensor)
DESCRIPTOR(Filter)
DESCRIPTOR(Convolution)
DESCRIPTOR(Activation)
DESCRIPTOR(Pooling)
DESCRIPTOR(Dropout)
#define NOTHING(name) \
  API int name() { return 0; }
NOTHING(cudnnSetTensorNdDescriptor)
NOTHING(cudnnSetFilterNdDescriptor)
NOTHING(cudnnSetConvolutionNdDescriptor)
NOTHING(cudnnSetConvolutionGroupCount)
NOTHING(cudnnSetConvolutionMathType)
NOTHING(cudnnSetActivationDescriptor)
#define RUNS(name)                            \
  API int name(const Handle* handle) {        \
    enqueue(handle->stream, "kernel", #name); \
    return 0;                                 \
  }
RUNS(cudnnConvolutionForward)
RUNS(cudnnConvolutionBackwardData)
RUNS(cudnnConvolutionBackwardFilter)
RUNS(cudnnBatchNormalizationForwardTrainingEx)
RUNS(cudnnBatchNormalizationForwardInference)
RUNS(cudnnBatchNormalizationBackwardEx)
RUNS(cudnnPoolingForward)
// Sizes of buffers: none is needed. The size is the last argument of each.
API int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void*, int, int, void*, void*, void*, void*, void*,
                                                                 size_t* size) {
  *size = 0;
  return 0;
}
API int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void*, int, int, void*, void*, void*, void*, void*, void*,
                                                          void*, size_t* size) {
  *size = 0;
  return 0;
}
API int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void*, int, int, void*, void*, size_t* size) {
  *size = 0;
  return 0;
}

// The CUDA runtime: devices, memory, streams, events, captures, graphs and launches.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "gpu.h"

using namespace fake;

// ---- devices ----

API cudaError_t cudaGetDeviceCount(int* n) {
  *n = num_devices();
  return cudaSuccess;
}
API cudaError_t cudaGetDevice(int* device) {
  *device = current_device();
  return cudaSuccess;
}
API cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= num_devices()) return fail(cudaErrorInvalidDevice);
  current_device() = device;
  return cudaSuccess;
}
API cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
API cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "Fake GPU of capability %d.%d", capability() / 10, capability() % 10);
  memset(p->uuid.bytes, 16 + device, sizeof p->uuid.bytes);
  p->major = capability() / 10, p->minor = capability() % 10;
  p->totalGlobalMem = size_t{80} << 30, p->l2CacheSize = 50 << 20, p->memoryBusWidth = 5120;
  p->multiProcessorCount = 132, p->warpSize = 32, p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = 232448, p->sharedMemPerMultiprocessor = 233472;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = capability() == 75 ? 1024 : 2048, p->maxBlocksPerMultiProcessor = 32;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->unifiedAddressing = p->concurrentKernels = p->cooperativeLaunch = 1, p->pciBusID = 1 + device;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, device);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(p.sharedMemPerBlock); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(p.sharedMemPerBlockOptin); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = static_cast<int>(p.sharedMemPerMultiprocessor); break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = p.regsPerBlock; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = p.maxGridSize[1]; break;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: *value = p.maxThreadsDim[0]; break;
    case cudaDevAttrMaxBlockDimZ: *value = p.maxThreadsDim[2]; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = p.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
    case cudaDevAttrMemoryClockRate: *value = 2619000; break;
    case cudaDevAttrClockRate: *value = 1980000; break;
    case cudaDevAttrUnifiedAddressing: *value = 1; break;
    default: *value = 0;
  }
  return cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int* value, int, int) {
  *value = 0;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0, *greatest = -5;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int device) {
  snprintf(text, size, "0000:%02x:00.0", 1 + device);
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = reinterpret_cast<cudaMemPool_t>(16);
  return cudaSuccess;
}
API cudaError_t cudaDeviceSynchronize() { return synchronize("cudaDeviceSynchronize"); }
API cudaError_t cudaGetLastError() { return std::exchange(last_error(), cudaSuccess); }
API cudaError_t cudaPeekAtLastError() { return last_error(); }
API const char* cudaGetErrorName(cudaError_t error) {
  thread_local char text[64];
  snprintf(text, sizeof text, "error %d of the fake GPU", static_cast<int>(error));
  return text;
}
API const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
API cudaError_t cudaProfilerStart() { return cudaSuccess; }
API cudaError_t cudaProfilerStop() { return cudaSuccess; }

// ---- memory ----

API cudaError_t cudaMalloc(void** pointer, size_t bytes) { return allocate(pointer, bytes, false); }
API cudaError_t cudaFree(void* pointer) { return release(pointer); }
API cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) { return allocate(pointer, bytes, true); }
API cudaError_t cudaFreeHost(void* pointer) { return release(pointer); }
API cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *total = size_t{80} << 30, *free_bytes = *total - state().device_bytes;
  return cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* pointer) {
  const Lock lock(state().lock);
  const Block* block = block_of(pointer);
  *found = {};
  found->type = !block ? cudaMemoryTypeUnregistered : block->on_host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  found->device = block ? block->device : 0;
  found->devicePointer = block ? const_cast<void*>(pointer) : nullptr;
  found->hostPointer = block && block->on_host ? const_cast<void*>(pointer) : nullptr;
  return cudaSuccess;
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return copy(to, from, bytes, nullptr, false, "cudaMemcpy");
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return copy(to, from, bytes, stream, true, "cudaMemcpyAsync");
}
API cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return copy(to, from, bytes, stream, true, "cudaMemcpyPeerAsync");
}
API cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t handle) {
  const Lock lock(state().lock);
  enqueue(handle, "memset", std::to_string(bytes) + " bytes");
  const Stream* stream = stream_of(handle);
  if (!stream || !stream->capture) memset(to, value, bytes);
  return cudaSuccess;
}
API cudaError_t cudaMemset(void* to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }
// Variables of kernels: kernels do not run, so that any memory will do.
API cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }
API cudaError_t cudaGetSymbolAddress(void** pointer, const void*) {
  static char variables[1 << 20];
  *pointer = variables;
  return cudaSuccess;
}

// ---- streams and events ----

API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags, int priority) {
  const Lock lock(state().lock);
  auto* stream = new Stream{current_device(), !(flags & cudaStreamNonBlocking), priority, nullptr, {}};
  state().streams[stream] = stream;
  *handle = reinterpret_cast<cudaStream_t>(stream);
  return cudaSuccess;
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
  return cudaStreamCreateWithPriority(handle, flags, 0);
}
API cudaError_t cudaStreamCreate(cudaStream_t* handle) { return cudaStreamCreateWithPriority(handle, 0, 0); }
API cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  const Lock lock(state().lock);
  state().streams.erase(handle);
  return cudaSuccess;
}
API cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  const Lock lock(state().lock);
  const Stream* stream = stream_of(handle);
  *priority = stream ? stream->priority : 0;
  return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return synchronize_stream(handle, "cudaStreamSynchronize");
}
API cudaError_t cudaStreamQuery(cudaStream_t handle) {
  const Lock lock(state().lock);
  const Stream* stream = stream_of(handle);
  if (stream && stream->capture) return synchronize_stream(handle, "cudaStreamQuery");
  return forbidden("cudaStreamQuery") ? fail(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t waited, unsigned) {
  const Lock lock(state().lock);
  Stream* stream = stream_of(handle);
  const Event* event = reinterpret_cast<const Event*>(waited);
  Capture* capture = live_capture(event->capture);
  if (capture && !stream) {
    violation("the legacy stream waits for captured work");
    return fail(cudaErrorStreamCaptureImplicit);
  }
  if (capture) {
    if (!stream->capture) stream->capture = capture, stream->progress = {};
    stream->progress.join(event->progress);
  } else if (stream && stream->capture && event->recorded) {
    violation("a captured stream waits for work outside of the capture");
    return fail(cudaErrorStreamCaptureIsolation);
  }
  return cudaSuccess;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  const Lock lock(state().lock);
  const Stream* stream = stream_of(handle);
  if (!stream || !stream->capture) function(data);
  return cudaSuccess;
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned) {
  *handle = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* handle) { return cudaEventCreateWithFlags(handle, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  delete reinterpret_cast<Event*>(handle);
  return cudaSuccess;
}
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t where, unsigned) {
  const Lock lock(state().lock);
  const Stream* stream = stream_of(where);
  auto* event = reinterpret_cast<Event*>(handle);
  event->recorded = true, event->microseconds = state().microseconds;
  event->capture = stream && stream->capture ? stream->capture->id : 0;
  event->progress = stream ? stream->progress : Progress();
  return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t where) {
  return cudaEventRecordWithFlags(handle, where, 0);
}
static cudaError_t ask(cudaEvent_t handle, const char* call, bool waits) {
  const Lock lock(state().lock);
  if (live_capture(reinterpret_cast<const Event*>(handle)->capture)) {
    violation(std::string(call) + " of an event in a capture");
    return fail(cudaErrorCapturedEvent);
  }
  if (waits) return synchronize(call);
  return forbidden(call) ? fail(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
API cudaError_t cudaEventQuery(cudaEvent_t event) { return ask(event, "cudaEventQuery", false); }
API cudaError_t cudaEventSynchronize(cudaEvent_t event) { return ask(event, "cudaEventSynchronize", true); }
API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const auto at = [](cudaEvent_t event) { return reinterpret_cast<const Event*>(event)->microseconds; };
  *milliseconds = static_cast<float>((at(to) - at(from)) / 1e3);
  return cudaSuccess;
}

// ---- captures and graphs ----

API cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  const Lock lock(state().lock);
  Stream* stream = stream_of(handle);
  if (!stream || stream->capture) {
    violation(stream ? "a capture within a capture" : "a capture of the legacy stream");
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  static unsigned long long id = 0;
  stream->capture = new Capture{new Graph, stream, mode, pthread_self(), ++id, false, {}};
  stream->progress = {};
  state().captures.push_back(stream->capture);
  return cudaSuccess;
}
API cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t handle, cudaGraph_t, const cudaGraphNode_t*,
                                              const cudaGraphEdgeData*, size_t, cudaStreamCaptureMode mode) {
  return cudaStreamBeginCapture(handle, mode);
}
API cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  const Lock lock(state().lock);
  Stream* stream = stream_of(handle);
  Capture* capture = stream ? stream->capture : nullptr;
  *graph = nullptr;
  if (!capture || capture->origin != stream) {
    violation("the end of a capture that did not begin on this stream");
    return fail(cudaErrorIllegalState);
  }
  for (const auto& [other, nodes] : capture->nodes) {
    if (stream->progress.nodes[other] == nodes) continue;
    violation("a stream of the capture is not joined at its end");
    capture->broken = true;
  }
  for (auto& [_, other] : state().streams)
    if (other->capture == capture) other->capture = nullptr;
  auto& live = state().captures;
  live.erase(std::find(live.begin(), live.end(), capture));
  if (capture->broken) return fail(cudaErrorStreamCaptureInvalidated);
  *graph = reinterpret_cast<cudaGraph_t>(capture->graph);
  return cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id,
                                         cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                         const cudaGraphEdgeData** edges, size_t* count) {
  const Lock lock(state().lock);
  const Stream* stream = stream_of(handle);
  const Capture* capture = stream ? stream->capture : nullptr;
  if (!stream)
    for (const Capture* live : state().captures)
      if (live->origin->blocking) {
        violation("the legacy stream is used while a stream that waits for it is captured");
        return fail(cudaErrorStreamCaptureImplicit);
      }
  *status = !capture          ? cudaStreamCaptureStatusNone
            : capture->broken ? cudaStreamCaptureStatusInvalidated
                              : cudaStreamCaptureStatusActive;
  if (id) *id = capture ? capture->id : 0;
  if (graph) *graph = capture ? reinterpret_cast<cudaGraph_t>(capture->graph) : nullptr;
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(handle, status, nullptr, nullptr, nullptr, nullptr, nullptr);
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  const Lock lock(state().lock);
  state().last_graph = *reinterpret_cast<const Graph*>(graph);
  *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(state().last_graph));
  return cudaSuccess;
}
API cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiateWithFlags(executable, graph, flags);
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  const Lock lock(state().lock);
  if (!state().captures.empty()) violation("a graph is replayed during a capture");
  count("graph");
  state().microseconds += 2.5 * static_cast<double>(reinterpret_cast<const Graph*>(executable)->nodes.size());
  return cudaSuccess;
}
API cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<Graph*>(executable);
  return cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = reinterpret_cast<const Graph*>(graph)->nodes.size();
  return cudaSuccess;
}
API cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*, size_t* count) {
  *count = 0;
  return cudaSuccess;
}
API cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void*, cudaHostFn_t, unsigned, unsigned) {
  *object = reinterpret_cast<cudaUserObject_t>(16);
  return cudaSuccess;
}
API cudaError_t cudaUserObjectRelease(cudaUserObject_t, unsigned) { return cudaSuccess; }
API cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t, unsigned, unsigned) { return cudaSuccess; }

// ---- kernels, as nvcc's code registers and launches them ----

API void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*,
                                dim3*, int*) {
  const Lock lock(state().lock);
  state().kernels[function] = name;
}
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

namespace {
struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;
}  // namespace

API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
  configurations.push_back({grid, block, shared_bytes, stream});
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  const Configuration last = configurations.back();
  configurations.pop_back();
  *grid = last.grid, *block = last.block, *shared_bytes = last.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = last.stream;
  return cudaSuccess;
}
API cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, size_t shared_bytes,
                                 cudaStream_t stream) {
  const Lock lock(state().lock);
  const auto found = state().kernels.find(function);
  return launch(found == state().kernels.end() ? "a kernel" : found->second, grid, block, shared_bytes, stream);
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                                   cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function, void** arguments) {
  return cudaLaunchKernel(function, c->gridDim, c->blockDim, arguments, c->dynamicSmemBytes, c->stream);
}
API cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                                            size_t shared_bytes, cudaStream_t stream) {
  return cudaLaunchKernel(function, grid, block, arguments, shared_bytes, stream);
}
API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  *found = {};
  found->maxThreadsPerBlock = 1024, found->numRegs = 32, found->binaryVersion = found->ptxVersion = capability();
  return cudaSuccess;
}
API cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
API cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) { return cudaSuccess; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                       unsigned) {
  *blocks = 2;
  return cudaSuccess;
}

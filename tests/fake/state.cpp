// Streams, captures and memory, and what a test reads of them.
#include <execinfo.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "gpu.h"

namespace fake {

namespace {

int number_from(const char* variable, int otherwise) {
  const char* text = getenv(variable);
  return text && *text ? atoi(text) : otherwise;
}

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

const char* place(const void* pointer) {
  const Block* block = block_of(pointer);
  return !block ? "pageable" : block->on_host ? "pinned" : "device";
}

}  // namespace

State& state() {
  static State* one = new State;  // never destroyed: libraries call at the end of the process too
  return *one;
}

int num_devices() {
  static const int n = number_from("FAKE_GPU_DEVICES", 1);
  return n;
}
int capability() {
  static const int n = number_from("FAKE_GPU_CAPABILITY", 90);
  return n;
}
int& current_device() {
  thread_local int device = 0;
  return device;
}
cudaError_t& last_error() {
  thread_local cudaError_t error = cudaSuccess;
  return error;
}
cudaError_t fail(cudaError_t error) { return last_error() = error; }

void count(const std::string& kind) {
  const Lock lock(state().lock);
  ++state().counts[kind];
}

void violation(const std::string& what) {
  const Lock lock(state().lock);
  count("violation");
  if (++state().violations[what] > 2) return;
  fprintf(stderr, "fake GPU: VIOLATION: %s\n", what.c_str());
  void* frames[24];
  const int n = backtrace(frames, 24);
  char** names = backtrace_symbols(frames, n);
  for (int i = 1; i < n; ++i) fprintf(stderr, "    %s\n", names[i]);
  free(names);
}

void Progress::join(const Progress& other) {
  for (const auto& [stream, done] : other.nodes) nodes[stream] = std::max(nodes[stream], done);
  depth = std::max(depth, other.depth);
}

bool forbidden(const char* call) {
  const Lock lock(state().lock);
  if (thread_mode == cudaStreamCaptureModeRelaxed) return false;
  for (Capture* capture : state().captures) {
    const bool here = pthread_equal(capture->thread, pthread_self());
    if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
    if (capture->mode == cudaStreamCaptureModeThreadLocal && !here) continue;
    capture->broken = true;
    violation(std::string(call) + " during a capture");
    return true;
  }
  return false;
}

Capture* live_capture(unsigned long long id) {
  for (Capture* capture : state().captures)
    if (capture->id == id) return capture;
  return nullptr;
}

Stream* stream_of(const void* handle) {
  // 1 and 2 are cudaStreamLegacy and cudaStreamPerThread
  if (reinterpret_cast<uintptr_t>(handle) <= 2) return nullptr;
  const auto found = state().streams.find(handle);
  if (found != state().streams.end()) return found->second;
  violation("a stream that does not exist");
  return nullptr;
}

void enqueue(const void* handle, const char* kind, const std::string& what) {
  const Lock lock(state().lock);
  Stream* stream = stream_of(handle);
  if (stream && stream->device != current_device())
    violation("a stream of device " + std::to_string(stream->device) + " while another is current: " + what);
  if (!stream || !stream->capture) {
    if (!state().captures.empty())
      violation(std::string("work escapes the capture into ") + (stream ? "another" : "the legacy") +
                " stream: " + what);
    count(kind);
    state().microseconds += 2.5;
    return;
  }
  Capture* capture = stream->capture;
  count(std::string("captured ") + kind);
  capture->graph->nodes.push_back(std::string(kind) + " " + what);
  stream->progress.nodes[stream] = ++capture->nodes[stream];
  capture->graph->depth = std::max(capture->graph->depth, ++stream->progress.depth);
}

cudaError_t launch(const std::string& kernel, dim3 grid, dim3 block, size_t shared_bytes, const void* stream) {
  const size_t threads = size_t{block.x} * block.y * block.z;
  char shape[128];
  snprintf(shape, sizeof shape, " <<<%u,%u,%u|%u,%u,%u|%zu>>>", grid.x, grid.y, grid.z, block.x, block.y, block.z,
           shared_bytes);
  const bool fits = grid.x && grid.y && grid.z && threads && threads <= 1024 && block.z <= 64 && grid.y <= 65535 &&
                    grid.z <= 65535 && shared_bytes <= 232448;
  if (!fits) {
    violation("a launch that no GPU takes: " + kernel + shape);
    return fail(cudaErrorInvalidConfiguration);
  }
  enqueue(stream, "kernel", kernel + shape);
  return cudaSuccess;
}

cudaError_t copy(void* to, const void* from, size_t bytes, const void* handle, bool may_overlap, const char* call) {
  const Lock lock(state().lock);
  const std::string what =
      std::string(call) + " of " + std::to_string(bytes) + " bytes, " + place(from) + " to " + place(to);
  const Stream* stream = stream_of(handle);
  if (stream && stream->capture) {
    if (strcmp(place(from), "device") || strcmp(place(to), "device"))
      violation("a captured copy reads or writes host memory, again at each replay: " + what);
    enqueue(handle, "copy", what);
    return cudaSuccess;
  }
  if (!may_overlap && forbidden(call)) return fail(cudaErrorStreamCaptureUnsupported);
  enqueue(handle, "copy", what);
  if (!may_overlap || !strcmp(place(to), "pageable")) count("synchronization");
  if (bytes) memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t allocate(void** pointer, size_t bytes, bool on_host) {
  if (forbidden(on_host ? "cudaHostAlloc" : "cudaMalloc")) return fail(cudaErrorStreamCaptureUnsupported);
  const size_t size = std::max<size_t>((bytes + 4095) / 4096 * 4096, 4096);
  const Lock lock(state().lock);
  void* memory = MAP_FAILED;
  if (on_host || state().device_bytes + size <= size_t{6} << 30)  // more than any test needs
    memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  *pointer = memory == MAP_FAILED ? nullptr : memory;
  if (!*pointer) return fail(cudaErrorMemoryAllocation);
  state().blocks[reinterpret_cast<uintptr_t>(memory)] = {size, current_device(), on_host};
  if (!on_host) state().device_bytes += size;
  count(on_host ? "host allocation" : "allocation");
  return cudaSuccess;
}

cudaError_t release(void* pointer) {
  if (!pointer) return cudaSuccess;
  if (forbidden("cudaFree")) return fail(cudaErrorStreamCaptureUnsupported);
  const Lock lock(state().lock);
  const auto found = state().blocks.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == state().blocks.end()) {
    violation("memory is freed that was not allocated");
    return fail(cudaErrorInvalidValue);
  }
  if (!found->second.on_host) state().device_bytes -= found->second.bytes;
  munmap(pointer, found->second.bytes);
  state().blocks.erase(found);
  return cudaSuccess;
}

const Block* block_of(const void* pointer) {
  const auto at = reinterpret_cast<uintptr_t>(pointer);
  auto next = state().blocks.upper_bound(at);
  if (next == state().blocks.begin()) return nullptr;
  --next;
  return at < next->first + next->second.bytes ? &next->second : nullptr;
}

cudaError_t synchronize(const char* call) {
  if (forbidden(call)) return fail(cudaErrorStreamCaptureUnsupported);
  count("synchronization");
  return cudaSuccess;
}

cudaError_t synchronize_stream(const void* handle, const char* call) {
  const Lock lock(state().lock);
  const Stream* stream = stream_of(handle);
  if (stream && stream->capture) {
    violation(std::string(call) + " of a captured stream");
    stream->capture->broken = true;
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  return synchronize(call);
}

}  // namespace fake

API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, fake::thread_mode);
  return cudaSuccess;
}

// ---- what a test reads ----
// Of "kernel", "copy", "memset", "graph" (a replay), each of the first three with "captured " before it, and of
// "synchronization", "allocation", "host allocation" and "violation".
API long fake_gpu_count(const char* kind) {
  const fake::Lock lock(fake::state().lock);
  const auto found = fake::state().counts.find(kind);
  return found == fake::state().counts.end() ? 0 : found->second;
}
API size_t fake_gpu_bytes() { return fake::state().device_bytes; }
// The nodes of the graph that was instantiated last, a line each; behind them the length of its longest chain.
API const char* fake_gpu_graph() {
  static std::string text;
  const fake::Lock lock(fake::state().lock);
  text.clear();
  for (const std::string& node : fake::state().last_graph.nodes) text += node + "\n";
  text += std::to_string(fake::state().last_graph.depth);
  return text.c_str();
}
// The addresses of the workspaces that cuBLAS has in the graph that was instantiated last, a line each.
API const char* fake_gpu_workspaces() {
  static std::string text;
  const fake::Lock lock(fake::state().lock);
  text.clear();
  for (const void* workspace : fake::state().last_graph.workspaces)
    text += std::to_string(reinterpret_cast<uintptr_t>(workspace)) + "\n";
  return text.c_str();
}

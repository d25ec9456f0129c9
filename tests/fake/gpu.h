// A GPU that is not there: what its parts share. `runtime.cpp`, `driver.cpp` and `libraries.cpp` stand in for the CUDA
// runtime, for the driver's functions that PyTorch and Triton call, and for cuBLAS and cuDNN.
//
// Device memory is host memory. Kernels are counted and not run. What a CUDA build of PyTorch does on the host is real,
// and CUDA's rules for the capture of a stream are kept: what would end a capture, or would leave work out of the
// graph, is a violation, which is printed with a stack.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace fake {

struct Stream;

// How much of each stream's captured work has been done when a point is reached, and the longest chain of nodes there.
struct Progress {
  std::map<const Stream*, int> nodes;
  int depth = 0;
  void join(const Progress& other);
};

struct Graph {
  std::vector<std::string> nodes;
  int depth = 0;
  std::set<const void*> workspaces;  // of its products: cuBLAS writes there at each replay
};

struct Capture {
  Graph* graph;
  Stream* origin;
  cudaStreamCaptureMode mode;
  pthread_t thread;
  unsigned long long id;
  bool broken = false;
  std::map<const Stream*, int> nodes;  // of each stream, so far
};

struct Stream {
  int device;
  bool blocking;  // waits for the legacy stream, as streams without cudaStreamNonBlocking do
  int priority;
  Capture* capture = nullptr;
  Progress progress;  // within the capture
};

struct Event {
  double microseconds = 0;
  bool recorded = false;
  unsigned long long capture = 0;  // the id of the capture in which it was recorded
  Progress progress;
};

struct Block {
  size_t bytes;
  int device;
  bool on_host;
};

// The state of the whole process. Every function that reads or writes it holds `lock`.
struct State {
  std::recursive_mutex lock;
  std::map<const void*, Stream*> streams;
  std::vector<Capture*> captures;
  std::map<uintptr_t, Block> blocks;
  std::map<const void*, std::string> kernels;
  std::map<std::string, long> counts;
  std::map<std::string, long> violations;
  Graph last_graph;
  size_t device_bytes = 0;
  double microseconds = 0;  // 2.5 for each kernel, so that no measured time is zero
};
State& state();
using Lock = std::lock_guard<std::recursive_mutex>;
inline Lock locked() { return Lock(state().lock); }

int num_devices();  // FAKE_GPU_DEVICES, 1
int capability();   // FAKE_GPU_CAPABILITY, 90 for 9.0
int& current_device();
cudaError_t& last_error();
cudaError_t fail(cudaError_t error);

void count(const std::string& kind);
void violation(const std::string& what);
// Whether a capture forbids this call to this thread; then the capture is broken.
bool forbidden(const char* call);
Capture* live_capture(unsigned long long id);
Stream* stream_of(const void* handle);  // null: the legacy stream

// Puts a kernel, copy or memset into a stream: into the graph, if the stream is captured.
void enqueue(const void* stream, const char* kind, const std::string& what);
cudaError_t launch(const std::string& kernel, dim3 grid, dim3 block, size_t shared_bytes, const void* stream);
cudaError_t copy(void* to, const void* from, size_t bytes, const void* stream, bool may_overlap, const char* call);
cudaError_t allocate(void** pointer, size_t bytes, bool on_host);
cudaError_t release(void* pointer);
const Block* block_of(const void* pointer);
cudaError_t synchronize(const char* call);
cudaError_t synchronize_stream(const void* stream, const char* call);

}  // namespace fake

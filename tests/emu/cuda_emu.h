// Runs the text of the CUDA kernels and of their launchers on the CPU.
//
// Each block, or each cluster of blocks, runs alone; each of its threads is a fiber. __syncthreads, the barrier of a
// cluster and the warp operations are real meeting points; between two of them the threads run one after another in an
// order drawn from emu::seed(), and shared memory starts as NaN in every block: a missing barrier or initialisation
// changes the result. Shared arrays are heap blocks of their exact size, so that AddressSanitizer sees an access
// outside them as well as one outside a tensor; reading one of a block that has ended is an error. Under
// ThreadSanitizer each thread of a block is a thread to it, and only barriers and launches order what they do: it sees
// data races within a block and, between blocks, in global memory. It checks the kernels' logic; not their speed, nor
// what ptxas makes of them.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void* __tsan_get_current_fiber();
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
// For functions of the emulator that change fibers or that a kernel calls: their own memory is of no thread of the
// kernel.
#define EMU_UNSEEN inline __attribute__((no_sanitize("thread"), noinline))
#else
#define EMU_UNSEEN inline
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
using cudaError_t = int;
inline constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

// What ThreadSanitizer is told; nothing without it.
namespace race {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kOn = true;
inline void* new_thread() { return __tsan_create_fiber(0); }
inline void end_thread(void* thread) { __tsan_destroy_fiber(thread); }
inline void* this_thread() { return __tsan_get_current_fiber(); }
// Flag 1: changing threads orders nothing.
inline void change_to(void* thread) { __tsan_switch_to_fiber(thread, 1); }
// Who waits for a token comes after all that its givers did before.
inline void give(void* token) { __tsan_release(token); }
inline void wait_for(void* token) { __tsan_acquire(token); }
struct Unseen {
  Unseen() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__), AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unseen() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__), AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};
#else
inline constexpr bool kOn = false;
inline void* new_thread() { return nullptr; }
inline void end_thread(void*) {}
inline void* this_thread() { return nullptr; }
inline void change_to(void*) {}
inline void give(void*) {}
inline void wait_for(void*) {}
struct Unseen {
  ~Unseen() {}
};
#endif

}  // namespace race

namespace emu {

inline constexpr size_t kStackBytes = 256 * 1024;

// 0: the threads run in their own order; anything else: shuffled.
inline unsigned& seed() {
  static unsigned value = 1;
  return value;
}

// Count launches and run nothing.
inline bool& idle() {
  static bool value = false;
  return value;
}

inline constexpr unsigned kMostBlocks = 16;  // of a cluster

// The most blocks that a cluster may have: 1 before Hopper, 8 where no more are possible than are portable.
inline unsigned& cluster_limit() {
  static unsigned value = kMostBlocks;
  return value;
}

enum class State { kReady, kAtBlock, kAtWarp, kAtCluster, kDone };

// Where a fiber, or the scheduler, goes on. swapcontext() would ask the kernel for the signal mask with each change.
using Place = void* [5];

inline constexpr size_t kMostLetterBytes = 64;

// What a thread leaves for the others of its warp.
struct Letter {
  uint64_t number = 0;  // how many the thread has left
  alignas(16) char bytes[kMostLetterBytes];
};

struct Fiber {
  Place place;
  ucontext_t beginning;
  bool has_begun = false;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  dim3 thread_idx, block_idx;
  int index = 0;        // in the cluster
  unsigned rank = 0;    // of its block in the cluster
  uint64_t serial = 0;  // of its block, over all launches
  State state = State::kReady;
  void* asan_stack = nullptr;
  void* thread = nullptr;                             // to the race detector
  unsigned barriers = 0, meetings = 0, arrivals = 0;  // that it reached: of the block, of the warp, of the cluster
  uint64_t letters = 0;                               // that it left
  Letter letter[2];                                   // the last one, and the one before
};

// Blocks that follow each other mostly have other threads, to the race detector: the same ones would be ordered. It has
// numbers for 8128 threads: a cluster of 4096 is given the same ones again.
inline unsigned pools_for(size_t threads) { return race::kOn && threads < 4000 ? 2 : 1; }
inline constexpr size_t kTokens =
    128;  // of a block: two for its barriers, two for those of each warp, two of its cluster

struct FreeAligned {
  void operator()(char* p) const { ::operator delete[](p, std::align_val_t{16}); }
};

struct Machine {
  std::vector<Fiber> fibers;  // of all pools
  Fiber* cluster = nullptr;   // the fibers of the blocks that run
  size_t block_size = 0;
  unsigned cluster_size = 1, pools = 1;
  Place scheduler;
  Fiber* current = nullptr;
  const std::function<void()>* body = nullptr;
  dim3 block_dim, grid_dim;
  uint64_t block_serial = 0;  // of the last block, over all launches
  unsigned long launches = 0;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  void* scheduler_asan = nullptr;
  void* scheduler_thread = nullptr;
  char launched, ended;  // tokens of the race detector
  std::vector<char> tokens = std::vector<char>(race::kOn ? kTokens << 14 : 0);
  std::vector<std::unique_ptr<char[], FreeAligned>> used;  // shared memory whose address must not come again
};

EMU_UNSEEN Machine& machine() {
  static Machine m;
  return m;
}

[[noreturn]] inline void die(const char* message) {
  std::fprintf(stderr, "emu: %s\n", message);
  std::abort();
}

// Goes on at `place`. It is not called noreturn, because AddressSanitizer would look at all stacks before such a call.
__attribute__((noinline, no_sanitize("address"))) EMU_UNSEEN void go_to(Place& place) { __builtin_longjmp(place, 1); }

EMU_UNSEEN void run(Fiber& f) {
  Machine& m = machine();
  m.current = &f;
  m.scheduler_thread = race::this_thread();
  race::change_to(f.thread);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&m.scheduler_asan, f.stack.get(), kStackBytes);
#endif
  if (__builtin_setjmp(m.scheduler) == 0) {
    if (f.has_begun) go_to(f.place);
    f.has_begun = true;
    setcontext(&f.beginning);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine().scheduler_asan, nullptr, nullptr);
#endif
}

// The token of the meeting point that a thread has reached. Barriers take turns with two tokens, because a thread that
// has passed one barrier may reach the next one before all have left the first.
EMU_UNSEEN void* meeting_point(Fiber& f, State state) {
  Machine& m = machine();
  if (!race::kOn || state == State::kDone) return &m.ended;
  const auto tokens_of = [&](uint64_t serial) {
    return m.tokens.data() + serial % (m.tokens.size() / kTokens) * kTokens;
  };
  if (state == State::kAtCluster) return tokens_of(f.serial - f.rank) + kTokens - 2 + f.arrivals % 2;
  const size_t warp = (f.index - f.rank * m.block_size) / 32;
  return tokens_of(f.serial) + (state == State::kAtBlock ? f.barriers++ % 2 : 2 + warp * 2 + f.meetings++ % 2);
}

// Stops the current thread until `release`, or after kDone until it is a thread of another block.
EMU_UNSEEN void park(State state) {
  Machine& m = machine();
  Fiber& f = *m.current;
  f.state = state;
  void* const token = meeting_point(f, state);
  if (state != State::kAtCluster) race::give(token);  // it was given on arrival
  race::change_to(m.scheduler_thread);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&f.asan_stack, m.scheduler_stack, m.scheduler_stack_bytes);
#endif
  if (__builtin_setjmp(f.place) == 0) go_to(m.scheduler);
  if (state != State::kDone) race::wait_for(token);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(f.asan_stack, &m.scheduler_stack, &m.scheduler_stack_bytes);
#endif
}

EMU_UNSEEN void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine().scheduler_stack, &machine().scheduler_stack_bytes);
#endif
  for (;;) {
    race::wait_for(&machine().launched);
    (*machine().body)();
    park(State::kDone);
  }
}

// Lets go on whoever waits at a meeting point that all living threads of the block (or warp, or cluster) have reached.
EMU_UNSEEN bool release() {
  Fiber* const fibers = machine().cluster;
  const size_t size = machine().block_size, count = size * machine().cluster_size;
  const auto meet = [&](size_t begin, size_t end, State state) {
    size_t living = 0, waiting = 0;
    for (size_t i = begin; i < end; ++i) living += fibers[i].state != State::kDone, waiting += fibers[i].state == state;
    if (living == 0 || waiting != living) return false;
    for (size_t i = begin; i < end; ++i)
      if (fibers[i].state == state) fibers[i].state = State::kReady;
    return true;
  };
  bool any = false;
  for (size_t first = 0; first < count; first += size) {
    if (meet(first, first + size, State::kAtBlock)) any = true;
    for (size_t i = first; i < first + size; i += 32) any |= meet(i, std::min(first + size, i + 32), State::kAtWarp);
  }
  unsigned least = ~0u;
  for (size_t i = 0; i < count; ++i)
    if (fibers[i].state != State::kDone) least = std::min(least, fibers[i].arrivals);
  for (size_t i = 0; i < count; ++i)
    if (fibers[i].state == State::kAtCluster && fibers[i].arrivals <= least)
      fibers[i].state = State::kReady, any = true;
  return any;
}

// Runs the blocks of a cluster, which lie side by side along y; `first` is the first of them.
EMU_UNSEEN void run_cluster(dim3 first, dim3 block, std::mt19937& rng) {
  Machine& m = machine();
  const uint64_t serial = m.block_serial + 1;
  m.block_serial += m.cluster_size;
  const int n = static_cast<int>(m.fibers.size() / m.pools);
  Fiber* const fibers = m.cluster = m.fibers.data() + (race::kOn ? rng() % m.pools * n : 0);
  m.block_size = n / m.cluster_size;
  for (int i = 0; i < n; ++i) {
    Fiber& f = fibers[i];
    const unsigned t = i % m.block_size;
    f.index = i;
    f.rank = i / m.block_size;
    f.serial = serial + f.rank;
    f.thread_idx = dim3(t % block.x, t / block.x % block.y, t / (block.x * block.y));
    f.block_idx = dim3(first.x, first.y + f.rank, first.z);
    f.state = State::kReady;
    f.barriers = f.meetings = f.arrivals = 0;
    f.letters = 0;
    if (!f.thread) f.thread = race::new_thread();
    if (f.has_begun) continue;
    getcontext(&f.beginning);
    f.beginning.uc_stack.ss_sp = f.stack.get();
    f.beginning.uc_stack.ss_size = kStackBytes;
    makecontext(&f.beginning, entry, 0);
  }
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  do {
    if (seed()) std::shuffle(order.begin(), order.end(), rng);
    for (int i : order)
      if (fibers[i].state == State::kReady) run(fibers[i]);
  } while (release());
  for (int i = 0; i < n; ++i)
    if (fibers[i].state != State::kDone)
      die("deadlock: some threads of a block or cluster wait at a barrier that the others never reach");
}

EMU_UNSEEN void launch(unsigned cluster, dim3 grid, dim3 block, const std::function<void()>& body) {
  Machine& m = machine();
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) die("a block has 1 to 1024 threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) die("an empty or too large grid");
  if (cluster == 0 || cluster > cluster_limit() || grid.y % cluster != 0)
    die("a cluster has more blocks than it may have, or grid.y no whole clusters");
  if (cluster > 1 && threads % 32 != 0) die("a block of a cluster has whole warps here");
  ++m.launches;
  if (idle()) return;
  m.pools = pools_for(cluster * threads);
  if (m.fibers.size() != cluster * threads * m.pools) {
    for (Fiber& f : m.fibers)
      if (f.thread) race::end_thread(f.thread);
    m.fibers = std::vector<Fiber>(cluster * threads * m.pools);
  }
  m.body = &body;
  m.grid_dim = grid;
  m.block_dim = block;
  m.cluster_size = cluster;
  std::mt19937 rng(seed());
  std::vector<unsigned> firsts(size_t{grid.x} * grid.y * grid.z / cluster);
  std::iota(firsts.begin(), firsts.end(), 0u);
  if (seed()) std::shuffle(firsts.begin(), firsts.end(), rng);
  race::give(&m.launched);
  for (unsigned first : firsts) {
    const unsigned rows = grid.y / cluster;
    run_cluster(dim3(first % grid.x, first / grid.x % rows * cluster, first / (grid.x * rows)), block, rng);
  }
  race::wait_for(&m.ended);
  m.used.clear();
}

// Storage behind SHARED_ARRAY: one per place in the source, fresh and full of NaN in every block. The array ends where
// the heap block ends, so that ASan's red zone starts right behind its last element.
template <class T>
class SharedArray {
 public:
  T* in_this_block(size_t count) {
    const race::Unseen unseen;
    const Fiber& f = *machine().current;
    Array& array = arrays_[f.rank];
    if (array.serial != f.serial) {
      array.serial = f.serial;
      const size_t bytes = sizeof(T) * count;
      if (race::kOn && array.data) machine().used.push_back(std::move(array.data));
      array.data.reset(new (std::align_val_t{16}) char[bytes]);
      std::memset(array.data.get(), 0xff, bytes);
    }
    return reinterpret_cast<T*>(array.data.get());
  }

  // The array of another block of the cluster.
  const T* in_block(unsigned rank) {
    const race::Unseen unseen;
    const Machine& m = machine();
    const Fiber* const threads = m.cluster + rank * m.block_size;
    if (rank >= m.cluster_size || arrays_[rank].serial != threads->serial)
      die("shared memory of a block that is not in the cluster or has not come there");
    if (std::all_of(threads, threads + m.block_size, [](const Fiber& f) { return f.state == State::kDone; }))
      die("shared memory of a block that has ended");
    return reinterpret_cast<const T*>(arrays_[rank].data.get());
  }

 private:
  struct Array {
    std::unique_ptr<char[], FreeAligned> data;
    uint64_t serial = 0;
  };
  Array arrays_[kMostBlocks];
};

// Every thread of the warp leaves a letter; afterwards `read(letter_of)` may read all of them by their lane. A thread may
// leave its next letter before others have read this one, and none after that: there are two.
template <class T, class Read>
auto exchange(const T& letter, Read read) {
  static_assert(sizeof(T) <= kMostLetterBytes && alignof(T) <= 16);
  uint64_t number;
  const Fiber* warp;
  {
    const race::Unseen unseen;
    Machine& m = machine();
    Fiber& f = *m.current;
    warp = m.cluster + f.index / 32 * 32;
    number = ++f.letters;
    Letter& own = f.letter[number % 2];
    own.number = number;
    std::memcpy(own.bytes, &letter, sizeof(T));
  }
  park(State::kAtWarp);
  return read([&](int lane) -> const T& {
    const Letter& found = warp[lane & 31].letter[number % 2];
    if (found.number != number) die("a warp operation in which a lane takes no part");
    return *reinterpret_cast<const T*>(found.bytes);
  });
}

EMU_UNSEEN int lane() { return machine().current->index & 31; }

// ldmatrix.x4: lane l's pointer is row l % 8 of matrix l / 8.
inline void load_matrices(const uint16_t* row, bool transposed, uint32_t (&out)[4]) {
  exchange(row, [&](auto row_of) {
    const int g = lane() / 4, t = lane() % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const uint16_t low = transposed ? row_of(i * 8 + t)[g] : row_of(i * 8 + g)[t];
      const uint16_t high = transposed ? row_of(i * 8 + t + 1)[g] : row_of(i * 8 + g)[t + 1];
      out[i] = low | static_cast<uint32_t>(high) << 16;
    }
    return 0;
  });
  park(State::kAtWarp);  // all lanes read at once: what a lane writes next, no other may see
}

// mma.m16n8k16: d += a . b
template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Halves {
    float a[4][2], b[2][2];
  } own;
  const auto half = [](uint32_t pair, int e) { return to_f32(T{static_cast<uint16_t>(pair >> (16 * e))}); };
  for (int e = 0; e < 2; ++e) {
    for (int i = 0; i < 4; ++i) own.a[i][e] = half(a[i], e);
    own.b[0][e] = half(b0, e), own.b[1][e] = half(b1, e);
  }
  exchange(own, [&](auto halves_of) {
    for (int k = 0; k < 16; ++k) {
      const Halves& of_row = halves_of(lane() / 4 * 4 + k % 8 / 2);
      for (int e = 0; e < 4; ++e) {
        const Halves& of_column = halves_of((lane() % 4 * 2 + e % 2) * 4 + k % 8 / 2);
        d[e] += of_row.a[k / 8 * 2 + e / 2][k % 2] * of_column.b[k / 8][k % 2];
      }
    }
    return 0;
  });
}

EMU_UNSEEN dim3 thread_index() { return machine().current->thread_idx; }
EMU_UNSEEN dim3 block_index() { return machine().current->block_idx; }
EMU_UNSEEN dim3 block_size() { return machine().block_dim; }
EMU_UNSEEN dim3 grid_size() { return machine().grid_dim; }
EMU_UNSEEN unsigned cluster_size() { return machine().cluster_size; }

EMU_UNSEEN void arrive_at_cluster() {
  Fiber& f = *machine().current;
  ++f.arrivals;
  if (race::kOn) race::give(meeting_point(f, State::kAtCluster));
}

}  // namespace emu

#define threadIdx (emu::thread_index())
#define blockIdx (emu::block_index())
#define blockDim (emu::block_size())
#define gridDim (emu::grid_size())

#ifdef EMU_NO_BARRIER  // a self-test: without its barriers a kernel must fail
inline void __syncthreads() {}
#else
inline void __syncthreads() { emu::park(emu::State::kAtBlock); }
#endif
namespace fastcifar::cuda {
inline int cluster_blocks() { return static_cast<int>(emu::cluster_size()); }
inline int most_cluster_blocks() { return static_cast<int>(emu::cluster_limit()); }
inline bool is_from_hopper_on() { return emu::cluster_limit() > 1; }
inline bool has_shared_memory(int) { return true; }
}  // namespace fastcifar::cuda
namespace fastcifar::cuda {
inline void arrive_at_cluster() { emu::arrive_at_cluster(); }
inline void wait_for_cluster() { emu::park(emu::State::kAtCluster); }
}  // namespace fastcifar::cuda
inline void __syncwarp(unsigned = ~0u) { emu::park(emu::State::kAtWarp); }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emu::exchange(value, [&](auto letter_of) { return letter_of(emu::lane() ^ mask); });
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emu::exchange(value, [&](auto letter_of) { return letter_of(lane); });
}

#define SHARED_ARRAY(type, name, count)     \
  static emu::SharedArray<type> name##_emu; \
  type* const name = name##_emu.in_this_block(count)
#define LARGE_SHARED(type, name) SHARED_ARRAY(type, name, 1)
#define IN_BLOCK(name, rank) name##_emu.in_block(rank)

#define LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), emu::launch(1, grid, block, [&] { kernel(__VA_ARGS__); }))
#define LAUNCH_CLUSTERS(kernel, cluster, grid, block, stream, ...) \
  ((void)(stream), emu::launch(cluster, grid, block, [&] { kernel(__VA_ARGS__); }))
#define LAUNCH_LARGE(kernel, cluster, type, grid, block, stream, ...) \
  LAUNCH_CLUSTERS(kernel, cluster, grid, block, stream, __VA_ARGS__)

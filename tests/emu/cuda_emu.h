// Runs the text of the CUDA kernels and of their launchers on the CPU.
//
// Each block runs alone, each of its threads is a fiber. __syncthreads and the warp operations are real meeting points;
// between two of them the threads run one after another in an order drawn from emu::seed(), and shared memory starts
// as NaN in every block: a missing barrier or initialisation changes the result. Shared arrays are heap blocks of
// their exact size, so that AddressSanitizer sees an access outside them as well as one outside a tensor.
// It checks the kernels' logic; not their speed, nor data races between blocks, nor what ptxas makes of them.
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

enum class State { kReady, kAtBlock, kAtWarp, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  dim3 thread_idx;
  int index = 0;
  State state = State::kReady;
  void* asan_stack = nullptr;
};

struct Machine {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  Fiber* current = nullptr;
  const std::function<void()>* body = nullptr;
  dim3 block_idx, block_dim, grid_dim;
  uint64_t block_serial = 0;  // over all launches
  unsigned long launches = 0;
  std::vector<std::vector<char>> mailbox;  // one letter a thread, for the warp operations
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  void* scheduler_asan = nullptr;
};

inline Machine& machine() {
  static Machine m;
  return m;
}

[[noreturn]] inline void die(const char* message) {
  std::fprintf(stderr, "emu: %s\n", message);
  std::abort();
}

inline void run(Fiber& f) {
  Machine& m = machine();
  m.current = &f;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&m.scheduler_asan, f.stack.get(), kStackBytes);
#endif
  swapcontext(&m.scheduler, &f.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(m.scheduler_asan, nullptr, nullptr);
#endif
}

inline void park(State state) {
  Machine& m = machine();
  Fiber& f = *m.current;
  f.state = state;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(state == State::kDone ? nullptr : &f.asan_stack, m.scheduler_stack,
                                 m.scheduler_stack_bytes);
#endif
  swapcontext(&f.context, &m.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(f.asan_stack, &m.scheduler_stack, &m.scheduler_stack_bytes);
#endif
}

inline void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine().scheduler_stack, &machine().scheduler_stack_bytes);
#endif
  (*machine().body)();
  park(State::kDone);
}

// Lets go on whoever waits at a meeting point that all living threads of the block (or warp) have reached.
inline bool release() {
  auto& fibers = machine().fibers;
  const auto meet = [&](size_t begin, size_t end, State state) {
    size_t living = 0, waiting = 0;
    for (size_t i = begin; i < end; ++i) living += fibers[i].state != State::kDone, waiting += fibers[i].state == state;
    if (living == 0 || waiting != living) return false;
    for (size_t i = begin; i < end; ++i)
      if (fibers[i].state == state) fibers[i].state = State::kReady;
    return true;
  };
  if (meet(0, fibers.size(), State::kAtBlock)) return true;
  bool any = false;
  for (size_t i = 0; i < fibers.size(); i += 32) any |= meet(i, std::min(fibers.size(), i + 32), State::kAtWarp);
  return any;
}

inline void run_block(dim3 block, std::mt19937& rng) {
  Machine& m = machine();
  ++m.block_serial;
  const int n = static_cast<int>(m.fibers.size());
  for (int i = 0; i < n; ++i) {
    Fiber& f = m.fibers[i];
    f.index = i;
    f.thread_idx = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
    f.state = State::kReady;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStackBytes;
    f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
  }
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  do {
    if (seed()) std::shuffle(order.begin(), order.end(), rng);
    for (int i : order)
      if (m.fibers[i].state == State::kReady) run(m.fibers[i]);
  } while (release());
  for (auto& f : m.fibers)
    if (f.state != State::kDone) die("deadlock: some threads of a block wait at a barrier that the others never reach");
}

inline void launch(dim3 grid, dim3 block, const std::function<void()>& body) {
  Machine& m = machine();
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) die("a block has 1 to 1024 threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) die("an empty or too large grid");
  ++m.launches;
  if (idle()) return;
  if (m.fibers.size() != threads) m.fibers = std::vector<Fiber>(threads);
  m.mailbox.resize(threads);
  m.body = &body;
  m.grid_dim = grid;
  m.block_dim = block;
  std::mt19937 rng(seed());
  std::vector<unsigned> blocks(size_t{grid.x} * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0u);
  if (seed()) std::shuffle(blocks.begin(), blocks.end(), rng);
  for (unsigned b : blocks) {
    m.block_idx = dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y));
    run_block(block, rng);
  }
}

// Storage behind SHARED_ARRAY: one per place in the source, fresh and full of NaN in every block. The array ends where
// the heap block ends, so that ASan's red zone starts right behind its last element.
template <class T>
class SharedArray {
 public:
  T* in_this_block(size_t count) {
    if (serial_ != machine().block_serial) {
      serial_ = machine().block_serial;
      const size_t bytes = sizeof(T) * count;
      block_.reset(new (std::align_val_t{16}) char[bytes]);
      std::memset(block_.get(), 0xff, bytes);
    }
    return reinterpret_cast<T*>(block_.get());
  }

 private:
  struct Free {
    void operator()(char* p) const { ::operator delete[](p, std::align_val_t{16}); }
  };
  std::unique_ptr<char, Free> block_;
  uint64_t serial_ = 0;
};

// Every thread of the warp leaves a letter; afterwards each may read all of them through `read(lane)`.
template <class T, class Read>
auto exchange(const T& letter, Read read) {
  Machine& m = machine();
  auto& own = m.mailbox[m.current->index];
  own.resize(sizeof(T));
  std::memcpy(own.data(), &letter, sizeof(T));
  park(State::kAtWarp);
  const int first = m.current->index / 32 * 32;
  const auto letter_of = [&](int lane) {
    T value;
    const auto& box = m.mailbox[first + (lane & 31)];
    if (box.size() != sizeof(T)) die("a warp operation in which a lane takes no part");
    std::memcpy(&value, box.data(), sizeof(T));
    return value;
  };
  auto result = read(letter_of);
  park(State::kAtWarp);
  return result;
}

inline int lane() { return machine().current->index & 31; }

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
}

// mma.m16n8k16: d += a . b
template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Letter {
    uint32_t a[4], b[2];
  };
  const auto half = [](uint32_t pair, int e) { return to_f32(T{static_cast<uint16_t>(pair >> (16 * e))}); };
  exchange(Letter{{a[0], a[1], a[2], a[3]}, {b0, b1}}, [&](auto letter_of) {
    for (int e = 0; e < 4; ++e) {
      const int row = lane() / 4, column = lane() % 4 * 2 + e % 2;
      for (int k = 0; k < 16; ++k) {
        const Letter of_a = letter_of(row * 4 + k % 8 / 2), of_b = letter_of(column * 4 + k % 8 / 2);
        d[e] += half(of_a.a[k / 8 * 2 + e / 2], k % 2) * half(of_b.b[k / 8], k % 2);
      }
    }
    return 0;
  });
}

}  // namespace emu

#define threadIdx (emu::machine().current->thread_idx)
#define blockIdx (emu::machine().block_idx)
#define blockDim (emu::machine().block_dim)
#define gridDim (emu::machine().grid_dim)

#ifdef EMU_NO_BARRIER  // a self-test: without its barriers a kernel must fail
inline void __syncthreads() {}
#else
inline void __syncthreads() { emu::park(emu::State::kAtBlock); }
#endif
inline void __syncwarp(unsigned = ~0u) { emu::park(emu::State::kAtWarp); }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emu::exchange(value, [&](auto letter_of) { return letter_of(emu::lane() ^ mask); });
}

#define SHARED_ARRAY(type, name, count)     \
  static emu::SharedArray<type> name##_emu; \
  type* const name = name##_emu.in_this_block(count)

#define LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), emu::launch(grid, block, [&] { kernel(__VA_ARGS__); }))

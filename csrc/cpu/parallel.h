// Memory and threads for the CPU kernels.
#pragma once
#include "stable.h"

#include <sys/mman.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "cpu/own_threads.h"
#include "cpu/range.h"
#include "cpu/team.h"

namespace fastcifar {

// Memory that a thread has used and will need again: malloc gives large blocks back and searches for them anew, in a step's
// serial parts, where the other threads wait.
class Spare {
 public:
  struct Block {
    void* memory;
    int64_t bytes, allocated;
  };

  static Block take(int64_t bytes) {
    std::vector<Block>& blocks = own().blocks_;
    for (size_t i = blocks.size(); i-- > 0;) {  // the last one that was used may still be in a cache
      const Block block = blocks[i];
      if (block.bytes < bytes || block.bytes > 2 * bytes + 4096) continue;
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
      own().allocated_ -= block.allocated;
      return block;
    }
    const bool huge = bytes >= kHugePage / 64;
    const int64_t allocated = huge ? round_up(bytes, kHugePage) : bytes;
    void* memory = std::aligned_alloc(huge ? kHugePage : 64, allocated);
    if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (huge) madvise(memory, allocated, MADV_HUGEPAGE);
#endif
    return {memory, bytes, allocated};
  }
  static void give(Block block) {
    Spare& spare = own();
    if (spare.allocated_ + block.allocated > kMost) return std::free(block.memory);
    spare.blocks_.push_back(block);
    spare.allocated_ += block.allocated;
  }
  ~Spare() {
    for (const Block& block : blocks_) std::free(block.memory);
  }

 private:
  // Blocks from 32 KiB on lie in huge pages, where Linux has them: pages of 4 KiB get, by chance, some of the same places in
  // the L2 cache, and then a process was up to a tenth slower for all of its life.
  static constexpr int64_t kMost = 64 << 20, kHugePage = 2 << 20;

  static Spare& own() {
    thread_local Spare spare;
    return spare;
  }

  std::vector<Block> blocks_;
  int64_t allocated_ = 0;
};

// float32 scratch memory that begins on a cache line.
class Scratch {
 public:
  explicit Scratch(int64_t size) : block_(Spare::take(round_up(size * 4 + 4, 64))) {}
  Scratch(Scratch&& other) noexcept : block_(std::exchange(other.block_, {})) {}
  Scratch& operator=(Scratch&& other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~Scratch() {
    if (block_.memory) Spare::give(block_);
  }
  static Scratch zeros(int64_t size) {
    Scratch scratch(size);
    std::memset(scratch.get(), 0, size * sizeof(float));
    return scratch;
  }
  float* get() const { return static_cast<float*>(block_.memory); }

 private:
  Spare::Block block_;
};

// Calls f(begin, end) over [0, parts), in up to kParts calls, in several threads, or in one call in this thread where all
// the work is under 64 KiB. A thread begins with a share of its own, which is at the same place in every pass: what it
// wrote in the pass before is still in its core's cache. A thread that is done takes what is left of the others' shares,
// from the end: so beside a busy program nobody waits for the share of a thread that has to wait, only for its one part.
template <class F>
void parallel(int64_t parts, int64_t total_bytes, const F& f) {
  if (parts == 0) return;
  if (total_bytes < 1 << 16) return f(int64_t{0}, parts);
  const int64_t step = (parts + kParts - 1) / kParts, calls = (parts + step - 1) / step;
  std::atomic<bool> taken[kParts] = {};
  const auto compute = [&](int64_t first, int64_t end) {
    const auto take = [&](int64_t call) {
      if (taken[call].exchange(true, std::memory_order_relaxed)) return;
      const int64_t begin = call * step;
      f(begin, begin + step < parts ? begin + step : parts);
    };
    for (int64_t call = first; call < end; ++call) take(call);
    for (int64_t call = calls; call-- > 0;) take(call);
  };
  const int64_t own = own_threads(), threads = own < calls ? own : calls;
  if (own == 0) return torch::stable::parallel_for(0, calls, 1, compute);
  run_in_team(threads, [&](int64_t index) { compute(calls * index / threads, calls * (index + 1) / threads); });
}

// Calls f(range, number of its part by images) for each part, in several threads.
template <class F>
void parallel(const Cut& cut, int64_t total_bytes, const F& f) {
  parallel(cut.size(), total_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) f(cut[part], part / cut.channel_parts);
  });
}

}  // namespace fastcifar

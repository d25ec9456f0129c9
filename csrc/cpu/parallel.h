// Memory and threads for the CPU kernels.
#pragma once
#include "stable.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "cpu/range.h"

namespace fastcifar {

// float32 scratch memory that begins on a cache line.
class Scratch {
 public:
  explicit Scratch(int64_t size) : memory_(static_cast<float*>(std::aligned_alloc(64, round_up(size * 4 + 4, 64)))) {
    if (!memory_) throw std::bad_alloc();
  }
  static Scratch zeros(int64_t size) {
    Scratch scratch(size);
    std::memset(scratch.get(), 0, size * sizeof(float));
    return scratch;
  }
  float* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
};

// Calls f(begin, end) over [0, parts), in up to 32 calls, in several threads, or in one call in this thread where all the
// work is under 64 KiB. A thread takes the next parts whenever it is free, and not a share that is its own from the start:
// beside a busy program the share of a thread that has to wait is taken by the others.
template <class F>
void parallel(int64_t parts, int64_t total_bytes, const F& f) {
  if (parts == 0) return;
  if (total_bytes < 1 << 16) return f(int64_t{0}, parts);
  const int64_t step = (parts + 31) / 32;
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, parts, 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(step, std::memory_order_relaxed)) < parts;) {
      f(begin, begin + step < parts ? begin + step : parts);
    }
  });
}

// Calls f(range, number of its part by images) for each part, in several threads.
template <class F>
void parallel(const Cut& cut, int64_t total_bytes, const F& f) {
  parallel(cut.size(), total_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) f(cut[part], part / cut.channel_parts);
  });
}

}  // namespace fastcifar

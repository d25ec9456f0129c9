// Memory and threads for the CPU kernels.
#pragma once
#include "stable.h"

#include <torch/csrc/stable/ops.h>

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

// Calls f(begin, end) over [0, parts) in several threads, or in this one where all the work is under 64 KiB.
template <class F>
void parallel(int64_t parts, int64_t total_bytes, const F& f) {
  if (parts == 0) return;
  torch::stable::parallel_for(0, parts, total_bytes < 1 << 16 ? parts : 1, f);
}

// Calls f(range, number of its part by images) for each part, in several threads.
template <class F>
void parallel(const Cut& cut, int64_t total_bytes, const F& f) {
  parallel(cut.size(), total_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) f(cut[part], part / cut.channel_parts);
  });
}

}  // namespace fastcifar

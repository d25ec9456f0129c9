// Asks for memory before it is read or written, where the caches' prefetchers do not follow: they stop at the end of a page
// of 4 KiB; and where a block of channels is read with gaps, only all blocks together touch the whole of it. (Behind the
// end of a tensor that is memory that nobody needs, or that is not there. Neither is an error.)
#pragma once
#include <cstdint>

#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// Asks for the line at p, to be read or, with 1, written.
template <int written = 0>
FC_INLINE void ask(const void* p) {
  __builtin_prefetch(p, written, 2);
}

// A sweep over contiguous memory that is at p asks for what it will come to.
template <int written = 0>
FC_INLINE void ask_ahead(const void* p) {
  ask<written>(static_cast<const char*>(p) + 4096);
}

class Ahead {
 public:
  // Asks for `bytes` from `first` on, in `steps` steps.
  FC_INLINE void add(const void* first, int64_t bytes, int64_t steps) {
    parts_[size_++] = {static_cast<const char*>(first), static_cast<const char*>(first) + bytes, bytes / steps + 1};
  }
  FC_INLINE void step() {
    for (int i = 0; i < size_; ++i) {
      Part& part = parts_[i];
      const char* stop = part.next + part.step < part.end ? part.next + part.step : part.end;
      for (; part.next < stop; part.next += 64) ask(part.next);
    }
  }

 private:
  struct Part {
    const char *next, *end;
    int64_t step;
  };
  Part parts_[4] = {};
  int size_ = 0;
};

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA

// Asks for memory before it is read or written, where the caches' prefetchers do not follow: a block of channels is read
// with gaps, and only all blocks together touch the whole of it.
#pragma once
#include <cstdint>

#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

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
      for (; part.next < stop; part.next += 64) __builtin_prefetch(part.next, 0, 2);
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

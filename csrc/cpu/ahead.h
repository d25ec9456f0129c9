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

// Asks for the lines [first, end) of memory.
FC_INLINE void ask_for_lines(const void* memory, int64_t first, int64_t end) {
  for (int64_t line = first; line < end; ++line) ask(static_cast<const char*>(memory) + 64 * line);
}

}  // namespace
}  // namespace fastcifar::FASTCIFAR_ISA

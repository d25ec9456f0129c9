#include "cpu/own_threads.h"

#include "stable.h"

#include <torch/csrc/stable/library.h>

#include <atomic>

namespace {
std::atomic<int64_t> num_threads{0};

int64_t set_own_threads(int64_t threads) { return num_threads.exchange(threads); }
}  // namespace

namespace fastcifar {
int64_t own_threads() { return num_threads.load(); }
}  // namespace fastcifar

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) { m.def("_set_own_threads(int threads) -> int"); }
STABLE_TORCH_LIBRARY_IMPL(fastcifar, CompositeExplicitAutograd, m) {
  m.impl("_set_own_threads", TORCH_BOX(&set_own_threads));
}

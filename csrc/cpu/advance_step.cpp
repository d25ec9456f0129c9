#include "advance_step.h"

#include <torch/csrc/stable/library.h>

namespace {
using namespace fastcifar;

void advance(const Tensor& counters, const Tensor& lrs, const Tensor& lr) {
  check_advance_step(counters, lrs, lr);
  advance_step({static_cast<int64_t*>(counters.mutable_data_ptr()), static_cast<const float*>(lrs.const_data_ptr()),
                static_cast<float*>(lr.mutable_data_ptr()), lrs.numel()});
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kAdvanceStepSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) { m.impl("advance_step", TORCH_BOX(&advance)); }

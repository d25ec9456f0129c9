#include "cpu/update_statistics_kernel.h"

#include <cmath>

#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

// A template, so that no branch stands between the product and the addition: GCC 12 did not fuse them then.
template <bool from_start>
void update(const RunningStatistic& s, float weight) {
  const Vec factor = broadcast(s.factor);
  for_vectors(s.channels, [&](int c, auto width) FC_LAMBDA {
    const Vec start = load(s.running + c, width), end = product(load(s.batch + c, width), factor);
    store(s.running + c, (end - start) * weight + (from_start ? start : end), width);
  });
}

}  // namespace

// Starts from the nearer end, as torch.lerp does.
void update_statistics(const RunningStatistic& s, float momentum) {
  std::fabs(momentum) < 0.5f ? update<true>(s, momentum) : update<false>(s, momentum - 1.f);
}

}  // namespace fastcifar::FASTCIFAR_ISA

#include "cpu/isa.h"

#include "stable.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string>

namespace fastcifar {
namespace {

bool supported(Isa isa) {
#if defined(FASTCIFAR_HAVE_AVX512) && defined(FASTCIFAR_HAVE_AVX2)
  if (isa == Isa::avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bf16");
  }
#endif
#if defined(FASTCIFAR_HAVE_AVX2)
  if (isa == Isa::avx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  }
#endif
  return isa == Isa::generic;
}

Isa choose() {
  const char* variable = std::getenv("FASTCIFAR_ISA");
  const std::string wanted = variable ? variable : "";
  const struct {
    Isa isa;
    const char* name;
  } all[] = {{Isa::avx512, "avx512"}, {Isa::avx2, "avx2"}, {Isa::generic, "generic"}};
  std::string usable;
  for (const auto& candidate : all) {
    if (!supported(candidate.isa)) continue;
    if (wanted.empty() || wanted == candidate.name) return candidate.isa;
    usable += (usable.empty() ? "" : ", ") + std::string(candidate.name);
  }
  STD_TORCH_CHECK(false, "FASTCIFAR_ISA=", wanted, ": this CPU and this build of fastcifar can run ", usable);
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace fastcifar

namespace {
int64_t cpu_isa() { return static_cast<int64_t>(fastcifar::isa()); }
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) { m.def("_cpu_isa() -> int"); }
STABLE_TORCH_LIBRARY_IMPL(fastcifar, CompositeExplicitAutograd, m) { m.impl("_cpu_isa", TORCH_BOX(&cpu_isa)); }

#include "cpu/isa.h"

#include "stable.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string>

#if defined(FASTCIFAR_HAVE_AVX512_BF16)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastcifar {
namespace {

#if defined(FASTCIFAR_HAVE_AVX512_BF16)
// Linux gives a process the tile registers only after it has asked: their 8 KiB are saved with every thread.
bool has_tiles() {
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & kBf16) || !(edx & kTile)) return false;
  constexpr long kAskForPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
}
#endif

bool supported(Isa isa) {
  switch (isa) {
#if defined(FASTCIFAR_HAVE_AVX512_BF16)
    case Isa::amx: return supported(Isa::avx512_bf16) && has_tiles();
    case Isa::avx512_bf16: return supported(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
#endif
#if defined(FASTCIFAR_HAVE_AVX512)
    case Isa::avx512:
      return supported(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512cd");
#endif
#if defined(FASTCIFAR_HAVE_AVX2)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#endif
    default: return isa == Isa::generic;
  }
}

Isa choose() {
  const char* variable = std::getenv("FASTCIFAR_ISA");
  const std::string wanted = variable ? variable : "";
  const struct {
    Isa isa;
    const char* name;
  } all[] = {{Isa::amx, "amx"},
             {Isa::avx512_bf16, "avx512_bf16"},
             {Isa::avx512, "avx512"},
             {Isa::avx2, "avx2"},
             {Isa::generic, "generic"}};
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

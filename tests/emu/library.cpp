// The ops' schemas again, for the emulated CUDA kernels on CPU tensors, and the knobs of the emulator.
#include "stable.h"

#include <torch/csrc/stable/library.h>

#include "cuda/schemas.h"
#include "cuda_emu.h"
#include "schemas.h"

STABLE_TORCH_LIBRARY(fastcifar_emulated, m) {
  for (const char* schema : fastcifar::kSchemas) m.def(schema);
  for (const char* schema : fastcifar::cuda::kSchemas) m.def(schema);
}

extern "C" __attribute__((visibility("default"))) void emu_set_seed(unsigned seed) { emu::seed() = seed; }
extern "C" __attribute__((visibility("default"))) void emu_set_idle(bool idle) { emu::idle() = idle; }
extern "C" __attribute__((visibility("default"))) unsigned long emu_launches() { return emu::machine().launches; }

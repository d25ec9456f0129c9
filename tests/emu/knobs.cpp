// What a test sets on the emulator and reads from it, through ctypes.
#include "cuda_emu.h"

extern "C" __attribute__((visibility("default"))) void emu_set_seed(unsigned seed) { emu::seed() = seed; }
extern "C" __attribute__((visibility("default"))) void emu_set_idle(bool idle) { emu::idle() = idle; }
extern "C" __attribute__((visibility("default"))) void emu_set_cluster_limit(unsigned n) { emu::cluster_limit() = n; }
extern "C" __attribute__((visibility("default"))) unsigned long emu_launches() { return emu::machine().launches; }

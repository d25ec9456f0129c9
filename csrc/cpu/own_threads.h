// Which threads compute the ops.
#pragma once
#include <cstdint>

namespace fastcifar {

// How many threads compute an op, in the team of team.h. 0: PyTorch's threads compute it.
int64_t own_threads();

}  // namespace fastcifar

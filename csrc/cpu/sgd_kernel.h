// Kernel of sgd: elements [begin, end) of one tensor, in one thread.
#pragma once
#include "common.h"
#include "cpu/isa.h"

FASTCIFAR_DECLARE_KERNELS(void sgd(const SgdTensor& t, const SgdSettings& settings, int64_t begin, int64_t end);)

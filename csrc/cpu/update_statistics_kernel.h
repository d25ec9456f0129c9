// Kernel of update_statistics: one statistic of one BN.
#pragma once
#include "common.h"
#include "cpu/isa.h"

FASTCIFAR_DECLARE_KERNELS(void update_statistics(const RunningStatistic& s, float momentum);)

// The statistics of batch_norm_relu, for separable_block too.
#pragma once
#include "batch_norm_relu.h"

namespace fastcifar {

// Mean and biased variance of each channel of x, which is not empty and lies in channels_last memory.
void batch_statistics(const Tensor& x, float* mean, float* var);

}  // namespace fastcifar

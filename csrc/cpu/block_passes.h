// The passes of depthwise_block on tensors that have been checked: for the op itself and for separable_block, which
// holds it. Columns [kColumns][round_up(C, kBlock)] as in batch_norm_relu_kernel.h: columns0 of u's BN, columns1 of y's.
#pragma once
#include "depthwise_block.h"

namespace fastcifar {

// Computes y, the statistics that are not given, and the columns mean, scale and shift of y's BN. The batch must not be
// empty.
void run_depthwise_convolution(const DepthwiseBlockForward& a, double eps, float* columns1);

// Computes every gradient except those of gamma1 and beta1 out of grad_z, which has not passed the ReLU. columns1 are
// complete. `through_statistics`: grad_u includes what comes through u's mean and variance. Completes columns0.
void run_depthwise_backward(const DepthwiseBlockBackward& a, double eps, bool through_statistics, float* columns0,
                            const float* columns1);

}  // namespace fastcifar

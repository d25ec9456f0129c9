// depthwise_block on tensors that have been checked: for the op itself and for separable_block, which holds it.
#pragma once
#include "depthwise_block.h"

namespace fastcifar {

// Computes z, y and the statistics that are not given. The batch must not be empty.
void run_depthwise_block(const DepthwiseBlockForward& a, double eps);

// z = relu(bn1(y)) of a block whose backward is asked for, which does not keep z.
void write_activation(const DepthwiseBlockBackward& a, double eps, Tensor z);

// Computes every gradient. The batch must not be empty.
void run_depthwise_block_backward(const DepthwiseBlockBackward& a, double eps);

}  // namespace fastcifar

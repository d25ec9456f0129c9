// The passes of depthwise_block and of separable_block on tensors that have been checked: for the ops themselves and for
// the ops that hold them. Columns [kColumns][round_up(C, kBlock)] as in batch_norm_relu_kernel.h: columns0 of u's BN,
// columns1 of y's.
#pragma once
#include "separable_block.h"

namespace fastcifar {

// Computes y, the statistics that are not given, and the columns mean, scale and shift of y's BN. The batch must not be
// empty.
void run_depthwise_convolution(const DepthwiseBlockForward& a, double eps, float* columns1);

// Computes every gradient except those of gamma1 and beta1 out of grad_z, which has not passed the ReLU. columns1 are
// complete. `through_statistics`: grad_u includes what comes through u's mean and variance. Completes columns0.
void run_depthwise_backward(const DepthwiseBlockBackward& a, double eps, bool through_statistics, float* columns0,
                            const float* columns1);

// Computes v, y and all statistics that are not given, and the mean and the biased variance of v, [out_channels] each.
void run_separable_block(const SeparableBlockForward& a, double eps, float* mean, float* var);

// Chooses the memory of grad_z and grad_u. Maps of gradients of one size are written over one another: what is written is
// in the cache then, and need not be read from memory before. `overwrite_grad_v`: a.grad_v need not keep its numbers.
void place_gradients(SeparableBlockBackward& a, bool overwrite_grad_v);

// Computes every gradient, and returns that of pointwise; the others are in their tensors. `of_moments`: what comes
// through the moments of v, as its columns kMean, kXFactor and kConstant; the gradient of v is that and grad_v together.
// Null: nothing comes through them, and v is not read. `through_statistics` and columns0 as above.
Tensor run_separable_backward(const SeparableBlockBackward& a, const void* v, const float* of_moments, double eps,
                              bool through_statistics, float* columns0);

}  // namespace fastcifar

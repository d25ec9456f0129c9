// What the sources for nvcc and the sources for g++ share: launchers that take plain pointers and numbers. No header of
// torch, which nvcc would parse once for each architecture, and no kernel.
#pragma once
#if defined(FASTCIFAR_EMULATED)
#include "cuda_emu.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <vector>

#include "common.h"

namespace fastcifar::cuda {

enum class Dtype { kFloat32, kBFloat16, kFloat16 };

// Partial results: float [count][quantities][C], with room for one row more.
struct PartialRows {
  float* data;
  int count;
};

// Partial moments of x, float [count][3][C], and their gradient, of which the first row counts: where they are given, a
// gradient of x lacks what comes through them.
struct ThroughMoments {
  const void* x;
  const float *rows, *grad_rows;  // null: not given
};
// Where the gradient of partial moments is written to, all of its rows.
struct MomentsGradient {
  const float* rows;
  int count;
  float* grad_rows;  // null: not wanted
};

// Returns the rows as they are, or, where there are too many for each block of the next kernel to merge, the one row
// behind the last into which a kernel merges them.
PartialRows merge_moment_rows(PartialRows rows, int C, cudaStream_t stream);
PartialRows merge_sum_rows(PartialRows rows, int quantities, int C, cudaStream_t stream);

// Below: one launcher for each op. Activations are channels_last and of the given type, everything else is float32. M
// is the number of pixels in the batch. A workspace is a number of floats. No tensor may be empty, every pointer lies
// on 16 bytes, and tensors are smaller than 4 GiB.

cudaError_t dwconv3x3(Dtype, const void* x, const float* w, void* y, const DwShape&, cudaStream_t);

int64_t dwconv3x3_backward_workspace(const DwShape&);
// grad_x, grad_w: null where not wanted.
cudaError_t dwconv3x3_backward(Dtype, const void* grad_y, const void* x, const float* w, void* grad_x, float* grad_w,
                               float* workspace, const DwShape&, cudaStream_t);

int64_t batch_norm_relu_workspace(int64_t M, int64_t C);
cudaError_t batch_norm_relu(Dtype, const void* x, const float* gamma, const float* beta, float eps, void* z,
                            float* mean, float* var, float* workspace, int64_t M, int64_t C, cudaStream_t);

int64_t batch_norm_relu_backward_workspace(int64_t M, int64_t C);
cudaError_t batch_norm_relu_backward(Dtype, const void* grad_z, const void* x, const float* gamma, const float* beta,
                                     const float* mean, const float* var, float eps, void* grad_x, float* grad_gamma,
                                     float* grad_beta, float* workspace, int64_t M, int64_t C, cudaStream_t);

// The mean of a map's pixels after BN and ReLU, [N, C]. moments: of x; if they are empty, they are computed.
int64_t batch_norm_relu_pool_workspace(int64_t N, int64_t pixels, int64_t C);
cudaError_t batch_norm_relu_pool(Dtype, const void* x, PartialRows moments, const float* gamma, const float* beta,
                                 float eps, void* pooled, float* mean, float* var, float* workspace, int64_t N,
                                 int64_t pixels, int64_t C, cudaStream_t);

int64_t batch_norm_relu_pool_backward_workspace(int64_t N, int64_t pixels, int64_t C);
cudaError_t batch_norm_relu_pool_backward(Dtype, const void* grad, const void* x, const float* gamma, const float* beta,
                                          const float* mean, const float* var, float eps, void* grad_x,
                                          float* grad_gamma, float* grad_beta, float* workspace, int64_t N,
                                          int64_t pixels, int64_t C, cudaStream_t);

struct BlockForward {
  const void* u;
  const float *gamma0, *beta0, *w, *gamma1, *beta1;
  float eps;
  const float *u_mean, *u_var;  // null: not known
  void *z, *y;
  float *mean0, *var0, *mean1, *var1;
  float* workspace;
};
int64_t depthwise_block_workspace(const DwShape&);
// Computes y and the partial moments of y, which it leaves in the workspace; not z. u_rows: partial moments of u; if it
// is empty, u_mean and u_var are taken where they are given, else the moments of u are computed.
PartialRows depthwise_with_moments(Dtype, const BlockForward&, PartialRows u_rows, const DwShape&, cudaStream_t);
// u_rows: as above; small maps, whose kernel computes these moments itself, do not read them.
cudaError_t depthwise_block(Dtype, const BlockForward&, PartialRows u_rows, const DwShape&, cudaStream_t);

struct BlockBackward {
  const void *grad_z, *u, *y;
  const float *gamma0, *beta0, *w, *gamma1, *beta1, *mean0, *var0, *mean1, *var1;
  float eps;
  void* grad_u;
  float *grad_gamma0, *grad_beta0, *grad_w, *grad_gamma1, *grad_beta1;
  float* workspace;
};
int64_t depthwise_block_backward_workspace(const DwShape&);
// The backward from the sums of BN 1 on, which are given: float [count][2][C]. grad_z may have passed the ReLU already.
// Where the gradient of u's moments is wanted, grad_u is without what comes through them.
cudaError_t depthwise_sweep(Dtype, const BlockBackward&, PartialRows sums1, const MomentsGradient&, const DwShape&,
                            cudaStream_t);
cudaError_t depthwise_block_backward(Dtype, const BlockBackward&, const DwShape&, cudaStream_t);

// A whole block, from u to v = relu(norm1(y)) . pointwise^T (out_channels x C, of the activations' type). v_rows: float
// [moment_rows][3][out_channels], the partial moments of v, which are the next block's u_rows.
struct SeparableForward {
  BlockForward block;  // without z
  PartialRows u_rows;
  const void* pointwise;
  int64_t out_channels;
  void* v;
  float *v_rows, *workspace;
};
int64_t separable_block_workspace(const DwShape&);
cudaError_t separable_block(Dtype, const SeparableForward&, const DwShape&, bool tensor_cores, cudaStream_t);

struct SeparableBackward {
  BlockBackward block;  // grad_z: room for it, of y's size
  MomentsGradient of_u;
  const void* grad_v;
  ThroughMoments of_v;
  const void* pointwise;
  int64_t out_channels;
  Dtype pointwise_dtype;  // of grad_pointwise
  void* grad_pointwise;
  float* workspace;
};
int64_t separable_block_backward_workspace(Dtype, const DwShape&, int64_t out_channels, bool tensor_cores);
cudaError_t separable_block_backward(Dtype, const SeparableBackward&, const DwShape&, bool tensor_cores, cudaStream_t);

cudaError_t dwconv3x3_affine_relu(Dtype, const void* u, const float* scale0, const float* shift0, const float* w,
                                  const float* scale1, const float* shift1, void* z, const DwShape&, cudaStream_t);

struct StemShape {
  int64_t N, C, H, W;
};
// How w and grad_w lie: float32 or of the activations' type; [C][row][column][channel] or [C][channel][row][column].
struct StemWeight {
  bool wide, channels_last;
};
// x: images [N][H][W][3]. u_rows: float [moment_rows][3][C], the partial moments of u.
cudaError_t stem(Dtype, const void* x, const void* w, StemWeight, void* u, float* u_rows, const StemShape&,
                 bool tensor_cores, cudaStream_t);
int64_t stem_backward_workspace(Dtype, StemWeight, const StemShape&, bool tensor_cores);
cudaError_t stem_backward(Dtype, const void* grad_u, const ThroughMoments& of_u, const void* x, StemWeight,
                          void* grad_w, float* workspace, const StemShape&, bool tensor_cores, cudaStream_t);

// The labels that rows of logits are compared with. Without MixUp lam is null, and partner_labels is labels.
struct Targets {
  const int64_t *labels, *partner_labels;  // a label outside [0, classes) makes the loss NaN
  const float* lam;
  float smoothing;
  int rows, classes;
};
int64_t mixup_cross_entropy_workspace(int64_t rows);  // of doubles
// normalizer [rows]; sums: of losses, and correct predictions
cudaError_t mixup_cross_entropy(Dtype, const void* logits, const Targets&, float* loss, float* correct, double* sums,
                                float* normalizer, double* workspace, cudaStream_t);
cudaError_t mixup_cross_entropy_backward(Dtype, const float* grad_loss, const void* logits, const float* normalizer,
                                         const Targets&, void* grad_logits, cudaStream_t);
// grad_loss: one number. totals [2]: the sums are added. workspace: as for mixup_cross_entropy.
cudaError_t mixup_cross_entropy_gradient(Dtype, const void* logits, const Targets&, const float* grad_loss,
                                         void* grad_logits, double* totals, double* workspace, cudaStream_t);

// The classifier, its loss and all gradients. For 16-bit types, on tensor cores, by clusters.
struct Classifier {
  const void *pooled, *weight, *bias;  // [rows][channels], [classes][channels], [classes]
  int channels;
  const float* grad_loss;  // one number
  void *grad_pooled, *grad_weight, *grad_bias;
  double *totals, *workspace;  // totals [2]: the sums are added
};
bool classifier_gradient_suits(Dtype, int64_t channels, int64_t classes);
int64_t classifier_gradient_workspace(int64_t rows, int64_t channels, int64_t classes);  // of doubles
cudaError_t classifier_gradient(Dtype, const Classifier&, const Targets&, cudaStream_t);

// A batch of an epoch: the draws from position step * batch_size on, `rows` of them. Without a partner, lam and their
// outputs are null; without a box the two images are mixed. Numbers out of range are clamped.
struct EpochBatch {
  const uint8_t* images;  // [num_images][size][size][3]
  const int64_t *labels, *index, *top, *left;
  const bool* flip;
  const int64_t* partner;
  const float* lam;
  const int64_t *box, *hole;  // [batches][4] (first and end row, first and end column), [num_draws][2]; may be null
  const int64_t* step;
  const float* table;
  int64_t num_images, num_draws, batch_size;
  int rows, size, padding, hole_size;
  int64_t *out_labels, *out_partner_labels;
  float* out_lam;
};
// out: [rows][size][size][3]
cudaError_t training_batch(Dtype, const EpochBatch&, void* out, cudaStream_t);

// A step of every tensor. narrow: the type of the rounded copies.
cudaError_t sgd(Dtype narrow, const std::vector<SgdTensor>& tensors, const SgdSettings& settings, cudaStream_t stream);

// Pointers may lie on any 4 bytes.
cudaError_t update_statistics(const std::vector<RunningStatistic>& statistics, float momentum, cudaStream_t stream);

cudaError_t advance_step(const StepOfRun& step, cudaStream_t stream);

}  // namespace fastcifar::cuda

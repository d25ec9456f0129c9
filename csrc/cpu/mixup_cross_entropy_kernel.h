// Kernels of mixup_cross_entropy: rows [b0, b1) of the logits, in one thread.
#pragma once
#include "common.h"
#include "cpu/isa.h"
#include "cpu/range.h"

namespace fastcifar {

struct LossTask {
  Element element;
  const void* logits;  // [B][classes]
  int64_t classes;
  const int64_t *labels, *partner_labels;  // [B]
  float lam, smoothing;
};

struct RowLoss {
  float loss;
  bool correct, partner_correct;
};

}  // namespace fastcifar

FASTCIFAR_DECLARE_KERNELS(
    // rows, normalizer (log-sum-exp): [B]
    void mixup_cross_entropy(const LossTask& task, int64_t b0, int64_t b1, RowLoss* rows, float* normalizer);
    // grad: like the logits; scale: what each row's gradient is multiplied by.
    void mixup_cross_entropy_backward(const LossTask& task, int64_t b0, int64_t b1, const float* normalizer,
                                      float scale, void* grad);)

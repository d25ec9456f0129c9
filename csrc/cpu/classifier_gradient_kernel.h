// Kernels of classifier_gradient: rows [b0, b1) of the batch, or classes [n0, n1), in one thread. The loss between them
// is mixup_cross_entropy's.
#pragma once
#include "common.h"
#include "cpu/isa.h"
#include "cpu/range.h"

namespace fastcifar {

constexpr int64_t kClassifierGroup = 8;  // rows or classes that are multiplied together

struct ClassifierTask {
  Element element;
  const void *pooled, *weight, *bias;  // [B][channels], [classes][channels], [classes]
  int64_t rows, channels, classes;
};

}  // namespace fastcifar

FASTCIFAR_DECLARE_KERNELS(
    // logits: [B][classes]
    void classifier_logits(const ClassifierTask& task, int64_t b0, int64_t b1, void* logits);
    // Floats of scratch memory that each kernel below needs.
    int64_t classifier_scratch(const ClassifierTask& task);
    // grad_logits: [B][classes]; grad_pooled: like pooled
    void classifier_grad_pooled(const ClassifierTask& task, int64_t b0, int64_t b1, const void* grad_logits,
                                void* grad_pooled, float* scratch);
    // grad_weight, grad_bias: like weight and bias
    void classifier_grad_weight(const ClassifierTask& task, int64_t n0, int64_t n1, const void* grad_logits,
                                void* grad_weight, void* grad_bias, float* scratch);)

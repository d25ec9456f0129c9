// The arguments of the ops of the loss as their kernels see them.
#pragma once
#include "cuda/op.h"

#include "mixup_cross_entropy.h"

namespace fastcifar::cuda {

inline Targets targets_of(const char* op, const MixupCrossEntropy& a, double label_smoothing) {
  STD_TORCH_CHECK(a.rows * a.classes < int64_t{1} << 31, op, ": logits of shape ", shape_text(a.logits),
                  " are 2^31 numbers or more");
  const auto numbers = [](const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); };
  return {numbers(a.labels),
          numbers(a.partner_labels.value_or(a.labels)),
          a.lam.has_value() ? floats(*a.lam) : nullptr,
          static_cast<float>(label_smoothing),
          static_cast<int>(a.rows),
          static_cast<int>(a.classes)};
}

}  // namespace fastcifar::cuda

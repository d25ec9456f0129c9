// separable_block: what is checked and allocated besides depthwise_block's.
#pragma once
#include <optional>

#include "checks.h"

namespace fastcifar {

// A 1x1 weight [out, C, 1, 1], float32 or x's dtype.
inline Tensor check_pointwise_weight(const char* op, const Tensor& w, const Tensor& x) {
  STD_TORCH_CHECK(w.dim() == 4 && w.size(0) >= 1 && w.size(1) == x.size(1) && w.size(2) == 1 && w.size(3) == 1, op,
                  ": pointwise must be [out_channels, ", x.size(1), ", 1, 1], got ", shape_text(w));
  STD_TORCH_CHECK(w.scalar_type() == ScalarType::Float || w.scalar_type() == x.scalar_type(), op,
                  ": pointwise must be float32 or the activations' ", torch::headeronly::toString(x.scalar_type()),
                  ", got ", torch::headeronly::toString(w.scalar_type()));
  check_device(op, "pointwise", w, x);
  return dense(w);
}

// Partial moments [rows, 3, C]: count, mean and sum of squared deviations; the first row not empty.
inline Tensor check_moments(const char* op, const std::optional<Tensor>& rows, const Tensor& x) {
  if (!rows.has_value()) return x;
  STD_TORCH_CHECK(rows->dim() == 3 && rows->size(0) >= 1 && rows->size(1) == 3 && rows->size(2) == x.size(1), op,
                  ": u_rows must be [rows, 3, ", x.size(1), "], got ", shape_text(*rows));
  STD_TORCH_CHECK(rows->scalar_type() == ScalarType::Float, op, ": u_rows must be float32, got ",
                  torch::headeronly::toString(rows->scalar_type()));
  check_device(op, "u_rows", *rows, x);
  return dense(*rows);
}

inline Tensor empty_moments(const Tensor& like, int64_t rows, int64_t channels) {
  const int64_t sizes[3] = {rows, 3, channels};
  return torch::stable::empty({sizes, 3}, ScalarType::Float, std::nullopt, like.device());
}

}  // namespace fastcifar

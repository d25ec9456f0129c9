// advance_step: what both backends check.
#pragma once
#include "checks.h"

namespace fastcifar {

inline constexpr const char* kAdvanceStepSchemas[] = {
    "advance_step(Tensor(a!) counters, Tensor lrs, Tensor(b!) lr) -> ()",
};

inline void check_advance_step(const Tensor& counters, const Tensor& lrs, const Tensor& lr) {
  const char* op = "advance_step";
  const auto check = [&](const char* name, const Tensor& t, ScalarType dtype, int64_t size) {
    STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == size && t.scalar_type() == dtype, op, ": ", name, " must be ",
                    torch::headeronly::toString(dtype), " [", size, "], got ",
                    torch::headeronly::toString(t.scalar_type()), " ", shape_text(t));
    STD_TORCH_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
    check_device(op, name, t, counters);
  };
  STD_TORCH_CHECK(lrs.numel() >= 1, op, ": lrs must not be empty");
  check("counters", counters, ScalarType::Long, 2);
  check("lrs", lrs, ScalarType::Float, lrs.numel());
  check("lr", lr, ScalarType::Float, 1);
}

}  // namespace fastcifar

// augment: what both backends check and allocate.
#pragma once
#include <optional>

#include "checks.h"

namespace fastcifar {

struct Augment {
  Tensor images, index, top, left, flip, table;
  std::optional<Tensor> partner, lam;  // both or neither
  Tensor out;
  int64_t batch, num_images, size, padding;
};

inline Augment prepare_augment(const Tensor& images, const Tensor& index, const Tensor& top, const Tensor& left,
                               const Tensor& flip, const std::optional<Tensor>& partner, const std::optional<Tensor>& lam,
                               const Tensor& table, int64_t padding, ScalarType dtype) {
  const char* op = "augment";
  Augment a;
  STD_TORCH_CHECK(images.dim() == 4 && images.size(3) == 3 && images.size(1) == images.size(2) && images.size(1) >= 1, op,
                  ": images must be [M, S, S, 3], got ", shape_text(images));
  STD_TORCH_CHECK(images.scalar_type() == ScalarType::Byte, op, ": images must be uint8, got ",
                  torch::headeronly::toString(images.scalar_type()));
  STD_TORCH_CHECK(images.is_contiguous(), op, ": images must be contiguous (they are not copied a batch at a time)");
  STD_TORCH_CHECK(padding >= 0, op, ": padding must not be negative, got ", padding);
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, op,
                  ": dtype must be float32, bfloat16 or float16, got ", torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(partner.has_value() == lam.has_value(), op, ": partner and lam are given together or not at all");
  a.images = images;
  a.num_images = images.size(0);
  a.size = images.size(1);
  a.padding = padding;
  STD_TORCH_CHECK(index.dim() == 1, op, ": index must be [B], got ", shape_text(index));
  a.batch = index.size(0);
  const auto per_image = [&](const char* name, const Tensor& t, ScalarType expected) {
    STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == a.batch, op, ": ", name, " must be [", a.batch, "], got ", shape_text(t));
    STD_TORCH_CHECK(t.scalar_type() == expected, op, ": ", name, " must be ", torch::headeronly::toString(expected), ", got ",
                    torch::headeronly::toString(t.scalar_type()));
    check_device(op, name, t, images);
    return dense(t);
  };
  a.index = per_image("index", index, ScalarType::Long);
  a.top = per_image("top", top, ScalarType::Long);
  a.left = per_image("left", left, ScalarType::Long);
  a.flip = per_image("flip", flip, ScalarType::Bool);
  if (partner.has_value()) {
    a.partner = per_image("partner", *partner, ScalarType::Long);
    STD_TORCH_CHECK(lam->numel() == 1 && lam->scalar_type() == ScalarType::Float, op,
                    ": lam must be one float32 number, got ", torch::headeronly::toString(lam->scalar_type()), " ",
                    shape_text(*lam));
    check_device(op, "lam", *lam, images);
    a.lam = *lam;
  }
  STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == 256 && table.size(1) == 3, op, ": table must be [256, 3], got ",
                  shape_text(table));
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Float, op, ": table must be float32, got ",
                  torch::headeronly::toString(table.scalar_type()));
  check_device(op, "table", table, images);
  a.table = dense(table);
  const int64_t sizes[4] = {a.batch, 3, a.size, a.size};
  a.out = torch::stable::empty({sizes, 4}, dtype, std::nullopt, images.device(), std::nullopt, MemoryFormat::ChannelsLast);
  return a;
}

}  // namespace fastcifar

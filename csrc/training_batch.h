// training_batch: what both backends check and allocate.
#pragma once
#include <optional>

#include "checks.h"

namespace fastcifar {

inline constexpr const char* kTrainingBatchSchemas[] = {
    "training_batch(Tensor images, Tensor labels, Tensor index, Tensor top, Tensor left, Tensor flip,"
    " Tensor? partner, Tensor? lam, Tensor? box, Tensor? hole, Tensor step, int batch_size, int rows, Tensor table,"
    " int padding, int hole_size, ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)",
};

struct TrainingBatch {
  Tensor images, labels, index, top, left, flip, step, table;
  std::optional<Tensor> partner, lam;  // both or neither
  std::optional<Tensor> box, hole;     // a box only with a partner
  Tensor out, out_labels, out_partner_labels, out_lam;
  int64_t num_images, num_draws, num_batches, batch_size, rows, size, padding, hole_size;
};

inline TrainingBatch prepare_training_batch(const Tensor& images, const Tensor& labels, const Tensor& index,
                                            const Tensor& top, const Tensor& left, const Tensor& flip,
                                            const std::optional<Tensor>& partner, const std::optional<Tensor>& lam,
                                            const std::optional<Tensor>& box, const std::optional<Tensor>& hole,
                                            const Tensor& step, int64_t batch_size, int64_t rows, const Tensor& table,
                                            int64_t padding, int64_t hole_size, ScalarType dtype) {
  const char* op = "training_batch";
  TrainingBatch a;
  STD_TORCH_CHECK(images.dim() == 4 && images.size(3) == 3 && images.size(1) == images.size(2) && images.size(1) >= 1,
                  op, ": images must be [M, S, S, 3], got ", shape_text(images));
  STD_TORCH_CHECK(images.scalar_type() == ScalarType::Byte, op, ": images must be uint8, got ",
                  torch::headeronly::toString(images.scalar_type()));
  STD_TORCH_CHECK(images.is_contiguous(), op, ": images must be contiguous (they are not copied a batch at a time)");
  STD_TORCH_CHECK(images.size(0) >= 1, op, ": there are no images to draw from");
  STD_TORCH_CHECK(padding >= 0 && padding <= 1 << 20, op, ": padding must be in [0, 1048576], got ", padding);
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, op,
                  ": dtype must be float32, bfloat16 or float16, got ", torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(partner.has_value() == lam.has_value(), op, ": partner and lam are given together or not at all");
  STD_TORCH_CHECK(partner.has_value() || !box.has_value(), op, ": a box is given only with partner and lam");
  STD_TORCH_CHECK(hole_size >= 0 && hole_size <= 1 << 20, op, ": hole_size must be in [0, 1048576], got ", hole_size);
  STD_TORCH_CHECK(index.dim() == 1 && index.size(0) >= 1, op, ": index must be [N], N at least 1, got ",
                  shape_text(index));
  STD_TORCH_CHECK(batch_size >= 1, op, ": batch_size must be at least 1, got ", batch_size);
  a.images = images;
  a.num_images = images.size(0);
  a.num_draws = index.size(0);
  a.num_batches = (a.num_draws - 1) / batch_size + 1;
  a.batch_size = batch_size;
  a.rows = rows;
  a.size = images.size(1);
  a.padding = padding;
  a.hole_size = hole_size;
  const int64_t most = batch_size < a.num_draws ? batch_size : a.num_draws;
  STD_TORCH_CHECK(rows >= 0 && rows <= most, op, ": rows must be in [0, ", most, "], got ", rows);
  const auto matrix = [&](const char* name, const Tensor& t, int64_t length, int64_t width, ScalarType expected) {
    const bool fits = width == 0 ? t.dim() == 1 : t.dim() == 2 && t.size(1) == width;
    STD_TORCH_CHECK(fits && t.size(0) == length, op, ": ", name, " must be [", length,
                    width == 0   ? ""
                    : width == 2 ? ", 2"
                                 : ", 4",
                    "], got ", shape_text(t));
    STD_TORCH_CHECK(t.scalar_type() == expected, op, ": ", name, " must be ", torch::headeronly::toString(expected),
                    ", got ", torch::headeronly::toString(t.scalar_type()));
    check_device(op, name, t, images);
    return dense(t);
  };
  const auto vector = [&](const char* name, const Tensor& t, int64_t length, ScalarType expected) {
    return matrix(name, t, length, 0, expected);
  };
  a.labels = vector("labels", labels, a.num_images, ScalarType::Long);
  a.index = vector("index", index, a.num_draws, ScalarType::Long);
  a.top = vector("top", top, a.num_draws, ScalarType::Long);
  a.left = vector("left", left, a.num_draws, ScalarType::Long);
  a.flip = vector("flip", flip, a.num_draws, ScalarType::Bool);
  if (partner.has_value()) {
    a.partner = vector("partner", *partner, a.num_draws, ScalarType::Long);
    a.lam = vector("lam", *lam, a.num_batches, ScalarType::Float);
  }
  if (box.has_value()) a.box = matrix("box", *box, a.num_batches, 4, ScalarType::Long);
  if (hole.has_value()) a.hole = matrix("hole", *hole, a.num_draws, 2, ScalarType::Long);
  STD_TORCH_CHECK(step.numel() == 1 && step.scalar_type() == ScalarType::Long, op,
                  ": step must be one int64 number, got ", torch::headeronly::toString(step.scalar_type()), " ",
                  shape_text(step));
  check_device(op, "step", step, images);
  a.step = step;
  STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == 256 && table.size(1) == 3, op, ": table must be [256, 3], got ",
                  shape_text(table));
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Float, op, ": table must be float32, got ",
                  torch::headeronly::toString(table.scalar_type()));
  check_device(op, "table", table, images);
  a.table = dense(table);
  a.out = empty_channels_last(images, rows, 3, a.size, a.size, dtype);
  a.out_labels = empty({rows}, ScalarType::Long, images);
  a.out_partner_labels = empty({partner.has_value() ? rows : 0}, ScalarType::Long, images);
  a.out_lam = lam.has_value() ? empty({}, ScalarType::Float, images) : empty({0}, ScalarType::Float, images);
  return a;
}

}  // namespace fastcifar

#include "cuda/op.h"

#include "training_batch.h"

namespace fastcifar::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> training_batch_cuda(
    const Tensor& images, const Tensor& labels, const Tensor& index, const Tensor& top, const Tensor& left,
    const Tensor& flip, const std::optional<Tensor>& partner, const std::optional<Tensor>& lam,
    const std::optional<Tensor>& box, const std::optional<Tensor>& hole, const Tensor& step, int64_t batch_size,
    int64_t rows, const Tensor& table, int64_t padding, int64_t hole_size, ScalarType dtype) {
  const char* op = "training_batch";
  const DeviceStream stream(images);
  const fastcifar::TrainingBatch a =
      prepare_training_batch(images, labels, index, top, left, flip, partner, lam, box, hole, step, batch_size, rows,
                             table, padding, hole_size, dtype);
  STD_TORCH_CHECK(rows * a.size * a.size < int64_t{1} << 31, op, ": a batch of shape ", shape_text(a.out),
                  " has 2^31 pixels or more");
  const auto numbers = [](const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); };
  const auto out_numbers = [](const Tensor& t) { return static_cast<int64_t*>(t.mutable_data_ptr()); };
  EpochBatch batch{};
  batch.images = static_cast<const uint8_t*>(a.images.const_data_ptr());
  batch.labels = numbers(a.labels);
  batch.index = numbers(a.index);
  batch.top = numbers(a.top);
  batch.left = numbers(a.left);
  batch.flip = static_cast<const bool*>(a.flip.const_data_ptr());
  batch.step = numbers(a.step);
  batch.table = floats(a.table);
  batch.num_images = a.num_images;
  batch.num_draws = a.num_draws;
  batch.batch_size = batch_size;
  batch.rows = static_cast<int>(rows);
  batch.size = static_cast<int>(a.size);
  batch.padding = static_cast<int>(padding);
  batch.hole_size = static_cast<int>(hole_size);
  batch.box = a.box.has_value() ? numbers(*a.box) : nullptr;
  batch.hole = a.hole.has_value() ? numbers(*a.hole) : nullptr;
  batch.out_labels = out_numbers(a.out_labels);
  if (a.partner.has_value()) {
    batch.partner = numbers(*a.partner);
    batch.lam = floats(*a.lam);
    batch.out_partner_labels = out_numbers(a.out_partner_labels);
    batch.out_lam = mutable_floats(a.out_lam);
  }
  check_launch(op, training_batch(dtype_of(dtype), batch, a.out.mutable_data_ptr(), stream));
  return {a.out, a.out_labels, a.out_partner_labels, a.out_lam};
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kTrainingBatchSchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) { m.impl("training_batch", TORCH_BOX(&fastcifar::cuda::training_batch_cuda)); }

#include "training_batch.h"

#include <torch/csrc/stable/library.h>

#include "cpu/data.h"
#include "cpu/parallel.h"
#include "cpu/training_batch_kernel.h"

namespace {
using namespace fastcifar;

const int64_t* numbers(const Tensor& t) { return static_cast<const int64_t*>(data(t)); }

// An epoch's draws from the batch's first row on, once each is known to be in range.
const int64_t* in_range(const char* name, const Tensor& t, int64_t first, int64_t rows, int64_t most) {
  const int64_t* values = numbers(t) + first;
  for (int64_t b = 0; b < rows; ++b) {
    STD_TORCH_CHECK(values[b] >= 0 && values[b] <= most, "training_batch: ", name, "[", first + b, "] must be in [0, ",
                    most, "], got ", values[b]);
  }
  return values;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& images, const Tensor& labels, const Tensor& index,
                                                   const Tensor& top, const Tensor& left, const Tensor& flip,
                                                   const std::optional<Tensor>& partner,
                                                   const std::optional<Tensor>& lam, const std::optional<Tensor>& box,
                                                   const std::optional<Tensor>& hole, const Tensor& step,
                                                   int64_t batch_size, int64_t rows, const Tensor& table,
                                                   int64_t padding, int64_t hole_size, ScalarType dtype) {
  const auto a = prepare_training_batch(images, labels, index, top, left, flip, partner, lam, box, hole, step,
                                        batch_size, rows, table, padding, hole_size, dtype);
  const int64_t number = *numbers(a.step);
  STD_TORCH_CHECK(number >= 0 && number < a.num_batches, "training_batch: step must be in [0, ", a.num_batches - 1,
                  "], got ", number);
  const int64_t first = number * batch_size;
  STD_TORCH_CHECK(rows <= a.num_draws - first, "training_batch: batch ", number, " has ", a.num_draws - first,
                  " images, rows is ", rows);
  CropTask task;
  task.images = static_cast<const uint8_t*>(data(a.images));
  task.size = a.size;
  task.padding = padding;
  task.index = in_range("index", a.index, first, rows, a.num_images - 1);
  task.top = in_range("top", a.top, first, rows, 2 * padding);
  task.left = in_range("left", a.left, first, rows, 2 * padding);
  task.partner = a.partner ? in_range("partner", *a.partner, first, rows, rows - 1) : nullptr;
  task.flip = static_cast<const bool*>(data(a.flip)) + first;
  task.box = a.box ? numbers(*a.box) + 4 * number : nullptr;
  task.hole = a.hole ? numbers(*a.hole) + 2 * first : nullptr;
  task.hole_size = hole_size;
  task.pixel = dtype == ScalarType::Float ? Pixel::f32 : dtype == ScalarType::BFloat16 ? Pixel::bf16 : Pixel::fp16;
  task.out = mutable_data(a.out);

  auto* out_labels = static_cast<int64_t*>(mutable_data(a.out_labels));
  for (int64_t b = 0; b < rows; ++b) out_labels[b] = numbers(a.labels)[task.index[b]];
  if (a.partner) {
    auto* partner_labels = static_cast<int64_t*>(mutable_data(a.out_partner_labels));
    for (int64_t b = 0; b < rows; ++b) partner_labels[b] = out_labels[task.partner[b]];
    *mutable_floats(a.out_lam) = floats(*a.lam)[number];
  }

  const Scratch tables(2 * 768);
  const bool mixes = a.lam && !a.box;  // a box is pasted: there, and elsewhere, a pixel is of one image alone
  const float own = mixes ? floats(*a.lam)[number] : 1.0f, others = mixes ? 1.0f - own : 1.0f;
  for (int i = 0; i < 768; ++i) {
    tables.get()[i] = own * floats(a.table)[i];
    tables.get()[768 + i] = others * floats(a.table)[i];
  }
  task.own = tables.get();
  task.others = tables.get() + 768;
  parallel(rows, rows * a.size * a.size * 12, [&](int64_t begin, int64_t end) {
    const Scratch row(3 * a.size), bytes(3 * a.size);
    FASTCIFAR_KERNEL(training_batch)(task, begin, end, reinterpret_cast<uint8_t*>(bytes.get()), row.get());
  });
  return {a.out, a.out_labels, a.out_partner_labels, a.out_lam};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kTrainingBatchSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) { m.impl("training_batch", TORCH_BOX(&forward)); }

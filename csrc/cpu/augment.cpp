#include "augment.h"

#include <torch/csrc/stable/library.h>

#include "cpu/augment_kernel.h"
#include "cpu/data.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

const int64_t* in_range(const char* name, const Tensor& t, int64_t most) {
  const auto* values = static_cast<const int64_t*>(data(t));
  for (int64_t b = 0; b < t.numel(); ++b) {
    STD_TORCH_CHECK(values[b] >= 0 && values[b] <= most, "augment: ", name, "[", b, "] must be in [0, ", most, "], got ",
                    values[b]);
  }
  return values;
}

Tensor forward(const Tensor& images, const Tensor& index, const Tensor& top, const Tensor& left, const Tensor& flip,
               const std::optional<Tensor>& partner, const std::optional<Tensor>& lam, const Tensor& table,
               int64_t padding, ScalarType dtype) {
  const auto a = prepare_augment(images, index, top, left, flip, partner, lam, table, padding, dtype);
  AugmentTask task;
  task.images = static_cast<const uint8_t*>(data(a.images));
  task.size = a.size;
  task.padding = padding;
  task.index = in_range("index", a.index, a.num_images - 1);
  task.top = in_range("top", a.top, 2 * padding);
  task.left = in_range("left", a.left, 2 * padding);
  task.partner = a.partner ? in_range("partner", *a.partner, a.batch - 1) : nullptr;
  task.flip = static_cast<const bool*>(data(a.flip));
  task.pixel = dtype == ScalarType::Float ? Pixel::f32 : dtype == ScalarType::BFloat16 ? Pixel::bf16 : Pixel::fp16;
  task.out = mutable_data(a.out);
  const Scratch tables(2 * 768);
  const float own = a.lam ? *floats(*a.lam) : 1.0f, others = 1.0f - own;
  for (int i = 0; i < 768; ++i) {
    tables.get()[i] = own * floats(a.table)[i];
    tables.get()[768 + i] = others * floats(a.table)[i];
  }
  task.own = tables.get();
  task.others = tables.get() + 768;
  parallel(a.batch, a.batch * a.size * a.size * 12, [&](int64_t begin, int64_t end) {
    const Scratch row(3 * a.size), bytes(3 * a.size);
    FASTCIFAR_KERNEL(augment)(task, begin, end, reinterpret_cast<uint8_t*>(bytes.get()), row.get());
  });
  return a.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) { m.impl("augment", TORCH_BOX(&forward)); }

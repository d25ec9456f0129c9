#include "cuda/op.h"

#include "augment.h"

namespace fastcifar::cuda {
namespace {

Tensor augment_cuda(const Tensor& images, const Tensor& index, const Tensor& top, const Tensor& left, const Tensor& flip,
               const std::optional<Tensor>& partner, const std::optional<Tensor>& lam, const Tensor& table,
               int64_t padding, ScalarType dtype) {
  const char* op = "augment";
  const Stream stream(images);
  fastcifar::Augment a = prepare_augment(images, index, top, left, flip, partner, lam, table, padding, dtype);
  if (a.batch == 0) return a.out;
  STD_TORCH_CHECK(a.num_images > 0, op, ": there are no images to draw from");
  STD_TORCH_CHECK(a.batch * a.size * a.size < int64_t{1} << 31, op, ": a batch of shape ", shape_text(a.out),
                  " has 2^31 pixels or more");
  const auto numbers = [](const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); };
  check_launch(op, augment(dtype_of(dtype), static_cast<const uint8_t*>(a.images.const_data_ptr()), numbers(a.index),
                           numbers(a.top), numbers(a.left), static_cast<const bool*>(a.flip.const_data_ptr()),
                           a.partner.has_value() ? numbers(*a.partner) : nullptr,
                           a.lam.has_value() ? floats(*a.lam) : nullptr, floats(a.table), a.out.mutable_data_ptr(),
                           a.num_images, a.batch, static_cast<int>(a.size), static_cast<int>(a.padding), stream));
  return a.out;
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_KERNELS(m) { m.impl("augment", TORCH_BOX(&fastcifar::cuda::augment_cuda)); }

#include "dwconv3x3.h"

#include <torch/csrc/stable/library.h>

#include "cpu/depthwise_weight.h"
#include "cpu/dwconv3x3_kernel.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

// The least bytes of x in a part. With the weight's gradient each part also has sums, 36 bytes a channel, which are
// cleared and added up: so those parts are larger.
constexpr int64_t kPartBytes = 1 << 15, kSummedPartBytes = 1 << 17;

Tensor forward(const Tensor& x, const Tensor& w, int64_t stride) {
  const auto a = prepare_dwconv3x3(Backend::cpu, x, w, stride);
  const DwShape& s = a.shape;
  const Taps taps(a.w, s.C);
  const int64_t bytes = s.H * s.W * s.C * static_cast<int64_t>(x.element_size());
  const Cut parts = cut_by_images(s.N, s.C, bytes, kPartBytes);
  const void* x_data = a.x.const_data_ptr();
  void* y_data = a.y.mutable_data_ptr();
  const auto kernel = FASTCIFAR_KERNEL(dwconv3x3_forward);
  const Scratch zeros = Scratch::zeros(s.W * s.C);
  parallel(parts.size(), s.N * bytes, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      kernel(element_of(x), s, parts[part], x_data, taps.get(), taps.pitch, y_data, zeros.get());
    }
  });
  return a.y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_y, const Tensor& x, const Tensor& w, int64_t stride,
                                    bool need_grad_x, bool need_grad_w) {
  const auto a = prepare_dwconv3x3_backward(Backend::cpu, grad_y, x, w, stride, need_grad_x, need_grad_w);
  if (!need_grad_x && !need_grad_w) return {a.grad_x, a.grad_w};
  const DwShape& s = a.shape;
  const Taps taps(a.w, s.C);
  const int64_t bytes = s.H * s.W * s.C * static_cast<int64_t>(x.element_size());
  const Cut parts = cut_by_images(s.N, s.C, bytes, need_grad_w ? kSummedPartBytes : kPartBytes);
  const int64_t sums_size = need_grad_w ? 9 * taps.pitch : 0;
  const Scratch sums = Scratch::zeros(parts.image_parts * sums_size);
  const void *grad_y_data = a.grad_y.const_data_ptr(), *x_data = a.x.const_data_ptr();
  void* grad_x_data = need_grad_x ? a.grad_x.mutable_data_ptr() : nullptr;
  const auto kernel = FASTCIFAR_KERNEL(dwconv3x3_backward);
  const Scratch zeros = Scratch::zeros(s.W * s.C);
  parallel(parts.size(), s.N * bytes, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      float* grad_w = need_grad_w ? sums.get() + part / parts.channel_parts * sums_size : nullptr;
      kernel(element_of(x), s, parts[part], grad_y_data, x_data, taps.get(), taps.pitch, grad_x_data, grad_w,
             zeros.get());
    }
  });
  if (need_grad_w) {
    FASTCIFAR_KERNEL(sum_parts)(sums.get(), parts.image_parts, sums_size, sums.get());
    write_weight_gradient(sums.get(), taps.pitch, a.grad_w);
  }
  return {a.grad_x, a.grad_w};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kDwconv3x3Schemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("dwconv3x3", TORCH_BOX(&forward));
  m.impl("_dwconv3x3_backward", TORCH_BOX(&backward));
}

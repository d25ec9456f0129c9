#include "batch_norm_relu_pool.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/batch_norm_relu_pool_kernel.h"
#include "cpu/batch_statistics.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

// What forward and backward share. columns: mean, scale and shift of the BN.
struct Task {
  Element element;
  int64_t images, pixels, channels, pitch, bytes;
  Range all;
  Cut parts;
  Scratch columns;

  Task(const Tensor& u, const Tensor& gamma, const Tensor& beta, const Tensor& mean, const Tensor& var, double eps)
      : element(element_of(u)), images(u.size(0)), pixels(u.size(2) * u.size(3)), channels(u.size(1)),
        pitch(round_up(channels, kBlock)), bytes(u.numel() * static_cast<int64_t>(u.element_size())),
        all{0, images, 0, channels}, parts(cut(images, channels, bytes / images)),
        columns(Scratch::zeros(kColumns * pitch)) {
    FASTCIFAR_KERNEL(fold_statistics)(all, floats(mean), floats(var), floats(gamma), floats(beta), eps, columns.get(),
                                      pitch);
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& u, const Tensor& gamma, const Tensor& beta, double eps,
                                           const std::optional<Tensor>& u_rows) {
  const auto a = prepare_batch_norm_relu_pool(Backend::cpu, u, gamma, beta, u_rows);
  if (a.u_rows) {
    merge_moments(*a.u_rows, mutable_floats(a.mean), mutable_floats(a.var));
  } else {
    batch_statistics(a.u, mutable_floats(a.mean), mutable_floats(a.var));
  }
  const Task t(a.u, a.gamma, a.beta, a.mean, a.var, eps);
  const void* us = data(a.u);
  void* pooled = mutable_data(a.pooled);
  parallel(t.parts, t.bytes, [&](const Range& range, int64_t) {
    FASTCIFAR_KERNEL(pool_affine_relu)(t.element, range, t.pixels, t.channels, us, t.columns.get(), t.pitch, pooled);
  });
  return {a.pooled, a.mean, a.var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_pooled, const Tensor& u, const Tensor& gamma,
                                                    const Tensor& beta, const Tensor& mean, const Tensor& var,
                                                    double eps, const std::optional<Tensor>& u_rows) {
  const auto a = prepare_batch_norm_relu_pool_backward(Backend::cpu, grad_pooled, u, gamma, beta, mean, var, u_rows);
  const Task t(a.u, a.gamma, a.beta, a.mean, a.var, eps);
  const Scratch memory = Scratch::zeros(t.parts.image_parts * 2 * t.pitch);
  const Sums sums{memory.get(), t.parts.image_parts, 2 * t.pitch};
  const void *grads = data(a.grad_pooled), *us = data(a.u);
  void* outs = mutable_data(a.grad_u);
  parallel(t.parts, t.bytes, [&](const Range& range, int64_t part) {
    FASTCIFAR_KERNEL(add_pool_gradient_sums)(t.element, range, t.pixels, t.channels, grads, us, t.columns.get(),
                                             t.pitch, sums.part(part));
  });
  FASTCIFAR_KERNEL(finish_gradient)(t.all, sums, t.images * t.pixels, floats(a.gamma), floats(a.var), eps,
                                    t.columns.get(), t.pitch, mutable_floats(a.grad_gamma),
                                    mutable_floats(a.grad_beta));
  if (a.u_rows) {  // what comes through the statistics is the gradient of the rows, and no part of grad_u
    write_moments_gradient(*a.u_rows, t.columns.get(), t.pitch, a.grad_u_rows);
    std::fill_n(t.columns.get() + kXFactor * t.pitch, t.pitch, 0.0f);
    std::fill_n(t.columns.get() + kConstant * t.pitch, t.pitch, 0.0f);
  }
  parallel(t.parts, t.bytes, [&](const Range& range, int64_t) {
    FASTCIFAR_KERNEL(apply_pool_gradient)(t.element, range, t.pixels, t.channels, grads, us, t.columns.get(), t.pitch,
                                          outs);
  });
  return {a.grad_u, a.grad_gamma, a.grad_beta, a.grad_u_rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kBatchNormReluPoolSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("batch_norm_relu_pool", TORCH_BOX(&forward));
  m.impl("_batch_norm_relu_pool_backward", TORCH_BOX(&backward));
}

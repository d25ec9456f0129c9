#include "depthwise_block.h"

#include <torch/csrc/stable/library.h>

#include "cpu/depthwise_block_kernel.h"
#include "cpu/dwconv3x3_kernel.h"
#include "cpu/depthwise_weight.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs forward(const Tensor& u, const Tensor& gamma0, const Tensor& beta0, const Tensor& w, const Tensor& gamma1,
                const Tensor& beta1, double eps, int64_t stride, const std::optional<Tensor>& u_mean,
                const std::optional<Tensor>& u_var) {
  auto a = prepare_depthwise_block(Backend::cpu, u, gamma0, beta0, w, gamma1, beta1, stride, u_mean, u_var);
  const DwShape& s = a.shape;
  const Element element = element_of(u);
  const int64_t in_rows = s.H * s.W, out_rows = s.Ho * s.Wo;
  if (s.N == 0) {
    if (!a.given_statistics) zero(a.mean0), zero(a.var0);
    return {a.z, a.y, a.mean0, a.var0, zero(a.mean1), zero(a.var1)};
  }
  const Taps taps(a.w, s.C);
  const int64_t pitch = taps.pitch, element_size = u.element_size(), bytes = in_rows * s.C * element_size;
  const Cut cut = cut_for_steps(s.N, s.C, bytes, s.N * (in_rows + 2 * out_rows) * kBlock * element_size);
  const Scratch columns0 = Scratch::zeros(kColumns * pitch), columns1 = Scratch::zeros(kColumns * pitch);
  const Scratch sums = Scratch::zeros(cut.image_parts * 4 * pitch);
  const Parts parts0{sums.get(), cut.image_parts, 4 * pitch}, parts1{sums.get() + 2 * pitch, cut.image_parts, 4 * pitch};
  const void* us = data(a.u);
  void *ys = mutable_data(a.y), *zs = mutable_data(a.z);
  const float *gammas0 = floats(a.gamma0), *betas0 = floats(a.beta0), *gammas1 = floats(a.gamma1), *betas1 = floats(a.beta1);
  float *means0 = mutable_floats(a.mean0), *vars0 = mutable_floats(a.var0), *means1 = mutable_floats(a.mean1),
        *vars1 = mutable_floats(a.var1);
  const auto add_statistics = [&](const Range& r, int64_t part) {
    FASTCIFAR_KERNEL(add_statistics)(element, {r.n0 * in_rows, r.n1 * in_rows, r.c0, r.c1}, s.C, us, columns0.get(), pitch, parts0.sums + part * parts0.part_size);
  };
  const auto finish0 = [&](const Range& r, int64_t) {
    if (a.given_statistics) {
      FASTCIFAR_KERNEL(fold_statistics)(r, means0, vars0, gammas0, betas0, eps, columns0.get(), pitch);
    } else {
      FASTCIFAR_KERNEL(finish_statistics)(r, parts0, s.N * in_rows, gammas0, betas0, eps, columns0.get(), pitch, means0, vars0);
    }
    FASTCIFAR_KERNEL(set_output_pivot)(element, s, r, us, columns0.get(), taps.get(), pitch, columns1.get());
  };
  const auto convolve = [&](const Range& r, int64_t part) {
    const Scratch ring(ring_floats(s.W));
    FASTCIFAR_KERNEL(depthwise_block_forward)(element, s, r, us, columns0.get(), taps.get(), pitch, ys, columns1.get(), parts1.sums + part * parts1.part_size, ring.get());
  };
  const auto finish1 = [&](const Range& r, int64_t) {
    FASTCIFAR_KERNEL(finish_statistics)(r, parts1, s.N * out_rows, gammas1, betas1, eps, columns1.get(), pitch, means1, vars1);
  };
  const auto apply = [&](const Range& r, int64_t) {
    FASTCIFAR_KERNEL(apply_affine_relu)(element, {r.n0 * out_rows, r.n1 * out_rows, r.c0, r.c1}, s.C, ys, columns1.get(), pitch, zs);
  };
  if (a.given_statistics) {
    finish0({0, s.N, 0, s.C}, 0);
    run_steps(cut, s.N * bytes, convolve, finish1, apply);
  } else {
    FASTCIFAR_KERNEL(set_pivot)(element, {0, s.N, 0, s.C}, middle_row(a.u), columns0.get());
    run_steps(cut, s.N * bytes, add_statistics, finish0, convolve, finish1, apply);
  }
  return {a.z, a.y, a.mean0, a.var0, a.mean1, a.var1};
}

Outputs backward(const Tensor& grad_z, const Tensor& u, const Tensor& y, const Tensor& gamma0, const Tensor& beta0,
                 const Tensor& w, const Tensor& gamma1, const Tensor& beta1, const Tensor& mean0, const Tensor& var0,
                 const Tensor& mean1, const Tensor& var1, double eps, int64_t stride) {
  auto a = prepare_depthwise_block_backward(Backend::cpu, grad_z, u, y, gamma0, beta0, w, gamma1, beta1, mean0, var0, mean1, var1, stride);
  const DwShape& s = a.shape;
  const Element element = element_of(u);
  const int64_t in_rows = s.H * s.W, out_rows = s.Ho * s.Wo;
  if (s.N == 0) {
    return {a.grad_u, zero(a.grad_gamma0), zero(a.grad_beta0), zero(a.grad_w), zero(a.grad_gamma1), zero(a.grad_beta1)};
  }
  const Taps taps(a.w, s.C);
  const int64_t pitch = taps.pitch, element_size = u.element_size(), bytes = in_rows * s.C * element_size;
  const Cut cut = cut_for_steps(s.N, s.C, bytes, s.N * 2 * (in_rows + out_rows) * kBlock * element_size);
  const Scratch columns0 = Scratch::zeros(kColumns * pitch), columns1 = Scratch::zeros(kColumns * pitch);
  // The rows of each part: bn1's two sums, bn0's two, the weight's nine.
  const int64_t part_size = 13 * pitch;
  const Scratch sums = Scratch::zeros(cut.image_parts * part_size);
  const Parts parts1{sums.get(), cut.image_parts, part_size}, parts0{sums.get() + 2 * pitch, cut.image_parts, part_size};
  const void *us = data(a.u), *ys = data(a.y), *grads = data(a.grad_z);
  void* outs = mutable_data(a.grad_u);
  const float *gammas0 = floats(a.gamma0), *vars0 = floats(a.var0), *gammas1 = floats(a.gamma1), *vars1 = floats(a.var1);
  float *grad_gammas0 = mutable_floats(a.grad_gamma0), *grad_betas0 = mutable_floats(a.grad_beta0),
        *grad_gammas1 = mutable_floats(a.grad_gamma1), *grad_betas1 = mutable_floats(a.grad_beta1);
  const Range all{0, s.N, 0, s.C};
  FASTCIFAR_KERNEL(fold_statistics)(all, floats(a.mean0), vars0, gammas0, floats(a.beta0), eps, columns0.get(), pitch);
  FASTCIFAR_KERNEL(fold_statistics)(all, floats(a.mean1), vars1, gammas1, floats(a.beta1), eps, columns1.get(), pitch);
  run_steps(
      cut, s.N * bytes,
      [&](const Range& r, int64_t part) {
        FASTCIFAR_KERNEL(add_gradient_sums)(element, {r.n0 * out_rows, r.n1 * out_rows, r.c0, r.c1}, s.C, grads, ys, columns1.get(), pitch, parts1.sums + part * part_size);
      },
      [&](const Range& r, int64_t) {
        FASTCIFAR_KERNEL(finish_gradient)(r, parts1, s.N * out_rows, gammas1, vars1, eps, columns1.get(), pitch, grad_gammas1, grad_betas1);
      },
      [&](const Range& r, int64_t part) {
        const Scratch ring(ring_floats(s.Wo));
        FASTCIFAR_KERNEL(depthwise_block_backward)(element, s, r, grads, ys, us, columns0.get(), columns1.get(), taps.get(), pitch, outs, parts0.sums + part * part_size, ring.get());
      },
      [&](const Range& r, int64_t) {
        FASTCIFAR_KERNEL(finish_gradient)(r, parts0, s.N * in_rows, gammas0, vars0, eps, columns0.get(), pitch, grad_gammas0, grad_betas0);
      },
      [&](const Range& r, int64_t) {
        FASTCIFAR_KERNEL(apply_gradient)(element, {r.n0 * in_rows, r.n1 * in_rows, r.c0, r.c1}, s.C, /*masked=*/true, outs, us, columns0.get(), pitch, outs);
      });
  FASTCIFAR_KERNEL(sum_parts)(sums.get(), cut.image_parts, part_size, sums.get());
  write_weight_gradient(sums.get() + 4 * pitch, pitch, a.grad_w);
  return {a.grad_u, a.grad_gamma0, a.grad_beta0, a.grad_w, a.grad_gamma1, a.grad_beta1};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("depthwise_block", TORCH_BOX(&forward));
  m.impl("_depthwise_block_backward", TORCH_BOX(&backward));
}

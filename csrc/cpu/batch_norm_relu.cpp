#include "batch_norm_relu.h"

#include <torch/csrc/stable/library.h>

#include "cpu/batch_norm_relu_kernel.h"
#include "cpu/data.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps) {
  auto a = prepare_batch_norm_relu(Backend::cpu, x, gamma, beta);
  const Element element = element_of(x);
  const int64_t rows = x.size(0) * x.size(2) * x.size(3), channels = x.size(1), pitch = round_up(channels, kBlock);
  const int64_t element_size = x.element_size();
  if (rows == 0) return {a.z, zero(a.mean), zero(a.var)};
  const Cut cut = cut_for_steps(rows, channels, channels * element_size, 2 * rows * kBlock * element_size);
  const Scratch columns = Scratch::zeros(kColumns * pitch), sums = Scratch::zeros(cut.image_parts * 2 * pitch);
  const Parts parts{sums.get(), cut.image_parts, 2 * pitch};
  const void* xs = data(a.x);
  void* zs = mutable_data(a.z);
  const float *gammas = floats(a.gamma), *betas = floats(a.beta);
  float *means = mutable_floats(a.mean), *vars = mutable_floats(a.var);
  FASTCIFAR_KERNEL(set_pivot)(element, {0, rows, 0, channels}, middle_row(a.x), columns.get());
  run_steps(
      cut, rows * channels * element_size,
      [&](const Range& range, int64_t part) {
        FASTCIFAR_KERNEL(add_statistics)(element, range, channels, xs, columns.get(), pitch, parts.sums + part * parts.part_size);
      },
      [&](const Range& range, int64_t) {
        FASTCIFAR_KERNEL(finish_statistics)(range, parts, rows, gammas, betas, eps, columns.get(), pitch, means, vars);
      },
      [&](const Range& range, int64_t) {
        FASTCIFAR_KERNEL(apply_affine_relu)(element, range, channels, xs, columns.get(), pitch, zs);
      });
  return {a.z, a.mean, a.var};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_z, const Tensor& x, const Tensor& gamma,
                                            const Tensor& beta, const Tensor& mean, const Tensor& var, double eps) {
  auto a = prepare_batch_norm_relu_backward(Backend::cpu, grad_z, x, gamma, beta, mean, var);
  const Element element = element_of(x);
  const int64_t rows = x.size(0) * x.size(2) * x.size(3), channels = x.size(1), pitch = round_up(channels, kBlock);
  const int64_t element_size = x.element_size();
  if (rows == 0) return {a.grad_x, zero(a.grad_gamma), zero(a.grad_beta)};
  const Cut cut = cut_for_steps(rows, channels, channels * element_size, 3 * rows * kBlock * element_size);
  const Scratch columns = Scratch::zeros(kColumns * pitch), sums = Scratch::zeros(cut.image_parts * 2 * pitch);
  const Parts parts{sums.get(), cut.image_parts, 2 * pitch};
  const void *xs = data(a.x), *grads = data(a.grad_z);
  void* outs = mutable_data(a.grad_x);
  const float *gammas = floats(a.gamma), *vars = floats(a.var);
  float *grad_gammas = mutable_floats(a.grad_gamma), *grad_betas = mutable_floats(a.grad_beta);
  FASTCIFAR_KERNEL(fold_statistics)({0, rows, 0, channels}, floats(a.mean), vars, gammas, floats(a.beta), eps, columns.get(), pitch);
  run_steps(
      cut, rows * channels * element_size,
      [&](const Range& range, int64_t part) {
        FASTCIFAR_KERNEL(add_gradient_sums)(element, range, channels, grads, xs, columns.get(), pitch, parts.sums + part * parts.part_size);
      },
      [&](const Range& range, int64_t) {
        FASTCIFAR_KERNEL(finish_gradient)(range, parts, rows, gammas, vars, eps, columns.get(), pitch, grad_gammas, grad_betas);
      },
      [&](const Range& range, int64_t) {
        FASTCIFAR_KERNEL(apply_gradient)(element, range, channels, /*masked=*/false, grads, xs, columns.get(), pitch, outs);
      });
  return {a.grad_x, a.grad_gamma, a.grad_beta};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("batch_norm_relu", TORCH_BOX(&forward));
  m.impl("_batch_norm_relu_backward", TORCH_BOX(&backward));
}

#include "batch_norm_relu.h"

#include <torch/csrc/stable/library.h>

#include "cpu/batch_norm_relu_kernel.h"
#include "cpu/batch_statistics.h"
#include "cpu/data.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

// [rows, C] with rows = N * H * W, in parts.
struct Matrix {
  Element element;
  int64_t rows, channels, pitch, bytes;
  Range all;
  Cut parts;

  explicit Matrix(const Tensor& x)
      : element(element_of(x)), rows(x.size(0) * x.size(2) * x.size(3)), channels(x.size(1)),
        pitch(round_up(channels, kBlock)), bytes(x.numel() * static_cast<int64_t>(x.element_size())),
        all{0, rows, 0, channels}, parts(cut(rows, channels, channels * static_cast<int64_t>(x.element_size()))) {}
};

// The sums of x - pivot and of its square over the rows of each part; columns gets the pivots.
Sums add_up(const Matrix& m, const Tensor& x, const Scratch& columns, const Scratch& memory) {
  const Sums total{memory.get(), m.parts.image_parts, 2 * m.pitch};
  const void* xs = data(x);
  FASTCIFAR_KERNEL(set_pivot)(m.element, m.all, m.rows, m.channels, xs, columns.get());
  parallel(m.parts, m.bytes, [&](const Range& range, int64_t part) {
    FASTCIFAR_KERNEL(add_statistics)(m.element, range, m.channels, xs, columns.get(), m.pitch, total.part(part));
  });
  return total;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps) {
  auto a = prepare_batch_norm_relu(Backend::cpu, x, gamma, beta);
  const Matrix m(x);
  if (m.rows == 0) return {a.z, zero(a.mean), zero(a.var)};
  const Scratch columns = Scratch::zeros(kColumns * m.pitch), sums = Scratch::zeros(m.parts.image_parts * 2 * m.pitch);
  const Sums total = add_up(m, a.x, columns, sums);
  const void* xs = data(a.x);
  void* zs = mutable_data(a.z);
  FASTCIFAR_KERNEL(finish_statistics)(m.all, total, m.rows, floats(a.gamma), floats(a.beta), eps, columns.get(),
                                      m.pitch, mutable_floats(a.mean), mutable_floats(a.var));
  parallel(m.parts, m.bytes, [&](const Range& range, int64_t) {
    FASTCIFAR_KERNEL(apply_affine_relu)(m.element, range, m.channels, xs, columns.get(), m.pitch, zs);
  });
  return {a.z, a.mean, a.var};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_z, const Tensor& x, const Tensor& gamma,
                                            const Tensor& beta, const Tensor& mean, const Tensor& var, double eps) {
  auto a = prepare_batch_norm_relu_backward(Backend::cpu, grad_z, x, gamma, beta, mean, var);
  const Matrix m(x);
  if (m.rows == 0) return {a.grad_x, zero(a.grad_gamma), zero(a.grad_beta)};
  const Scratch columns = Scratch::zeros(kColumns * m.pitch), sums = Scratch::zeros(m.parts.image_parts * 2 * m.pitch);
  const Sums total{sums.get(), m.parts.image_parts, 2 * m.pitch};
  const void *xs = data(a.x), *grads = data(a.grad_z);
  void* outs = mutable_data(a.grad_x);
  FASTCIFAR_KERNEL(fold_statistics)(m.all, floats(a.mean), floats(a.var), floats(a.gamma), floats(a.beta), eps,
                                    columns.get(), m.pitch);
  parallel(m.parts, m.bytes, [&](const Range& range, int64_t part) {
    FASTCIFAR_KERNEL(add_gradient_sums)(m.element, range, m.channels, grads, xs, columns.get(), m.pitch,
                                        total.part(part));
  });
  FASTCIFAR_KERNEL(finish_gradient)(m.all, total, m.rows, floats(a.gamma), floats(a.var), eps, columns.get(), m.pitch,
                                    mutable_floats(a.grad_gamma), mutable_floats(a.grad_beta));
  parallel(m.parts, m.bytes, [&](const Range& range, int64_t) {
    FASTCIFAR_KERNEL(apply_gradient)(m.element, range, m.channels, /*masked=*/false, grads, xs, columns.get(), m.pitch,
                                     outs);
  });
  return {a.grad_x, a.grad_gamma, a.grad_beta};
}

}  // namespace

namespace fastcifar {

void batch_statistics(const Tensor& x, float* mean, float* var) {
  const Matrix m(x);
  const Scratch columns = Scratch::zeros(kColumns * m.pitch), sums = Scratch::zeros(m.parts.image_parts * 2 * m.pitch);
  const Sums total = add_up(m, x, columns, sums);
  const Scratch zeros = Scratch::zeros(m.channels);  // in place of gamma and beta
  FASTCIFAR_KERNEL(finish_statistics)(m.all, total, m.rows, zeros.get(), zeros.get(), 1, columns.get(), m.pitch, mean,
                                      var);
}

}  // namespace fastcifar

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kBatchNormReluSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("batch_norm_relu", TORCH_BOX(&forward));
  m.impl("_batch_norm_relu_backward", TORCH_BOX(&backward));
}

#include "separable_block.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "cpu/batch_statistics.h"
#include "cpu/data.h"
#include "cpu/block_passes.h"

// depthwise_block's kernels and the library's product, in float32: there is no kernel yet that holds both, and
// depthwise_block with a product in the activations' dtype is the faster way.

namespace {
using namespace fastcifar;
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The pixels of a channels_last tensor as rows of its channels, in float32.
Tensor wide_rows(const Tensor& t) {
  const int64_t sizes[2] = {t.size(0) * t.size(2) * t.size(3), t.size(1)};
  const Tensor nhwc = torch::stable::transpose(torch::stable::transpose(t, 1, 2), 2, 3);
  return torch::stable::to(torch::stable::view(nhwc, {sizes, 2}), ScalarType::Float);
}

// The product's weight as it is multiplied, [out_channels, C]: rounded to the activations' dtype, in float32.
Tensor matrix_of(const Tensor& pointwise, const Tensor& x) {
  const int64_t sizes[2] = {pointwise.size(0), pointwise.size(1)};
  const Tensor rounded = torch::stable::to(pointwise, x.scalar_type());
  return torch::stable::to(torch::stable::view(rounded, {sizes, 2}), ScalarType::Float);
}

Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

// Writes rows of float32 channels into a channels_last tensor, rounded to its dtype.
void write_rows(const Tensor& rows, Tensor to) {
  const int64_t sizes[4] = {to.size(0), to.size(2), to.size(3), to.size(1)};
  const Tensor nhwc = torch::stable::view(rows, {sizes, 4});
  torch::stable::copy_(to, torch::stable::transpose(torch::stable::transpose(nhwc, 2, 3), 1, 2));
}

// Mean and biased variance out of partial moments.
void merge_moments(const Tensor& rows, const DepthwiseBlockForward& a) {
  const int64_t num_rows = rows.size(0), channels = rows.size(2);
  const float* moments = floats(rows);
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0, sum = 0, squares = 0;
    const auto at = [&](int64_t row, int quantity) -> double { return moments[(row * 3 + quantity) * channels + c]; };
    for (int64_t row = 0; row < num_rows; ++row) total += at(row, 0), sum += at(row, 0) * at(row, 1);
    const double mean = sum / total;
    for (int64_t row = 0; row < num_rows; ++row) {
      const double offset = at(row, 1) - mean;
      squares += at(row, 2) + at(row, 0) * offset * offset;
    }
    mutable_floats(a.mean0)[c] = static_cast<float>(mean);
    mutable_floats(a.var0)[c] = static_cast<float>(squares / total);
  }
}

// The moments of v in the first row, the others empty.
void write_moments(const Tensor& v, Tensor rows) {
  const int64_t channels = v.size(1), pixels = v.size(0) * v.size(2) * v.size(3);
  zero(rows);
  float *count = mutable_floats(rows), *mean = count + channels, *squares = mean + channels;
  batch_statistics(v, mean, squares);
  for (int64_t c = 0; c < channels; ++c) {
    count[c] = static_cast<float>(pixels);
    squares[c] *= static_cast<float>(pixels);
  }
}

Outputs forward(const Tensor& u, const Tensor& gamma0, const Tensor& beta0, const Tensor& w, const Tensor& gamma1,
                const Tensor& beta1, const Tensor& pointwise, double eps, int64_t stride,
                const std::optional<Tensor>& u_rows) {
  auto a = prepare_separable_block(Backend::cpu, u, gamma0, beta0, w, gamma1, beta1, pointwise, stride, u_rows);
  DepthwiseBlockForward& block = a.block;
  const DwShape& s = block.shape;
  if (a.u_rows) {
    block.given_statistics = true;
    merge_moments(*a.u_rows, block);
  }
  block.z = empty_channels_last(u, s.N, s.C, s.Ho, s.Wo);
  run_depthwise_block(block, eps);
  write_rows(torch::stable::matmul(wide_rows(block.z), transposed(matrix_of(a.pointwise, u))), a.v);
  write_moments(a.v, a.v_rows);
  return {a.v, a.v_rows, block.y, block.mean0, block.var0, block.mean1, block.var1};
}

Outputs backward(const Tensor& grad_v, const Tensor& u, const Tensor& y, const Tensor& gamma0, const Tensor& beta0,
                 const Tensor& w, const Tensor& gamma1, const Tensor& beta1, const Tensor& pointwise,
                 const Tensor& mean0, const Tensor& var0, const Tensor& mean1, const Tensor& var1, double eps,
                 int64_t stride) {
  auto a = prepare_separable_block_backward(Backend::cpu, grad_v, u, y, gamma0, beta0, w, gamma1, beta1, pointwise,
                                            mean0, var0, mean1, var1, stride);
  DepthwiseBlockBackward& block = a.block;
  const DwShape& s = block.shape;
  block.grad_z = empty_channels_last(u, s.N, s.C, s.Ho, s.Wo);
  const Tensor grads = wide_rows(a.grad_v);
  write_rows(torch::stable::matmul(grads, matrix_of(a.pointwise, u)), block.grad_z);
  Tensor z = empty_channels_last(u, s.N, s.C, s.Ho, s.Wo);
  write_activation(block, eps, z);
  const Tensor grad_matrix = torch::stable::matmul(transposed(grads), wide_rows(z));
  const int64_t sizes[4] = {a.out_channels, s.C, 1, 1};
  const Tensor grad_pointwise =
      torch::stable::to(torch::stable::view(grad_matrix, {sizes, 4}), a.pointwise.scalar_type());
  run_depthwise_block_backward(block, eps);
  return {block.grad_u,      block.grad_gamma0, block.grad_beta0, block.grad_w,
          block.grad_gamma1, block.grad_beta1,  grad_pointwise};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kSeparableBlockSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("separable_block", TORCH_BOX(&forward));
  m.impl("_separable_block_backward", TORCH_BOX(&backward));
}

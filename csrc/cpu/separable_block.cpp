#include "separable_block.h"

#include <torch/csrc/stable/library.h>

#include "cpu/batch_statistics.h"
#include "cpu/block_passes.h"
#include "cpu/data.h"
#include "cpu/parallel.h"
#include "cpu/separable_block_kernel.h"

// depthwise_block's passes and a product of its own after them. There is no kernel yet that holds both: depthwise_block
// with the library's product is the faster way.

namespace {
using namespace fastcifar;
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The product's weight [out_channels, C] as it is multiplied: rounded to the activations' dtype, in float32, as it lies
// or transposed; its rows `pitch` apart.
struct Weight {
  int64_t pitch;
  Scratch memory;

  Weight(const Tensor& pointwise, const Tensor& x, bool transposed)
      : pitch(round_up(transposed ? pointwise.size(0) : pointwise.size(1), kBlock)),
        memory(Scratch::zeros(pitch * (transposed ? pointwise.size(1) : pointwise.size(0)))) {
    const int64_t rows = pointwise.size(0), columns = pointwise.size(1);
    const bool narrow = element_of(x) == Element::bf16, is_f32 = element_of(pointwise) == Element::f32;
    const auto* f32s = static_cast<const float*>(data(pointwise));
    const auto* bf16s = static_cast<const bf16*>(data(pointwise));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t i = r * columns + c;
        const float value = is_f32 ? f32s[i] : to_f32(bf16s[i]);
        memory.get()[transposed ? c * pitch + r : r * pitch + c] = narrow ? to_f32(from_f32<bf16>(value)) : value;
      }
    }
  }
};

// out = x . weight over all pixels of two channels_last tensors.
void multiply(const Tensor& x, const Weight& weight, Tensor out) {
  constexpr int64_t kPixels = 64;  // of a part
  const int64_t k = x.size(1), n = out.size(1), pixels = x.size(0) * x.size(2) * x.size(3);
  const void* xs = data(x);
  void* outs = mutable_data(out);
  parallel((pixels + kPixels - 1) / kPixels, pixels * (k + n) * 4, [&](int64_t begin, int64_t end) {
    const int64_t last = end * kPixels < pixels ? end * kPixels : pixels;
    FASTCIFAR_KERNEL(multiply_rows)(element_of(x), begin * kPixels, last, k, n, xs, weight.memory.get(), weight.pitch,
                                    outs);
  });
}

// The gradient of the product's weight, in its shape and dtype.
Tensor weight_gradient(const Tensor& grad_v, const Tensor& z, const Tensor& pointwise) {
  const int64_t m = grad_v.size(1), n = z.size(1), pixels = z.size(0) * z.size(2) * z.size(3);
  const int64_t pitch = round_up(n, kBlock), groups = (m + 3) / 4;
  const Scratch sums = Scratch::zeros(m * pitch);
  const void *grads = data(grad_v), *zs = data(z);
  parallel(groups, pixels * (m + n) * 4, [&](int64_t begin, int64_t end) {
    const int64_t last = end * 4 < m ? end * 4 : m;
    FASTCIFAR_KERNEL(multiply_transposed)(element_of(z), begin * 4, last, pixels, m, n, grads, zs, sums.get(), pitch);
  });
  const int64_t sizes[4] = {m, n, 1, 1};
  Tensor grad = torch::stable::empty({sizes, 4}, pointwise.scalar_type(), std::nullopt, pointwise.device());
  for (int64_t i = 0; i < m * n; ++i) {
    const float value = sums.get()[i / n * pitch + i % n];
    if (element_of(grad) == Element::f32) {
      mutable_floats(grad)[i] = value;
    } else {
      static_cast<bf16*>(mutable_data(grad))[i] = from_f32<bf16>(value);
    }
  }
  return grad;
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
  multiply(block.z, Weight(a.pointwise, u, /*transposed=*/true), a.v);
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
  multiply(a.grad_v, Weight(a.pointwise, u, /*transposed=*/false), block.grad_z);
  Tensor z = empty_channels_last(u, s.N, s.C, s.Ho, s.Wo);
  write_activation(block, eps, z);
  const Tensor grad_pointwise = weight_gradient(a.grad_v, z, a.pointwise);
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

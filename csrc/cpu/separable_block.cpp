#include "separable_block.h"

#include <torch/csrc/stable/library.h>

#include "cpu/block_passes.h"
#include "cpu/data.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"
#include "cpu/separable_block_kernel.h"

// Memory is passed through 4 times forward (u read, y written; y read, v written) and 8 times backward (grad_v, v and y
// read, grad_z written; grad_z, y and u read, grad_u written).

namespace {
using namespace fastcifar;

// Unless W is large, each part of the pixels has a matrix of sums for the gradient of W, kSumFloats (8 MiB) in all, to which
// it adds factor_rows pixels at a time. Otherwise kRowsAtOnce pixels leave the factors of the gradient in memory, and each
// part of the channels multiplies them.
constexpr int64_t kSumFloats = 1 << 21, kRowsAtOnce = 2048;
// A block of the gradient's channels (multiply_factors) takes 24 KiB of the L1 cache with so many, and in float32 48.
int64_t factor_rows(const PointwiseProduct& p) { return p.is_split() ? 128 : 256; }

// The passes of the product.
struct Product {
  PointwiseProduct p;
  int64_t rows, k_pitch, m_pitch, bytes;  // bytes: of y and v

  Product(const Tensor& y, const Tensor& pointwise, const float* columns1)
      : p{element_of(y), isa() == Isa::amx, pointwise.size(1), pointwise.size(0), data(y), columns1},
        rows(y.size(0) * y.size(2) * y.size(3)), k_pitch(round_up(p.k, kBlock)), m_pitch(round_up(p.m, kBlock)),
        bytes(rows * (p.k + p.m) * static_cast<int64_t>(y.element_size())) {}

  // How many parts there are, at most `most`: of at least 256 rows or, while they are fewer than eight, of 128.
  static int64_t num_parts(int64_t rows, int64_t most) { return clamp(rows / (rows < 8 * 256 ? 128 : 256), most); }

  // Calls f(first row, end, number of the part) for parts of [first, end), in several threads. A part has whole blocks of
  // kBlock rows, except for the last one.
  template <class F>
  void for_parts(int64_t first, int64_t end, int64_t parts, const F& f) const {
    const Cut blocks{(end - first + kBlock - 1) / kBlock, kBlock, parts, 1};
    parallel(blocks, bytes, [&](const Range& r, int64_t part) {
      const int64_t part_end = first + r.n1 * kBlock;
      f(first + r.n0 * kBlock, part_end < end ? part_end : end, part);
    });
  }

  Scratch scratch() const { return Scratch(FASTCIFAR_KERNEL(product_scratch)(p)); }

  // W as it is multiplied.
  Scratch pack(const Tensor& pointwise, bool transposed) const {
    const int64_t steps = transposed ? p.k : p.m, columns = transposed ? p.m : p.k;
    Scratch packed(FASTCIFAR_KERNEL(packed_weight)(p, transposed));
    const Element element = element_of(pointwise);
    const void* weight = data(pointwise);
    parallel(FASTCIFAR_KERNEL(num_panels)(columns), steps * columns * 4, [&](int64_t begin, int64_t end) {
      FASTCIFAR_KERNEL(pack_weight)(p, element, weight, transposed, begin, end, packed.get());
    });
    return packed;
  }
};

// Computes grad_z, the gradients of gamma1 and beta1, bn1's columns, and the gradient of W.
Tensor run_product_backward(const SeparableBlockBackward& a, const void* v, const float* of_moments, double eps,
                            float* columns1) {
  const DepthwiseBlockBackward& block = a.block;
  const Product product(block.y, a.pointwise, columns1);
  const PointwiseProduct& p = product.p;
  const Range all{0, product.rows, 0, p.k};
  FASTCIFAR_KERNEL(fold_statistics)(all, floats(block.mean1), floats(block.var1), floats(block.gamma1),
                                    floats(block.beta1), eps, columns1, product.k_pitch);
  const GradientOfProduct g{data(a.grad_v), of_moments ? v : data(a.grad_v), of_moments};
  const Scratch packed = product.pack(a.pointwise, /*transposed=*/false);
  const bool each_part_adds = !p.is_large();
  const int64_t num_parts =
      Product::num_parts(product.rows, each_part_adds ? clamp(kSumFloats / (p.k * p.m), kParts) : kParts);
  const int64_t num_sums = each_part_adds ? num_parts : 1, size = 2 * product.k_pitch,
                w_size = FASTCIFAR_KERNEL(weight_sums)(p);
  const Scratch memory = Scratch::zeros(num_parts * size), grad_w(num_sums * w_size);
  const Sums sums{memory.get(), num_parts, size};
  void* grad_zs = mutable_data(block.grad_z);
  Tensor grad = empty({p.m, p.k, 1, 1}, a.pointwise.scalar_type(), a.pointwise);
  const auto write_weight_gradient = [&, element = element_of(grad), out = mutable_data(grad)](int64_t c0, int64_t c1) {
    FASTCIFAR_KERNEL(write_weight_gradient)(p, grad_w.get(), num_sums, element, c0, c1, out);
  };
  if (each_part_adds) {
    product.for_parts(0, product.rows, num_parts, [&](int64_t first, int64_t end, int64_t part) {
      const int64_t rows = factor_rows(p);
      const Scratch scratch = product.scratch(), factors(FASTCIFAR_KERNEL(weight_factors)(p, rows));
      for (int64_t row = first; row < end; row += rows) {
        const int64_t next = row + rows < end ? row + rows : end;
        FASTCIFAR_KERNEL(multiply_backward)(p, g, row, next, packed.get(), grad_zs, sums.part(part), factors.get(), row,
                                            rows, scratch.get());
        FASTCIFAR_KERNEL(multiply_factors)(p, factors.get(), rows, next - row, 0, p.m, grad_w.get() + part * w_size,
                                           /*add=*/row > first);
      }
    });
    parallel(p.m, num_sums * p.m * p.k * 4, write_weight_gradient);
  } else {
    const int64_t room = round_up(product.rows < kRowsAtOnce ? product.rows : kRowsAtOnce, kBlock);
    const Scratch factors(FASTCIFAR_KERNEL(weight_factors)(p, room));
    for (int64_t row = 0; row < product.rows; row += kRowsAtOnce) {
      const int64_t next = row + kRowsAtOnce < product.rows ? row + kRowsAtOnce : product.rows;
      product.for_parts(row, next, Product::num_parts(next - row, num_parts),
                        [&](int64_t first, int64_t end, int64_t part) {
                          FASTCIFAR_KERNEL(multiply_backward)(p, g, first, end, packed.get(), grad_zs, sums.part(part),
                                                              factors.get(), row, room, product.scratch().get());
                        });
      const Cut channels{1, p.m, 1, 32};
      parallel(channels, product.bytes, [&](const Range& r, int64_t) {
        FASTCIFAR_KERNEL(multiply_factors)(p, factors.get(), room, next - row, r.c0, r.c1, grad_w.get(),
                                           /*add=*/row > 0);
        if (next == product.rows) write_weight_gradient(r.c0, r.c1);  // while the sums are in the cache
      });
    }
  }
  FASTCIFAR_KERNEL(finish_gradient)(all, sums, product.rows, floats(block.gamma1), floats(block.var1), eps, columns1,
                                    product.k_pitch, mutable_floats(block.grad_gamma1),
                                    mutable_floats(block.grad_beta1));
  return grad;
}

}  // namespace

namespace fastcifar {

void run_separable_block(const SeparableBlockForward& a, double eps, float* mean, float* var) {
  const DepthwiseBlockForward& block = a.block;
  const Scratch columns1 = Scratch::zeros(kColumns * round_up(block.shape.C, kBlock));
  run_depthwise_convolution(block, eps, columns1.get());
  const Product product(block.y, a.pointwise, columns1.get());
  const Scratch packed = product.pack(a.pointwise, /*transposed=*/true);
  const int64_t size = kProductSums * product.m_pitch, num_parts = Product::num_parts(product.rows, kParts);
  const Scratch memory = Scratch::zeros(num_parts * size);
  const Sums sums{memory.get(), num_parts, size};
  std::vector<double> counts(num_parts);
  void* vs = mutable_data(a.v);
  product.for_parts(0, product.rows, num_parts, [&](int64_t first, int64_t end, int64_t part) {
    counts[part] = static_cast<double>(end - first);
    FASTCIFAR_KERNEL(multiply_forward)(product.p, first, end, packed.get(), vs, sums.part(part),
                                       product.scratch().get());
  });
  FASTCIFAR_KERNEL(finish_moments)(product.p, sums, counts.data(), mean, var);
}

void place_gradients(SeparableBlockBackward& a, bool overwrite_grad_v) {
  DepthwiseBlockBackward& block = a.block;
  const DwShape& s = block.shape;
  if (overwrite_grad_v && a.out_channels == s.C) {
    block.grad_z = a.grad_v;
  } else {
    block.grad_z = s.stride == 1 ? block.grad_u : empty_channels_last(block.u, s.N, s.C, s.Ho, s.Wo);
  }
  if (s.stride == 1) block.grad_u = block.grad_z;
}

Tensor run_separable_backward(const SeparableBlockBackward& a, const void* v, const float* of_moments, double eps,
                              bool through_statistics, float* columns0) {
  const Scratch columns1 = Scratch::zeros(kColumns * round_up(a.block.shape.C, kBlock));
  const Tensor grad_pointwise = run_product_backward(a, v, of_moments, eps, columns1.get());
  run_depthwise_backward(a.block, eps, through_statistics, columns0, columns1.get());
  return grad_pointwise;
}

}  // namespace fastcifar

namespace {
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs forward(const Tensor& u, const Tensor& gamma0, const Tensor& beta0, const Tensor& w, const Tensor& gamma1,
                const Tensor& beta1, const Tensor& pointwise, double eps, int64_t stride,
                const std::optional<Tensor>& u_rows) {
  auto a = prepare_separable_block(Backend::cpu, "separable_block", u, gamma0, beta0, w, gamma1, beta1, pointwise,
                                   stride, u_rows);
  DepthwiseBlockForward& block = a.block;
  if (a.u_rows) {
    block.given_statistics = true;
    merge_moments(*a.u_rows, mutable_floats(block.mean0), mutable_floats(block.var0));
  }
  const Tensor v_rows = empty_moments_of_v(a);
  write_moments(v_rows, output_pixels(block.shape),
                [&](float* mean, float* var) { run_separable_block(a, eps, mean, var); });
  return {a.v, v_rows, block.y, block.mean0, block.var0, block.mean1, block.var1};
}

Gradients backward(const Tensor& grad_v, const Tensor& u, const Tensor& y, const Tensor& gamma0, const Tensor& beta0,
                   const Tensor& w, const Tensor& gamma1, const Tensor& beta1, const Tensor& pointwise,
                   const Tensor& mean0, const Tensor& var0, const Tensor& mean1, const Tensor& var1, double eps,
                   int64_t stride, const std::optional<Tensor>& u_rows, const std::optional<Tensor>& grad_v_rows,
                   const std::optional<Tensor>& v, const std::optional<Tensor>& v_rows) {
  auto a = prepare_separable_block_backward(Backend::cpu, "_separable_block_backward", grad_v, u, y, gamma0, beta0, w,
                                            gamma1, beta1, pointwise, mean0, var0, mean1, var1, stride, u_rows,
                                            grad_v_rows, v, v_rows);
  place_gradients(a, /*overwrite_grad_v=*/false);
  const DepthwiseBlockBackward& block = a.block;
  const int64_t pitch = round_up(block.shape.C, kBlock), v_pitch = round_up(a.out_channels, kBlock);
  const Scratch columns0 = Scratch::zeros(kColumns * pitch), of_v = Scratch::zeros(kColumns * v_pitch);
  if (a.of_moments) read_moments_gradient(a.of_moments->grad_rows, a.of_moments->rows, of_v.get(), v_pitch);
  const Tensor grad_pointwise =
      run_separable_backward(a, a.of_moments ? data(a.of_moments->v) : nullptr, a.of_moments ? of_v.get() : nullptr,
                             eps, /*through_statistics=*/!a.u_rows, columns0.get());
  if (a.u_rows) write_moments_gradient(*a.u_rows, columns0.get(), pitch, a.grad_u_rows);
  return {block.grad_u,      block.grad_gamma0, block.grad_beta0, block.grad_w,
          block.grad_gamma1, block.grad_beta1,  grad_pointwise,   a.grad_u_rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kSeparableBlockSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("separable_block", TORCH_BOX(&forward));
  m.impl("_separable_block_backward", TORCH_BOX(&backward));
}

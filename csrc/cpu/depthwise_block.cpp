#include "depthwise_block.h"

#include <torch/csrc/stable/library.h>

#include "cpu/block_passes.h"
#include "cpu/depthwise_block_kernel.h"
#include "cpu/depthwise_weight.h"
#include "cpu/dwconv3x3_kernel.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"

namespace {
using namespace fastcifar;

// What the passes of the op share.
struct Block {
  DwShape s;
  Element element;
  int64_t in_rows, out_rows, pitch, bytes;  // rows of an image; bytes of u
  Range all;
  Cut parts;

  Block(const Tensor& u, const DwShape& shape)
      : s(shape), element(element_of(u)), in_rows(s.H * s.W), out_rows(s.Ho * s.Wo), pitch(round_up(s.C, kBlock)),
        bytes(u.numel() * static_cast<int64_t>(u.element_size())), all{0, s.N, 0, s.C},
        parts(cut(s.N, s.C, in_rows * s.C * static_cast<int64_t>(u.element_size()))) {}

  Scratch columns() const { return Scratch::zeros(kColumns * pitch); }

  // Sets the sums of a part's channels to 0, of its padding too: each thread its own, which its cache then holds.
  void set_to_zero(float* sums, int64_t count, const Range& r) const {
    const int64_t channels = round_up(r.c1 - r.c0, kBlock);
    for (int64_t i = 0; i < count; ++i) std::memset(sums + i * pitch + r.c0, 0, channels * sizeof(float));
  }

  // The same range, counted in rows instead of images.
  static Range rows(const Range& r, int64_t per_image) { return {r.n0 * per_image, r.n1 * per_image, r.c0, r.c1}; }
};

// Computes every output. The batch must not be empty.
void run_forward(const DepthwiseBlockForward& a, double eps) {
  const Block b(a.u, a.shape);
  const Scratch columns1 = b.columns();
  run_depthwise_convolution(a, eps, columns1.get());
  const void* ys = data(a.y);
  void* zs = mutable_data(a.z);
  parallel(b.parts, b.bytes, [&](const Range& r, int64_t) {
    FASTCIFAR_KERNEL(apply_affine_relu)(b.element, b.rows(r, b.out_rows), b.s.C, ys, columns1.get(), b.pitch, zs);
  });
}

// Computes every gradient. The batch must not be empty.
void run_backward(const DepthwiseBlockBackward& a, double eps) {
  const Block b(a.u, a.shape);
  const Scratch columns0 = b.columns(), columns1 = b.columns();
  const int64_t size = 2 * b.pitch;
  const Scratch memory(b.parts.image_parts * size);
  const Sums sums1{memory.get(), b.parts.image_parts, size};
  const void *ys = data(a.y), *grads = data(a.grad_z);
  FASTCIFAR_KERNEL(fold_statistics)(b.all, floats(a.mean1), floats(a.var1), floats(a.gamma1), floats(a.beta1), eps,
                                    columns1.get(), b.pitch);
  parallel(b.parts, b.bytes, [&](const Range& r, int64_t part) {
    b.set_to_zero(sums1.part(part), 2, r);
    FASTCIFAR_KERNEL(add_gradient_sums)(b.element, b.rows(r, b.out_rows), b.s.C, grads, ys, columns1.get(), b.pitch,
                                        sums1.part(part));
  });
  FASTCIFAR_KERNEL(finish_gradient)(b.all, sums1, b.s.N * b.out_rows, floats(a.gamma1), floats(a.var1), eps,
                                    columns1.get(), b.pitch, mutable_floats(a.grad_gamma1),
                                    mutable_floats(a.grad_beta1));
  run_depthwise_backward(a, eps, /*through_statistics=*/true, columns0.get(), columns1.get());
}

}  // namespace

namespace fastcifar {

void run_depthwise_convolution(const DepthwiseBlockForward& a, double eps, float* columns1) {
  const Block b(a.u, a.shape);
  const DwShape& s = b.s;
  const Taps taps(a.w, s.C);
  const Scratch columns = b.columns();
  // The rows of each part: two sums for bn0, two for bn1.
  const int64_t size = 4 * b.pitch;
  const Scratch memory(b.parts.image_parts * size);
  const Sums sums0{memory.get(), b.parts.image_parts, size},
      sums1{memory.get() + 2 * b.pitch, b.parts.image_parts, size};
  const void* us = data(a.u);
  void* ys = mutable_data(a.y);
  float* columns0 = columns.get();
  if (a.given_statistics) {
    FASTCIFAR_KERNEL(fold_statistics)(b.all, floats(a.mean0), floats(a.var0), floats(a.gamma0), floats(a.beta0), eps,
                                      columns0, b.pitch);
  } else {
    FASTCIFAR_KERNEL(set_pivot)(b.element, b.all, s.N * b.in_rows, s.C, us, columns0);
    parallel(b.parts, b.bytes, [&](const Range& r, int64_t part) {
      b.set_to_zero(sums0.part(part), 2, r);
      FASTCIFAR_KERNEL(add_statistics)(b.element, b.rows(r, b.in_rows), s.C, us, columns0, b.pitch, sums0.part(part));
    });
    FASTCIFAR_KERNEL(finish_statistics)(b.all, sums0, s.N * b.in_rows, floats(a.gamma0), floats(a.beta0), eps, columns0,
                                        b.pitch, mutable_floats(a.mean0), mutable_floats(a.var0));
  }
  FASTCIFAR_KERNEL(set_output_pivot)(b.element, s, b.all, us, columns0, taps.get(), b.pitch, columns1);
  parallel(b.parts, b.bytes, [&](const Range& r, int64_t part) {
    const Scratch ring(ring_floats(s.W));
    b.set_to_zero(sums1.part(part), 2, r);
    FASTCIFAR_KERNEL(depthwise_block_forward)(b.element, s, r, us, columns0, taps.get(), b.pitch, ys, columns1,
                                              sums1.part(part), ring.get());
  });
  FASTCIFAR_KERNEL(finish_statistics)(b.all, sums1, s.N * b.out_rows, floats(a.gamma1), floats(a.beta1), eps, columns1,
                                      b.pitch, mutable_floats(a.mean1), mutable_floats(a.var1));
}

void run_depthwise_backward(const DepthwiseBlockBackward& a, double eps, bool through_statistics, float* columns0,
                            const float* columns1) {
  const Block b(a.u, a.shape);
  const DwShape& s = b.s;
  const Taps taps(a.w, s.C);
  // The rows of each part: two sums for bn0, nine for the weight.
  const int64_t num_sums = 11, size = num_sums * b.pitch;
  const Scratch memory(b.parts.image_parts * size);
  const Sums sums0{memory.get(), b.parts.image_parts, size};
  const void *us = data(a.u), *ys = data(a.y), *grads = data(a.grad_z);
  void* outs = mutable_data(a.grad_u);
  FASTCIFAR_KERNEL(fold_statistics)(b.all, floats(a.mean0), floats(a.var0), floats(a.gamma0), floats(a.beta0), eps,
                                    columns0, b.pitch);
  for (int64_t c = 0; c < s.C; ++c) {  // what the sweep multiplies the gradient of bn0's output by
    columns0[kGradFactor * b.pitch + c] = through_statistics ? 1 : columns0[kScale * b.pitch + c];
  }
  parallel(b.parts, b.bytes, [&](const Range& r, int64_t part) {
    const Scratch ring(ring_floats(s.Wo));
    b.set_to_zero(sums0.part(part), num_sums, r);
    FASTCIFAR_KERNEL(depthwise_block_backward)(b.element, s, r, grads, ys, us, columns0, columns1, taps.get(), b.pitch,
                                               outs, sums0.part(part), ring.get());
  });
  FASTCIFAR_KERNEL(finish_gradient)(b.all, sums0, s.N * b.in_rows, floats(a.gamma0), floats(a.var0), eps, columns0,
                                    b.pitch, mutable_floats(a.grad_gamma0), mutable_floats(a.grad_beta0));
  if (through_statistics) {
    parallel(b.parts, b.bytes, [&](const Range& r, int64_t) {
      FASTCIFAR_KERNEL(apply_gradient)(b.element, b.rows(r, b.in_rows), s.C, /*masked=*/true, outs, us, columns0,
                                       b.pitch, outs);
    });
  }
  FASTCIFAR_KERNEL(sum_parts)(memory.get(), b.parts.image_parts, size, memory.get());
  write_weight_gradient(memory.get() + 2 * b.pitch, b.pitch, a.grad_w);
}

}  // namespace fastcifar

namespace {
BlockOutputs forward(const std::optional<Tensor>& z, const Tensor& u, const Tensor& gamma0, const Tensor& beta0,
                     const Tensor& w, const Tensor& gamma1, const Tensor& beta1, double eps, int64_t stride,
                     const std::optional<Tensor>& u_mean, const std::optional<Tensor>& u_var,
                     const std::optional<Tensor>& u_rows) {
  const char* op = z ? "_depthwise_block_into" : "depthwise_block";
  auto a = check_depthwise_block(Backend::cpu, op, u, gamma0, beta0, w, gamma1, beta1, stride);
  if (const auto known = check_statistics(op, u_mean, u_var, u)) {
    a.given_statistics = true;
    // An op's outputs may not alias its inputs, so given statistics are copied.
    a.mean0 = torch::stable::clone(known->mean);
    a.var0 = torch::stable::clone(known->var);
  }
  const std::optional<Tensor> rows = check_u_rows(op, u_rows, u_mean, u);
  a.z = placed(op, "z", z, {a.shape.N, a.shape.C, a.shape.Ho, a.shape.Wo}, u);
  if (a.shape.N == 0) {
    if (!a.given_statistics) zero(a.mean0), zero(a.var0);
    return {a.z, a.y, a.mean0, a.var0, zero(a.mean1), zero(a.var1)};
  }
  if (rows) {
    a.given_statistics = true;
    merge_moments(*rows, mutable_floats(a.mean0), mutable_floats(a.var0));
  }
  run_forward(a, eps);
  return {a.z, a.y, a.mean0, a.var0, a.mean1, a.var1};
}

BlockOutputs backward(const std::optional<Tensor>& grad_u, const Tensor& grad_z, const Tensor& u, const Tensor& y,
                      const Tensor& gamma0, const Tensor& beta0, const Tensor& w, const Tensor& gamma1,
                      const Tensor& beta1, const Tensor& mean0, const Tensor& var0, const Tensor& mean1,
                      const Tensor& var1, double eps, int64_t stride) {
  const char* op = grad_u ? "_depthwise_block_backward_into" : "_depthwise_block_backward";
  auto a = check_depthwise_block_backward(Backend::cpu, op, u, y, gamma0, beta0, w, gamma1, beta1, mean0, var0, mean1,
                                          var1, stride, grad_u);
  const DwShape& s = a.shape;
  a.grad_z = check_matching(op, "grad_z", grad_z, {s.N, s.C, s.Ho, s.Wo}, u);
  if (s.N == 0) {
    return {a.grad_u, zero(a.grad_gamma0), zero(a.grad_beta0), zero(a.grad_w), zero(a.grad_gamma1), zero(a.grad_beta1)};
  }
  run_backward(a, eps);
  return {a.grad_u, a.grad_gamma0, a.grad_beta0, a.grad_w, a.grad_gamma1, a.grad_beta1};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kDepthwiseBlockSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("depthwise_block", TORCH_BOX(&Placed<&forward>::anew));
  m.impl("_depthwise_block_into", TORCH_BOX(&Placed<&forward>::into));
  m.impl("_depthwise_block_backward", TORCH_BOX(&Placed<&backward>::anew));
  m.impl("_depthwise_block_backward_into", TORCH_BOX(&Placed<&backward>::into));
}

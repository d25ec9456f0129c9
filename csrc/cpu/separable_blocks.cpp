#include "separable_blocks.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "cpu/block_passes.h"
#include "cpu/data.h"
#include "cpu/moments.h"
#include "cpu/parallel.h"

// From block to block the moments of v, and backward what comes through them, go as columns. Only at the ends of the
// chain are they tensors.

namespace {
using namespace fastcifar;

std::tuple<Tensor, std::vector<Tensor>> forward(const Tensor& u, const std::optional<Tensor>& u_rows,
                                                std::vector<Tensor> parameters, double eps,
                                                std::vector<int64_t> strides) {
  const Chain chain("separable_blocks", parameters, strides);
  // All blocks are checked and allocated at first: between the passes, which drive the code for it out of the caches, it
  // takes longer (100 us of a step).
  std::vector<SeparableBlockForward> blocks;
  blocks.reserve(chain.size());
  for (size_t i = 0; i < chain.size(); ++i) {
    blocks.push_back(i == 0 ? chain.prepare(i, u, u_rows) : chain.prepare(i, blocks.back().v, std::nullopt));
  }
  std::vector<Tensor> kept;
  kept.reserve(chain.size() * Chain::kKept);
  std::vector<float> mean, var;  // of the block's input, after the first block
  for (size_t i = 0; i < chain.size(); ++i) {
    SeparableBlockForward& a = blocks[i];
    DepthwiseBlockForward& block = a.block;
    block.given_statistics = i > 0 || a.u_rows.has_value();
    if (i > 0) {
      std::memcpy(mutable_floats(block.mean0), mean.data(), mean.size() * sizeof(float));
      std::memcpy(mutable_floats(block.var0), var.data(), var.size() * sizeof(float));
    } else if (a.u_rows) {
      merge_moments(*a.u_rows, mutable_floats(block.mean0), mutable_floats(block.var0));
    }
    mean.resize(a.out_channels), var.resize(a.out_channels);
    run_separable_block(a, eps, mean.data(), var.data());
    kept.insert(kept.end(), {a.v, block.y, block.mean0, block.var0, block.mean1, block.var1});
  }
  const SeparableBlockForward& last = blocks.back();
  const Tensor v_rows = empty_moments_of_v(last);
  write_moments(v_rows, output_pixels(last.block.shape), [&](float* row_mean, float* row_var) {
    std::memcpy(row_mean, mean.data(), mean.size() * sizeof(float));
    std::memcpy(row_var, var.data(), var.size() * sizeof(float));
  });
  return {v_rows, kept};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> backward(const Tensor& grad_v, const std::optional<Tensor>& grad_v_rows,
                                                         const Tensor& v_rows, const Tensor& u,
                                                         const std::optional<Tensor>& u_rows,
                                                         std::vector<Tensor> parameters, std::vector<Tensor> kept,
                                                         double eps, std::vector<int64_t> strides) {
  const char* op = "_separable_blocks_backward";
  const Chain chain(op, parameters, strides);
  chain.check_length("kept", kept.size(), Chain::kKept);
  // From the last block to the first. As in forward, all are checked and allocated at first.
  std::vector<SeparableBlockBackward> blocks;
  std::vector<Tensor> vs;  // their outputs
  blocks.reserve(chain.size());
  for (size_t i = chain.size(); i-- > 0;) {
    const Tensor* own = &kept[i * Chain::kKept];
    const bool is_last = blocks.empty();
    const Tensor &grad = is_last ? grad_v : blocks.back().block.grad_u,
                 &input = i == 0 ? u : own[-static_cast<std::ptrdiff_t>(Chain::kKept)];
    blocks.push_back(chain.prepare_backward(i, grad, input, i == 0 ? u_rows : std::nullopt, own));
    place_gradients(blocks.back(), /*overwrite_grad_v=*/!is_last);
    vs.push_back(chain.check_v(i, own[0], blocks.back().grad_v));
  }
  const auto columns_of = [](const Tensor& map) { return Scratch::zeros(kColumns * round_up(map.size(1), kBlock)); };
  const Tensor& last = kept[kept.size() - Chain::kKept];
  Scratch columns = columns_of(last);  // what comes through the moments of the block's output
  bool of_moments = grad_v_rows.has_value();
  if (of_moments) {
    read_moments_gradient(check_moments(op, "grad_v_rows", *grad_v_rows, last),
                          check_moments(op, "v_rows", v_rows, last), columns.get(), round_up(last.size(1), kBlock));
  }
  std::vector<Tensor> grads(chain.size() * Chain::kParameters, grad_v);
  for (size_t j = 0, i = chain.size(); i-- > 0; ++j) {
    const SeparableBlockBackward& a = blocks[j];
    const DepthwiseBlockBackward& block = a.block;
    Scratch columns0 = columns_of(block.u);
    const bool through_statistics = i == 0 && !a.u_rows;
    const Tensor grad_pointwise = run_separable_backward(a, data(vs[j]), of_moments ? columns.get() : nullptr, eps,
                                                         through_statistics, columns0.get());
    const Tensor of_block[] = {block.grad_gamma0, block.grad_beta0, block.grad_w,
                               block.grad_gamma1, block.grad_beta1, grad_pointwise};
    std::copy(std::begin(of_block), std::end(of_block), grads.begin() + i * Chain::kParameters);
    columns = std::move(columns0);
    of_moments = true;
  }
  const SeparableBlockBackward& first = blocks.back();
  if (first.u_rows) {
    write_moments_gradient(*first.u_rows, columns.get(), round_up(u.size(1), kBlock), first.grad_u_rows);
  }
  return {first.block.grad_u, first.grad_u_rows, grads};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kSeparableBlocksSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) {
  m.impl("separable_blocks", TORCH_BOX(&forward));
  m.impl("_separable_blocks_backward", TORCH_BOX(&backward));
}

// separable_blocks and its backward, for the CPU alone: what is checked and allocated.
#pragma once
#include <vector>

#include "separable_block.h"

namespace fastcifar {

inline constexpr const char* kSeparableBlocksSchemas[] = {
    "separable_blocks(Tensor u, Tensor? u_rows, Tensor[] parameters, float eps, int[] strides) -> (Tensor, Tensor[])",
    "_separable_blocks_backward(Tensor grad_v, Tensor? grad_v_rows, Tensor v_rows, Tensor u, Tensor? u_rows,"
    " Tensor[] parameters, Tensor[] kept, float eps, int[] strides) -> (Tensor, Tensor, Tensor[])",
};

// The lists of a chain, block by block.
class Chain {
 public:
  // In `parameters`: gamma0, beta0, w, gamma1, beta1, pointwise. In `kept`: v, y, mean0, var0, mean1, var1.
  static constexpr size_t kParameters = 6, kKept = 6;

  Chain(const char* op, const std::vector<Tensor>& parameters, const std::vector<int64_t>& strides)
      : op_(op), parameters_(parameters), strides_(strides) {
    STD_TORCH_CHECK(!strides.empty(), op, ": strides must not be empty");
    check_length("parameters", parameters.size(), kParameters);
  }

  size_t size() const { return strides_.size(); }

  SeparableBlockForward prepare(size_t i, const Tensor& u, const std::optional<Tensor>& u_rows) const {
    const Tensor* p = &parameters_[i * kParameters];
    return prepare_separable_block(Backend::cpu, name(i).c_str(), u, p[0], p[1], p[2], p[3], p[4], p[5], strides_[i],
                                   u_rows);
  }

  // `kept`: of this block.
  SeparableBlockBackward prepare_backward(size_t i, const Tensor& grad_v, const Tensor& u,
                                          const std::optional<Tensor>& u_rows, const Tensor* kept) const {
    const Tensor* p = &parameters_[i * kParameters];
    return prepare_separable_block_backward(Backend::cpu, name(i).c_str(), grad_v, u, kept[1], p[0], p[1], p[2], p[3],
                                            p[4], p[5], kept[2], kept[3], kept[4], kept[5], strides_[i], u_rows,
                                            std::nullopt, std::nullopt, std::nullopt);
  }

  // v of block i, which lies like its gradient.
  Tensor check_v(size_t i, const Tensor& v, const Tensor& grad_v) const {
    return check_matching(name(i).c_str(), "v", v, {grad_v.size(0), grad_v.size(1), grad_v.size(2), grad_v.size(3)},
                          grad_v);
  }

  void check_length(const char* list, size_t length, size_t of_each) const {
    STD_TORCH_CHECK(length == of_each * size(), op_, ": ", list, " must have ", of_each, " entries a block, ",
                    of_each * size(), " for ", size(), " strides, got ", length);
  }

 private:
  std::string name(size_t i) const { return std::string(op_) + ": block " + std::to_string(i); }

  const char* op_;
  const std::vector<Tensor>& parameters_;
  const std::vector<int64_t>& strides_;
};

}  // namespace fastcifar

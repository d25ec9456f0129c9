// sgd: what both backends check.
#pragma once
#include <optional>
#include <vector>

#include "checks.h"

namespace fastcifar {

inline constexpr const char* kSgdSchemas[] = {
    "sgd(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor(c!)[] rounded, Tensor lr,"
    " float[] weight_decays, float momentum, bool nesterov, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()",
};

struct Sgd {
  std::vector<SgdTensor> tensors;
  SgdSettings settings;
  ScalarType narrow;  // of the rounded copies; float32 where there are none
};

inline Sgd prepare_sgd(Backend backend, const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                       const std::vector<Tensor>& momentum_buffers, const std::vector<Tensor>& rounded,
                       const Tensor& lr, const std::vector<double>& weight_decays, double momentum, bool nesterov,
                       const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf) {
  const char* op = "sgd";
  const size_t count = params.size();
  const auto listed = [&](const char* name, size_t size, bool optional) {
    STD_TORCH_CHECK(size == count || (optional && size == 0), op, ": ", name, " must have as many entries as params, ",
                    count, ", got ", size);
  };
  listed("grads", grads.size(), false);
  listed("momentum_buffers", momentum_buffers.size(), momentum == 0);
  listed("rounded", rounded.size(), true);
  listed("weight_decays", weight_decays.size(), false);

  const auto number = [&](const char* name, const Tensor& t) {
    STD_TORCH_CHECK(t.numel() == 1 && t.scalar_type() == ScalarType::Float, op, ": ", name,
                    " must be one float32 number, got ", torch::headeronly::toString(t.scalar_type()), " ",
                    shape_text(t));
    if (count > 0) check_device(op, name, t, params[0]);
    return static_cast<const float*>(t.const_data_ptr());
  };
  Sgd a;
  a.settings = {number("lr", lr), grad_scale ? number("grad_scale", *grad_scale) : nullptr,
                found_inf ? number("found_inf", *found_inf) : nullptr, static_cast<float>(momentum), nesterov};
  a.narrow = ScalarType::Float;

  for (size_t i = 0; i < count; ++i) {
    const Tensor& param = params[i];
    if (param.numel() == 0) continue;
    // The kernels run over memory: all tensors of one parameter must lie alike, without gaps.
    const auto check = [&](const char* name, const Tensor& t, ScalarType dtype) {
      bool alike = t.dim() == param.dim();
      for (int64_t d = 0; alike && d < t.dim(); ++d)
        alike = t.size(d) == param.size(d) && (t.size(d) == 1 || t.stride(d) == param.stride(d));
      STD_TORCH_CHECK(alike, op, ": ", name, "[", i, "] must have the shape ", shape_text(param),
                      " and the strides of params[", i, "], got ", shape_text(t));
      STD_TORCH_CHECK(t.scalar_type() == dtype, op, ": ", name, "[", i, "] must be ",
                      torch::headeronly::toString(dtype), ", got ", torch::headeronly::toString(t.scalar_type()));
      check_device(op, name, t, params[0]);
    };
    check("params", param, ScalarType::Float);
    STD_TORCH_CHECK(param.is_contiguous() || (param.dim() == 4 && is_channels_last(param)), op, ": params[", i,
                    "] must be contiguous or channels_last");
    SgdTensor t{};
    t.param = static_cast<float*>(param.mutable_data_ptr());
    t.size = param.numel();
    t.decay = static_cast<float>(weight_decays[i]);
    ScalarType grad_type = ScalarType::Float;
    if (!rounded.empty() && rounded[i].numel() > 0) {
      const ScalarType dtype = rounded[i].scalar_type();
      const bool half = backend == Backend::cuda && dtype == ScalarType::Half;
      STD_TORCH_CHECK(dtype == ScalarType::BFloat16 || half, op, ": rounded[", i, "] must be bfloat16",
                      backend == Backend::cuda ? " or float16" : "", ", got ", torch::headeronly::toString(dtype));
      STD_TORCH_CHECK(a.narrow == ScalarType::Float || a.narrow == dtype, op,
                      ": all tensors in rounded must have one dtype");
      a.narrow = dtype;
      check("rounded", rounded[i], dtype);
      t.rounded = rounded[i].mutable_data_ptr();
      t.narrow_grad = grads[i].scalar_type() == dtype;
      if (t.narrow_grad) grad_type = dtype;
    }
    check("grads", grads[i], grad_type);
    t.grad = grads[i].const_data_ptr();
    if (momentum != 0) {
      check("momentum_buffers", momentum_buffers[i], ScalarType::Float);
      t.momentum = static_cast<float*>(momentum_buffers[i].mutable_data_ptr());
    }
    a.tensors.push_back(t);
  }
  return a;
}

}  // namespace fastcifar

// stem and its backward: what is checked and allocated.
#pragma once
#include "separable_block.h"

namespace fastcifar {

inline constexpr const char* kStemSchemas[] = {
    "stem(Tensor x, Tensor w) -> (Tensor, Tensor)",
    "_stem_backward(Tensor grad_u, Tensor x, Tensor w, Tensor? grad_u_rows=None, Tensor? u=None, Tensor? u_rows=None)"
    " -> Tensor",
};

inline constexpr int64_t kImageChannels = 3;

// Images, and a weight [C, 3, 3, 3], float32 or x's dtype, contiguous or in channels_last: then its taps lie in the
// order of the images' memory (row, column, channel), and so do those of its gradient.
struct Stem {
  Tensor x, w;
  bool channels_last;  // w
  int64_t N, C, H, W;
};

inline Stem check_stem(Backend backend, const char* op, const Tensor& x, const Tensor& w) {
  Stem a;
  a.x = check_activation(backend, op, "x", x);
  STD_TORCH_CHECK(x.size(0) > 0 && x.size(1) == kImageChannels, op, ": x must be [N, 3, H, W], N at least 1, got ",
                  shape_text(x));
  STD_TORCH_CHECK(w.dim() == 4 && w.size(0) >= 1 && w.size(1) == kImageChannels && w.size(2) == 3 && w.size(3) == 3, op,
                  ": w must be [C, 3, 3, 3], got ", shape_text(w));
  STD_TORCH_CHECK(w.scalar_type() == ScalarType::Float || w.scalar_type() == x.scalar_type(), op,
                  ": w must be float32 or the images' ", torch::headeronly::toString(x.scalar_type()), ", got ",
                  torch::headeronly::toString(w.scalar_type()));
  check_device(op, "w", w, x);
  a.channels_last = !w.is_contiguous() && is_channels_last(w);
  a.w = a.channels_last ? w : dense(w);
  a.N = x.size(0);
  a.C = w.size(0);
  a.H = x.size(2);
  a.W = x.size(3);
  return a;
}

struct StemForward : Stem {
  Tensor u, u_rows;
};

inline StemForward prepare_stem(Backend backend, const Tensor& x, const Tensor& w) {
  StemForward a{check_stem(backend, "stem", x, w), {}, {}};
  a.u = empty_channels_last(x, a.N, a.C, a.H, a.W);
  a.u_rows = empty({moment_rows(a.N * a.H * a.W, a.C), 3, a.C}, ScalarType::Float, x);
  return a;
}

struct StemBackward : Stem {
  Tensor grad_u, grad_w;
  std::optional<Tensor> grad_u_rows;
  Tensor u, u_rows;  // where grad_u_rows is given
};

inline StemBackward prepare_stem_backward(Backend backend, const Tensor& grad_u, const Tensor& x, const Tensor& w,
                                          const std::optional<Tensor>& grad_u_rows, const std::optional<Tensor>& u,
                                          const std::optional<Tensor>& u_rows) {
  const char* op = "_stem_backward";
  StemBackward a{check_stem(backend, op, x, w), {}, {}, {}, {}, {}};
  a.grad_u = check_matching(op, "grad_u", grad_u, {a.N, a.C, a.H, a.W}, x);
  if (grad_u_rows.has_value()) {
    STD_TORCH_CHECK(u.has_value() && u_rows.has_value(), op, ": grad_u_rows needs u and u_rows");
    a.grad_u_rows = check_moments(op, "grad_u_rows", *grad_u_rows, grad_u);
    a.u = check_matching(op, "u", *u, {a.N, a.C, a.H, a.W}, x);
    a.u_rows = check_moments(op, "u_rows", *u_rows, grad_u);
  }
  a.grad_w = a.channels_last ? empty_channels_last(w, a.C, kImageChannels, 3, 3)
                             : empty({a.C, kImageChannels, 3, 3}, w.scalar_type(), w);
  return a;
}

}  // namespace fastcifar

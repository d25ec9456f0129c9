#include "cpu/sgd_kernel.h"

#include "cpu/ahead.h"
#include "cpu/vec.h"

namespace fastcifar::FASTCIFAR_ISA {
namespace {

template <class G>
void update(const SgdTensor& t, const SgdSettings& s, int64_t begin, int64_t end) {
  const Vec decay = broadcast(t.decay), momentum = broadcast(s.momentum), step = broadcast(-*s.lr);
  const Vec scale = broadcast(s.grad_scale ? *s.grad_scale : 1.f);
  const auto* grads = static_cast<const G*>(t.grad);
  auto* rounded = static_cast<bf16*>(t.rounded);
  for_vectors(static_cast<int>(end - begin), [&](int offset, auto width) FC_LAMBDA {
    const int64_t i = begin + offset;
    ask_ahead<1>(t.param + i), ask_ahead<1>(t.momentum + i), ask_ahead(grads + i), ask_ahead<1>(rounded + i);
    Vec p = load(t.param + i, width), g = load(grads + i, width);
    if (s.grad_scale) g /= scale;
    if (t.decay != 0.f) g = p * decay + g;
    if (t.momentum) {
      const Vec m = product(load(t.momentum + i, width), momentum) + g;  // torch.optim.SGD rounds the product
      store(t.momentum + i, m, width);
      g = s.nesterov ? m * momentum + g : m;
    }
    p = g * step + p;
    store(t.param + i, p, width);
    if (rounded) store(rounded + i, p, width);
  });
}

}  // namespace

void sgd(const SgdTensor& t, const SgdSettings& settings, int64_t begin, int64_t end) {
  t.narrow_grad ? update<bf16>(t, settings, begin, end) : update<float>(t, settings, begin, end);
}

}  // namespace fastcifar::FASTCIFAR_ISA

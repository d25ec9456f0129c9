#include "sgd.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/sgd_kernel.h"

namespace {
using namespace fastcifar;

constexpr int64_t kPart = 1 << 16;  // elements

void step(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> momentum_buffers,
          std::vector<Tensor> rounded, const Tensor& lr, std::vector<double> weight_decays, double momentum,
          bool nesterov, const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf) {
  const Sgd a = prepare_sgd(Backend::cpu, params, grads, momentum_buffers, rounded, lr, weight_decays, momentum,
                            nesterov, grad_scale, found_inf);
  if (a.settings.found_inf && *a.settings.found_inf != 0.f) return;
  struct Part {
    const SgdTensor* tensor;
    int64_t begin, end;
  };
  std::vector<Part> parts;
  int64_t elements = 0;
  for (const SgdTensor& t : a.tensors) {
    for (int64_t i = 0; i < t.size; i += kPart) parts.push_back({&t, i, std::min(i + kPart, t.size)});
    elements += t.size;
  }
  parallel(static_cast<int64_t>(parts.size()), elements * 20, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      FASTCIFAR_KERNEL(sgd)(*parts[i].tensor, a.settings, parts[i].begin, parts[i].end);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcifar, m) {
  for (const char* schema : kSgdSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastcifar, CPU, m) { m.impl("sgd", TORCH_BOX(&step)); }

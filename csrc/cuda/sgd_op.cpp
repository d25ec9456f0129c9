#include "cuda/op.h"

#include "sgd.h"

namespace fastcifar::cuda {
namespace {

constexpr int64_t kMostElements = int64_t{65535} * 4096;  // of one tensor: a launch numbers its blocks in 16 bits

void sgd_cuda(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> momentum_buffers,
              std::vector<Tensor> rounded, const Tensor& lr, std::vector<double> weight_decays, double momentum,
              bool nesterov, const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf) {
  const char* op = "sgd";
  const DeviceStream stream(lr);
  const Sgd a = prepare_sgd(Backend::cuda, params, grads, momentum_buffers, rounded, lr, weight_decays, momentum,
                            nesterov, grad_scale, found_inf);
  for (const SgdTensor& t : a.tensors)
    STD_TORCH_CHECK(t.size <= kMostElements, op, ": a parameter of ", t.size, " elements; at most ", kMostElements);
  check_launch(op, sgd(dtype_of(a.narrow), a.tensors, a.settings, stream));
}

}  // namespace
}  // namespace fastcifar::cuda

FASTCIFAR_CUDA_SCHEMAS(m) {
  for (const char* schema : fastcifar::kSgdSchemas) m.def(schema);
}

FASTCIFAR_CUDA_KERNELS(m) { m.impl("sgd", TORCH_BOX(&fastcifar::cuda::sgd_cuda)); }

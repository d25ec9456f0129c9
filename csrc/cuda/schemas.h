// Ops that only CUDA has kernels for; csrc/schemas.h has those of both backends.
#pragma once

namespace fastcifar::cuda {

inline constexpr const char* kSchemas[] = {
    "separable_block(Tensor u, Tensor gamma0, Tensor beta0, Tensor w, Tensor gamma1, Tensor beta1, Tensor pointwise,"
    " float eps, int stride, Tensor? u_rows=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",

    "_separable_block_backward(Tensor grad_v, Tensor u, Tensor y, Tensor gamma0, Tensor beta0, Tensor w,"
    " Tensor gamma1, Tensor beta1, Tensor pointwise, Tensor mean0, Tensor var0, Tensor mean1, Tensor var1, float eps,"
    " int stride) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
};

}  // namespace fastcifar::cuda

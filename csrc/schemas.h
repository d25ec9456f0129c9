// The schema of every op, the contract between csrc/ and fastcifar/ops/. Python declares each one again beside its
// reference, and refuses a library whose schema differs: an extension left over from an older checkout would otherwise
// read its arguments from the wrong slots.
#pragma once

namespace fastcifar {

inline constexpr const char* kSchemas[] = {
    "dwconv3x3(Tensor x, Tensor w, int stride) -> Tensor",

    "_dwconv3x3_backward(Tensor grad_y, Tensor x, Tensor w, int stride, bool need_grad_x, bool need_grad_w)"
    " -> (Tensor, Tensor)",

    "batch_norm_relu(Tensor x, Tensor gamma, Tensor beta, float eps) -> (Tensor, Tensor, Tensor)",

    "_batch_norm_relu_backward(Tensor grad_z, Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor var, float eps)"
    " -> (Tensor, Tensor, Tensor)",

    "depthwise_block(Tensor u, Tensor gamma0, Tensor beta0, Tensor w, Tensor gamma1, Tensor beta1, float eps,"
    " int stride, Tensor? u_mean=None, Tensor? u_var=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",

    "_depthwise_block_backward(Tensor grad_z, Tensor u, Tensor y, Tensor gamma0, Tensor beta0, Tensor w,"
    " Tensor gamma1, Tensor beta1, Tensor mean0, Tensor var0, Tensor mean1, Tensor var1, float eps, int stride)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",

    "dwconv3x3_affine_relu(Tensor u, Tensor scale0, Tensor shift0, Tensor w, Tensor scale1, Tensor shift1, int stride)"
    " -> Tensor",

    "mixup_cross_entropy(Tensor logits, Tensor labels, Tensor? partner_labels, Tensor? lam, float label_smoothing)"
    " -> (Tensor, Tensor, Tensor, Tensor)",

    "_mixup_cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor normalizer, Tensor labels,"
    " Tensor? partner_labels, Tensor? lam, float label_smoothing) -> Tensor",

    "training_batch(Tensor images, Tensor labels, Tensor index, Tensor top, Tensor left, Tensor flip,"
    " Tensor? partner, Tensor? lam, Tensor step, int batch_size, int rows, Tensor table, int padding,"
    " ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)",
};

}  // namespace fastcifar

"""Everything between two pointwise convolutions as one op: BN, ReLU, depthwise convolution, BN, ReLU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import accumulate_dtype, define
from fastcifar.ops._moments import merge_rows
from fastcifar.ops.batch_norm_relu import batch_statistics, normalize, normalize_backward
from fastcifar.ops.dwconv3x3 import dwconv3x3_backward_ref, dwconv3x3_ref


def depthwise_block(
    u: Tensor,
    gamma0: Tensor,
    beta0: Tensor,
    w: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    eps: float,
    stride: int,
    u_mean: Tensor | None = None,
    u_var: Tensor | None = None,
    u_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """From one pointwise convolution's raw output to the next one's input, in training mode.

    Equal to `z = batch_norm_relu(y, gamma1, beta1, eps)` with
    `y = dwconv3x3(batch_norm_relu(u, gamma0, beta0, eps), w, stride)`, except that the activation in between is neither
    rounded to u's dtype nor written to memory.

    Args:
        u: [N, C, H, W], float32 or bfloat16 (on CUDA also float16), best in channels_last; else it is copied.
        gamma0: float32 [C], of the BN of u.
        beta0: float32 [C], of the BN of u.
        w: [C, 1, 3, 3], float32 or u's dtype.
        gamma1: float32 [C], of the BN of y.
        beta1: float32 [C], of the BN of y.
        eps: added to both variances.
        stride: 1 or 2.
        u_mean: float32 [C], the mean of u over (N, H, W), if the producer of u knows it; None: it is computed here.
            Not differentiable: the gradient of u takes its statistics into account in either case.
        u_var: float32 [C], the biased variance of u; given exactly where u_mean is.
        u_rows: float32 [rows, 3, C], partial counts, means and sums of squared deviations of u, the first row not
            empty, in place of u_mean and u_var: what `stem` leaves. Not differentiable either.

    Returns:
        z: [N, C, (H - 1) // stride + 1, (W - 1) // stride + 1], u's dtype, channels_last; the only differentiable one.
        y: z's shape, dtype and memory format.
        mean0: float32 [C], of u.
        var0: float32 [C], the biased variance of u.
        mean1: float32 [C], of y as it was rounded.
        var1: float32 [C], the biased variance of y as it was rounded.

    Raises:
        RuntimeError: an argument has another shape, dtype, value or device; the message names it with its value.
    """
    z, y, mean0, var0, mean1, var1 = _forward(u, gamma0, beta0, w, gamma1, beta1, eps, stride, u_mean, u_var, u_rows)
    return z, y, mean0, var0, mean1, var1


def depthwise_block_ref(
    u: Tensor,
    gamma0: Tensor,
    beta0: Tensor,
    w: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    eps: float,
    stride: int,
    u_mean: Tensor | None = None,
    u_var: Tensor | None = None,
    u_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`depthwise_block` in plain PyTorch."""
    u_wide = u.to(accumulate_dtype(u))
    if u_rows is not None:
        mean0, var0 = merge_rows(u_rows)
    elif u_mean is None or u_var is None:
        mean0, var0 = batch_statistics(u_wide)
    else:
        mean0, var0 = u_mean.clone(), u_var.clone()
    h = F.relu(normalize(u_wide, gamma0, beta0, mean0, var0, eps))
    y = dwconv3x3_ref(h, w, stride).to(u.dtype)
    y_wide = y.to(u_wide.dtype)
    mean1, var1 = batch_statistics(y_wide)
    z = F.relu(normalize(y_wide, gamma1, beta1, mean1, var1, eps))
    return z.to(u.dtype).contiguous(memory_format=torch.channels_last), y, mean0, var0, mean1, var1


def depthwise_block_backward_ref(
    grad_z: Tensor,
    u: Tensor,
    y: Tensor,
    gamma0: Tensor,
    beta0: Tensor,
    w: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    mean0: Tensor,
    var0: Tensor,
    mean1: Tensor,
    var1: Tensor,
    eps: float,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The backward of `depthwise_block` in plain PyTorch.

    Args:
        grad_z: the gradient of z, in its shape and dtype.
        u: as in the forward; so are gamma0, beta0, w, gamma1, beta1, eps and stride.
        y: as the forward returned it; so are mean0, var0, mean1 and var1.

    Returns:
        The gradients of u, gamma0, beta0, w, gamma1 and beta1, each in the shape and dtype of its argument; that of u
        in channels_last.
    """
    u_wide, y_wide = u.to(accumulate_dtype(u)), y.to(accumulate_dtype(u))
    grad_bn1 = grad_z.to(y_wide.dtype) * (normalize(y_wide, gamma1, beta1, mean1, var1, eps) > 0)
    grad_y, grad_gamma1, grad_beta1 = normalize_backward(grad_bn1, y_wide, gamma1, mean1, var1, eps)
    h = F.relu(normalize(u_wide, gamma0, beta0, mean0, var0, eps))
    grad_h, grad_w = dwconv3x3_backward_ref(grad_y, h, w, stride, True, True)
    grad_u, grad_gamma0, grad_beta0 = normalize_backward(grad_h * (h > 0), u_wide, gamma0, mean0, var0, eps)
    grad_u = grad_u.to(u.dtype).contiguous(memory_format=torch.channels_last)
    return grad_u, grad_gamma0, grad_beta0, grad_w, grad_gamma1, grad_beta1


def depthwise_block_into_ref(z: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """`depthwise_block_ref`, whose z goes to memory that is given.

    Args:
        z: of the shape, dtype and memory format of the op's first output. It begins on 16 bytes.
        arguments: those of `depthwise_block_ref`.

    Returns:
        The other outputs.
    """
    first, *others = depthwise_block_ref(*arguments)
    z.copy_(first)
    return tuple(others)


def depthwise_block_backward_into_ref(grad_u: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """`depthwise_block_backward_ref`, whose first gradient goes to `grad_u`; as in `depthwise_block_into_ref`."""
    first, *others = depthwise_block_backward_ref(*arguments)
    grad_u.copy_(first)
    return tuple(others)


_forward = define(
    "depthwise_block(Tensor u, Tensor gamma0, Tensor beta0, Tensor w, Tensor gamma1, Tensor beta1, float eps,"
    " int stride, Tensor? u_mean=None, Tensor? u_var=None, Tensor? u_rows=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    depthwise_block_ref,
)
_backward = define(
    "_depthwise_block_backward(Tensor grad_z, Tensor u, Tensor y, Tensor gamma0, Tensor beta0, Tensor w,"
    " Tensor gamma1, Tensor beta1, Tensor mean0, Tensor var0, Tensor mean1, Tensor var1, float eps, int stride)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    depthwise_block_backward_ref,
)
define(
    "_depthwise_block_into(Tensor(a!) z, Tensor u, Tensor gamma0, Tensor beta0, Tensor w, Tensor gamma1,"
    " Tensor beta1, float eps, int stride, Tensor? u_mean=None, Tensor? u_var=None, Tensor? u_rows=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    depthwise_block_into_ref,
)
define(
    "_depthwise_block_backward_into(Tensor(a!) grad_u, Tensor grad_z, Tensor u, Tensor y, Tensor gamma0,"
    " Tensor beta0, Tensor w, Tensor gamma1, Tensor beta1, Tensor mean0, Tensor var0, Tensor mean1, Tensor var1,"
    " float eps, int stride) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    depthwise_block_backward_into_ref,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, gamma0, beta0, w, gamma1, beta1, ctx.eps, ctx.stride, *_ = inputs
    _, y, *statistics = output
    ctx.save_for_backward(u, y, gamma0, beta0, w, gamma1, beta1, *statistics)
    ctx.mark_non_differentiable(y, *statistics)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_z: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_z is None:
        return (None,) * 11
    return *_backward(grad_z, *ctx.saved_tensors, ctx.eps, ctx.stride), *(None,) * 5


torch.library.register_autograd("fastcifar::depthwise_block", _autograd, setup_context=_setup_context)

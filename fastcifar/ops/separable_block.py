"""A whole MobileNet block as one op: what `depthwise_block` does, and the pointwise convolution after it.

CUDA has fused kernels for it: the input of the pointwise convolution is never written, and the statistics of its
output need no pass of their own. `fuse_pointwise` asks for it; whether it is faster than `depthwise_block` and the
library's product has not been measured. The CPU has no fused kernel yet: it computes the same in several passes, and
`depthwise_block` is the op to use there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import accumulate_dtype, define
from fastcifar.ops.depthwise_block import depthwise_block_backward_ref, depthwise_block_ref

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def separable_block(
    u: Tensor,
    gamma0: Tensor,
    beta0: Tensor,
    w: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    pointwise: Tensor,
    eps: float,
    stride: int,
    u_rows: Tensor | None = None,
) -> Outputs:
    """From one pointwise convolution's raw output to the next one's, in training mode.

    Equal to `v = F.conv2d(z, pointwise)` with `z, y, mean0, var0, mean1, var1 = depthwise_block(u, ...)`, except that z
    is never written to memory on CUDA.

    Args:
        u: [N, C, H, W], N at least 1; otherwise as in `depthwise_block`, and so are gamma0, beta0, w, gamma1, beta1,
            eps and stride.
        pointwise: [out_channels, C, 1, 1], float32 or u's dtype; multiplied in u's dtype, summed in float32.
        u_rows: float32 [rows, 3, C], partial counts, means and sums of squared deviations of u, the first row not
            empty: the `v_rows` of the block before; None: they are computed here. Not differentiable: the gradient of u
            takes its statistics into account in either case.

    Returns:
        v: [N, out_channels, Ho, Wo] in u's dtype, channels_last; the only differentiable one.
        v_rows: float32 [rows, 3, out_channels], partial moments as in u_rows, of v as it was rounded.
        y, mean0, var0, mean1, var1: as `depthwise_block` returns them.

    Raises:
        RuntimeError: an argument has another shape, dtype, value or device; the message names it with its value.
    """
    v, v_rows, y, mean0, var0, mean1, var1 = _forward(
        u, gamma0, beta0, w, gamma1, beta1, pointwise, eps, stride, u_rows
    )
    return v, v_rows, y, mean0, var0, mean1, var1


def separable_block_ref(
    u: Tensor,
    gamma0: Tensor,
    beta0: Tensor,
    w: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    pointwise: Tensor,
    eps: float,
    stride: int,
    u_rows: Tensor | None = None,
) -> Outputs:
    """`separable_block` in plain PyTorch."""
    statistics = (None, None) if u_rows is None else merge_rows(u_rows)
    z, y, *others = depthwise_block_ref(u, gamma0, beta0, w, gamma1, beta1, eps, stride, *statistics)
    wide = accumulate_dtype(u)
    v = F.conv2d(z.to(wide), pointwise.to(u.dtype).to(wide)).to(u.dtype)
    rows = gamma0.new_zeros(num_rows(v.numel() // v.shape[1], v.shape[1]), 3, v.shape[1])
    rows[0, 0] = v.numel() // v.shape[1]
    rows[0, 1] = v.to(wide).mean((0, 2, 3))
    rows[0, 2] = v.to(wide).var((0, 2, 3), correction=0) * rows[0, 0]
    mean0, var0, mean1, var1 = others
    return v.contiguous(memory_format=torch.channels_last), rows, y, mean0, var0, mean1, var1


def separable_block_backward_ref(
    grad_v: Tensor,
    u: Tensor,
    y: Tensor,
    gamma0: Tensor,
    beta0: Tensor,
    w: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    pointwise: Tensor,
    mean0: Tensor,
    var0: Tensor,
    mean1: Tensor,
    var1: Tensor,
    eps: float,
    stride: int,
) -> Outputs:
    """The backward of `separable_block` in plain PyTorch.

    Args:
        grad_v: the gradient of v, in its shape and dtype.
        u: as in the forward; so are gamma0, beta0, w, gamma1, beta1, pointwise, eps and stride.
        y: as the forward returned it; so are mean0, var0, mean1 and var1.

    Returns:
        The gradients of u, gamma0, beta0, w, gamma1, beta1 and pointwise, each in the shape and dtype of its argument;
        that of u in channels_last.
    """
    wide = accumulate_dtype(u)
    scale = gamma1 * torch.rsqrt(var1 + eps)
    z = F.relu(y.to(wide) * scale[:, None, None] + (beta1 - mean1 * scale)[:, None, None]).to(u.dtype)
    grad_rows, z_rows = (t.to(wide).permute(0, 2, 3, 1).flatten(0, 2) for t in (grad_v, z))
    matrix = pointwise.to(u.dtype).to(wide).flatten(1)
    grad_z = (grad_rows @ matrix).to(u.dtype).view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
    grads = depthwise_block_backward_ref(
        grad_z, u, y, gamma0, beta0, w, gamma1, beta1, mean0, var0, mean1, var1, eps, stride
    )
    return *grads, (grad_rows.T @ z_rows).to(pointwise.dtype).view(pointwise.shape)


def num_rows(pixels: int, channels: int) -> int:
    """How many rows of partial moments an op leaves for its output; csrc/common.h says the same (`moment_rows`)."""
    return min(-(-pixels // 128), max(1, min(264 // -(-channels // 64), 72)))


def merge_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of partial moments [rows, 3, C]."""
    count, means, m2 = rows.to(torch.float64).unbind(1)
    total = count.sum(0)
    mean = (count * means).sum(0) / total
    var = (m2 + count * (means - mean).square()).sum(0) / total
    return mean.to(rows.dtype), var.to(rows.dtype)


_forward = define(
    "separable_block(Tensor u, Tensor gamma0, Tensor beta0, Tensor w, Tensor gamma1, Tensor beta1, Tensor pointwise,"
    " float eps, int stride, Tensor? u_rows=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    separable_block_ref,
)
_backward = define(
    "_separable_block_backward(Tensor grad_v, Tensor u, Tensor y, Tensor gamma0, Tensor beta0, Tensor w,"
    " Tensor gamma1, Tensor beta1, Tensor pointwise, Tensor mean0, Tensor var0, Tensor mean1, Tensor var1, float eps,"
    " int stride) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    separable_block_backward_ref,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, gamma0, beta0, w, gamma1, beta1, pointwise, ctx.eps, ctx.stride, _ = inputs
    _, v_rows, y, *statistics = output
    ctx.save_for_backward(u, y, gamma0, beta0, w, gamma1, beta1, pointwise, *statistics)
    ctx.mark_non_differentiable(v_rows, y, *statistics)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_v: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_v is None:
        return (None,) * 10
    grads = _backward(grad_v, *ctx.saved_tensors, ctx.eps, ctx.stride)
    return *grads, None, None, None


torch.library.register_autograd("fastcifar::separable_block", _autograd, setup_context=_setup_context)

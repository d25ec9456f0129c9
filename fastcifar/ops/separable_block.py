"""A whole MobileNet block as one op: what `depthwise_block` does, and the pointwise convolution after it.

The input of the pointwise convolution is never written, and the statistics of its output need no pass of their own, and
neither does the gradient through these statistics: the moments are differentiable, so that the block before adds that
part to the gradient of its output as it loads it. Training takes it on the CPU, where a chain of blocks is an op of its
own, `separable_blocks`. On CUDA it is for blocks that `suits` names: there one kernel computes both products of the
backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import accumulate_dtype, define
from fastcifar.ops._moments import merge_rows, rows_gradient, rows_of, through_statistics, whole_gradient
from fastcifar.ops.depthwise_block import depthwise_block_backward_ref, depthwise_block_ref

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


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
    is never written to memory.

    Args:
        u: [N, C, H, W], N at least 1; otherwise as in `depthwise_block`, and so are gamma0, beta0, w, gamma1, beta1,
            eps and stride.
        pointwise: [out_channels, C, 1, 1], float32 or u's dtype; multiplied in u's dtype, summed in float32.
        u_rows: float32 [rows, 3, C], partial counts, means and sums of squared deviations of u, the first row not
            empty: the `v_rows` of the block before; None: they are computed here. The gradient that comes through them
            is u_rows' own, and no part of u's.

    Returns:
        v: [N, out_channels, Ho, Wo] in u's dtype, channels_last.
        v_rows: float32 [rows, 3, out_channels], partial moments as in u_rows, of v as it was rounded.
        y, mean0, var0, mean1, var1: as `depthwise_block` returns them; not differentiable.

    Raises:
        RuntimeError: an argument has another shape, dtype, value or device; the message names it with its value.
    """
    return _forward(u, gamma0, beta0, w, gamma1, beta1, pointwise, eps, stride, u_rows)  # type: ignore[no-any-return]


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
    mean0, var0, mean1, var1 = others
    v = v.contiguous(memory_format=torch.channels_last)
    return v, rows_of(v), y, mean0, var0, mean1, var1


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
    u_rows: Tensor | None = None,
    grad_v_rows: Tensor | None = None,
    v: Tensor | None = None,
    v_rows: Tensor | None = None,
) -> Gradients:
    """The backward of `separable_block` in plain PyTorch.

    Args:
        grad_v: the gradient of v, in its shape and dtype.
        u: as in the forward; so are gamma0, beta0, w, gamma1, beta1, pointwise, eps and stride.
        y: as the forward returned it; so are mean0, var0, mean1 and var1.
        u_rows: as in the forward, to have the gradient through u's statistics apart; None: it is a part of u's.
        grad_v_rows: the gradient of v_rows in its shape, of which only the first row counts; None: there is none.
        v: as the forward returned it; needed with grad_v_rows.
        v_rows: as v.

    Returns:
        The gradients of u, gamma0, beta0, w, gamma1, beta1 and pointwise, each in the shape and dtype of its argument,
        that of u in channels_last; and the gradient of u_rows, in which counts have none, or an empty tensor.
    """
    wide = accumulate_dtype(u)
    scale = gamma1 * torch.rsqrt(var1 + eps)
    z = F.relu(y.to(wide) * scale[:, None, None] + (beta1 - mean1 * scale)[:, None, None]).to(u.dtype)
    # In bfloat16 it is rounded before it is multiplied, as between two ops. Kernels that multiply float32 need not.
    grad_v = whole_gradient(grad_v, grad_v_rows, v, v_rows).to(grad_v.dtype)
    grad_rows, z_rows = (t.to(wide).permute(0, 2, 3, 1).flatten(0, 2) for t in (grad_v, z))
    matrix = pointwise.to(u.dtype).to(wide).flatten(1)
    grad_z = (grad_rows @ matrix).to(u.dtype).view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
    grad_u, *grads = depthwise_block_backward_ref(
        grad_z, u, y, gamma0, beta0, w, gamma1, beta1, mean0, var0, mean1, var1, eps, stride
    )
    grad_u_rows = gamma0.new_empty(0)
    if u_rows is not None:
        total = u_rows[:, 0].sum(0)
        constant, factor = through_statistics(gamma0, var0, eps, grads[0], grads[1], total)
        centred = u.to(wide) - mean0[:, None, None]
        grad_u = (grad_u.to(wide) - centred * factor[:, None, None] - constant[:, None, None]).to(u.dtype)
        grad_u = grad_u.contiguous(memory_format=torch.channels_last)
        grad_u_rows = rows_gradient(u_rows, mean0, constant, factor)
    grad_gamma0, grad_beta0, grad_w, grad_gamma1, grad_beta1 = grads
    grad_pointwise = (grad_rows.T @ z_rows).to(pointwise.dtype).view(pointwise.shape)
    return grad_u, grad_gamma0, grad_beta0, grad_w, grad_gamma1, grad_beta1, grad_pointwise, grad_u_rows


_forward = define(
    "separable_block(Tensor u, Tensor gamma0, Tensor beta0, Tensor w, Tensor gamma1, Tensor beta1, Tensor pointwise,"
    " float eps, int stride, Tensor? u_rows=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    separable_block_ref,
)
_backward = define(
    "_separable_block_backward(Tensor grad_v, Tensor u, Tensor y, Tensor gamma0, Tensor beta0, Tensor w,"
    " Tensor gamma1, Tensor beta1, Tensor pointwise, Tensor mean0, Tensor var0, Tensor mean1, Tensor var1, float eps,"
    " int stride, Tensor? u_rows=None, Tensor? grad_v_rows=None, Tensor? v=None, Tensor? v_rows=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    separable_block_backward_ref,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, gamma0, beta0, w, gamma1, beta1, pointwise, ctx.eps, ctx.stride, u_rows = inputs
    v, v_rows, y, *statistics = output
    ctx.save_for_backward(u, y, gamma0, beta0, w, gamma1, beta1, pointwise, *statistics, u_rows, v, v_rows)
    ctx.mark_non_differentiable(y, *statistics)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_v: Tensor | None, grad_v_rows: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    if grad_v is None and grad_v_rows is None:
        return (None,) * 10
    *tensors, u_rows, v, v_rows = ctx.saved_tensors
    if grad_v is None:
        grad_v = torch.zeros_like(v)
    if grad_v_rows is None:
        v, v_rows = None, None
    *grads, grad_u_rows = _backward(grad_v, *tensors, ctx.eps, ctx.stride, u_rows, grad_v_rows, v, v_rows)
    return *grads, None, None, None if u_rows is None else grad_u_rows


torch.library.register_autograd("fastcifar::separable_block", _autograd, setup_context=_setup_context)


def suits(channels: int, out_channels: int, height: int, width: int) -> bool:
    """Whether on CUDA a block may be one op with its product: one of few channels and a large map.

    There the kernels of the products read and write each map once, in 16-bit types, on GPUs with tensor cores for
    these. Maps of up to 8x8 pixels have kernels of their own in `depthwise_block`.

    Args:
        channels: of the block's input.
        out_channels: of its output.
        height: of its input.
        width: of its input.
    """
    few = max(channels, out_channels) <= 128
    return few and channels % 8 == out_channels % 8 == 0 and height * width > 64

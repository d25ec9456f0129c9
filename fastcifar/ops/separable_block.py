"""A whole MobileNet block as one op: what `depthwise_block` does, and the pointwise convolution after it.

CUDA has kernels for it, in which neither the pointwise convolution's input nor the batch statistics' passes over its
output exist. It is not used unless asked for: which of the two is faster has not been measured. On the CPU it runs on
its reference, and `depthwise_block` is the op to use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import _fragment, accumulate_dtype, available, empty_channels_last
from fastcifar.ops.depthwise_block import depthwise_block_backward_ref, depthwise_block_ref
from fastcifar.ops.dwconv3x3 import output_shape

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
    never meets memory.

    Arguments:
        u, gamma0, beta0, w, gamma1, beta1, eps, stride: see `depthwise_block`; u must not be empty.
        pointwise: [out_channels, C, 1, 1], float32 or u's dtype; multiplied in u's dtype, summed in float32.
        u_rows: float32 [rows, 3, C], partial counts, means and sums of squared deviations of u: the `v_rows` of the
            block before; None: computed here. Not differentiable: the gradient of u counts them in either way.

    Returns (v, v_rows, y, mean0, var0, mean1, var1): v [N, out_channels, Ho, Wo] in u's dtype, channels_last; v_rows
    as above, of v as it was rounded; the others as of `depthwise_block`. Only v is differentiable.
    """
    v, v_rows, y, mean0, var0, mean1, var1 = torch.ops.fastcifar.separable_block.default(
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
    """Gradients of `separable_block`: those of `depthwise_block`, and grad_pointwise in pointwise's shape and dtype."""
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
    """How many rows of partial moments the kernels return: product_plan of csrc/cuda/pointwise.cuh."""
    return min(-(-pixels // 128), max(1, min(264 // -(-channels // 64), 72)))


def merge_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of partial moments [rows, 3, C]."""
    count, means, m2 = rows.to(torch.float64).unbind(1)
    total = count.sum(0)
    mean = (count * means).sum(0) / total
    var = (m2 + count * (means - mean).square()).sum(0) / total
    return mean.to(rows.dtype), var.to(rows.dtype)


def _fake(
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
    n, _, height, width = shape = output_shape(u, stride)
    channels = pointwise.shape[0]
    v, y = empty_channels_last(u, (n, channels, height, width)), empty_channels_last(u, shape)
    rows = gamma0.new_empty(num_rows(n * height * width, channels), 3, channels)
    mean0, var0, mean1, var1 = (gamma0.new_empty(gamma0.shape) for _ in range(4))
    return v, rows, y, mean0, var0, mean1, var1


def _backward_fake(
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
    grad_gamma0, grad_beta0, grad_gamma1, grad_beta1 = (gamma0.new_empty(gamma0.shape) for _ in range(4))
    grad_u, grad_w = empty_channels_last(u, tuple(u.shape)), w.new_empty(w.shape)
    return grad_u, grad_gamma0, grad_beta0, grad_w, grad_gamma1, grad_beta1, pointwise.new_empty(pointwise.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, gamma0, beta0, w, gamma1, beta1, pointwise, ctx.eps, ctx.stride, _ = inputs
    _, v_rows, y, *statistics = output
    ctx.save_for_backward(u, y, gamma0, beta0, w, gamma1, beta1, pointwise, *statistics)
    ctx.mark_non_differentiable(v_rows, y, *statistics)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_v: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_v is None:
        return (None,) * 10
    grads = torch.ops.fastcifar._separable_block_backward.default(grad_v, *ctx.saved_tensors, ctx.eps, ctx.stride)
    return *grads, None, None, None


# csrc/cuda/schemas.h says the same; the library for CUDA brings it along.
_SCHEMAS = (
    "separable_block(Tensor u, Tensor gamma0, Tensor beta0, Tensor w, Tensor gamma1, Tensor beta1, Tensor pointwise,"
    " float eps, int stride, Tensor? u_rows=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "_separable_block_backward(Tensor grad_v, Tensor u, Tensor y, Tensor gamma0, Tensor beta0, Tensor w,"
    " Tensor gamma1, Tensor beta1, Tensor pointwise, Tensor mean0, Tensor var0, Tensor mean1, Tensor var1, float eps,"
    " int stride) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_REFERENCES = (separable_block_ref, separable_block_backward_ref)
_FAKES: tuple[Callable[..., Any], ...] = (_fake, _backward_fake)

for _schema, _reference, _shapes in zip(_SCHEMAS, _REFERENCES, _FAKES, strict=True):
    _name = _schema[: _schema.index("(")]
    if not available("cuda"):
        _fragment.define(_schema)  # type: ignore[no-untyped-call]
        _fragment.impl(_name, _reference, "CUDA")  # type: ignore[no-untyped-call]
    _fragment.impl(_name, _reference, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"fastcifar::{_name}", _shapes)
torch.library.register_autograd("fastcifar::separable_block", _autograd, setup_context=_setup_context)

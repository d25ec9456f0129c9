"""A chain of whole blocks as one op: the middle of the network in one call, on the CPU alone.

On two cores a training step of 80 ms spent a tenth of its time between the ops of its blocks, in Python, autograd and
allocation, while the second core waited. A GPU has no use for it: there a step is a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastcifar.ops._library import define
from fastcifar.ops._moments import rows_of
from fastcifar.ops.separable_block import separable_block_backward_ref, separable_block_ref

PARAMETERS = 6
"""Of a block: gamma0, beta0, w, gamma1, beta1 and pointwise, as in `separable_block`."""
KEPT = 6
"""What a block keeps for the backward: v, y, mean0, var0, mean1 and var1, as `separable_block` returns them."""


def separable_blocks(
    u: Tensor, u_rows: Tensor | None, parameters: Sequence[Tensor], eps: float, strides: Sequence[int]
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Blocks in a row, each of which reads what the one before it wrote.

    Equal to `v, v_rows, y, *statistics = separable_block(u, *parameters[:6], eps, strides[0], u_rows)`, and so on with
    v and v_rows in place of u and u_rows.

    Args:
        u: the first block's input, as in `separable_block`; on the CPU.
        u_rows: the moments of u, as in `separable_block`, or None.
        parameters: gamma0, beta0, w, gamma1, beta1 and pointwise of each block, one block after the other.
        eps: of every BN.
        strides: of each block, 1 or 2.

    Returns:
        v and v_rows of the last block, both differentiable.
        mean0, var0, mean1 and var1 of each block, one block after the other; not differentiable.

    Raises:
        RuntimeError: an argument has another shape, dtype, value or device; the message names it with its value, and
            the block, counted from 0.
    """
    v, v_rows, *statistics = _Chain.apply(u, u_rows, eps, strides, *parameters)  # type: ignore[no-untyped-call]
    return v, v_rows, tuple(statistics)


def statistics_of(kept: Sequence[Tensor]) -> list[Tensor]:
    """mean0, var0, mean1 and var1 of each block, one block after the other, of what the blocks keep."""
    return [tensor for i in range(0, len(kept), KEPT) for tensor in kept[i + 2 : i + KEPT]]


def separable_blocks_ref(
    u: Tensor, u_rows: Tensor | None, parameters: Sequence[Tensor], eps: float, strides: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """`separable_blocks` in plain PyTorch.

    Returns:
        v_rows of the last block, and what each block keeps: v, y, mean0, var0, mean1 and var1.
    """
    kept: list[Tensor] = []
    for i, stride in enumerate(strides):
        block = parameters[i * PARAMETERS : (i + 1) * PARAMETERS]
        arguments: tuple[Any, ...] = (u, *block, eps, stride, u_rows)
        u, u_rows, y, *statistics = separable_block_ref(*arguments)
        kept += [u, y, *statistics]
    assert u_rows is not None
    return u_rows, kept


def separable_blocks_backward_ref(
    grad_v: Tensor,
    grad_v_rows: Tensor | None,
    v_rows: Tensor,
    u: Tensor,
    u_rows: Tensor | None,
    parameters: Sequence[Tensor],
    kept: Sequence[Tensor],
    eps: float,
    strides: Sequence[int],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The backward of `separable_blocks` in plain PyTorch.

    Args:
        grad_v: the gradient of the last block's v, in its shape and dtype.
        grad_v_rows: the gradient of v_rows, of which only the first row counts; None: there is none.
        v_rows: as the forward returned it, with all pixels in the first row.
        u: as in the forward; so are u_rows, parameters, eps and strides.
        kept: as the forward returned it.

    Returns:
        The gradients of u, of u_rows (empty if it is None), and of the parameters.
    """
    grads: list[Tensor] = []
    grad_rows = grad_v_rows
    for i in reversed(range(len(strides))):
        v, y, *statistics = kept[i * KEPT : (i + 1) * KEPT]
        x = kept[(i - 1) * KEPT] if i else u
        x_rows = rows_of(x) if i else u_rows
        block = parameters[i * PARAMETERS : (i + 1) * PARAMETERS]
        arguments: tuple[Any, ...] = (grad_v, x, y, *block, *statistics, eps, strides[i], x_rows, grad_rows, v, v_rows)
        grad_v, *own, grad_rows = separable_block_backward_ref(*arguments)
        grads, v_rows = [*own, *grads], x_rows  # type: ignore[assignment]
    assert grad_rows is not None
    return grad_v, grad_rows, grads


_forward = define(
    "separable_blocks(Tensor u, Tensor? u_rows, Tensor[] parameters, float eps, int[] strides) -> (Tensor, Tensor[])",
    separable_blocks_ref,
    device_types=("cpu",),
)
_backward = define(
    "_separable_blocks_backward(Tensor grad_v, Tensor? grad_v_rows, Tensor v_rows, Tensor u, Tensor? u_rows,"
    " Tensor[] parameters, Tensor[] kept, float eps, int[] strides) -> (Tensor, Tensor, Tensor[])",
    separable_blocks_backward_ref,
    device_types=("cpu",),
)


class _Chain(torch.autograd.Function):
    """`separable_blocks` for autograd, whose lists of tensors are arguments and results of their own here.

    PyTorch's wrapper around an op's own gradient would cost a part of what the op saves.
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, u_rows: Tensor | None, eps: float, strides: Sequence[int], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        v_rows, kept = _forward(u, u_rows, parameters, eps, strides)
        ctx.eps, ctx.strides = eps, strides
        ctx.save_for_backward(u, u_rows, v_rows, *parameters, *kept)
        ctx.set_materialize_grads(False)
        statistics = statistics_of(kept)
        ctx.mark_non_differentiable(*statistics)
        return kept[-KEPT], v_rows, *statistics

    @staticmethod
    def backward(ctx: Any, grad_v: Tensor | None, grad_v_rows: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        u, u_rows, v_rows, *others = ctx.saved_tensors
        split = PARAMETERS * len(ctx.strides)
        parameters, kept = others[:split], others[split:]
        if grad_v is None:
            grad_v = torch.zeros_like(kept[-KEPT])
        grad_u, grad_u_rows, grads = _backward(
            grad_v, grad_v_rows, v_rows, u, u_rows, parameters, kept, ctx.eps, ctx.strides
        )
        return grad_u, None if u_rows is None else grad_u_rows, None, None, *grads

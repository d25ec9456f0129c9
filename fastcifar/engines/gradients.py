"""The whole network as one node of autograd: the fused engine's forward for training on a CPU.

With a node for each op a step of 60 ms spent 4 ms between the ops, in Python, in PyTorch's dispatcher and in autograd's
engine, while all cores but one waited. A GPU has no use for it: there a step is a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops.separable_blocks import KEPT, statistics_of

_ops = torch.ops.fastcifar


def network(
    images: Tensor,
    parameters: Sequence[Tensor],
    used: Sequence[Tensor],
    eps: float,
    strides: Sequence[int],
    see: Callable[[list[Tensor], list[Tensor]], None],
) -> Tensor:
    """The logits of a batch: `stem`, `separable_blocks`, `batch_norm_relu_pool` and the classifier.

    Args:
        images: [N, 3, H, W] in channels_last, on the CPU.
        parameters: get the gradients: the stem's weight, the parameters of `separable_blocks`, gamma and beta of the
            last BN, weight and bias of the classifier.
        used: what is computed with in place of each parameter: itself, or its copy in the images' dtype. The
            parameter gets the copy's gradient.
        eps: of every BN.
        strides: of each block.
        see: is called with mean and biased variance of each BN.

    Returns:
        [N, num_classes], in the images' dtype.
    """
    return cast(Tensor, _Network.apply(images, used, eps, strides, see, *parameters))  # type: ignore[no-untyped-call]


def for_batches(weight: Tensor) -> Tensor:
    """The stem's weight [C, 1 or 3, 3, 3] for batches, which have three channels: a stem of one takes the first."""
    channels = weight.shape[1]
    return weight if channels == 3 else F.pad(weight, (0, 0, 0, 0, 0, 3 - channels))


class _Network(torch.autograd.Function):
    """`network`. What its backward needs is kept until then, so that there can be only one."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        used: Sequence[Tensor],
        eps: float,
        strides: Sequence[int],
        see: Callable[[list[Tensor], list[Tensor]], None],
        *_: Tensor,
    ) -> Tensor:
        first, *blocks, gamma, beta, head, bias = used
        channels, first = first.shape[1], for_batches(first)
        with torch._C._AutoDispatchBelowAutograd():  # past the ops' own gradients, which take time even when unused
            u, u_rows = _ops.stem(images, first)
            v_rows, kept = _ops.separable_blocks(u, u_rows, blocks, eps, strides)
            pooled, *of_last = _ops.batch_norm_relu_pool(kept[-KEPT], gamma, beta, eps, v_rows)
        statistics = [*statistics_of(kept), *of_last]
        see(statistics[0::2], statistics[1::2])
        ctx.kept = images, first, channels, u, u_rows, blocks, v_rows, kept, gamma, beta, of_last, pooled, head
        ctx.eps, ctx.strides = eps, strides
        return F.linear(pooled, head, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, first, channels, u, u_rows, blocks, v_rows, kept, gamma, beta, of_last, pooled, head = ctx.kept
        ctx.kept = None
        of_head, of_bias = grad.t().mm(pooled), grad.sum(0)
        grad, of_gamma, of_beta, grad_rows = _ops._batch_norm_relu_pool_backward(
            grad.mm(head), kept[-KEPT], gamma, beta, *of_last, ctx.eps, v_rows
        )
        grad, grad_rows, of_blocks = _ops._separable_blocks_backward(
            grad, grad_rows, v_rows, u, u_rows, blocks, kept, ctx.eps, ctx.strides
        )
        of_first = _ops._stem_backward(grad, images, first, grad_rows, u, u_rows)[:, :channels]
        return None, None, None, None, None, of_first, *of_blocks, of_gamma, of_beta, of_head, of_bias

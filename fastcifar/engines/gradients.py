"""Forward and backward of the whole network, written out: how the fused engine takes its gradients on a CPU.

With autograd, a node for each op, a step of 60 ms spent 5 ms between the ops, in Python, in PyTorch's dispatcher and in
autograd's engine, while all cores but one waited. A GPU has no use for it: there a step is a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.batch import Batch
from fastcifar.ops.separable_blocks import KEPT, statistics_of

_ops = torch.ops.fastcifar


class Gradients(NamedTuple):
    """What a batch gives.

    Attributes:
        statistics: mean and biased variance of each BN, one BN after the other.
        of_parameters: the gradient for each parameter.
    """

    statistics: list[Tensor]
    of_parameters: list[Tensor]


@torch.no_grad()
def gradients(
    batch: Batch,
    parameters: Sequence[Tensor],
    eps: float,
    strides: Sequence[int],
    label_smoothing: float,
    grad_loss: Tensor,
    totals: Tensor,
) -> Gradients:
    """The gradients of `stem`, `separable_blocks`, `batch_norm_relu_pool`, the classifier and its loss.

    Args:
        batch: its images are in channels_last, on the CPU.
        parameters: the stem's weight, the parameters of `separable_blocks`, gamma and beta of the last BN, weight and
            bias of the classifier; those of products in the images' dtype.
        eps: of every BN.
        strides: of each block.
        label_smoothing: 0 to 1.
        grad_loss: float32 [], the gradient of the mean loss.
        totals: float64 [2], to which the sum of the losses and the number of correct predictions are added.
    """
    first, *blocks, gamma, beta, head, bias = parameters
    channels, first = first.shape[1], for_batches(first)
    images, targets = batch.images, (batch.labels, batch.partner_labels, batch.lam)
    with torch._C._AutoDispatchBelowAutograd():  # past the ops' own gradients, which take time even when unused
        u, u_rows = _ops.stem(images, first)
        v_rows, kept = _ops.separable_blocks(u, u_rows, blocks, eps, strides)
        v = kept[-KEPT]
        pooled, *of_last = _ops.batch_norm_relu_pool(v, gamma, beta, eps, v_rows)
        grad, *of_classifier = _ops.classifier_gradient(
            pooled, head, bias, *targets, label_smoothing, grad_loss, totals
        )
        grad, of_gamma, of_beta, grad_rows = _ops._batch_norm_relu_pool_backward(
            grad, v, gamma, beta, *of_last, eps, v_rows
        )
        grad, grad_rows, of_blocks = _ops._separable_blocks_backward(
            grad, grad_rows, v_rows, u, u_rows, blocks, kept, eps, strides
        )
        of_first = _ops._stem_backward(grad, images, first, grad_rows, u, u_rows)
    if channels < of_first.shape[1]:
        of_first = of_first[:, :channels].contiguous()  # the optimizer takes no gradient with gaps
    of_parameters = [of_first, *of_blocks, of_gamma, of_beta, *of_classifier]
    return Gradients([*statistics_of(kept), *of_last], of_parameters)


def for_batches(weight: Tensor) -> Tensor:
    """The stem's weight [C, 1 or 3, 3, 3] for batches, which have three channels: a stem of one takes the first."""
    channels = weight.shape[1]
    return weight if channels == 3 else F.pad(weight, (0, 0, 0, 0, 0, 3 - channels))

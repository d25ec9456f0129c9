"""The end of a training step's forward and the beginning of its backward in one pass: classifier, loss, gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar import machine
from fastcifar.ops._library import compiled_capabilities, define
from fastcifar.ops.mixup_cross_entropy_gradient import mixup_cross_entropy_gradient_ref


def classifier_gradient(
    pooled: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    partner_labels: Tensor | None,
    lam: Tensor | None,
    label_smoothing: float,
    grad_loss: Tensor,
    totals: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a classifier's input, weight and bias; the batch's sums are added to an epoch's totals.

    Equal to `logits = F.linear(pooled, weight, bias)`, `grad_logits = mixup_cross_entropy_gradient(logits, ...)`, and
    then `grad_logits @ weight`, `grad_logits.T @ pooled` and `grad_logits.sum(0)`, up to the order of sums. Not
    differentiable.

    Args:
        pooled: [B, K], as it `suits`; float32 or bfloat16, on CUDA bfloat16 or float16.
        weight: [classes, K], of pooled's dtype.
        bias: [classes], of pooled's dtype.
        labels: int64 [B].
        partner_labels: int64 [B], or None or empty.
        lam: float32, one number, or None or empty.
        label_smoothing: in [0, 1].
        grad_loss: float32, one number, the gradient of the mean loss. It is read on the device.
        totals: float64 [2], contiguous. The sum of the losses and the number of correct predictions are added in place.

    Returns:
        The gradients of pooled, [B, K], of weight, [classes, K], and of bias, [classes], in pooled's dtype.

    Raises:
        RuntimeError: an argument has another shape, dtype, value or device; the message names it with its value.
    """
    gradients: tuple[Tensor, Tensor, Tensor] = _gradient(
        pooled, weight, bias, labels, partner_labels, lam, label_smoothing, grad_loss, totals
    )
    return gradients


def suits(pooled: Tensor, classes: int) -> bool:
    """Whether there is a kernel for it: on the CPU, and on a GPU whose clusters of blocks can hold the products.

    A GPU's kernel is for 16-bit types on tensor cores, and for clusters of blocks with 180 KB of shared memory each:
    compute capability 9 and 10 have them, if the kernels are compiled for one of these, while a block of 12 has at most
    99 KB.

    Args:
        pooled: [B, K], the classifier's input.
        classes: the number of logits of a row.
    """
    if pooled.device.type == "cpu":
        return pooled.dtype != torch.float16
    if pooled.dtype == torch.float32:
        return False
    major, minor = machine.this().gpus[pooled.device.index].capability
    has_clusters = major in (9, 10) and any(90 <= built <= 10 * major + minor for built in compiled_capabilities())
    return has_clusters and pooled.shape[1] % 128 == 0 and classes <= 128


def classifier_gradient_ref(
    pooled: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    partner_labels: Tensor | None,
    lam: Tensor | None,
    label_smoothing: float,
    grad_loss: Tensor,
    totals: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`classifier_gradient` in plain PyTorch."""
    targets = labels, partner_labels, lam, label_smoothing
    grad_logits = mixup_cross_entropy_gradient_ref(F.linear(pooled, weight, bias), *targets, grad_loss, totals)
    return grad_logits.mm(weight), grad_logits.t().mm(pooled), grad_logits.sum(0)


_gradient = define(
    "classifier_gradient(Tensor pooled, Tensor weight, Tensor bias, Tensor labels, Tensor? partner_labels, Tensor? lam,"
    " float label_smoothing, Tensor grad_loss, Tensor(a!) totals) -> (Tensor, Tensor, Tensor)",
    classifier_gradient_ref,
)

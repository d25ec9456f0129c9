"""The training loss with MixUp's two labels and label smoothing, and what a step reports, in one pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import accumulate_dtype, define

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def mixup_cross_entropy(
    logits: Tensor, labels: Tensor, partner_labels: Tensor | None, lam: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy of a batch, and how many of its predictions are correct.

    Equal to `torch.lerp(F.cross_entropy(logits.float(), partner_labels, label_smoothing=label_smoothing),
    F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing), lam)`, and the same mix of the two counts
    `(logits.argmax(1) == labels).sum()`.

    Args:
        logits: [B, K], float32 or bfloat16 (on CUDA also float16); the arithmetic is float32.
        labels: int64 [B] in [0, K). A label out of range raises on the CPU and makes the loss NaN on CUDA.
        partner_labels: int64 [B], the labels of the images mixed in; None or empty: no MixUp.
        lam: float32, one number: the weight of `labels`; None or empty exactly where partner_labels is.
        label_smoothing: in [0, 1].

    Returns:
        loss: float32 [], the mean; differentiable with respect to the logits.
        correct: float32 [], the number of correct predictions: with MixUp the weighted mean of the numbers for the two
            labels. Of equal largest logits the first is the prediction. Not differentiable.
        sums: float64 [2], the sum of the losses and the number of correct predictions, which a caller adds to an
            epoch's totals. Not differentiable.

    Raises:
        RuntimeError: an argument has another shape, dtype, value or device; the message names it with its value.
    """
    loss, correct, sums, _ = _forward(logits, labels, partner_labels, lam, label_smoothing)
    return loss, correct, sums


def mixup_cross_entropy_ref(
    logits: Tensor, labels: Tensor, partner_labels: Tensor | None, lam: Tensor | None, label_smoothing: float
) -> Outputs:
    """`mixup_cross_entropy` in plain PyTorch; also returns the log-sum-exp of each row, [B], for the backward."""
    logits = logits.to(accumulate_dtype(logits))
    predicted = logits.argmax(1)

    def sums_for(targets: Tensor) -> tuple[Tensor, Tensor]:
        loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="sum")
        return loss, (predicted == targets).sum().to(logits.dtype)

    loss_sum, correct = sums_for(labels)
    if partner_labels is not None and lam is not None and lam.numel():
        partner_sum, partner_correct = sums_for(partner_labels)
        weight = lam.view(())
        loss_sum, correct = torch.lerp(partner_sum, loss_sum, weight), torch.lerp(partner_correct, correct, weight)
    return loss_sum / len(logits), correct, torch.stack((loss_sum, correct)).double(), logits.logsumexp(1)


def mixup_cross_entropy_backward_ref(
    grad_loss: Tensor,
    logits: Tensor,
    normalizer: Tensor,
    labels: Tensor,
    partner_labels: Tensor | None,
    lam: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    """The backward of `mixup_cross_entropy` in plain PyTorch.

    Args:
        grad_loss: float32 [], the gradient of the loss.
        logits: as in the forward; so are labels, partner_labels, lam and label_smoothing.
        normalizer: float32 [B], the log-sum-exp of each row of the logits, which the op returns beside its results.

    Returns:
        The gradient of the logits, in their shape and dtype.
    """
    wide = logits.to(accumulate_dtype(logits))
    grad = (wide - normalizer[:, None]).exp() - label_smoothing / logits.shape[1]
    row = torch.arange(len(logits), device=logits.device)
    if partner_labels is not None and lam is not None and lam.numel():
        grad[row, labels] -= (1 - label_smoothing) * lam
        grad[row, partner_labels] -= (1 - label_smoothing) * (1 - lam)
    else:
        grad[row, labels] -= 1 - label_smoothing
    return (grad * (grad_loss / len(logits))).to(logits.dtype)


_forward = define(
    "mixup_cross_entropy(Tensor logits, Tensor labels, Tensor? partner_labels, Tensor? lam, float label_smoothing)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    mixup_cross_entropy_ref,
)
_backward = define(
    "_mixup_cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor normalizer, Tensor labels,"
    " Tensor? partner_labels, Tensor? lam, float label_smoothing) -> Tensor",
    mixup_cross_entropy_backward_ref,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    logits, labels, partner_labels, lam, ctx.label_smoothing = inputs
    _, correct, sums, normalizer = output
    ctx.save_for_backward(logits, normalizer, labels, partner_labels, lam)
    ctx.mark_non_differentiable(correct, sums, normalizer)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return None, None, None, None, None
    return _backward(grad_loss, *ctx.saved_tensors, ctx.label_smoothing), None, None, None, None


torch.library.register_autograd("fastcifar::mixup_cross_entropy", _autograd, setup_context=_setup_context)

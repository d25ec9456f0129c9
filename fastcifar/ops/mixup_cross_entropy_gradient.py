"""The gradient of the training loss, and what a step reports, in one pass over the logits."""

from __future__ import annotations

from torch import Tensor

from fastcifar.ops._library import define
from fastcifar.ops.mixup_cross_entropy import mixup_cross_entropy_backward_ref, mixup_cross_entropy_ref


def mixup_cross_entropy_gradient(
    logits: Tensor,
    labels: Tensor,
    partner_labels: Tensor | None,
    lam: Tensor | None,
    label_smoothing: float,
    grad_loss: Tensor,
    totals: Tensor,
) -> Tensor:
    """The gradient of `mixup_cross_entropy`'s loss; the batch's sums are added to an epoch's totals.

    Equal to `loss, _, sums = mixup_cross_entropy(logits, labels, partner_labels, lam, label_smoothing)`,
    `totals += sums` and `torch.autograd.grad(loss, logits, grad_loss)`, to the last bit. Not differentiable.

    Args:
        logits: as for `mixup_cross_entropy`; so are labels, partner_labels, lam and label_smoothing.
        labels: int64 [B].
        partner_labels: int64 [B], or None or empty.
        lam: float32, one number, or None or empty.
        label_smoothing: in [0, 1].
        grad_loss: float32, one number, the gradient of the mean loss: 1 or the scale of the loss. It is read on the
            device.
        totals: float64 [2], contiguous. The sum of the losses and the number of correct predictions are added in place.

    Returns:
        The gradient of the logits, in their shape and dtype.

    Raises:
        RuntimeError: an argument has another shape, dtype, value or device; the message names it with its value.
    """
    grad: Tensor = _gradient(logits, labels, partner_labels, lam, label_smoothing, grad_loss, totals)
    return grad


def mixup_cross_entropy_gradient_ref(
    logits: Tensor,
    labels: Tensor,
    partner_labels: Tensor | None,
    lam: Tensor | None,
    label_smoothing: float,
    grad_loss: Tensor,
    totals: Tensor,
) -> Tensor:
    """`mixup_cross_entropy_gradient` in plain PyTorch."""
    targets = labels, partner_labels, lam, label_smoothing
    _, _, sums, normalizer = mixup_cross_entropy_ref(logits, *targets)
    totals += sums
    return mixup_cross_entropy_backward_ref(grad_loss, logits, normalizer, *targets)


_gradient = define(
    "mixup_cross_entropy_gradient(Tensor logits, Tensor labels, Tensor? partner_labels, Tensor? lam,"
    " float label_smoothing, Tensor grad_loss, Tensor(a!) totals) -> Tensor",
    mixup_cross_entropy_gradient_ref,
)

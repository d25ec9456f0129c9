"""The running statistics of all BNs of a network, updated in one pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastcifar.ops._library import define


def update_statistics(
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    counts: Sequence[int],
    momentum: float,
) -> None:
    """Updates running means and variances in place, as `nn.BatchNorm2d` does in training. It has no gradient.

    Equal to `running_mean.lerp_(mean, momentum)` and `running_var.lerp_(variance * (n / max(n - 1, 1)), momentum)` of
    PyTorch on the CPU to the last bit, on every device (but for the instruction set `generic`, which has no fused
    multiply-add).

    Args:
        running_means: of each BN, float32 [C], contiguous; C may differ from BN to BN. All tensors are like this.
        running_vars: of each BN.
        means: of a batch, of each BN.
        variances: of a batch, biased, of each BN.
        counts: how many numbers of each channel the statistics of the batch are of, for each BN; at least 1.
        momentum: the weight of the batch, 0 to 1.

    Raises:
        RuntimeError: a list has another length, or a tensor another shape, dtype or device, or a gap; the message names
            it.
    """
    _update_statistics(running_means, running_vars, means, variances, counts, momentum)


def update_statistics_ref(
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    counts: Sequence[int],
    momentum: float,
) -> None:
    """`update_statistics` in plain PyTorch."""
    for i, n in enumerate(counts):
        running_means[i].lerp_(means[i], momentum)
        running_vars[i].lerp_(variances[i] * (n / max(n - 1, 1)), momentum)


_update_statistics = define(
    "update_statistics(Tensor(a!)[] running_means, Tensor(b!)[] running_vars, Tensor[] means, Tensor[] variances,"
    " int[] counts, float momentum) -> ()",
    update_statistics_ref,
)

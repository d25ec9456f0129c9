"""Partial moments [rows, 3, C] of a map, counts, means and sums of squared deviations, in plain PyTorch.

An op leaves them for the next one, so that the next op's batch norm needs no pass of its own over the map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.ops._library import accumulate_dtype


def num_rows(pixels: int, channels: int) -> int:
    """How many rows of partial moments an op leaves for its output; csrc/common.h says the same (`moment_rows`)."""
    return min(-(-pixels // 128), max(1, min(264 // -(-channels // 64), 64)))


def rows_of(u: Tensor) -> Tensor:
    """The moments of u [N, C, H, W] in the first row, the others empty; float32, for float64 float64."""
    pixels, channels = u.numel() // u.shape[1], u.shape[1]
    wide = u.to(accumulate_dtype(u))
    rows = wide.new_zeros(num_rows(pixels, channels), 3, channels)
    rows[0, 0] = pixels
    rows[0, 1] = wide.mean((0, 2, 3))
    rows[0, 2] = wide.var((0, 2, 3), correction=0) * pixels
    return rows


def merge_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of partial moments [rows, 3, C]."""
    count, means, m2 = rows.to(torch.float64).unbind(1)
    total = count.sum(0)
    mean = (count * means).sum(0) / total
    var = (m2 + count * (means - mean).square()).sum(0) / total
    return mean.to(rows.dtype), var.to(rows.dtype)


def whole_gradient(grad_u: Tensor, grad_rows: Tensor | None, u: Tensor | None, rows: Tensor | None) -> Tensor:
    """The gradient of u with what comes through its moments, in float32 or, for float64, in float64.

    Args:
        grad_u: the gradient of u, in its shape and dtype.
        grad_rows: the gradient of rows, of which only the first counts; None: nothing comes through them.
        u: [N, C, H, W]; needed with grad_rows.
        rows: the moments of u, the first row not empty; needed with grad_rows.
    """
    wide = grad_u.to(accumulate_dtype(grad_u))
    if grad_rows is None:
        return wide
    assert u is not None and rows is not None
    grad_mean, grad_m2 = (grad_rows[0, i, :, None, None] for i in (1, 2))
    count, mean = (rows[0, i, :, None, None] for i in (0, 1))
    return wide + grad_mean / count + 2 * (u.to(wide.dtype) - mean) * grad_m2


def through_statistics(
    gamma: Tensor, var: Tensor, eps: float, grad_gamma: Tensor, grad_beta: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """What a batch norm's gradient of its input x holds of the way through mean and variance.

    Args:
        gamma: float32 [C]; so are var, the biased variance, and the gradients of gamma and beta.
        var: as gamma.
        eps: is added to the variance.
        grad_gamma: as gamma.
        grad_beta: as gamma.
        total: the number of pixels.

    Returns:
        constant and factor, float32 [C]: the part is constant + (x - mean) * factor.
    """
    rstd = torch.rsqrt(var + eps)
    scale = gamma * rstd
    return -scale * grad_beta / total, -scale * rstd * grad_gamma / total


def rows_gradient(rows: Tensor, mean: Tensor, constant: Tensor, factor: Tensor) -> Tensor:
    """The gradient of partial moments [rows, 3, C], 0 for the counts, out of what `through_statistics` returns."""
    count, means, _ = rows.unbind(1)
    grad_means = count * (constant + (means - mean) * factor)
    return torch.stack((torch.zeros_like(count), grad_means, (factor / 2).expand_as(count)), 1)

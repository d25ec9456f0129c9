"""Crop, flip, normalise and mix a batch where the images lie: one function of index arithmetic and two gathers.

Written so that torch.compile makes one or two kernels of it. Normalisation is a table look-up, 256 byte values times 3
channels, filled once with torchvision's own arithmetic: the result is torchvision's to the last bit on every device,
where a fused multiply-add would lose up to hundreds of ulps near zero to cancellation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalization_table(mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """float32 [256, 3]: every byte value normalised per channel as `ToTensor` and `Normalize(mean, std)` do it."""
    value = torch.arange(256, dtype=torch.uint8).to(torch.float32).div(255)
    return value[:, None].sub(torch.tensor(mean)).div(torch.tensor(std)).to(device)


def look_up(pixels: Tensor, table: Tensor) -> Tensor:
    """uint8 [..., 3] through `table` float32 [256, 3] -> float32 [..., 3]."""
    channel = torch.arange(3, device=pixels.device)
    return table.flatten()[pixels.long() * 3 + channel]


def augment(
    images: Tensor,
    index: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    partner: Tensor | None,
    lam: Tensor | None,
    table: Tensor,
    padding: int,
    dtype: torch.dtype,
) -> Tensor:
    """One training batch from resident images.

    Arguments:
        images: uint8 [M, S, S, 3], the whole split, RGB.
        index: int64 [B], which images.
        top, left: int64 [B] in [0, 2 * padding], the crop's corner in the image padded with zeros (bytes, as
            torchvision pads: they are normalised like any other pixel).
        flip: bool [B], mirror the crop left to right.
        partner: int64 [B], the row of this batch to mix with, crop and flip of its own included; None: no MixUp.
        lam: float32 [], the weight of the image itself in the mix.
        table: float32 [256, 3], see `normalization_table`.
        padding: pixels on each side.
        dtype: of the result; the arithmetic before it is float32.

    Returns [B, 3, S, S] in channels_last memory. Equal to, for each image:
    `lam * normalize(hflip(crop(pad(x)))) + (1 - lam) * normalize(hflip'(crop'(pad(x_partner))))`.
    """
    size = images.shape[1]
    grid = torch.arange(size, device=images.device)
    row = top[:, None] + (grid - padding)
    column = left[:, None] + torch.where(flip[:, None], size - 1 - grid, grid) - padding
    inside = ((row >= 0) & (row < size))[:, :, None] & ((column >= 0) & (column < size))[:, None, :]
    pixel = (index[:, None] * size + row.clamp(0, size - 1))[:, :, None] * size + column.clamp(0, size - 1)[:, None, :]
    pixels = images.view(-1, 3).index_select(0, pixel.flatten()).view(*pixel.shape, 3)
    x = look_up(pixels * inside[..., None], table)
    if partner is not None and lam is not None:
        x = lam * x + (1 - lam) * x[partner]
    return x.to(dtype).permute(0, 3, 1, 2)


def normalize(images: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Validation and test: uint8 [B, S, S, 3] -> [B, 3, S, S] in channels_last memory, normalised and nothing else."""
    return look_up(images, table).to(dtype).permute(0, 3, 1, 2)

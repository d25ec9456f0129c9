"""Crop, flip, normalise, cut out and mix a batch on its images' device: a function of index arithmetic and two gathers.

torch.compile makes one or two kernels of it. Normalisation is a look-up in a table of 256 byte values times 3 channels,
which is filled once with torchvision's own arithmetic, so that the result equals torchvision's to the last bit on every
device. A fused multiply-add would lose up to hundreds of ulps near zero to cancellation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalization_table(mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """Every byte value, normalised for each channel as torchvision's `ToTensor` and `Normalize(mean, std)` do it.

    Args:
        mean: the mean of each channel of images scaled to 0..1, in R, G, B order.
        std: the standard deviation of each channel.
        device: where the table is put.

    Returns:
        float32 [256, 3].
    """
    value = torch.arange(256, dtype=torch.uint8).to(torch.float32).div(255)
    return value[:, None].sub(torch.tensor(mean)).div(torch.tensor(std)).to(device)


def look_up(pixels: Tensor, table: Tensor) -> Tensor:
    """Looks up the normalised value of each byte.

    Args:
        pixels: uint8 [..., 3].
        table: float32 [256, 3].

    Returns:
        float32 [..., 3].
    """
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
    box: Tensor | None,
    hole: Tensor | None,
    table: Tensor,
    padding: int,
    hole_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Makes one training batch from images on the device.

    Args:
        images: uint8 [M, S, S, 3], the whole split, RGB.
        index: int64 [B], the images of the batch.
        top: int64 [B] in [0, 2 * padding], the crop's first row in the image padded with zeros. As in torchvision the
            padding is of zero bytes, which are normalised like any other pixel.
        left: int64 [B] in [0, 2 * padding], the crop's first column.
        flip: bool [B], whether the crop is mirrored left to right.
        partner: int64 [B], the row of this batch to mix with, after its own crop and flip; None without MixUp and
            CutMix.
        lam: float32 [], the weight of the image itself in the mix; None without MixUp and CutMix.
        box: int64 [4], as for `mix`; None without CutMix.
        hole: int64 [B, 2], as for `cut_out`; None without cutout.
        table: float32 [256, 3], see `normalization_table`.
        padding: the number of zero pixels on each side.
        hole_size: as for `cut_out`.
        dtype: the dtype of the result; the arithmetic is float32.

    Returns:
        [B, 3, S, S] in channels_last memory. For each image it is
        `lam * normalize(hflip(crop(pad(x)))) + (1 - lam) * normalize(hflip'(crop'(pad(x_partner))))`, where cutout and
        CutMix are off.
    """
    size = images.shape[1]
    grid = torch.arange(size, device=images.device)
    row = top[:, None] + (grid - padding)
    column = left[:, None] + torch.where(flip[:, None], size - 1 - grid, grid) - padding
    inside = ((row >= 0) & (row < size))[:, :, None] & ((column >= 0) & (column < size))[:, None, :]
    pixel = (index[:, None] * size + row.clamp(0, size - 1))[:, :, None] * size + column.clamp(0, size - 1)[:, None, :]
    pixels = images.view(-1, 3).index_select(0, pixel.flatten()).view(*pixel.shape, 3)
    x = look_up(pixels * inside[..., None], table)
    if hole is not None:
        x = cut_out(x, hole, hole_size)
    if partner is not None and lam is not None:
        x = mix(x, partner, lam, box)
    return x.to(dtype).permute(0, 3, 1, 2)


def cut_out(x: Tensor, hole: Tensor, hole_size: int) -> Tensor:
    """Sets a square of each normalised image to 0, the channel's mean.

    Args:
        x: [B, S, S, 3].
        hole: int64 [B, 2], the first row and column of each square. What lies outside the image does not count.
        hole_size: the side of the square, in pixels.

    Returns:
        [B, S, S, 3].
    """
    from_corner = torch.arange(x.shape[1], device=x.device) - hole[:, :, None]
    covered = (from_corner >= 0) & (from_corner < hole_size)
    return x.masked_fill((covered[:, 0, :, None] & covered[:, 1, None, :])[..., None], 0.0)


def mix(x: Tensor, partner: Tensor, lam: Tensor, box: Tensor | None) -> Tensor:
    """Mixes each image of a batch with its partner (MixUp), or pastes a box of the partner into it (CutMix).

    Args:
        x: float32 [B, S, S, 3].
        partner: int64 [B], the row of this batch to mix with.
        lam: float32 [], the weight of the image itself; not read where there is a box.
        box: int64 [4], the first row, the row after the last, the first column and the column after the last of what
            the partner covers; None for MixUp.

    Returns:
        [B, S, S, 3].
    """
    if box is None:
        return lam * x + (1 - lam) * x[partner]
    grid = torch.arange(x.shape[1], device=x.device)
    rows, columns = (grid >= box[0]) & (grid < box[1]), (grid >= box[2]) & (grid < box[3])
    return torch.where((rows[:, None] & columns)[..., None], x[partner], x)


def normalize(images: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalises images for validation and test, without crop, flip or MixUp.

    Args:
        images: uint8 [B, S, S, 3].
        table: float32 [256, 3], see `normalization_table`.
        dtype: the dtype of the result.

    Returns:
        [B, 3, S, S] in channels_last memory.
    """
    return look_up(images, table).to(dtype).permute(0, 3, 1, 2)

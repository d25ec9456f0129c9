"""A training batch out of resident images in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.ops._library import define


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
    """Gather, crop, flip, normalise and mix a batch; equal to `fastcifar.augment.augment` to the last bit.

    Arguments:
        images: uint8 [M, S, S, 3], contiguous: the whole split, RGB.
        index: int64 [B], which images.
        top, left: int64 [B] in [0, 2 * padding], the crop's corner in the image padded with zeros (bytes, normalised
            like any other).
        flip: bool [B], mirror the crop left to right.
        partner: int64 [B], the row of this batch to mix with, its own crop and flip included; None: no MixUp.
        lam: float32, one element: the weight of the image itself in the mix; None exactly where partner is.
        table: float32 [256, 3], the normalised value of each byte in each channel.
        padding: pixels on each side.
        dtype: of the result, float32, bfloat16 or float16; the arithmetic before it is float32.

    Returns [B, 3, S, S], channels_last. On the CPU numbers out of range raise an IndexError's message; on CUDA, where
    they can't be read without waiting, they are clamped.
    """
    batch: Tensor = _forward(images, index, top, left, flip, partner, lam, table, padding, dtype)
    return batch


def augment_ref(
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
    size = images.shape[1]
    pixels = torch.zeros(len(index), size + 2 * padding, size + 2 * padding, 3, dtype=torch.uint8, device=images.device)
    pixels[:, padding : padding + size, padding : padding + size] = images[index]
    grid = torch.arange(size, device=images.device)
    rows = top[:, None] + grid
    columns = left[:, None] + torch.where(flip[:, None], size - 1 - grid, grid)
    image = torch.arange(len(index), device=images.device)
    pixels = pixels[image[:, None, None], rows[:, :, None], columns[:, None, :]]
    x = table[pixels.long(), torch.arange(3, device=images.device)]
    if partner is not None and lam is not None:
        x = lam * x + (1 - lam) * x[partner]
    return x.to(dtype).permute(0, 3, 1, 2)


def _fake(
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
    shape = (index.shape[0], 3, images.shape[1], images.shape[2])
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)


_forward = define(
    "augment(Tensor images, Tensor index, Tensor top, Tensor left, Tensor flip, Tensor? partner, Tensor? lam,"
    " Tensor table, int padding, ScalarType dtype) -> Tensor",
    augment_ref,
    _fake,
)

"""A training batch out of resident images, an epoch's draws and the number of the step, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.ops._library import define

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def training_batch(
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    partner: Tensor | None,
    lam: Tensor | None,
    box: Tensor | None,
    hole: Tensor | None,
    step: Tensor,
    batch_size: int,
    rows: int,
    table: Tensor,
    padding: int,
    hole_size: int,
    dtype: torch.dtype,
) -> Outputs:
    """Gather, crop, flip, normalise, cut out and mix or paste the batch of one step, whose number lies on the device.

    The images are those of `fastcifar.augment.augment` to the last bit. With `x = table[crop(pad(images[index]))]` over
    positions `step * batch_size` to `+ rows` of the draws, 0 in the hole, they are equal to
    `lam[step] * x + (1 - lam[step]) * x[partner]` or, with a box, `x[partner]` in the box and `x` elsewhere.

    Args:
        images: uint8 [M, S, S, 3], contiguous: the whole split, RGB.
        labels: int64 [M].
        index: int64 [N], the image at each position of the epoch (see `fastcifar.draws.EpochDraws`).
        top: int64 [N] in [0, 2 * padding], the first row of the crop in the image padded with zeros (zero bytes, which
            are normalised like any other byte).
        left: int64 [N] in [0, 2 * padding], the first column of the crop.
        flip: bool [N], whether the crop is mirrored left to right.
        partner: int64 [N], the row of the same batch to mix with, which is cropped and flipped by its own draws; None:
            neither MixUp nor CutMix.
        lam: float32 [number of batches], the weight of the image itself in the mix; None exactly where partner is.
        box: int64 [number of batches, 4], the first row, the row after the last, and so the columns, of what the
            partner covers (CutMix); None mixes the two images (MixUp). Only with partner. The part of a box outside the
            image does not count.
        hole: int64 [N, 2], the first row and column of a square of zeros in the normalised image, after crop and flip
            and before it is mixed or pasted; the part of it outside the image does not count. None: no cutout.
        step: int64 [], which batch of the epoch, from 0. It is read on the device, so that one captured graph makes
            every batch.
        batch_size: of all batches but the last.
        rows: of this batch; fewer than batch_size in an epoch's last one.
        table: float32 [256, 3], the normalised value of each byte in each channel.
        padding: pixels on each side.
        hole_size: the side of the hole in pixels.
        dtype: of the images, float32, bfloat16 or float16; the arithmetic before it is float32.

    Returns:
        images: [rows, 3, S, S] in dtype, channels_last.
        labels: int64 [rows].
        partner_labels: int64 [rows], of the images mixed in; of shape [0] without a partner.
        lam: float32 [], `lam[step]`; of shape [0] without a partner.

    Raises:
        RuntimeError: an argument has another shape, dtype, value or device; the message names it with its value. On
            CUDA the numbers in index, top, left, partner and step can't be read without waiting: those out of range
            are clamped instead.
    """
    batch: Outputs = _forward(
        images,
        labels,
        index,
        top,
        left,
        flip,
        partner,
        lam,
        box,
        hole,
        step,
        batch_size,
        rows,
        table,
        padding,
        hole_size,
        dtype,
    )
    return batch


def training_batch_ref(
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    partner: Tensor | None,
    lam: Tensor | None,
    box: Tensor | None,
    hole: Tensor | None,
    step: Tensor,
    batch_size: int,
    rows: int,
    table: Tensor,
    padding: int,
    hole_size: int,
    dtype: torch.dtype,
) -> Outputs:
    """`training_batch` in plain PyTorch."""
    size, device = images.shape[1], images.device
    row = torch.arange(rows, device=device)
    position = step * batch_size + row
    image = index[position]
    pixels = torch.zeros(rows, size + 2 * padding, size + 2 * padding, 3, dtype=torch.uint8, device=device)
    pixels[:, padding : padding + size, padding : padding + size] = images[image]
    grid = torch.arange(size, device=device)
    i = top[position, None] + grid
    j = left[position, None] + torch.where(flip[position, None], size - 1 - grid, grid)
    pixels = pixels[row[:, None, None], i[:, :, None], j[:, None, :]]
    x = table[pixels.long(), torch.arange(3, device=device)]
    if hole is not None:
        from_corner = grid - hole[position, :, None]  # [rows, 2, S]
        covered = (from_corner >= 0) & (from_corner < hole_size)
        x = x.masked_fill((covered[:, 0, :, None] & covered[:, 1, None, :])[..., None], 0.0)
    own_labels = labels[image]
    if partner is None or lam is None:
        return x.to(dtype).permute(0, 3, 1, 2), own_labels, labels.new_empty(0), table.new_empty(0)
    other = partner[position]
    weight = lam.index_select(0, step.view(1)).view(())  # lam[step] would read step on the host, amid a capture too
    if box is None:
        x = weight * x + (1 - weight) * x[other]
    else:
        top_row, end_row, left_column, end_column = box.index_select(0, step.view(1)).view(4, 1)
        i, j = (grid >= top_row) & (grid < end_row), (grid >= left_column) & (grid < end_column)
        x = torch.where((i[:, None] & j)[..., None], x[other], x)
    return x.to(dtype).permute(0, 3, 1, 2), own_labels, own_labels[other], weight


_forward = define(
    "training_batch(Tensor images, Tensor labels, Tensor index, Tensor top, Tensor left, Tensor flip,"
    " Tensor? partner, Tensor? lam, Tensor? box, Tensor? hole, Tensor step, int batch_size, int rows, Tensor table,"
    " int padding, int hole_size, ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)",
    training_batch_ref,
)

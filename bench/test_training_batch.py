"""Making a training batch (gather, crop, flip, normalise, cut out, mix or paste) as one op, beside eager PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import DEVICE, DTYPES
from torch import Tensor

from fastcifar import ops
from fastcifar.augment import augment, normalization_table

BATCH, IMAGES = 128, 40_000


@pytest.mark.parametrize("case", ["crop and flip", "crop, flip and mix", "crop, flip, cut and paste"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_batch(race: Any, benchmark: Any, case: str, dtype: torch.dtype) -> None:
    benchmark.group = f"training_batch, batch {BATCH}, {dtype}"
    boxed = "paste" in case
    mixed = boxed or "mix" in case
    images = torch.randint(0, 256, (IMAGES, 32, 32, 3), dtype=torch.uint8, device=DEVICE)
    labels = torch.randint(0, 100, (IMAGES,), device=DEVICE)
    index = torch.randperm(IMAGES, device=DEVICE)
    top, left = torch.randint(0, 9, (2, IMAGES), device=DEVICE)
    flip = torch.rand(IMAGES, device=DEVICE) < 0.5
    partner = torch.randint(0, 64, (IMAGES,), device=DEVICE) if mixed else None
    lam = torch.rand(-(-IMAGES // BATCH), device=DEVICE) if mixed else None
    box = torch.tensor([8, 24, 4, 20], device=DEVICE).repeat(-(-IMAGES // BATCH), 1) if boxed else None
    hole = torch.randint(-4, 28, (IMAGES, 2), device=DEVICE) if boxed else None
    step = torch.tensor(17, device=DEVICE)
    rest = (normalization_table((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), DEVICE), 4, 8, dtype)

    def eager() -> tuple[Tensor, ...]:
        rows = slice(17 * BATCH, 18 * BATCH)
        mixing = (partner[rows], lam[17]) if partner is not None and lam is not None else (None, None)
        batch_labels = labels[index[rows]]
        mixed_labels = (batch_labels[mixing[0]],) if mixing[0] is not None else ()
        cutting = (box[17], hole[rows]) if box is not None and hole is not None else (None, None)
        x = augment(images, index[rows], top[rows], left[rows], flip[rows], *mixing, *cutting, *rest)
        return x, batch_labels, *mixed_labels

    def fused() -> tuple[Tensor, ...]:
        return ops.training_batch(
            images, labels, index, top, left, flip, partner, lam, box, hole, step, BATCH, BATCH, *rest
        )

    num_bytes = BATCH * 32 * 32 * 3 * (1 + mixed + dtype.itemsize)
    race(fused, {"eager": eager}, num_bytes, DEVICE)
    benchmark.extra_info["images"] = BATCH

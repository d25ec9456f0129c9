"""Gather, crop, flip, normalise and mix a batch: one op against the same in eager PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import DEVICE, DTYPES

import fastcifar.augment
from fastcifar import ops

BATCH, IMAGES = 128, 40_000


@pytest.mark.parametrize("case", ["crop and flip", "crop, flip and mix"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_augment(race: Any, benchmark: Any, case: str, dtype: torch.dtype) -> None:
    benchmark.group = f"augment, batch {BATCH}, {dtype}"
    mixed = "mix" in case
    given = (
        torch.randint(0, 256, (IMAGES, 32, 32, 3), dtype=torch.uint8, device=DEVICE),
        torch.randint(0, IMAGES, (BATCH,), device=DEVICE),
        torch.randint(0, 9, (BATCH,), device=DEVICE),
        torch.randint(0, 9, (BATCH,), device=DEVICE),
        torch.rand(BATCH, device=DEVICE) < 0.5,
        torch.randperm(BATCH, device=DEVICE) if mixed else None,
        torch.rand((), device=DEVICE) if mixed else None,
        fastcifar.augment.normalization_table((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), DEVICE),
        4,
        dtype,
    )
    num_bytes = BATCH * 32 * 32 * 3 * (1 + mixed + dtype.itemsize)
    rivals = {"eager": lambda: fastcifar.augment.augment(*given)}
    race(lambda: ops.augment(*given), rivals, num_bytes, DEVICE)
    benchmark.extra_info["images"] = BATCH

"""Loaders: images/s of the resident loader against torchvision transforms in a DataLoader with 2 workers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from workers import resident_loader, torchvision_loader, worker

NUM_IMAGES = 40_000
GROUP = "loader, batch 128: crop, flip, normalise"


def measure(benchmark: Any, num_images: int, start: Any, *arguments: Any) -> None:
    benchmark.extra_info["images"] = num_images
    with worker(start, *arguments) as run:
        benchmark.pedantic(run, args=(1,), rounds=5)


@pytest.mark.benchmark(group=GROUP)
@pytest.mark.parametrize("augmentation", ["eager", "compiled", "fused"])
def test_resident(benchmark: Any, augmentation: str) -> None:
    measure(benchmark, NUM_IMAGES, resident_loader, {}, NUM_IMAGES, augmentation)


@pytest.mark.benchmark(group=GROUP)
def test_resident_with_mixup(benchmark: Any) -> None:
    measure(benchmark, NUM_IMAGES, resident_loader, {"mixup_alpha": 0.2}, NUM_IMAGES, "compiled")


@pytest.mark.benchmark(group=GROUP)
def test_torchvision_two_workers(benchmark: Any) -> None:
    pytest.importorskip("PIL")
    measure(benchmark, 10_000, torchvision_loader, 128, 10_000, 2)


@pytest.mark.benchmark(group=GROUP)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="on two cores it is the same as with 2 workers")
def test_torchvision_twelve_workers(benchmark: Any) -> None:
    measure(benchmark, NUM_IMAGES, torchvision_loader, 128, NUM_IMAGES, 12)

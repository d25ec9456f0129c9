"""The loaders: images/s, and processor time and memory on the host, including worker processes."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from workers import loader, worker

NUM_IMAGES = 40_000
ON_CUDA = torch.cuda.is_available()
WORKERS = 12 if ON_CUDA else 2
LOADERS: dict[str, tuple[dict[str, object], int, str | None]] = {
    # settings, images in an epoch, augmentation of the resident loader
    "resident, fused": ({"engine": "fused"}, NUM_IMAGES, "fused"),
    "resident, compiled": ({}, NUM_IMAGES, "compiled"),
    "resident, eager": ({}, NUM_IMAGES, "eager"),
    "images on the host": ({"engine": "fused", "images_on": "host"}, NUM_IMAGES, None),
    "dali": ({"loader": "dali"}, NUM_IMAGES, None),
    f"torchvision, {WORKERS} workers": (
        {"loader": "torchvision", "loader_workers": WORKERS},
        NUM_IMAGES if ON_CUDA else 10_000,
        None,
    ),
}
HAS_DALI = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every loader at batch 128; with --full also at larger batches up to 4096, and with MixUp."""
    full = metafunc.config.getoption("--full")
    grid = [(128, 0.0), (128, 0.2), (512, 0.0), (1024, 0.0), (4096, 0.0)] if full else [(128, 0.0)]
    metafunc.parametrize(("batch_size", "mixup_alpha"), grid)
    metafunc.parametrize("name", LOADERS)


def test_loader(benchmark: Any, name: str, batch_size: int, mixup_alpha: float) -> None:
    if name == "dali" and not HAS_DALI:
        pytest.skip("no nvidia-dali-cuda130: pip install 'fastcifar[dali]'")
    if "torchvision" in name:
        pytest.importorskip("PIL")
    mixed = ", MixUp" if mixup_alpha else ""
    benchmark.group = f"loader, batch {batch_size}: crop, flip, normalise{mixed}; host memory includes PyTorch"
    settings, num_images, augmentation = LOADERS[name]
    settings = {**settings, "batch_size": batch_size, "mixup_alpha": mixup_alpha}
    rounds = 3
    with worker(loader, settings, num_images, augmentation) as run:
        before = run.usage()
        benchmark.pedantic(run, args=(1,), rounds=rounds)
        after = run.usage()
    cpu_ms = (after.cpu_seconds - before.cpu_seconds) * 1e3 / (rounds * num_images / 1e3)
    benchmark.extra_info.update(images=num_images, cpu_ms_per_1000=cpu_ms, host_mib=after.bytes / 2**20)

"""Measurements in processes of their own: what one variant tells the allocator or the compiler, no other one feels."""

from __future__ import annotations

import multiprocessing as mp
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

Run = Callable[[int], float]
"""Does so many units of work and returns the seconds they took on the device."""


@contextmanager
def worker(start: Callable[..., Run], *arguments: Any) -> Iterator[Run]:
    """Calls `start(*arguments)` in a new process and yields a function that runs the result there.

    An error in the process is raised here with its text.
    """
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, start, arguments), daemon=False)
    process.start()
    theirs.close()

    def receive() -> Any:
        try:
            kind, value = ours.recv()
        except EOFError:
            raise RuntimeError(f"the measuring process ended with exit code {process.exitcode}") from None
        if kind == "error":
            raise RuntimeError(value)
        return value

    def run(count: int) -> float:
        ours.send(count)
        return float(receive())

    try:
        receive()
        yield run
    finally:
        ours.close()
        process.join(10)
        process.kill()


def _serve(pipe: Connection, start: Callable[..., Run], arguments: tuple[Any, ...]) -> None:
    try:
        run = start(*arguments)
        pipe.send(("ready", None))
        while True:
            pipe.send(("seconds", run(pipe.recv())))
    except EOFError:
        return
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))


def images(count: int, seed: int = 0) -> Any:
    """A split of random bytes: loaders and steps cost the same on any pixels."""
    import numpy as np

    from fastcifar.sources import Split

    rng = np.random.default_rng(seed)
    return Split(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 100, count))


def training_step(settings: dict[str, Any], num_images: int = 4096) -> Run:
    """Training steps of a config (resident loader included), after its warm-up."""
    from fastcifar.config import Config
    from fastcifar.device import find_device, settle
    from fastcifar.engines import build_engine
    from fastcifar.engines.eager import COMPUTE_DTYPE
    from fastcifar.loaders import ResidentLoader, augmentation_of
    from fastcifar.model import build_model

    config = Config.model_validate(settings)
    device = find_device(config.device)
    config = settle(config, device)
    engine = build_engine(build_model(100, config.width_mult, config.seed), config, device)
    how = augmentation_of(config.engine, device)
    loader = ResidentLoader(images(num_images), config, device, COMPUTE_DTYPE[config.precision], augmentation=how)
    loader.begin(1)
    engine.warm_up([loader.batch(0)])
    num_full = num_images // config.batch_size
    taken = 0

    def run(count: int) -> float:
        nonlocal taken
        _wait(device)
        start = time.perf_counter()
        for _ in range(count):
            engine.train_step(loader.batch(taken % num_full), 0.01)
            taken += 1
        _wait(device)
        return time.perf_counter() - start

    run(2)
    return run


def resident_loader(settings: dict[str, Any], num_images: int, augmentation: Any) -> Run:
    """Whole epochs of the resident loader: draws, transfer, crop, flip, normalise."""
    import torch

    from fastcifar.config import Config
    from fastcifar.device import find_device
    from fastcifar.engines.eager import COMPUTE_DTYPE
    from fastcifar.loaders import ResidentLoader

    config = Config.model_validate(settings)
    device = find_device(config.device)
    dtype = COMPUTE_DTYPE[config.precision] if config.precision != "auto" else torch.float32
    loader = ResidentLoader(images(num_images), config, device, dtype, augmentation=augmentation)
    epoch = 0

    def run(count: int) -> float:
        nonlocal epoch
        _wait(device)
        start = time.perf_counter()
        for _ in range(count):
            epoch += 1
            loader.begin(epoch)
            for step in range(loader.num_batches):
                loader.batch(step)
        _wait(device)
        return time.perf_counter() - start

    run(1)
    return run


def torchvision_loader(batch_size: int, num_images: int, num_workers: int) -> Run:
    """Whole epochs of the ordinary recipe: PIL images, torchvision transforms, a DataLoader with worker processes."""
    import torch
    from torch.utils.data import DataLoader

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # fork: the dataset holds its images already, and spawned workers would have to import torchvision again
    loader = DataLoader(
        PilImages(num_images),
        batch_size,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",
    )

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            for batch, labels in loader:
                batch.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        _wait(device)
        return time.perf_counter() - start

    run(1)
    return run


class PilImages:
    """Map-style data set: RandomCrop, RandomHorizontalFlip, ToTensor, Normalize, as every tutorial writes it."""

    def __init__(self, num_images: int) -> None:
        from PIL import Image

        transforms = _torchvision().transforms
        split = images(num_images)
        self._items = [(Image.fromarray(x), int(y)) for x, y in zip(split.images, split.labels, strict=True)]
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)),
            ]
        )

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self._items[index]
        return self._transform(image), label


def _torchvision() -> Any:
    import sys

    sys.path.append(os.path.join(os.path.dirname(__file__), "..", "tests"))
    from fastcifar.loaders.torchvision import import_torchvision

    return import_torchvision()


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)

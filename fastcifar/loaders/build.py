"""From settings to a loader."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastcifar.config import Config
from fastcifar.data.dataset import Split
from fastcifar.loaders.batch import Loader
from fastcifar.loaders.host import HostLoader
from fastcifar.loaders.resident import ResidentLoader, augmentation_of


def build_loader(
    split: Split, config: Config, device: torch.device, dtype: torch.dtype, note: Callable[[str], None]
) -> Loader:
    """The loader a settled config names, over the images of `split`.

    Arguments:
        device, dtype: where the batches are needed, and in what type.
        note: receives what a user should know but that stops nothing.

    Errors: `UsageError` if a package that the loader needs is missing; `DeviceMemoryError`.
    """
    if config.loader == "torchvision":
        from fastcifar.loaders.torchvision import TorchvisionLoader  # what it needs is optional, and slow to import

        return TorchvisionLoader(split, config, device, dtype)
    if config.loader == "dali":
        from fastcifar.loaders.dali import DaliLoader

        return DaliLoader(split, config, device, dtype)
    augmentation = augmentation_of(config.engine, device)
    if config.images_on == "host":
        return HostLoader(split, config, device, dtype, note, augmentation=augmentation)
    return ResidentLoader(split, config, device, dtype, augmentation=augmentation)

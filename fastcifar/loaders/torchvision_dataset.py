"""The data set of the torchvision loader. A worker process imports this module, and torchvision with it."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fastcifar.config import Config
from fastcifar.loaders.torchvision_import import import_torchvision

import_torchvision()
from torchvision import transforms  # noqa: E402
from torchvision.transforms import functional  # noqa: E402


class AugmentedImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """RandomCrop, RandomHorizontalFlip, ToTensor and Normalize over PIL images, as every tutorial writes it.

    The key of an item is (image, seed, mirrored). The transforms draw from the seed, so that a sample is the same
    whichever process makes it. `mirrored` is for `flip = alternating`, where the epoch's draws decide the side.

    Args:
        images: uint8 [N, S, S, 3], in memory that the worker processes share.
        labels: int64 [N].
        config: crop_padding, flip, mean and std are read.
    """

    def __init__(self, images: Tensor, labels: Tensor, config: Config) -> None:
        self._images, self._labels = images, labels
        steps: list[Any] = []
        if config.crop_padding:
            steps.append(transforms.RandomCrop(images.shape[1], padding=config.crop_padding))
        if config.flip == "random":
            steps.append(transforms.RandomHorizontalFlip())
        steps += [transforms.ToTensor(), transforms.Normalize(config.mean, config.std)]
        self._transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, item: tuple[int, int, bool]) -> tuple[Tensor, int]:
        index, seed, mirrored = item
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would look at every device first
        image = Image.fromarray(self._images[index].numpy())
        if mirrored:
            image = functional.hflip(image)
        return self._transform(image), int(self._labels[index])

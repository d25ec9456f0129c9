"""The protocol of all loaders, and the batches of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from fastcifar.augment import normalization_table, normalize
from fastcifar.batch import Batch
from fastcifar.config import Config
from fastcifar.data.dataset import Split
from fastcifar.draws import EpochDraws, draw_epoch
from fastcifar.target import Target


class Loader(Protocol):
    """Training batches of one split, an epoch at a time. Every image comes once an epoch.

    The content of a batch depends only on seed, epoch and step, so that a resumed run sees the batches that it would
    have seen without the interruption.

    Attributes:
        num_images: the number of training images.
        batch_size: the number of images in a batch.
        num_batches: the number of batches in an epoch; the last batch may be smaller.
    """

    num_images: int
    batch_size: int
    num_batches: int

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """Starts an epoch. It may be called before the epoch begun last has ended.

        Args:
            epoch: counted from 1.
            first_step: the step whose batch will be asked for first, counted from 0.
        """
        ...

    def batch(self, step: int) -> Batch:
        """The batch of a step of the epoch begun last.

        Args:
            step: counted from 0. Only the resident loader takes steps in any order.

        Returns:
            The batch, on the device.
        """
        ...

    def close(self) -> None:
        """Ends worker processes and threads. The loader must not be used afterwards."""
        ...


def draws_of(config: Config, epoch: int, num_images: int, size: int) -> EpochDraws:
    """The draws of an epoch with a config's settings.

    Args:
        config: the settings.
        epoch: counted from 1.
        num_images: the number of training images.
        size: their side, in pixels.
    """
    return draw_epoch(
        config.seed,
        epoch,
        num_images=num_images,
        batch_size=config.batch_size,
        crop_padding=config.crop_padding,
        flip=config.flip,
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        cutout=config.cutout,
        size=size,
    )


class EvalBatches:
    """Validation or test batches, in the order of the split: normalised, never cropped, flipped or mixed.

    Each process has its part of the split, which may be empty. The images are on the device from the first use on,
    unless `images_on = host`. The last batch may be smaller.

    Args:
        split: the images and labels.
        target: the batches are made for its device, in its dtype and memory format, with its `eval_batch_size`.

    Attributes:
        split: the argument.
    """

    def __init__(self, split: Split, target: Target) -> None:
        self.split, self._target = split, target
        self._where = "cpu" if target.config.images_on == "host" else target.device
        self._data: tuple[Tensor, Tensor] | None = None

    def __iter__(self) -> Iterator[Batch]:
        target, config = self._target, self._target.config
        if self._data is None:
            own = target.ranks.rows(len(self.split))
            arrays = self.split.images[own], self.split.labels[own]
            self._data = torch.from_numpy(arrays[0]).to(self._where), torch.from_numpy(arrays[1]).to(self._where)
        if not len(self._data[1]):
            return
        table = normalization_table(config.mean, config.std, target.device)
        for images, labels in zip(*(torch.split(data, config.eval_batch_size) for data in self._data), strict=True):
            x = normalize(images.to(target.device), table, target.dtype)
            yield Batch(x.contiguous(memory_format=target.memory_format), labels.to(target.device))

"""What every loader must be able to do, and the batches of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from fastcifar.augment import normalization_table, normalize
from fastcifar.batch import Batch
from fastcifar.config import Config
from fastcifar.data.dataset import Split
from fastcifar.draws import EpochDraws, draw_epoch
from fastcifar.target import Target


class Loader(Protocol):
    """Training batches of one split, an epoch at a time. Every image comes once an epoch.

    What a batch holds depends on the seed, the epoch and the step alone, so that a cut run goes on as if never stopped.

    Attributes:
        num_images, batch_size: as given.
        num_batches: of an epoch; the last one may be smaller.
    """

    num_images: int
    batch_size: int
    num_batches: int

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """Starts an epoch, counted from 1, at the step that is asked for first; also amid another epoch."""
        ...

    def batch(self, step: int) -> Batch:
        """The batch of a step of the epoch begun last, counted from 0. Loaders but the resident one go in order."""
        ...

    def close(self) -> None:
        """Ends worker processes and threads. Nothing may be asked for after it."""
        ...


def draws_of(config: Config, epoch: int, num_images: int) -> EpochDraws:
    """The draws of an epoch, counted from 1, with a config's settings."""
    return draw_epoch(
        config.seed,
        epoch,
        num_images=num_images,
        batch_size=config.batch_size,
        crop_padding=config.crop_padding,
        flip=config.flip,
        mixup_alpha=config.mixup_alpha,
    )


def eval_batches(split: Split, target: Target) -> Iterator[Batch]:
    """Validation or test batches of `eval_batch_size` images: normalised, never cropped, flipped or mixed."""
    config, device = target.config, target.device
    table = normalization_table(config.mean, config.std, device)
    for start in range(0, len(split.labels), config.eval_batch_size):
        rows = slice(start, start + config.eval_batch_size)
        images = normalize(torch.from_numpy(split.images[rows]).to(device), table, target.dtype)
        images = images.contiguous(memory_format=target.memory_format)
        yield Batch(images, torch.from_numpy(split.labels[rows]).to(device))

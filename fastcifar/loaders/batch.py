"""What every loader yields, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastcifar.augment import normalization_table, normalize
from fastcifar.config import Config
from fastcifar.data.dataset import Split
from fastcifar.draws import EpochDraws, draw_epoch

MEMORY_FORMAT = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Batch:
    """One step's input, on the device.

    Arguments:
        images: [B, 3, S, S] in the compute dtype and the config's memory format.
        labels: int64 [B].
        partner_labels: int64 [B], the labels of the images mixed in; None without MixUp.
        lam: float32 [], the weight of `labels`; None without MixUp.
    """

    images: Tensor
    labels: Tensor
    partner_labels: Tensor | None = None
    lam: Tensor | None = None

    def first(self, count: int) -> Batch:
        """Its first `count` images, as a batch."""
        partner = None if self.partner_labels is None else self.partner_labels[:count]
        return Batch(self.images[:count], self.labels[:count], partner, self.lam)


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


def eval_batches(split: Split, config: Config, device: torch.device, dtype: torch.dtype) -> Iterator[Batch]:
    """Validation or test batches of `config.eval_batch_size`: normalised, never cropped, flipped or mixed."""
    table = normalization_table(config.mean, config.std, device)
    for start in range(0, len(split.labels), config.eval_batch_size):
        rows = slice(start, start + config.eval_batch_size)
        images = normalize(torch.from_numpy(split.images[rows]).to(device), table, dtype)
        images = images.contiguous(memory_format=MEMORY_FORMAT[config.memory_format])
        yield Batch(images, torch.from_numpy(split.labels[rows]).to(device))

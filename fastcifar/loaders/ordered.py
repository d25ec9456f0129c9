"""What torchvision's and DALI's loader share: the draws, the order of the steps, cutout, MixUp and CutMix."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fastcifar.augment import cut_out, mix
from fastcifar.batch import Batch
from fastcifar.data.dataset import Split
from fastcifar.draws import EpochDraws
from fastcifar.loaders.protocol import draws_of
from fastcifar.target import Target


class OrderedLoader(ABC):
    """Training batches in the order of the epoch's draws. The device cuts and mixes the images, as the resident loader.

    Args:
        split: the training images, uint8 [N, S, S, 3].
        target: the batches are made for its device, in its dtype and memory format. The settings `seed`, `batch_size`,
            and of the augmentation of its config are read here.
    """

    def __init__(self, split: Split, target: Target) -> None:
        self._target, self._config, self._device = target, target.config, target.device
        self._size = split.images.shape[1]
        self.num_images, self.batch_size = len(split.labels), target.config.batch_size
        self.num_batches = -(-self.num_images // self.batch_size)
        self._next = self.num_batches
        self._on_device: dict[str, Tensor] = {}

    @abstractmethod
    def _start(self, epoch: int, draws: EpochDraws, first_step: int) -> None:
        """Starts to make the epoch's batches from `first_step` on. Batches left over from another epoch are dropped."""

    @abstractmethod
    def _fetch(self, step: int) -> tuple[Tensor, Tensor]:
        """The next batch, on the device.

        Returns:
            Images, float32 [B, 3, S, S], cropped, flipped and normalised; and labels, int64 [B].
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the processes and threads that make the batches."""

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """Draws an epoch, and starts to make its batches.

        Args:
            epoch: counted from 1.
            first_step: the first step to make a batch for, counted from 0.
        """
        draws = draws_of(self._config, epoch, self.num_images, self._size)
        arrays = {"partner": draws.partner, "lam": draws.lam, "box": draws.box, "hole": draws.hole}
        self._on_device = {name: torch.from_numpy(a).to(self._device) for name, a in arrays.items() if a is not None}
        self._next = first_step
        self._start(epoch, draws, first_step)

    def batch(self, step: int) -> Batch:
        """The batch of the next step.

        Args:
            step: counted from 0; must be the next step.

        Returns:
            The batch, on the device.

        Raises:
            ValueError: another step is next.
        """
        if step != self._next or step >= self.num_batches:
            raise ValueError(f"step {step} of the epoch is asked for, and {self._next} is next: steps go in order")
        images, labels = self._fetch(step)
        self._next += 1
        partner_labels = lam = None
        draws, rows = self._on_device, slice(step * self.batch_size, (step + 1) * self.batch_size)
        x = images.permute(0, 2, 3, 1)
        if "hole" in draws:
            x = cut_out(x, draws["hole"][rows], self._config.cutout)
        if "lam" in draws:
            partner, lam = draws["partner"][rows], draws["lam"][step]
            partner_labels = labels[partner]
            x = mix(x, partner, lam, draws["box"][step] if "box" in draws else None)
        images = x.permute(0, 3, 1, 2).to(self._target.dtype).contiguous(memory_format=self._target.memory_format)
        return Batch(images, labels, partner_labels, lam)

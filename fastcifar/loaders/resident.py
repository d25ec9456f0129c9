"""The resident loader: the whole split is on the device as bytes, and the device makes the batches from the draws.

Nothing is copied from the device to the host. The draws are copied to the device, once an epoch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastcifar import ops
from fastcifar.augment import augment, normalization_table
from fastcifar.batch import Batch
from fastcifar.data.dataset import Split
from fastcifar.draws import EpochDraws
from fastcifar.errors import DeviceMemoryError
from fastcifar.loaders.protocol import draws_of
from fastcifar.ops.training_batch import training_batch_ref
from fastcifar.run.clock import wait
from fastcifar.target import Target

Augmentation = Literal["eager", "compiled", "fused"]


def augmentation_of(engine: str, device: torch.device) -> Augmentation:
    """How an engine makes its batches by default.

    On CUDA the eager engine compiles its augmentation too: op by op it would be a dozen kernels.

    Args:
        engine: `eager`, `compiled` or `fused`.
        device: the device that makes the batches.
    """
    if engine == "fused":
        return "fused"
    return "compiled" if engine == "compiled" or device.type == "cuda" else "eager"


class _Placed:
    """A split on a device; see `_place`."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.split = split  # kept alive, so that no other split gets its id
        self.images = torch.from_numpy(split.images).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        wait(device)  # the runs that share it work on streams of their own


_placed: weakref.WeakValueDictionary[tuple[int, torch.device], _Placed] = weakref.WeakValueDictionary()


def _place(split: Split, device: torch.device) -> _Placed:
    """A split's images and labels on a device: one copy for all loaders of this process that use it.

    Raises:
        DeviceMemoryError: the split does not fit the device.
    """
    key = id(split), device
    try:
        placed = _placed.get(key) or _Placed(split, device)
    except torch.OutOfMemoryError as error:
        gib = split.images.nbytes / 2**30
        raise DeviceMemoryError(
            f"the {gib:.1f} GiB of training images do not fit on {device}: keep them in the host's memory with "
            f"--images-on host ({error})"
        ) from error
    _placed[key] = placed
    return placed


class _Ahead:
    """A function of the epoch, which is called for the next epoch in a thread whenever an epoch is asked for.

    Args:
        function: gives the same for the same epoch.
    """

    def __init__(self, function: Callable[[int], dict[str, Tensor]]) -> None:
        self._function = function
        self._pool = ThreadPoolExecutor(1, "draws")
        self._next: tuple[int, Future[dict[str, Tensor]]] | None = None

    def __call__(self, epoch: int) -> dict[str, Tensor]:
        found = self._next[1].result() if self._next and self._next[0] == epoch else self._function(epoch)
        if not self._next or self._next[0] != epoch + 1:  # else it was asked for when the steps were warmed up
            self._next = epoch + 1, self._pool.submit(self._function, epoch + 1)
        return found

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(cancel_futures=True)


class ResidentLoader:
    """Training batches of one split; the device crops, flips, cuts and mixes the images. Steps go in any order.

    Args:
        split: the images, uint8 [N, S, S, 3], and their labels.
        target: the batches are made on its device, in its dtype and memory format. The settings `seed`, `batch_size`,
            `mean`, `std`, and of the augmentation of its config are read.
        augmentation: how a batch is made: `eager`, op by op; `compiled`, one or two kernels by torch.compile; `fused`,
            the extension's kernel. The results are equal bit for bit.

    Raises:
        DeviceMemoryError: the split does not fit the device.
    """

    def __init__(self, split: Split, target: Target, *, augmentation: Augmentation = "eager") -> None:
        config, device = target.config, target.device
        self._config, self._device, self._dtype = config, device, target.dtype
        self._memory_format = target.memory_format
        self.num_images, self.batch_size = len(split.labels), config.batch_size
        self.num_batches = -(-self.num_images // self.batch_size)
        self._placed = _place(split, device)
        self._images, self._labels = self._placed.images, self._placed.labels
        self._table = normalization_table(config.mean, config.std, device)
        self._fused = augmentation == "fused"
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        make: Callable[..., Tensor] = partial(
            augment, padding=config.crop_padding, hole_size=config.cutout, dtype=target.dtype
        )
        # Only full batches are compiled: the epoch's smaller last batch would cost a second compilation.
        self._augment = torch.compile(make, dynamic=False) if augmentation == "compiled" else make
        self._augment_rest = make
        at: Callable[..., tuple[Tensor, ...]] = ops.training_batch if self._fused else training_batch_ref
        self._batch_at = torch.compile(at, dynamic=False) if augmentation == "compiled" else at
        self._batch_at_rest = at
        self._draws: dict[str, Tensor] = {}
        self._drawn: Callable[[int], dict[str, Tensor]] = self._draw
        if device.type == "cuda":  # on the CPU a step needs all cores
            self._drawn = _Ahead(self._draw)

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """Copies an epoch's draws to the device: the only copy until the epoch ends.

        On CUDA the host draws the next epoch then, while the device trains on this one.

        Args:
            epoch: counted from 1.
            first_step: not needed here, because steps go in any order.
        """
        self._set(self._drawn(epoch))

    def _draw(self, epoch: int) -> dict[str, Tensor]:
        return self._on_host(draws_of(self._config, epoch, self.num_images, self._images.shape[1]))

    def set_draws(self, draws: EpochDraws) -> None:
        """Copies an epoch's draws to the device, into the memory of the previous epoch's draws."""
        self._set(self._on_host(draws))

    def _on_host(self, draws: EpochDraws) -> dict[str, Tensor]:
        """An epoch's draws in memory that the device copies from."""
        arrays = {name: array for name, array in vars(draws).items() if array is not None}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        if self._device.type == "cpu":
            return tensors
        with torch.cuda.device(self._device):
            return {name: tensor.pin_memory() for name, tensor in tensors.items()}

    def _set(self, draws: dict[str, Tensor]) -> None:
        for name, host in draws.items():
            if name in self._draws:
                self._draws[name].copy_(host, non_blocking=True)
            else:
                self._draws[name] = host.to(self._device, non_blocking=True, copy=True)

    def close(self) -> None:
        """Ends the thread that draws ahead, if there is one."""
        if isinstance(self._drawn, _Ahead):
            self._drawn.close()

    def batch(self, step: int) -> Batch:
        """The batch of a step of the epoch begun last.

        Args:
            step: counted from 0.

        Returns:
            The batch, on the device; the last batch of an epoch may be smaller.
        """
        if self._fused:
            rows = min(self.batch_size, self.num_images - step * self.batch_size)
            return self.batch_at(self._step.fill_(step), rows)
        return self.make(self._images, self._labels, self.draws(step))

    def draws(self, step: int) -> dict[str, Tensor]:
        """The draws of one batch, on the device: views of the epoch's draws. `lam` is [1], `box` is [1, 4].

        Args:
            step: counted from 0.
        """
        rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
        one = slice(step, step + 1)
        return {name: t[one if name in ("lam", "box") else rows] for name, t in self._draws.items()}

    def make(self, images: Tensor, labels: Tensor, draws: dict[str, Tensor]) -> Batch:
        """Makes one batch. All tensors are on the device.

        Args:
            images: uint8 [M, S, S, 3].
            labels: int64 [M].
            draws: the draws of one batch, as `draws` returns them; `index` counts in `images` and `labels`.

        Returns:
            The batch.
        """
        if self._fused:
            return self._made(self._batch_at, images, labels, draws, self._step.zero_(), len(draws["index"]))
        index, top, left, flip = (draws[name] for name in ("index", "top", "left", "flip"))
        labels = labels[index]
        partner = lam = partner_labels = None
        if "lam" in draws:
            partner, lam = draws["partner"], draws["lam"][0]
            partner_labels = labels[partner]
        box = draws["box"][0] if "box" in draws else None
        cut = self._augment if len(index) == self.batch_size else self._augment_rest
        cuts = cut(images, index, top, left, flip, partner, lam, box, draws.get("hole"), self._table)
        cuts = cuts.contiguous(memory_format=self._memory_format)
        return Batch(cuts, labels, partner_labels, lam)

    def batch_at(self, step: Tensor, rows: int) -> Batch:
        """The batch of a step whose number is in device memory, so that one captured step makes every batch.

        Args:
            step: int64 [], counted from 0. The host does not read it.
            rows: the number of images: `batch_size`, or fewer in the epoch's last batch.

        Returns:
            The batch, on the device.
        """
        make = self._batch_at if rows == self.batch_size else self._batch_at_rest
        return self._made(make, self._images, self._labels, self._draws, step, rows)

    def _made(
        self,
        make: Callable[..., tuple[Tensor, ...]],
        images: Tensor,
        labels: Tensor,
        draws: dict[str, Tensor],
        step: Tensor,
        rows: int,
    ) -> Batch:
        config = self._config
        images, labels, partner_labels, lam = make(
            images,
            labels,
            draws["index"],
            draws["top"],
            draws["left"],
            draws["flip"],
            draws.get("partner"),
            draws.get("lam"),
            draws.get("box"),
            draws.get("hole"),
            step,
            self.batch_size,
            rows,
            self._table,
            config.crop_padding,
            config.cutout,
            self._dtype,
        )
        images = images.contiguous(memory_format=self._memory_format)
        return Batch(images, labels, partner_labels, lam) if "lam" in draws else Batch(images, labels)

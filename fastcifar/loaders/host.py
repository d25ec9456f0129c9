"""The host loader, for a split that does not fit the device: the images stay on the host, and each batch is copied.

A thread gathers the bytes of the next batches into pinned buffers. A CUDA stream copies them to the device while the
step before still computes. The resident loader then makes the batch, so that the batches of both loaders are equal to
the last bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcifar.batch import Batch
from fastcifar.data.dataset import Split
from fastcifar.loaders.protocol import draws_of
from fastcifar.loaders.resident import Augmentation, ResidentLoader
from fastcifar.target import Target

_AHEAD = 3
"""Buffers: one is in use, one is being copied, one is being gathered."""


class HostLoader:
    """Training batches of one split that stays in the host's memory. Steps go in order.

    The device holds the labels, 8 bytes an image, and crops, flips and mixes the images.

    Args:
        split: as for `ResidentLoader`.
        target: as for `ResidentLoader`.
        note: is called with a remark that says where the images are.
        augmentation: as for `ResidentLoader`.
    """

    def __init__(
        self,
        split: Split,
        target: Target,
        note: Callable[[str], None],
        *,
        augmentation: Augmentation = "eager",
    ) -> None:
        self._config, self._images, device = target.config, split.images, target.device
        self._labels = torch.from_numpy(split.labels).to(device)
        self._maker = ResidentLoader(Split(split.images[:0], split.labels), target, augmentation=augmentation)
        self.num_images, self.batch_size = self._maker.num_images, self._maker.batch_size
        self.num_batches = self._maker.num_batches
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        shape = (min(self.batch_size, self.num_images), *split.images.shape[1:])
        self._rows = torch.arange(shape[0], device=device)
        self._slots = [_Slot(shape, device) for _ in range(_AHEAD)]
        self._thread: threading.Thread | None = None
        self._next = 0
        gib = split.images.nbytes / 2**30
        note(f"images_on = host: {gib:.2f} GiB of training images stay in the host's memory, batches are copied ahead")

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """Draws an epoch, and starts to gather its batches.

        Args:
            epoch: counted from 1.
            first_step: the first step to gather, counted from 0.
        """
        self.close()
        draws = draws_of(self._config, epoch, self.num_images, self._images.shape[1])
        self._maker.set_draws(draws)
        self._next = first_step
        if self._stream is not None:  # work on the current stream may still read the memory that the slots were given
            self._stream.wait_stream(torch.cuda.current_stream(self._labels.device))
        self._free: SimpleQueue[_Slot | None] = SimpleQueue()
        self._ready: SimpleQueue[_Slot | BaseException] = SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        self._thread = threading.Thread(
            target=self._gather, args=(draws.index, first_step), name="fastcifar-gather", daemon=True
        )
        self._thread.start()

    def batch(self, step: int) -> Batch:
        """The batch of the next step. An error of the thread is raised here.

        Args:
            step: counted from 0; must be the next step.

        Returns:
            The batch, on the device.

        Raises:
            ValueError: another step is next.
        """
        if step != self._next or step >= self.num_batches:
            raise ValueError(f"step {step} of the epoch is asked for, and {self._next} is next: steps go in order")
        slot = self._ready.get()
        if isinstance(slot, BaseException):
            self._ready.put(slot)  # for the next call: the thread has ended
            raise slot
        draws = self._maker.draws(step)
        labels = self._labels[draws["index"]]
        batch = self._maker.make(slot.acquire()[: len(labels)], labels, {**draws, "index": self._rows[: len(labels)]})
        slot.release()
        self._free.put(slot)
        self._next += 1
        return batch

    def close(self) -> None:
        """Ends the thread, and waits for the copies that it started."""
        if self._thread is None:
            return
        self._free.put(None)
        self._thread.join()
        self._thread = None
        if self._stream is not None:
            self._stream.synchronize()

    def _gather(self, order: NDArray[np.int64], first_step: int) -> None:
        """The thread's work: fills each slot that becomes free with the next batch."""
        try:
            for step in range(first_step, self.num_batches):
                slot = self._free.get()
                if slot is None:
                    return
                index = order[step * self.batch_size : (step + 1) * self.batch_size]
                slot.fill(self._images, index, self._stream)
                self._ready.put(slot)
        except BaseException as error:
            self._ready.put(error)


class _Slot:
    """Memory for the bytes of one batch, on the host and on the device; it is never written while it is read.

    Args:
        shape: of the bytes, [B, S, S, 3].
        device: the device that the batches are made on.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self._host = torch.empty(shape, dtype=torch.uint8, pin_memory=on_cuda)
        self._device = torch.empty_like(self._host, device=device) if on_cuda else self._host
        # The copy waits for the step that still reads the device's bytes, and the thread waits for the copy.
        self._copied = torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]
        self._used = torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]

    def fill(self, images: NDArray[np.uint8], index: NDArray[np.int64], stream: torch.cuda.Stream | None) -> None:
        """Gathers images[index] and copies them to the device on `stream`.

        Args:
            images: uint8 [N, S, S, 3].
            index: int64 [b], at most as many as the slot holds.
            stream: None on the CPU.
        """
        if self._copied is not None:
            self._copied.synchronize()
        rows = self._host[: len(index)]
        np.take(images, index, axis=0, out=rows.numpy(), mode="clip")  # mode="raise" would gather into a copy first
        if stream is not None and self._copied is not None and self._used is not None:
            with torch.cuda.stream(stream):
                stream.wait_event(self._used)
                self._device[: len(index)].copy_(rows, non_blocking=True)
                self._copied.record(stream)

    def acquire(self) -> Tensor:
        """The bytes on the device, uint8 [B, S, S, 3]. Later work on the current stream waits for the copy."""
        if self._copied is not None:
            torch.cuda.current_stream(self._device.device).wait_event(self._copied)
        return self._device

    def release(self) -> None:
        """Gives the slot back. Later work on the current stream must not read its bytes."""
        if self._used is not None:
            self._used.record(torch.cuda.current_stream(self._device.device))

"""The ordinary recipe, for comparison: PIL images, torchvision's transforms, a DataLoader with worker processes.

Order and MixUp come from the epoch's draws. torchvision itself draws crop and flip, from a seed for each sample of an
epoch. So the batches of a run are the same with any number of workers, and after an interruption.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from fastcifar.data.dataset import Split
from fastcifar.draws import EpochDraws, draw_seeds
from fastcifar.loaders.ordered import OrderedLoader
from fastcifar.loaders.torchvision_import import import_torchvision
from fastcifar.loaders.workers import check_processes, explained, num_workers
from fastcifar.signals import STOP
from fastcifar.target import Target

_DATASET = "fastcifar.loaders.torchvision_dataset"

Item = tuple[int, int, bool]
"""Image, seed, mirrored: see `AugmentedImages`."""


class TorchvisionLoader(OrderedLoader):
    """Training batches from torchvision's transforms in `config.loader_workers` processes; 0 is one for each core.

    Args:
        split: the images, uint8 [N, S, S, 3], and their labels.
        target: as for `OrderedLoader`; the settings `mean`, `std` and `loader_workers` are read too.

    Raises:
        UsageError: torchvision is missing.
        LoaderError: a worker process is gone or cannot be started, or shared memory is full.
    """

    def __init__(self, split: Split, target: Target) -> None:
        super().__init__(split, target)
        config = target.config
        import_torchvision()
        from fastcifar.loaders.torchvision_dataset import AugmentedImages

        workers = num_workers(config, self.num_images)
        check_processes(workers)
        with explained():  # one copy for all processes
            images = torch.from_numpy(split.images).clone().share_memory_()  # type: ignore[no-untyped-call]
        self._order = _Order(self.batch_size)
        with explained(), _as_many_workers_as_asked_for():
            self._loader: DataLoader[Any] | None = DataLoader(
                AugmentedImages(images, torch.from_numpy(split.labels), config),
                batch_sampler=self._order,
                num_workers=workers,
                worker_init_fn=_settle_in,
                multiprocessing_context=_clean_processes(),
                persistent_workers=True,
                pin_memory=target.device.type == "cuda",
                generator=torch.Generator(),  # for the workers' base seed, which nothing here uses; not the global one
            )
        self._batches: Iterator[list[Tensor]] | None = None
        self._workers: list[BaseProcess] = []
        self._at_exit: Finalize[None] | None = None

    def _start(self, epoch: int, draws: EpochDraws, first_step: int) -> None:
        assert self._loader is not None
        mirrored = draws.flip if self._config.flip == "alternating" else np.zeros_like(draws.flip)
        seeds = draw_seeds(self._config.seed, epoch, self.num_images)
        self._order.items = list(zip(draws.index.tolist(), seeds.tolist(), mirrored.tolist(), strict=True))
        self._order.first_step = first_step
        others = multiprocessing.active_children()
        try:
            with explained(), _as_many_workers_as_asked_for():
                self._batches = iter(self._loader)  # the first time it starts the workers, later it calls them back
        finally:
            if self._at_exit is None:
                self._workers = [process for process in multiprocessing.active_children() if process not in others]
                # Not atexit, which comes after multiprocessing's wait for all children where this is a child itself.
                self._at_exit = Finalize(None, self.close, exitpriority=10)

    def _fetch(self, step: int) -> tuple[Tensor, Tensor]:
        assert self._batches is not None
        with explained():
            images, labels = next(self._batches)
        return images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)

    def close(self) -> None:
        """Asks the worker processes to end, and kills those that do not end."""
        if self._at_exit is not None:
            self._at_exit.cancel()
        self._batches = self._loader = None
        for process in self._workers:
            if process.is_alive():
                process.kill()
            process.join()
        self._workers = []


class _Order(Sampler[list[Item]]):
    """The items of each batch of an epoch, from `first_step` on."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.items: list[Item] = []
        self.first_step = 0

    def __iter__(self) -> Iterator[list[Item]]:
        for start in range(self.first_step * self._batch_size, len(self.items), self._batch_size):
            yield self.items[start : start + self._batch_size]


def _clean_processes() -> BaseContext:
    """Where workers are forked from a server process that has imported torchvision and nothing else has happened in.

    A fork of this process would take over whatever locks and OpenMP threads it holds at that moment (and with CUDA a
    context that is of no use), a spawned worker imports torch and torchvision by itself. Measured, two workers on two
    busy cores, seconds to the first batch: fork 0.07, this 1.9 (0.02 for later loaders), spawn 5.9.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_DATASET])
    # Ctrl-C, a closed terminal's SIGHUP and a batch system's signals go to all processes of a job. This one ends its
    # step and saves its state, for which it needs its workers: they inherit the block.
    resource_tracker.ensure_running()  # it unblocks two of the signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _settle_in(worker: int) -> None:
    """Prepares a worker process; it is called first."""
    for number in STOP:  # a server that was running before we asked for one blocks nothing
        signal.signal(number, signal.SIG_IGN)
    # DataLoader's own watch looks at the server, which lives as long as a worker does: both would outlive a killed run.
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(run: BaseProcess) -> None:
    run.join()
    os._exit(1)


@contextlib.contextmanager
def _as_many_workers_as_asked_for() -> Iterator[None]:
    """DataLoader warns of more workers than cores."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield

"""Several runs on one device in one process. They take their steps in turn, and share one copy of the images.

For a GPU that one small model does not fill. Each run has a session and, on CUDA, a stream of its own, so that the
kernels of a run fill the gaps that the others leave. A run's bits are those of a process of its own.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import torch

from fastcifar import signals
from fastcifar.checkpoint import starting_weights
from fastcifar.config import Config
from fastcifar.data import sources
from fastcifar.data.dataset import Dataset, Split
from fastcifar.errors import FastcifarError, InterruptedRunError, UsageError
from fastcifar.evaluation import facts_of
from fastcifar.ranks import Ranks
from fastcifar.run.folder import RunFolder
from fastcifar.target import Target
from fastcifar.trainer import checked, fit, settled, splits_of, written
from fastcifar.ui.display import LOADING, Display

_COMMON = ("data", "mirror", "device", "deterministic")
"""The settings that must be the same for runs in one process."""


def train_together(
    configs: Sequence[Config], outs: Sequence[Path | None], command: Sequence[str], *, progress: bool = True
) -> list[Path | FastcifarError]:
    """Trains several models at the same time, and writes each result to a run folder of its own.

    A run that fails leaves the others alone. The times in the run folders are those of all runs together, and so is the
    energy, because they share the device.

    Args:
        configs: the settings of each run; `data`, `mirror`, `device` and `deterministic` must be the same.
        outs: the run folder of each, as for `trainer.train`.
        command: the words of the user's command line, for the record.
        progress: whether the progress of the first run is shown. Notes are always shown.

    Returns:
        For each run the path of its folder, or the error that ended it.

    Raises:
        UsageError: the settings do not fit each other, the machine or the images. Nothing was trained.
        DataError: the images cannot be found, downloaded or read.
        InterruptedRunError: a signal came; the state of every run was saved first.
    """
    for name in _COMMON:
        if len(values := {getattr(config, name) for config in configs}) != 1:
            raise UsageError(
                f"{name}: runs in one process need the same value, and these have {sorted(map(str, values))}"
            )
    if Ranks.started().size > 1:
        raise UsageError(
            "several runs in one process, and several processes for one run: only one of the two at a time"
        )
    targets = [settled(config) for config in configs]
    for out in outs:
        if out is not None:
            RunFolder.check_unused(out)
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(Display(shown=progress))
        stop = stack.enter_context(signals.noted())
        display.phase(LOADING)
        dataset = sources.load(targets[0].config.data, mirror=targets[0].config.mirror, progress=progress)
        splits = _splits(dataset, targets)
        targets = [checked(target, dataset, train, display) for target, (train, _) in zip(targets, splits, strict=True)]
        images = facts_of(dataset)
        initial = [starting_weights(target.config, images, display.note) for target in targets]
        runs = [
            RunFolder.create(
                target.config, out, command, dataset.digest, images=images, together=len(targets), note=display.note
            )
            for target, out in zip(targets, outs, strict=True)
        ]
        stack.enter_context(targets[0].reproducible())  # until all runs have ended, and not the first of them
        silent = Display(io.StringIO(), shown=False)
        turns = []
        for i, (run, target, parts) in enumerate(zip(runs, targets, splits, strict=True)):
            training = fit(run, target, dataset, parts, initial[i], silent if i else display, stop)
            stack.enter_context(contextlib.closing(training))
            turns.append(_Turns(run, training, target.device))
        while going := [turn for turn in turns if turn.result is None]:
            for turn in going:
                turn.take()
    results = [turn.result for turn in turns if turn.result is not None]
    for result in results:
        if isinstance(result, InterruptedRunError):
            raise result
    return results


def _splits(dataset: Dataset, targets: Sequence[Target]) -> list[tuple[Split, Split]]:
    """For each run its training and validation images; the same objects where the settings are the same."""
    known: dict[tuple[int, int], tuple[Split, Split]] = {}
    found = []
    for target in targets:
        key = (target.config.val_size, target.config.split_seed)
        parts = splits_of(dataset, target.config)  # also refuses unfit settings
        found.append(known.setdefault(key, parts))
    return found


def _written(run: RunFolder, training: Generator[None, None, Path]) -> Generator[None, None, Path]:
    with written(run):
        return (yield from training)


class _Turns:
    """A run that is trained a step at a time.

    Args:
        run: its folder.
        training: takes a step each time that it is asked.
        device: where it works; on CUDA on a stream of its own.

    Attributes:
        result: the path of the run folder, or the error that ended the run; None while it goes on.
    """

    def __init__(self, run: RunFolder, training: Generator[None, None, Path], device: torch.device) -> None:
        self.result: Path | FastcifarError | None = None
        self._training = _written(run, training)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def take(self) -> None:
        """Takes the next step. Does not wait for the device."""
        with self._on_its_stream():
            try:
                next(self._training)
            except StopIteration as end:
                self.result = end.value
            except FastcifarError as error:
                self.result = error

    @contextlib.contextmanager
    def _on_its_stream(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

"""One assembled run: model, engine, loader, learning rates and steps, set up here and nowhere else."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastcifar.data.dataset import Split
from fastcifar.engines import Engine, Means, Steps, build_engine, build_steps
from fastcifar.loaders import Augmentation, Loader, build_loader, eval_batches
from fastcifar.model import build_model
from fastcifar.optim import lr_table
from fastcifar.target import Target

Note = Callable[[str], None]


class Session:
    """A model on its device, with what trains and evaluates it; and, once it is fed, the images and the steps of a run.

    Whoever trains, evaluates, measures or profiles does it through a session, so that what is measured is what users
    run. A session is a context: running out of memory in it becomes a `DeviceMemoryError`, and its end is the end of
    whatever makes the batches.

    Args:
        target: what to compute on; its device becomes this process's own.
        num_classes: of the data set.

    Attributes:
        target: as given.
        engine: over the model with the weights of the config's seed.
        loader: makes the batches. This one and the next two are there once `feed` was called.
        lrs: float64 [epochs * num_batches], the learning rate of every step of the run.
        steps: launched op by op, or replayed from a graph.
    """

    engine: Engine
    loader: Loader
    lrs: NDArray[np.float64]
    steps: Steps

    def __init__(self, target: Target, num_classes: int) -> None:
        self.target = target
        self._context = contextlib.ExitStack()
        target.claim()
        with target.memory_explained():
            model = build_model(num_classes, target.config.width_mult, target.config.seed)
            self.engine = build_engine(model, target)

    def feed(
        self, split: Split, note: Note, *, augmentation: Augmentation | None = None, launched: bool = False
    ) -> None:
        """Gives the session its training images. To be called once, inside the context.

        Args:
            split: the training images.
            note: receives what a user should know but that stops nothing.
            augmentation: what makes the resident loader's batches, if not what the engine makes them with.
            launched: steps are launched op by op where they would be one CUDA graph.

        Raises:
            UsageError: a package that the loader needs is missing.
            DeviceMemoryError: the images do not fit the device.
        """
        self.loader = build_loader(split, self.target, note, augmentation=augmentation)
        self._context.callback(self.loader.close)
        self.lrs = lr_table(self.target.config, self.loader.num_batches)
        self.steps = build_steps(self.engine, self.loader, self.lrs, self.target, note, launched=launched)

    def train(self) -> Iterator[int]:
        """Takes steps without end, run after run, and yields after each how many images it had."""
        for epoch in itertools.cycle(range(1, self.target.config.epochs + 1)):
            self.steps.begin(epoch)
            for step in range(self.loader.num_batches):
                yield self.steps.take(step)

    def evaluate(self, split: Split, see: Callable[[Tensor, Tensor], None] | None = None) -> Means:
        """Loss and accuracy on `split`; `see` is shown each batch's logits and labels (see `Engine.evaluate`)."""
        return self.engine.evaluate(eval_batches(split, self.target), see)

    def __enter__(self) -> Session:
        self._context.enter_context(self.target.memory_explained())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._context.__exit__(kind, error, traceback)

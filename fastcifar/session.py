"""One assembled run: model, engine, loader, learning rates and steps, set up here and nowhere else."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastcifar.data.dataset import Split
from fastcifar.data.images import scaled
from fastcifar.engines import Engine, Means, StagedSteps, Steps, build_engine, build_steps
from fastcifar.errors import UsageError
from fastcifar.loaders import Augmentation, EvalBatches, Loader, build_loader
from fastcifar.model import build_model, copy_tensors
from fastcifar.optim import lr_table
from fastcifar.ranks import ALONE
from fastcifar.run import affinity
from fastcifar.target import Target

Note = Callable[[str], None]


class Session:
    """A model on its device with its engine and, after `feed`, the loader, learning rates and steps of a run.

    Training, evaluation, measuring and profiling all use a session, so that a measurement is of what users run. A
    session is a context. Running out of memory inside it raises DeviceMemoryError; what the config's `deterministic`
    switches is switched inside it; and leaving it closes the loader.

    Args:
        target: the settled config and its device. The device becomes this process's current device.
        num_classes: the number of classes of the data set.
        initial: tensors of the model by name, which replace those that are drawn from the config's seed.
        launched: launches the steps op by op even where they would be one CUDA graph. For measuring.

    Attributes:
        target: the argument.
        engine: trains and evaluates the model, whose initial weights come from the config's seed.
        loader: makes the batches of whole images. Set by `feed`.
        lrs: float64 [epochs * num_batches], the learning rate of every step of the run. Set by `feed`.
        steps: takes the steps, launched op by op or replayed from a CUDA graph. Set by `feed`.
    """

    engine: Engine
    loader: Loader
    lrs: NDArray[np.float64]
    steps: Steps

    def __init__(
        self,
        target: Target,
        num_classes: int,
        initial: Mapping[str, Tensor] | None = None,
        *,
        launched: bool = False,
    ) -> None:
        self.target, self._launched = target, launched
        self._context = contextlib.ExitStack()
        self._evaluated: EvalBatches | None = None
        target.claim()
        with target.memory_explained():
            config = target.config
            model = build_model(num_classes, config.width_mult, config.seed, config.channels, config.init)
            copy_tensors(model, initial or {})
            self.engine = build_engine(model, target, captured=target.makes_batches and not launched)

    def feed(self, split: Split, note: Note, *, augmentation: Augmentation | None = None) -> None:
        """Gives the session its training images. Must be called once, inside the context.

        Args:
            split: the training images.
            note: is called with each remark for the user.
            augmentation: how the resident loader makes a batch; None means as the engine does by default.

        Raises:
            UsageError: a package that the loader needs is missing.
            DeviceMemoryError: the images do not fit the device.
        """

        def fed(split: Split, target: Target, note: Note) -> tuple[Loader, Steps]:
            loader = build_loader(split, target, note, augmentation=augmentation)
            self._context.callback(loader.close)
            self.lrs = lr_table(target.config, loader.num_batches)
            return loader, build_steps(self.engine, loader, self.lrs, target, note, launched=self._launched)

        on_cpu = self.target.device.type == "cpu"
        if on_cpu and self.target.config.loader != "torchvision":  # it has processes, which would count as others
            self._context.enter_context(affinity.kept_apart(note))
        self.loader, self.steps = fed(split, self.target, note)
        if epochs := self.target.config.low_res_epochs:
            small = Split(scaled(split.images, self.target.config.low_res), split.labels)
            target = _for_small_images(self.target, split.images.shape[1])
            _, first = fed(small, target, lambda remark: None)  # the same remarks again
            self.steps = StagedSteps(first, self.steps, epochs)

    def train(self, steps: Steps | None = None) -> Iterator[int]:
        """Takes steps on whole images without end; after the last epoch it starts with the first of them again.

        Args:
            steps: what takes them in place of the session's own steps.

        Yields:
            The number of images of each step.
        """
        steps, config = steps or self.steps, self.target.config
        for epoch in itertools.cycle(range(config.low_res_epochs + 1, config.epochs + 1)):
            steps.begin(epoch)
            for step in range(self.loader.num_batches):
                yield steps.take(step)

    def average(self, epoch: int, split: Split) -> None:
        """Adds an epoch's weights to the average of the last epochs, if there is one. To be called after every epoch.

        After the last epoch the model becomes the average, with batch-norm statistics of the training images as they
        are, neither cropped nor mixed.

        Args:
            epoch: counted from 1.
            split: the training images.
        """
        if (average := self.engine.average) is None:
            return
        average.update(epoch)
        if epoch == self.target.config.epochs:
            self.engine.apply_average()
            self.engine.estimate_statistics(EvalBatches(split, replace(self.target, ranks=ALONE)))

    def evaluate(self, split: Split, see: Callable[[Tensor, Tensor], None] | None = None) -> Means:
        """Evaluates the model on a split.

        Args:
            split: the images and labels.
            see: as for `Engine.evaluate`.

        Returns:
            Mean loss and accuracy.
        """
        if self._evaluated is None or self._evaluated.split is not split:
            self._evaluated = EvalBatches(split, self.target)  # kept for the next epoch
        return self.engine.evaluate(self._evaluated, see)

    def __enter__(self) -> Session:
        self._context.enter_context(self.target.memory_explained())
        self._context.enter_context(self.target.reproducible())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._context.__exit__(kind, error, traceback)


def _for_small_images(target: Target, side: int) -> Target:
    """The target of the epochs on small copies of images of `side` pixels: crop and cutout shrink with them."""
    config = target.config
    if config.low_res >= side:
        raise UsageError(f"low_res = {config.low_res}: the images have {side}x{side} pixels; allowed: below {side}")
    lengths = {name: round(getattr(config, name) * config.low_res / side) for name in ("crop_padding", "cutout")}
    return replace(target, config=config.model_copy(update=lengths))

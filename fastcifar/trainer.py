"""Training, from the images to the run folder: `train` starts a run, `resume` goes on with an interrupted one."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from fastcifar import paths, signals
from fastcifar.checkpoint import check_finite, remedy, restore, save, starting_weights
from fastcifar.config import Config, has_default_normalization
from fastcifar.data import procedural, sources
from fastcifar.data.dataset import Dataset, Split, channel_statistics
from fastcifar.data.published import PUBLISHED
from fastcifar.engines import Means
from fastcifar.errors import DataError, FastcifarError, InterruptedRunError, NonFiniteError, UsageError
from fastcifar.evaluation import facts_of, measure_test, same_images
from fastcifar.loaders import check_available
from fastcifar.model import BLOCKS, count_parameters
from fastcifar.ranks import ALONE, Ranks
from fastcifar.run import failure
from fastcifar.run.clock import Clocks
from fastcifar.run.facts import best_epoch
from fastcifar.run.folder import RunFolder
from fastcifar.run.followed import FollowedRun
from fastcifar.run.loggers import check_logger, logged
from fastcifar.run.telemetry import Telemetry
from fastcifar.session import Session
from fastcifar.target import Target
from fastcifar.text import quoted
from fastcifar.ui.display import LOADING, Display

Record = dict[str, Any]


def train(config: Config, out: Path | None, command: Sequence[str], *, progress: bool = True) -> Path:
    """Trains one model, and writes the result to a new run folder.

    If torchrun has started this process as one of several, they train the model together: each on its part of every
    batch. The first process writes the run folder.

    Args:
        config: the settings. Before they are recorded, every `auto` is settled and the path of the images is made
            absolute.
        out: the run folder, new or empty; None makes runs/<preset>/<time>-s<seed>.
        command: the words of the user's command line, for the record.
        progress: whether the progress is shown. Notes are always shown.

    Returns:
        The path of the run folder.

    Raises:
        FastcifarError: any of its kinds. Once the run folder exists, the error is also recorded there.
        InterruptedRunError: one of `signals.STOP` came; the state was saved first.
    """
    ranks = Ranks.started()
    target = settled(config, ranks)
    if out is not None and ranks.is_first:
        RunFolder.check_unused(out)  # before anything is downloaded or written
    with ranks.joined(), _display(ranks, progress) as display:
        display.phase(LOADING)
        shown = progress and ranks.is_first
        dataset = _load(target, lambda: sources.load(target.config.data, mirror=config.mirror, progress=shown))
        splits = splits_of(dataset, target.config, ranks)
        target = checked(target, dataset, splits[0], display)
        images = facts_of(dataset)
        initial = starting_weights(target.config, images, display.note) if ranks.is_first else {}
        made = None
        if ranks.is_first:
            made = RunFolder.create(target.config, out, command, dataset.digest, images=images, note=display.note)
        run = _shared(made, ranks)
        with written(run), signals.noted() as stop:
            return _ended(fit(run, target, dataset, splits, initial, display, stop))


def resume(path: Path, overrides: Mapping[str, object], command: Sequence[str], *, progress: bool = True) -> Path:
    """Goes on with the run in `path` from its last checkpoint, as if it had never stopped.

    Args:
        path: the run folder.
        overrides: values by the name of the setting. Only the settings in `config.RESUMABLE` are allowed: they do not
            change the result. `data` names another copy of the same images.
        command: the words of the user's command line, for the record.
        progress: as for `train`.

    Returns:
        The path of the run folder.

    Raises:
        FastcifarError: as for `train`.
    """
    ranks = Ranks.started()
    with ranks.joined(), _display(ranks, progress) as display:
        opened = RunFolder.open(path, note=display.note) if ranks.is_first else None
        run = _shared(opened, ranks)
        with written(run), signals.noted() as stop:
            config = run.config.model_copy(update=dict(overrides))
            target = Target.of(config, ranks)
            check_logger(target.config)
            if opened is not None:
                opened.note_differences(target.config.device)
            display.phase(LOADING)

            def load() -> Dataset:
                if opened is None:
                    return sources.load(config.data, mirror=config.mirror, progress=False)
                return same_images(opened, config, progress=progress)

            dataset = _load(target, load)
            initial: dict[str, Tensor] = {}
            if opened is not None and not opened.has_checkpoint():
                initial = starting_weights(target.config, facts_of(dataset), display.note)
            splits = splits_of(dataset, target.config, ranks)
            return _ended(fit(run, target, dataset, splits, initial, display, stop))


def settled(config: Config, ranks: Ranks = ALONE) -> Target:
    """The target of a new run: every `auto` is settled, and every path is absolute, before they are recorded.

    Args:
        config: the settings.
        ranks: this process among the processes of the run.

    Raises:
        UsageError: as for `Target.of`, or `init_from` is no path.
    """
    places = {"data": sources.absolute(config.data), "init_from": paths.absolute("init_from", config.init_from)}
    return Target.of(config.model_copy(update=places), ranks)


def checked(target: Target, dataset: Dataset, train: Split, display: Display) -> Target:
    """The target with the images' normalisation, when all is there that a new run needs.

    It is for the time before the run folder is made, so that none is left behind.

    Args:
        target: of the new run.
        dataset: its images.
        train: its training images.
        display: says the normalisation.

    Raises:
        UsageError: a package is missing that the loader or the logger needs.
        LoaderError: as for `check_available`.
    """
    target = dataclasses.replace(target, config=normalized(target.config, dataset, train, display))
    check_available(target, len(train))
    check_logger(target.config)
    return target


def _display(ranks: Ranks, progress: bool) -> Display:
    """The display of a run. Of several processes only the first one is heard: the others would say the same."""
    return Display(shown=progress) if ranks.is_first else Display(io.StringIO(), shown=False)


def _load(target: Target, load: Callable[[], Dataset]) -> Dataset:
    """The images, decoded by the first process of each machine, and then found by the others in its cache.

    Raises:
        DataError: they are not the first process's.
    """
    with target.ranks.first_here_goes_first():
        dataset = load()
    if target.ranks.from_first(dataset.digest) != dataset.digest:
        raise DataError(
            f"{target.config.data!r} holds other images here than for the first process of the run: their digest is "
            f"{dataset.digest[:12]}; all machines need the same images"
        )
    return dataset


def _shared(run: RunFolder | None, ranks: Ranks) -> RunFolder | FollowedRun:
    """The run of all processes, of which the first one has opened the folder."""
    path, config = ranks.from_first((Path(), Config()) if run is None else (run.path, run.config))
    return FollowedRun(path, config) if run is None else run


@contextlib.contextmanager
def written(run: RunFolder | FollowedRun) -> Iterator[None]:
    """A context in which a run folder is this process's to write, and has a record of what ends the context.

    Raises:
        UsageError: the run is finished, and stays as it is; or another process writes to its folder.
    """
    if isinstance(run, FollowedRun):
        yield
        return
    with run.locked():
        if run.summary() is not None:
            raise UsageError(f"{run.path}: the run is finished ({run.config.epochs} epochs); nothing to resume")
        with failure.recorded(run.path):
            yield


def _ended(training: Generator[None, None, Path]) -> Path:
    """What `fit` returns when all its steps are taken."""
    while True:
        try:
            next(training)
        except StopIteration as end:
            return cast(Path, end.value)


def fit(
    run: RunFolder | FollowedRun,
    target: Target,
    dataset: Dataset,
    splits: tuple[Split, Split],
    initial: Mapping[str, Tensor],
    display: Display,
    stop: signals.Stop,
) -> Generator[None, None, Path]:
    """Trains a run from its last checkpoint, or from the start, to its end.

    Args:
        run: receives metrics, checkpoints and the result.
        target: the settled config and its device.
        dataset: its test images are measured once, at the end.
        splits: the training and the validation images.
        initial: weights to start from, by their name in the model; of several processes the first one has them.
        display: shows the progress.
        stop: has a signal's number as soon as one asks the run to stop.

    Yields:
        After each step, so that several runs can take turns.

    Returns:
        The path of the run folder.

    Raises:
        FastcifarError: any of its kinds.
        InterruptedRunError: the run was asked to stop; its state was saved first.
    """
    config, ranks, (train_split, val_split) = target.config, target.ranks, splits
    with contextlib.ExitStack() as stack:
        telemetry = stack.enter_context(Telemetry(target.device, display.note))
        session = stack.enter_context(Session(target, dataset.num_classes, initial))
        session.feed(train_split, display.note)
        engine, steps, num_batches = session.engine, session.steps, session.loader.num_batches
        clocks = Clocks(target.device)
        first_epoch, first_step = restore(run, engine, clocks, telemetry, num_batches, ranks)
        for remark in target.remarks:
            display.note(remark)
        if not len(val_split):
            display.note("val_size = 0: all training images are trained on, and nothing is validated")
        display.phase("compiling" if config.engine == "compiled" else "warming up")
        clocks.compile_seconds += steps.warm_up()
        last_saved = time.monotonic()

        name = f"{config.preset}-s{config.seed}-{run.id[:6]}"
        # Of several processes the first one logs.
        logging = config if ranks.is_first else config.model_copy(update={"logger": "none"})
        log = stack.enter_context(logged(logging, run.path, name, first_epoch, display.note))
        display.start(config.epochs, len(train_split), first_epoch, first_step * config.batch_size)
        for epoch in range(first_epoch, config.epochs + 1):
            with telemetry.training(), clocks.training():
                steps.begin(epoch, first_step)
                for step in range(first_step, num_batches):
                    display.images(steps.take(step))
                    yield
                    if stopping := ranks.agreed(stop.number, step):
                        break
                if step + 1 == num_batches:
                    session.average(epoch, train_split)
            engine.unite()
            if stopping and step + 1 < num_batches:
                save(run, engine, epoch, step + 1, clocks, telemetry)
                raise _interrupted(run, stopping, f"epoch {epoch}, step {step + 1} of {num_batches}")

            first_step = 0
            lr = float(session.lrs[epoch * num_batches - 1])
            means = engine.pop_means(len(train_split))
            record = _record(run, epoch, lr, means, clocks, len(train_split)) | telemetry.epoch()
            is_due = epoch % config.eval_every == 0 or epoch == config.epochs
            if is_due and len(val_split) and math.isfinite(means.loss):
                display.phase("validating")
                val = session.evaluate(val_split)
                record |= {"val_loss": val.loss, "val_accuracy": val.accuracy}
                best = best_epoch(run.records)
                if config.keep_best and (best is None or val.accuracy > best["val_accuracy"]):
                    engine.keep_best()
            run.append(record)
            log.epoch(epoch, record)
            _check_finite(run, f"after epoch {epoch} (lr {lr:g})", training=means.loss, validation=record["val_loss"])
            display.epoch(record)
            stopping = ranks.maximum(stop.number)
            if epoch == config.epochs or stopping or time.monotonic() - last_saved >= config.checkpoint_seconds:
                save(run, engine, epoch + 1, 0, clocks, telemetry)
                last_saved = time.monotonic()
            else:
                check_finite(run, engine, epoch + 1, 0)  # `save` does so too
            if stopping and epoch < config.epochs:
                raise _interrupted(run, stopping, f"epoch {epoch}")

        test = None
        if config.test:
            display.phase("testing")
            test, predictions = measure_test(session, dataset)
            _check_finite(run, "of the trained model", test=test.loss)
            run.write_predictions(predictions)
            log.epoch(config.epochs, {"test_loss": test.loss, "test_accuracy": test.accuracy})
    if isinstance(run, RunFolder):
        _finish(run, config, test, clocks, telemetry, count_parameters(engine.model))
    return run.path


def _record(
    run: RunFolder | FollowedRun, epoch: int, lr: float, means: Means, clocks: Clocks, num_images: int
) -> Record:
    # The previous epoch's record. If that line was damaged, the last record that is whole.
    last: Record = run.records[-1] if run.records else {"epoch": 0, "train_seconds": 0.0}
    images = num_images * (epoch - last["epoch"])
    return {
        "epoch": epoch,
        "lr": lr,
        "train_loss": means.loss,
        "train_accuracy": means.accuracy,
        "val_loss": None,
        "val_accuracy": None,
        "images_per_second": images / (clocks.train_seconds - last["train_seconds"]),
        "train_seconds": clocks.train_seconds,
    }


def normalized(config: Config, dataset: Dataset, train: Split, display: Display) -> Config:
    """The settings with the mean and std of the training images, where none was set and the images are not like CIFAR.

    Colour images of 32x32 pixels keep CIFAR's: they may be a part of CIFAR or a corruption of it, and compare with it.

    Args:
        config: `mean` and `std` are read.
        dataset: the run's images.
        train: its training images.
        display: says the numbers, if it is shown: nobody need do anything about them.
    """
    known = dataset.name in PUBLISHED or dataset.digest == procedural.DIGEST
    if known or not has_default_normalization(config):
        return config
    mean, std = channel_statistics(train)
    shown = [",".join(f"{value:.4f}" for value in values) for values in (mean, std)]
    if train.images.shape[1:] == (32, 32, 3) and not train.is_grey():
        display.remark(f"mean and std are CIFAR's; those of these images are --mean {shown[0]} --std {shown[1]}")
        return config
    display.remark(f"mean and std are those of the {len(train):,} training images: {' '.join(shown)}")
    return config.model_copy(update={"mean": mean, "std": std})


def splits_of(dataset: Dataset, config: Config, ranks: Ranks = ALONE) -> tuple[Split, Split]:
    """The training and the validation images of a run.

    Args:
        dataset: the run's images.
        config: settled.
        ranks: this process among the processes of the run.

    Raises:
        UsageError: settings do not fit the images.
    """
    train, val = dataset.train_val(config.val_size, config.split_seed)
    if config.channels == 1 and not (train.is_grey() and dataset.test.is_grey()):
        raise UsageError(f"channels = 1: {dataset.name} has images with colours; allowed: 3")
    if config.engine == "compiled" and len(train) < config.batch_size:
        raise UsageError(
            f"batch_size = {config.batch_size}, engine = 'compiled': only whole batches are compiled, and there are "
            f"{len(train):,} training images; allowed: 1 to {len(train):,}"
        )
    _check_smallest_batch(config, train, ranks)
    return train, val


def _check_smallest_batch(config: Config, train: Split, ranks: Ranks) -> None:
    """Refuses settings with which a process cannot train on its part of the last batch of an epoch.

    Raises:
        UsageError: it has no image; or one whose last map has one pixel, which PyTorch's batch norm refuses.
    """
    smallest = len(train) % config.batch_size or config.batch_size
    what = f"batch_size = {config.batch_size}, val_size = {config.val_size}: the last batch of an epoch has "
    what += f"{smallest:,} of the {len(train):,} training images"
    if smallest < ranks.size:
        raise UsageError(f"{what}, fewer than the {ranks.size} processes; choose another of the two")
    side = min(train.images.shape[1], config.low_res) if config.low_res_epochs else train.images.shape[1]
    has_one_pixel = side <= math.prod(stride for _, stride in BLOCKS)
    is_alone = smallest // ranks.size == 1 and not (config.sync_batch_norm and ranks.size > 1)
    if config.engine != "fused" and has_one_pixel and is_alone:
        shared = f" for {ranks.size} processes" * (ranks.size > 1)
        raise UsageError(
            f"{what}{shared}, and engine = {config.engine!r} cannot train on a single image of {side}x{side} pixels: "
            "the network's last map has one pixel, and batch norm needs two; choose another of the two, or engine = "
            "'fused'"
        )


def _finish(
    run: RunFolder, config: Config, test: Means | None, clocks: Clocks, telemetry: Telemetry, parameters: int
) -> None:
    run.draw_curves()  # first, so that its time counts in `process_seconds`
    last = run.records[-1] if run.records and run.records[-1]["epoch"] == config.epochs else {}  # damaged
    summary: Record = {k: last.get(k) for k in ("train_loss", "train_accuracy", "val_loss", "val_accuracy")}
    summary |= {
        "epochs": config.epochs,
        "test_loss": test.loss if test else None,
        "test_accuracy": test.accuracy if test else None,
        "parameters": parameters,
        **clocks.state(),
        **telemetry.summary(),
    }
    if config.keep_best and (best := best_epoch(run.records)) is not None:
        summary |= {"best_epoch": best["epoch"], "best_val_accuracy": best["val_accuracy"]}
    run.write_summary(summary)
    with contextlib.suppress(FastcifarError, OSError):  # an error of the disk may have kept the last save from it
        run.remove_leftovers()


def _check_finite(run: RunFolder | FollowedRun, when: str, **losses: float | None) -> None:
    """Ends the run if a loss, named by its split, is not finite.

    Raises:
        NonFiniteError: one of `losses` is infinite or not a number.
    """
    for split, loss in losses.items():
        if loss is not None and not math.isfinite(loss):
            advice = remedy(run.config)
            raise NonFiniteError(f"the {split} loss is not finite {when}: {advice}; metrics are in {run.path}")


def _interrupted(run: RunFolder | FollowedRun, number: int, where: str) -> InterruptedRunError:
    name = signal.Signals(number).name
    go_on = f"saved at {where}; go on with: fastcifar train --resume {quoted(run.path)}"
    return InterruptedRunError(f"stopped by {name}: {go_on}", number)

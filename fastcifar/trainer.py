"""Training, from the images to the run folder: `train` starts a run, `resume` goes on with an interrupted one."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcifar import paths, signals
from fastcifar.checkpoint import REMEDY, check_finite, restore, save, starting_weights
from fastcifar.config import Config, has_default_normalization
from fastcifar.data import procedural, sources
from fastcifar.data.dataset import Dataset, Split, channel_statistics
from fastcifar.data.published import PUBLISHED
from fastcifar.engines import Means
from fastcifar.errors import InterruptedRunError, NonFiniteError, UsageError
from fastcifar.evaluation import facts_of, measure_test, same_images
from fastcifar.loaders import check_available
from fastcifar.model import count_parameters
from fastcifar.run import failure
from fastcifar.run.clock import Clocks
from fastcifar.run.facts import best_epoch
from fastcifar.run.folder import RunFolder
from fastcifar.run.loggers import check_logger, logged
from fastcifar.run.telemetry import Telemetry
from fastcifar.session import Session
from fastcifar.target import Target
from fastcifar.text import quoted
from fastcifar.ui.display import LOADING, Display

Record = dict[str, Any]


def train(config: Config, out: Path | None, command: Sequence[str], *, progress: bool = True) -> Path:
    """Trains one model, and writes the result to a new run folder.

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
    places = {"data": sources.absolute(config.data), "init_from": _absolute(config.init_from)}
    target = Target.of(config.model_copy(update=places))
    if out is not None:
        RunFolder.check_unused(out)  # before anything is downloaded or written
    with Display(shown=progress) as display:
        display.phase(LOADING)
        dataset = sources.load(target.config.data, mirror=config.mirror, progress=progress)
        splits = splits_of(dataset, target.config)
        target = Target(normalized(target.config, dataset, splits[0], display))
        check_available(target, len(splits[0]))  # before the run folder is made, so that none is left behind
        check_logger(target.config)
        images = facts_of(dataset)
        initial = starting_weights(target.config, images, display.note)
        run = RunFolder.create(target.config, out, command, dataset.digest, images=images, note=display.note)
        with run.locked(), failure.recorded(run.path):
            return _fit(run, target, dataset, splits, initial, display)


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
    with Display(shown=progress) as display:
        run = RunFolder.open(path, note=display.note)
        with run.locked(), failure.recorded(run.path):
            if run.summary() is not None:
                raise UsageError(f"{run.path}: the run is finished ({run.config.epochs} epochs); nothing to resume")
            target = Target.of(run.config.model_copy(update=dict(overrides)))
            check_logger(target.config)
            run.note_differences(target.config.device)
            display.phase(LOADING)
            dataset = same_images(run, target.config)
            initial: dict[str, Tensor] = {}
            if not run.has_checkpoint():
                initial = starting_weights(target.config, facts_of(dataset), display.note)
            return _fit(run, target, dataset, splits_of(dataset, target.config), initial, display)


def _absolute(path: str) -> str:
    """The path of a run, independent of the working folder; nothing where nothing is given.

    Raises:
        UsageError: it is no path.
    """
    try:
        return str(paths.given(path).absolute()) if path else ""
    except (OSError, ValueError) as error:
        raise UsageError(f"init_from = {path}: {getattr(error, 'strerror', None) or error}") from error


def _fit(
    run: RunFolder,
    target: Target,
    dataset: Dataset,
    splits: tuple[Split, Split],
    initial: Mapping[str, Tensor],
    display: Display,
) -> Path:
    config, (train_split, val_split) = target.config, splits
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals.noted())
        telemetry = stack.enter_context(Telemetry(target.device, display.note))
        session = stack.enter_context(Session(target, dataset.num_classes, initial))
        session.feed(train_split, display.note)
        engine, steps, num_batches = session.engine, session.steps, session.loader.num_batches
        clocks = Clocks(target.device)
        first_epoch, first_step = restore(run, engine, clocks, telemetry, num_batches)
        if target.why:
            display.note(target.why)
        if target.is_emulated:
            display.note(f"{config.precision} is emulated on {target.device}: expect it to be slower than fp32")
        if not len(val_split):
            display.note("val_size = 0: all training images are trained on, and nothing is validated")
        display.phase("compiling" if config.engine == "compiled" else "warming up")
        clocks.compile_seconds += steps.warm_up()
        last_saved = time.monotonic()

        name = f"{config.preset}-s{config.seed}-{run.id[:6]}"
        log = stack.enter_context(logged(config, run.path, name, first_epoch, display.note))
        display.start(config.epochs, len(train_split), first_epoch, first_step * config.batch_size)
        for epoch in range(first_epoch, config.epochs + 1):
            with telemetry.training(), clocks.training():
                steps.begin(epoch, first_step)
                for step in range(first_step, num_batches):
                    display.images(steps.take(step))
                    if stop.number:
                        break
                if step + 1 == num_batches:
                    session.average(epoch, train_split)
            if stop.number and step + 1 < num_batches:
                save(run, engine, epoch, step + 1, clocks, telemetry)
                raise _interrupted(run, stop.number, f"epoch {epoch}, step {step + 1} of {num_batches}")

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
            if epoch == config.epochs or stop.number or time.monotonic() - last_saved >= config.checkpoint_seconds:
                save(run, engine, epoch + 1, 0, clocks, telemetry)
                last_saved = time.monotonic()
            else:
                check_finite(run, engine, epoch + 1, 0)  # `save` does so too
            if stop.number and epoch < config.epochs:
                raise _interrupted(run, stop.number, f"epoch {epoch}")

        test = None
        if config.test:
            display.phase("testing")
            test, predictions = measure_test(session, dataset)
            _check_finite(run, "of the trained model", test=test.loss)
            run.write_predictions(predictions)
            log.epoch(config.epochs, {"test_loss": test.loss, "test_accuracy": test.accuracy})
    _finish(run, config, test, clocks, telemetry, count_parameters(engine.model))
    return run.path


def _record(run: RunFolder, epoch: int, lr: float, means: Means, clocks: Clocks, num_images: int) -> Record:
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
    """The settings with the mean and std of the training images, where none was set and the images are not CIFAR's.

    Args:
        config: `mean` and `std` are read.
        dataset: the run's images. The procedural set, which is made in CIFAR's shape, counts as CIFAR.
        train: its training images.
        display: says the numbers, if it is shown: nobody need do anything about them.
    """
    known = dataset.name in PUBLISHED or dataset.digest == procedural.DIGEST
    if known or not has_default_normalization(config):
        return config
    mean, std = channel_statistics(train)
    shown = " ".join(",".join(f"{value:.4f}" for value in values) for values in (mean, std))
    display.remark(f"mean and std are those of the {len(train):,} training images: {shown}")
    return config.model_copy(update={"mean": mean, "std": std})


def splits_of(dataset: Dataset, config: Config) -> tuple[Split, Split]:
    """The training and the validation images of a run.

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
    return train, val


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


def _check_finite(run: RunFolder, when: str, **losses: float | None) -> None:
    """Ends the run if a loss, named by its split, is not finite.

    Raises:
        NonFiniteError: one of `losses` is infinite or not a number.
    """
    for split, loss in losses.items():
        if loss is not None and not math.isfinite(loss):
            raise NonFiniteError(f"the {split} loss is not finite {when}: {REMEDY}; metrics are in {run.path}")


def _interrupted(run: RunFolder, number: int, where: str) -> InterruptedRunError:
    name = signal.Signals(number).name
    go_on = f"saved at {where}; go on with: fastcifar train --resume {quoted(run.path)}"
    return InterruptedRunError(f"stopped by {name}: {go_on}", number)

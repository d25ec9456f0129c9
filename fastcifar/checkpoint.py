"""The state from which a run goes on bit for bit: every tensor that a step reads or writes, epoch and step, clocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from fastcifar.config import Config
from fastcifar.engines import Engine
from fastcifar.errors import CheckpointError, NonFiniteError, UsageError
from fastcifar.model import MobileNet, copy_tensors
from fastcifar.ranks import Ranks
from fastcifar.run import schema
from fastcifar.run.checkpoint import check_training_state
from fastcifar.run.clock import Clocks
from fastcifar.run.facts import best_epoch
from fastcifar.run.folder import RunFolder
from fastcifar.run.followed import FollowedRun
from fastcifar.run.telemetry import Telemetry

Weights = Literal["last", "best"]


def remedy(config: Config) -> str:
    """Advice for a run whose numbers became infinite or not a number."""
    if config.precision == "fp16":
        return "lower --lr, warm it up (--lr-warmup-epochs), or use --precision bf16 in place of fp16"
    return "lower --lr, or warm it up (--lr-warmup-epochs)"


def save(
    run: RunFolder | FollowedRun, engine: Engine, epoch: int, step: int, clocks: Clocks, telemetry: Telemetry
) -> None:
    """Saves a checkpoint.

    Args:
        run: the locked run folder that receives the checkpoint.
        engine: its tensors and its loss scale are saved. Those of several processes must have been united.
        epoch: the epoch to go on with, counted from 1.
        step: the step of that epoch to go on with, counted from 0.
        clocks: their times are saved.
        telemetry: its totals are saved.

    Raises:
        NonFiniteError: as for `check_finite`. The previous checkpoint is kept.
    """
    check_finite(run, engine, epoch, step)
    state = {"epoch": epoch, "step": step, "clocks": clocks.state(), "scaler": engine.scaler.state_dict()}
    state["telemetry"] = telemetry.state()
    run.save_checkpoint(engine.tensors(), state)


def check_finite(run: RunFolder | FollowedRun, engine: Engine, epoch: int, step: int) -> None:
    """Ends a run whose state is worth nothing any more. Reads from the device once.

    Args:
        run: named in the error.
        engine: all its tensors are looked at.
        epoch: as for `save`.
        step: as for `save`.

    Raises:
        NonFiniteError: a weight, statistic or momentum is infinite or not a number.
    """
    if bad := _not_finite(engine.tensors()):
        where = f"epoch {epoch}, step {step}" if step else f"epoch {epoch - 1}"
        before = "the checkpoint before it is kept" if run.has_checkpoint() else "nothing was saved before it"
        advice = remedy(run.config)
        raise NonFiniteError(f"{bad} is not finite after {where}: it is not saved, and {before}; {advice}: {run.path}")


@torch.no_grad()
def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds an infinity or a NaN, or None. Reads from the device only once."""
    numbers = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    largest = torch.stack([norm.double() for norm in torch._foreach_norm(list(numbers.values()), float("inf"))])
    return next((name for name, fine in zip(numbers, largest.isfinite().tolist(), strict=True) if not fine), None)


def load_tensors(engine: Engine, tensors: Mapping[str, Tensor], run: RunFolder) -> None:
    """Copies a checkpoint's tensors into the engine's tensors, in place.

    Args:
        engine: its tensors are overwritten.
        tensors: the checkpoint's tensors by name.
        run: named in the error.

    Raises:
        CheckpointError: the names or shapes differ from the engine's.
    """
    live = engine.tensors()
    differing = sorted(live.keys() ^ tensors.keys())
    differing += [name for name in live if name in tensors and live[name].shape != tensors[name].shape]
    if differing:
        raise CheckpointError(f"{run.path}: the checkpoint is of another model: {', '.join(differing[:3])} differ")
    engine.load(tensors)


def chosen(tensors: Mapping[str, Tensor], weights: Weights, run: RunFolder) -> dict[str, Tensor]:
    """A checkpoint's tensors, with the weights that are to be used in place of the last ones.

    Args:
        tensors: of the checkpoint, by name.
        weights: `last`, or `best`: those of the epoch with the best validation accuracy.
        run: named in the error.

    Raises:
        UsageError: the run keeps no best weights, or has not validated an epoch yet.
    """
    if weights == "last":
        return dict(tensors)
    best = {name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")}
    if not best or best_epoch(run.records) is None:
        why = "no epoch was validated yet" if best else "it was trained without --keep-best"
        raise UsageError(f"{run.path} has no best weights: {why}; allowed: --weights last")
    used = {f"{part}.{name}": tensor for part in ("model", "ema") for name, tensor in best.items()}
    return {name: used.get(name, tensor) for name, tensor in tensors.items()}


def load_model(run: RunFolder, weights: Weights = "last") -> MobileNet:
    """The model of a run's last checkpoint, on the CPU, in evaluation mode.

    Args:
        run: the run folder.
        weights: as for `chosen`.

    Returns:
        The model. If the run keeps a moving average of the weights, the model has the average.

    Raises:
        UsageError: as for `chosen`.
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    tensors = chosen(run.load_checkpoint()[0], weights, run)
    found = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    found |= {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    model = MobileNet(len(found["head.bias"]), run.config.width_mult, run.config.channels)
    copy_tensors(model, {name: found[name] for name in model.state_dict()})
    return model.eval()


def starting_weights(config: Config, images: schema.Images, note: Callable[[str], None]) -> dict[str, Tensor]:
    """The weights and statistics that a new run takes over from the run that its `init_from` names.

    Args:
        config: `init_from` and `width_mult` are read.
        images: what the new run's images and classes are.
        note: is called with a remark on which tensors are taken over.

    Returns:
        Tensors by their name in the model, without the head where the classes differ; nothing without `init_from`.

    Raises:
        UsageError: there is no run, or its model has another width.
        CheckpointError: the run has no checkpoint, or it is damaged.
    """
    if not config.init_from:
        return {}
    run = RunFolder.open(config.init_from)
    for name in ("width_mult", "channels"):
        has, wanted = getattr(run.config, name), getattr(config, name)
        if has != wanted:
            option = f"--{name.replace('_', '-')} {has:g}"
            raise UsageError(
                f"init_from = {config.init_from}: its model has {name} = {has:g}, and this run has {wanted:g}; "
                f"allowed: {option}"
            )
    tensors: dict[str, Tensor] = load_model(run).state_dict()
    there = run.images.class_names if run.images else []
    if there == images.class_names:
        note(f"starting from the weights of {run.path}, the head too: its classes are the same")
        return tensors
    note(f"starting from the weights of {run.path}, with a new head for {len(images.class_names)} classes")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}


def restore(
    run: RunFolder | FollowedRun, engine: Engine, clocks: Clocks, telemetry: Telemetry, num_batches: int, ranks: Ranks
) -> tuple[int, int]:
    """Restores the state of an interrupted run from its last checkpoint; without a checkpoint the run starts anew.

    Of several processes the first one reads the checkpoint, and sends it to the others.

    Args:
        run: the locked run folder. The metrics of epochs after the checkpoint are dropped.
        engine: receives the tensors and the loss scale.
        clocks: go on from the checkpoint's times.
        telemetry: goes on from the checkpoint's totals.
        num_batches: the number of batches in an epoch.
        ranks: this process among those of the run.

    Returns:
        The epoch to go on with, counted from 1, and its first step, counted from 0.

    Raises:
        CheckpointError: the checkpoint is damaged, or belongs to another run or model. Nothing on disk was changed.
    """
    start = (1, 0)
    if isinstance(run, RunFolder):
        start = _read(run, engine, clocks, telemetry, num_batches)
    engine.receive()
    return ranks.from_first(start)


def _read(run: RunFolder, engine: Engine, clocks: Clocks, telemetry: Telemetry, num_batches: int) -> tuple[int, int]:
    if not run.has_checkpoint():
        run.truncate(0)
        return 1, 0
    tensors, state = run.load_checkpoint()
    epoch, step = check_training_state(state, run.path, run.config.epochs, num_batches)
    load_tensors(engine, tensors, run)
    try:
        engine.scaler.load_state_dict(state["scaler"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run.path}: the checkpoint's loss scale is damaged: {error}") from error
    clocks.restore(state["clocks"])
    telemetry.restore(state.get("telemetry", {}))  # checkpoints of version 0.1 have none
    run.truncate(epoch - 1)
    run.remove_leftovers()  # after the last epoch there is no save that would
    return epoch, step

"""What a run keeps to go on bit for bit: every tensor that a step reads or writes, the epoch and step, the clocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastcifar.engines import Engine
from fastcifar.errors import CheckpointError, NonFiniteError
from fastcifar.model import MobileNet
from fastcifar.run.checkpoint import check_training_state
from fastcifar.run.clock import Clocks
from fastcifar.run.folder import RunFolder
from fastcifar.run.telemetry import Telemetry

REMEDY = "lower --lr, warm it up (--lr-warmup-epochs), or use --precision bf16 in place of fp16"
"""What helps a run whose numbers left the range of floats."""


def save(run: RunFolder, engine: Engine, epoch: int, step: int, clocks: Clocks, telemetry: Telemetry) -> None:
    """Saves the state from which `epoch` (counted from 1) goes on at `step` (counted from 0).

    Raises:
        NonFiniteError: a weight, statistic or momentum is infinite or not a number. The checkpoint before stays.
    """
    tensors = engine.tensors()
    if bad := _not_finite(tensors):
        where = f"epoch {epoch}, step {step}" if step else f"epoch {epoch - 1}"
        before = "the checkpoint before it is kept" if run.has_checkpoint() else "nothing was saved before it"
        raise NonFiniteError(f"{bad} is not finite after {where}: it is not saved, and {before}; {REMEDY}: {run.path}")
    state = {"epoch": epoch, "step": step, "clocks": clocks.state(), "scaler": engine.scaler.state_dict()}
    state["telemetry"] = telemetry.state()
    run.save_checkpoint(tensors, state)


@torch.no_grad()
def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with an infinity or a NaN. One read from the device for all of them."""
    numbers = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    largest = torch.stack([norm.double() for norm in torch._foreach_norm(list(numbers.values()), float("inf"))])
    return next((name for name, fine in zip(numbers, largest.isfinite().tolist(), strict=True) if not fine), None)


def load_tensors(engine: Engine, tensors: Mapping[str, Tensor], run: RunFolder) -> None:
    """Copies a checkpoint's tensors into the live ones, which stay where they are: a captured graph has their place."""
    live = engine.tensors()
    differing = sorted(live.keys() ^ tensors.keys())
    differing += [name for name in live if name in tensors and live[name].shape != tensors[name].shape]
    if differing:
        raise CheckpointError(f"{run.path}: the checkpoint is of another model: {', '.join(differing[:3])} differ")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(tensors[name])


def load_model(run: RunFolder) -> MobileNet:
    """The model of a run's last checkpoint, on the CPU, in evaluation mode: its moving average where one is kept.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    tensors, _ = run.load_checkpoint()
    weights = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    weights |= {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    model = MobileNet(len(weights["head.bias"]), run.config.width_mult)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(weights[name])
    return model.eval()


def restore(run: RunFolder, engine: Engine, clocks: Clocks, telemetry: Telemetry, num_batches: int) -> tuple[int, int]:
    """Brings a cut run's state back.

    Args:
        run: locked; the metrics of epochs after the checkpoint are dropped.
        engine: gets the tensors.
        clocks: go on from the checkpoint's.
        telemetry: goes on from the checkpoint's.
        num_batches: of an epoch.

    Returns:
        The epoch, counted from 1, and the step, counted from 0, to go on with.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another run or model. Nothing on disk was changed.
    """
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
    return epoch, step

"""What a trained model is worth: `evaluate_run` measures again, `predictions` says it image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcifar.checkpoint import load_tensors
from fastcifar.config import Config
from fastcifar.data import sources
from fastcifar.data.dataset import Dataset
from fastcifar.device import exists, find_device, out_of_memory_explained, prepare
from fastcifar.engines import Engine, EpochTotals, build_engine
from fastcifar.engines.eager import COMPUTE_DTYPE
from fastcifar.errors import CheckpointError, UsageError
from fastcifar.loaders import eval_batches
from fastcifar.model import build_model
from fastcifar.run.folder import RunFolder

Predictions = dict[str, NDArray[Any]]
"""Arrays by name, see `RunFolder.write_predictions`."""


def evaluate_run(path: Path, split: str = "test", device: str = "auto", data: str | None = None) -> dict[str, Any]:
    """Evaluates a run's saved model on `val` or `test`; the result stands beside the recorded one.

    Returns split, num_images, loss, accuracy, recorded_accuracy (None if the run was cut before it was recorded),
    epoch (the last whole one), step (how many of the next were taken) and device.
    """
    run = RunFolder.open(path)
    engine, state, config, dataset = _restored(run, device, data)
    target = torch.device(config.device)
    part = dataset.test if split == "test" else dataset.train_val(config.val_size, config.split_seed)[1]
    with out_of_memory_explained(config, target):
        totals = engine.evaluate(eval_batches(part, config, target, COMPUTE_DTYPE[config.precision]))
    epochs_done, step = int(state["epoch"]) - 1, int(state["step"])
    recorded: float | None
    if step:  # of an epoch that was cut: there is no record of these weights
        recorded = None
    elif split == "test":
        recorded = (run.summary() or {}).get("test_accuracy")
    else:
        recorded = next((r["val_accuracy"] for r in run.records if r["epoch"] == epochs_done), None)
    return {
        "split": split,
        "num_images": len(part.labels),
        "loss": totals.loss,
        "accuracy": totals.accuracy,
        "recorded_accuracy": recorded,
        "epoch": epochs_done,
        "step": step,
        "device": str(target),
    }


def predictions(path: Path, data: str | None = None) -> Predictions:
    """What a finished run's model says of each test image (see `RunFolder.write_predictions`).

    Read from the run folder; for a run that has none yet, computed from its checkpoint and written there. `data` names
    the same images where they lie now, if not where the run had them.
    """
    run = RunFolder.open(path)
    if (found := run.predictions()) is not None:
        return found
    engine, state, config, dataset = _restored(run, "auto", data)
    if int(state["epoch"]) - 1 < config.epochs:
        raise UsageError(
            f"{run.path}: the run is not finished (epoch {state['epoch']} of {config.epochs}): no predictions"
        )
    _, found = measure_test(engine, dataset, config, torch.device(config.device))
    with run.locked():
        run.write_predictions(found)
    return found


def _restored(run: RunFolder, device: str, data: str | None) -> tuple[Engine, dict[str, Any], Config, Dataset]:
    """A run as it was saved last, on `device` (auto: its own, if present), and the images that it belongs to."""
    target = find_device(run.config.device if device == "auto" and exists(run.config.device) else device)
    # Fused ops round otherwise than PyTorch's; the compiled engine evaluates eagerly.
    same_ops = run.config.engine == "fused" and torch.device(run.config.device).type == target.type
    update = {"device": str(target), "engine": "fused" if same_ops else "eager", "data": data or run.config.data}
    config = run.config.model_copy(update=update)
    dataset = same_images(run, config)
    tensors, state = run.load_checkpoint()
    prepare(target, deterministic=config.deterministic)
    engine = build_engine(build_model(dataset.num_classes, config.width_mult, config.seed), config, target)
    load_tensors(engine, tensors, run)
    return engine, state, config, dataset


def measure_test(
    engine: Engine, dataset: Dataset, config: Config, device: torch.device
) -> tuple[EpochTotals, Predictions]:
    """The one look at the test images: the totals, and what is said of each image."""
    parts: list[tuple[Tensor, ...]] = []

    def see(logits: Tensor, labels: Tensor) -> None:
        probabilities = logits.softmax(1)
        confidence, predicted = probabilities.max(1)
        parts.append((labels, predicted, confidence, probabilities.gather(1, labels[:, None])[:, 0]))

    totals = engine.evaluate(eval_batches(dataset.test, config, device, COMPUTE_DTYPE[config.precision]), see)
    labels, predicted, confidence, of_label = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return totals, {
        "labels": labels.astype("int16"),
        "predicted": predicted.astype("int16"),
        "confidence": confidence.astype("float32"),
        "label_probability": of_label.astype("float32"),
    }


def same_images(run: RunFolder, config: Config) -> Dataset:
    """What `config.data` holds, if it is what the run was started with."""
    dataset = sources.load(config.data, mirror=config.mirror)
    if dataset.digest != run.dataset_digest:
        raise CheckpointError(
            f"{run.path} was trained on other images: their digest is {run.dataset_digest[:12]}, "
            f"that of {config.data!r} is {dataset.digest[:12]}; name the same data with --data"
        )
    return dataset

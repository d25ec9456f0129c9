"""What a trained model is worth: `evaluate_run` measures again, `predictions` says it image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcifar.checkpoint import load_tensors
from fastcifar.config import Config
from fastcifar.data import sources
from fastcifar.data.dataset import Dataset
from fastcifar.engines import Means
from fastcifar.errors import CheckpointError, DataError, UsageError
from fastcifar.run.checkpoint import check_training_state
from fastcifar.run.folder import RunFolder
from fastcifar.session import Session
from fastcifar.target import Target, exists, find_device

Predictions = dict[str, NDArray[Any]]
"""Arrays by name, see `RunFolder.write_predictions`."""


def evaluate_run(path: Path, split: str = "test", device: str = "auto", data: str | None = None) -> dict[str, Any]:
    """Evaluates a run's saved model on `val` or `test`; the result stands beside the recorded one.

    Returns split, num_images, loss, accuracy, recorded_accuracy (None if the run was cut before it was recorded),
    epoch (the last whole one), step (how many of the next were taken) and device.
    """
    run = RunFolder.open(path)
    session, state, dataset = _restored(run, device, data)
    config = run.config
    part = dataset.test if split == "test" else dataset.train_val(config.val_size, config.split_seed)[1]
    if not len(part):
        raise UsageError(f"{run.path}: the run has val_size = 0: it has no validation images; allowed: --split test")
    with session:
        means = session.evaluate(part)
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
        "loss": means.loss,
        "accuracy": means.accuracy,
        "recorded_accuracy": recorded,
        "epoch": epochs_done,
        "step": step,
        "device": str(session.target.device),
    }


def predictions(path: Path, data: str | None = None) -> Predictions:
    """What a finished run's model says of each test image (see `RunFolder.write_predictions`).

    Read from the run folder; for a run that has none yet, computed from its checkpoint and written there. `data` names
    the same images where they lie now, if not where the run had them.
    """
    run = RunFolder.open(path)
    if (found := run.predictions()) is not None:
        return found
    session, state, dataset = _restored(run, "auto", data)
    if int(state["epoch"]) - 1 < run.config.epochs:
        raise UsageError(
            f"{run.path}: the run is not finished (epoch {state['epoch']} of {run.config.epochs}): no predictions"
        )
    with session:
        _, found = measure_test(session, dataset)
    with run.locked():
        run.write_predictions(found)
    return found


def _restored(run: RunFolder, device: str, data: str | None) -> tuple[Session, dict[str, Any], Dataset]:
    """A run as it was saved last, on `device` (auto: its own, if present), its state, and the images it belongs to."""
    place = find_device(run.config.device if device == "auto" and exists(run.config.device) else device)
    # Fused ops round otherwise than PyTorch's; the compiled engine evaluates eagerly.
    same_ops = run.config.engine == "fused" and torch.device(run.config.device).type == place.type
    update = {"device": str(place), "engine": "fused" if same_ops else "eager", "data": data or run.config.data}
    config = run.config.model_copy(update=update)
    dataset = same_images(run, config)
    tensors, state = run.load_checkpoint()
    check_training_state(state, run.path, config.epochs)
    session = Session(Target(config), dataset.num_classes)
    load_tensors(session.engine, tensors, run)
    return session, state, dataset


def measure_test(session: Session, dataset: Dataset) -> tuple[Means, Predictions]:
    """The one look at the test images: the means, and what the model says of each image."""
    parts: list[tuple[Tensor, ...]] = []

    def see(logits: Tensor, labels: Tensor) -> None:
        probabilities = logits.softmax(1)
        confidence, predicted = probabilities.max(1)
        parts.append((labels, predicted, confidence, probabilities.gather(1, labels[:, None])[:, 0]))

    means = session.evaluate(dataset.test, see)
    labels, predicted, confidence, of_label = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return means, {
        "labels": labels,
        "predicted": predicted,
        "confidence": confidence.astype("float32"),
        "label_probability": of_label.astype("float32"),
        **places_of(dataset),
    }


def places_of(dataset: Dataset) -> Predictions:
    """What joins predictions to images and class numbers to names: see `fastcifar.run.predictions`."""
    test = dataset.test
    found: Predictions = {"class_names": np.array(dataset.class_names, dtype=np.str_)}
    if test.files is not None:
        found["places"] = np.array(test.files, dtype=np.str_)
    elif test.places is not None:
        found["places"] = test.places
    return found


def same_images(run: RunFolder, config: Config) -> Dataset:
    """What `config.data` holds, if it is what the run was started with."""
    try:
        dataset = sources.load(config.data, mirror=config.mirror)
    except DataError as error:
        if config.data in sources.NAMES:
            raise
        raise DataError(f"{error} If the images of {run.path} lie elsewhere now, name them with --data") from error
    if dataset.digest != run.dataset_digest:
        raise CheckpointError(
            f"{run.path} was trained on other images: their digest is {run.dataset_digest[:12]}, "
            f"that of {config.data!r} is {dataset.digest[:12]}; name the same data with --data"
        )
    return dataset

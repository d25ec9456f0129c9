"""How good a trained model is: `evaluate_run` measures loss and accuracy again, `predictions` lists each test image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcifar.checkpoint import Weights, chosen, load_tensors
from fastcifar.config import Config
from fastcifar.data import sources
from fastcifar.data.dataset import Dataset
from fastcifar.engines import Means
from fastcifar.errors import CheckpointError, DataError, UsageError
from fastcifar.run import schema
from fastcifar.run.checkpoint import check_training_state
from fastcifar.run.facts import best_epoch
from fastcifar.run.folder import RunFolder
from fastcifar.session import Session
from fastcifar.target import Target, exists, find_device

Predictions = dict[str, NDArray[Any]]
"""Arrays by name; `fastcifar.run.predictions` lists them."""


def evaluate_run(
    path: Path, split: str = "test", device: str = "auto", data: str | None = None, weights: Weights = "last"
) -> dict[str, Any]:
    """Evaluates a run's saved model, and returns the result beside the recorded result.

    Args:
        path: the run folder.
        split: `test`, or `val`: the training images that the run held out.
        device: `auto` is the run's own device if this machine has it; otherwise `cpu`, `cuda` or `cuda:N`.
        data: where the run's images are now; None means where the run had them.
        weights: `last`, or `best`: those of the epoch with the best validation accuracy, with `keep_best`.

    Returns:
        `split`, `num_images`, `loss` (mean cross-entropy in nats), `accuracy` (0 to 1), `recorded_accuracy` (None if
        the run was interrupted before it recorded one), `epoch` (the last whole epoch), `step` (how many steps of the
        next epoch were taken) and `device`.

    Raises:
        UsageError: the run held out no validation images, or keeps no best weights, or the device does not exist.
        CheckpointError: the checkpoint is damaged, or the images are not the run's.
        DataError: the images cannot be found or read.
    """
    run = RunFolder.open(path)
    session, state, dataset = _restored(run, device, data, weights)
    config = run.config
    part = dataset.test if split == "test" else dataset.train_val(config.val_size, config.split_seed)[1]
    if not len(part):
        raise UsageError(f"{run.path}: the run has val_size = 0: it has no validation images; allowed: --split test")
    with session:
        means = session.evaluate(part)
    epochs_done, step = int(state["epoch"]) - 1, int(state["step"])
    recorded: float | None
    if weights == "best" and (best := best_epoch(run.records)) is not None:
        epochs_done, step = best["epoch"], 0
        recorded = best["val_accuracy"] if split == "val" else None
    elif step:  # in the middle of an epoch: no record is of these weights
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
    """The predictions of a finished run for each test image.

    They are read from the run folder. If the run has none yet, they are computed from its checkpoint and written there.

    Args:
        path: the run folder.
        data: where the run's images are now; None means where the run had them.

    Returns:
        Arrays by name; `fastcifar.run.predictions` lists them.

    Raises:
        UsageError: the run is not finished.
        CheckpointError: the checkpoint is damaged, or the images are not the run's.
        DataError: the images cannot be found or read.
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


def _restored(
    run: RunFolder, device: str, data: str | None, weights: Weights = "last"
) -> tuple[Session, dict[str, Any], Dataset]:
    """The run of the last checkpoint as a session on `device`, with the checkpoint's state and the run's images."""
    place = find_device(run.config.device if device == "auto" and exists(run.config.device) else device)
    # Fused ops round differently from PyTorch's ops. The compiled engine evaluates with the eager ops.
    same_ops = run.config.engine == "fused" and torch.device(run.config.device).type == place.type
    update = {"device": str(place), "engine": "fused" if same_ops else "eager", "data": data or run.config.data}
    config = run.config.model_copy(update=update)
    dataset = same_images(run, config)
    tensors, state = run.load_checkpoint()
    check_training_state(state, run.path, config.epochs)
    session = Session(Target(config), dataset.num_classes)
    load_tensors(session.engine, chosen(tensors, weights, run), run)
    return session, state, dataset


def measure_test(session: Session, dataset: Dataset) -> tuple[Means, Predictions]:
    """Evaluates the test images once.

    Args:
        session: holds the trained model.
        dataset: its test split is evaluated.

    Returns:
        Mean loss and accuracy, and the predictions: arrays by name, as `fastcifar.run.predictions` lists them.
    """
    parts: list[tuple[Tensor, ...]] = []

    def see(logits: Tensor, labels: Tensor) -> None:
        probabilities = logits.softmax(1)
        confidence, predicted = probabilities.max(1)
        parts.append((labels, predicted, confidence, probabilities.gather(1, labels[:, None])[:, 0]))

    means = session.evaluate(dataset.test, see)
    arrays = [[tensor.cpu().numpy() for tensor in part] for part in parts]
    everyone = [part for own in session.target.ranks.gathered(arrays) for part in own]
    labels, predicted, confidence, of_label = map(np.concatenate, zip(*everyone, strict=True))
    return means, {
        "labels": labels,
        "predicted": predicted,
        "confidence": confidence.astype("float32"),
        "label_probability": of_label.astype("float32"),
        **places_of(dataset),
    }


def places_of(dataset: Dataset) -> Predictions:
    """The arrays `places` and `class_names` of the predictions (see `fastcifar.run.predictions`).

    `places` says which image each row is about; it is absent if the data set does not know. `class_names` has the name
    of each class number.
    """
    test = dataset.test
    found: Predictions = {"class_names": np.array(dataset.class_names, dtype=np.str_)}
    if test.files is not None:
        found["places"] = np.array(test.files, dtype=np.str_)
    elif test.places is not None:
        found["places"] = test.places
    return found


def images_of(run: RunFolder, data: str | None = None) -> schema.Images:
    """What the images and the classes of a run are. A run of an earlier version does not say it; its images do.

    Args:
        run: the run folder.
        data: where the run's images are now; None means where the run had them.

    Raises:
        CheckpointError: the images are not the run's.
        DataError: the images cannot be found or read.
    """
    return run.images or facts_of(same_images(run, run.config.model_copy(update={"data": data or run.config.data})))


def facts_of(dataset: Dataset) -> schema.Images:
    """What a run records of its images and classes."""
    return schema.Images(
        name=dataset.name,
        size=dataset.train.images.shape[1],
        class_names=list(dataset.class_names),
        superclass_names=list(dataset.superclass_names),
        superclass_of=list(dataset.superclass_of),
    )


def same_images(run: RunFolder, config: Config, *, progress: bool = True) -> Dataset:
    """Loads `config.data`, which must hold the images that the run was started with.

    Args:
        run: the run folder.
        config: `data` and `mirror` are read.
        progress: whether the progress of a download is shown.

    Returns:
        The data set.

    Raises:
        CheckpointError: the images are not the run's.
        DataError: the images cannot be found or read.
    """
    try:
        dataset = sources.load(config.data, mirror=config.mirror, progress=progress)
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

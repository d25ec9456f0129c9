"""What the models say of each test image, counted by class, superclass and pair of classes, and by confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.dataset import Dataset
from fastcifar.errors import CheckpointError, FastcifarError
from fastcifar.report.results import Run, Trial
from fastcifar.run.folder import RunFolder
from fastcifar.run.names import PREDICTIONS

NUM_BINS = 15
"""Of confidence, equally wide: as in Guo et al., On Calibration of Modern Neural Networks (2017)."""

_SAME_ACCURACY = 0.002
"""Another device rounds otherwise and may move an image or two in a thousand."""


@dataclass(frozen=True)
class Predictions:
    """What a run's model says of each of N test images, in the data set's canonical order.

    Attributes:
        labels: int64 [N], the classes that the data set states.
        predicted: int64 [N], the classes that the model gives.
        confidence: float64 [N], the probability of the predicted class, from 0 to 1.
        class_names: the name of each class, by its number; empty where the file does not say them.
        places: [N] numbers or paths: where each image is in the source of the data set; None where the file does not
            say it.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    class_names: tuple[str, ...] = ()
    places: NDArray[Any] | None = None

    @classmethod
    def pooled(cls, runs: Sequence[Predictions]) -> Predictions:
        """The images of all `runs`, one after the other."""
        return cls(
            np.concatenate([run.labels for run in runs]),
            np.concatenate([run.predicted for run in runs]),
            np.concatenate([run.confidence for run in runs]),
            runs[0].class_names,
        )

    @property
    def num_classes(self) -> int:
        """One more than the highest class number."""
        return 1 + max(int(part.max(initial=-1)) for part in (self.labels, self.predicted))

    @property
    def correct(self) -> NDArray[np.bool_]:
        return np.equal(self.labels, self.predicted)

    def class_accuracy(self, num_classes: int) -> NDArray[np.float64]:
        """[num_classes]; NaN for a class without images."""
        return group_means(self.correct, self.labels, num_classes)

    def confusion(self, num_classes: int) -> NDArray[np.int64]:
        """[num_classes, num_classes] images, by label and by predicted class."""
        cells = np.bincount(self.labels * num_classes + self.predicted, minlength=num_classes**2)
        return cells.reshape(num_classes, num_classes)

    def reliability(self) -> Reliability:
        bins = np.clip(np.ceil(self.confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
        count = np.bincount(bins, minlength=NUM_BINS)
        confidence, accuracy = (group_means(values, bins, NUM_BINS) for values in (self.confidence, self.correct))
        return Reliability(count, confidence, accuracy)


@dataclass(frozen=True)
class Reliability:
    """Images, mean confidence and accuracy in each bin of confidence; NaN where a bin is empty."""

    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def expected_calibration_error(self) -> float:
        """Mean over the images of |accuracy - confidence| of their bin."""
        gaps = np.abs(np.nan_to_num(self.accuracy - self.confidence))
        return float((gaps * self.count).sum() / self.count.sum())


@dataclass(frozen=True)
class Pair:
    """Two classes taken for each other: in which share of both classes' images, over all runs."""

    first: int
    second: int
    share: float


def read_predictions(run: Run, data: str | None) -> Predictions:
    """The predictions in a run folder; for an older run computed from its checkpoint, and written there.

    Args:
        run: a finished run.
        data: where the same images lie now, if not where the run had them.

    Raises:
        CheckpointError: there are none, they are damaged, or they are not those of this run.
        FastcifarError: they cannot be computed, for want of the images or of PyTorch.
    """
    arrays: Mapping[str, NDArray[Any]] | None = RunFolder.open(run.path, note=lambda text: None).predictions()
    if arrays is None:
        arrays = _from_checkpoint(run.path, data)
    found = _checked(arrays, run.path)
    recorded, accuracy = run.value("test_accuracy"), float(found.correct.mean())
    if recorded is not None and abs(recorded - accuracy) > _SAME_ACCURACY:
        raise CheckpointError(
            f"{run.path}: its predictions give {accuracy:.2%} test accuracy, its summary says {recorded:.2%}"
        )
    return found


def _checked(arrays: Mapping[str, NDArray[Any]], path: Path) -> Predictions:
    """The arrays as predictions, if they can be those of a run.

    Raises:
        CheckpointError: they are of no image, or a probability is none.
    """
    labels, predicted, confidence = (arrays[name] for name in ("labels", "predicted", "confidence"))
    problem = "" if len(labels) else "they are of no image"
    if not ((confidence >= 0) & (confidence <= 1.001)).all():  # NaN included; sums of float32 go a little above 1
        problem = "they hold a probability that is not between 0 and 1"
    if problem:
        raise CheckpointError(
            f"{path}: its predictions cannot be used: {problem}. Remove {path / PREDICTIONS}: while the run has its "
            "checkpoint, they are made again"
        )
    names = tuple(map(str, arrays["class_names"].tolist())) if "class_names" in arrays else ()
    classes = labels.astype(np.int64), predicted.astype(np.int64)
    return Predictions(*classes, confidence.astype(np.float64), names, arrays.get("places"))


def _from_checkpoint(path: Path, data: str | None) -> Mapping[str, NDArray[Any]]:
    if not RunFolder.open(path, note=lambda text: None).has_checkpoint():
        raise CheckpointError("neither predictions nor a checkpoint")
    from fastcifar import evaluation

    found: Mapping[str, NDArray[Any]] = evaluation.predictions(path, data)
    return found


def read_all(
    trials: Sequence[Trial], data: str | None, dataset: Dataset | None = None
) -> tuple[dict[str, list[Predictions]], dict[str, str]]:
    """The predictions of every run.

    Args:
        trials: whose runs are read.
        data: where the images lie now, if not where the runs had them.
        dataset: images, if they are at hand. Predictions for runs that were trained on them must have their labels.

    Returns:
        The predictions by the label of their trial, and by run why there are none.
    """
    found: dict[str, list[Predictions]] = {}
    problems: dict[str, str] = {}
    for trial in trials:
        for run in trial.runs:
            try:
                predictions = read_predictions(run, data)
                if dataset is not None and run.digest == dataset.digest:
                    _check_labels(predictions, dataset, run.path)
            except FastcifarError as error:
                problems[f"{trial.label}, seed {run.config.seed}"] = str(error).replace("\n", " ")
            else:
                found.setdefault(trial.label, []).append(predictions)
    return found, problems


def _check_labels(predictions: Predictions, dataset: Dataset, path: Path) -> None:
    """Raises CheckpointError where a run's predictions are not of the test images of its data set."""
    if not np.array_equal(predictions.labels, dataset.test.labels):
        raise CheckpointError(f"{path}: the labels in its {PREDICTIONS} are not those of the test images")


def group_means(values: NDArray[Any], group: NDArray[np.int64], num_groups: int) -> NDArray[np.float64]:
    """Mean of `values` in each group; NaN for an empty one."""
    count = np.bincount(group, minlength=num_groups)
    sums = np.bincount(group, weights=values, minlength=num_groups)
    means: NDArray[np.float64] = np.where(count > 0, sums / np.maximum(count, 1), np.nan)
    return means


def superclass_accuracy(
    predictions: Predictions, superclass_of: Sequence[int], num_superclasses: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By superclass: the share of its images given the right class, and the share given any class of it."""
    above = np.asarray(superclass_of)
    group = above[predictions.labels]
    right_above = group == above[predictions.predicted]
    return (
        group_means(predictions.correct, group, num_superclasses),
        group_means(right_above, group, num_superclasses),
    )


def confused_pairs(confusion: NDArray[np.int64], count: int) -> list[Pair]:
    """The `count` pairs of classes that are taken for each other most, of those that ever are."""
    images = confusion.sum(axis=1)
    share = np.triu(confusion + confusion.T, 1) / np.maximum(images[:, None] + images, 1)
    order = np.argsort(-share, axis=None, kind="stable")[:count]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, share.shape), strict=True)]
    return [Pair(i, j, float(share[i, j])) for i, j in pairs if share[i, j]]


def taken_for(runs: Sequence[Predictions], label: int, predicted: int, count: int) -> list[int]:
    """Test images of the class `label` taken for `predicted`: by the most runs, then with the most confidence."""
    size = len(runs[0].labels)
    times, confidence = np.zeros(size), np.zeros(size)
    for run in runs:
        wrong = (run.labels == label) & (run.predicted == predicted)
        times += wrong
        confidence += wrong * run.confidence
    found = np.flatnonzero(times)
    order = np.lexsort((-confidence[found], -times[found]))[:count]
    return [int(i) for i in found[order]]

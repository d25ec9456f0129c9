"""What the class numbers mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastcifar.data import procedural
from fastcifar.data.dataset import Dataset
from fastcifar.data.published import CIFAR100, CIFAR100_SUPERCLASS_OF
from fastcifar.report.predictions import Predictions
from fastcifar.report.results import Trial


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: by class number; `class 7` where nobody says the name.
        superclass_names: empty where there are none.
        superclass_of: an index into `superclass_names` for each class; empty where there are none.
    """

    names: tuple[str, ...]
    superclass_names: tuple[str, ...] = ()
    superclass_of: tuple[int, ...] = ()

    @classmethod
    def of(cls, trial: Trial, dataset: Dataset | None, runs: Sequence[Predictions]) -> Classes:
        """The classes of a trial's images. The images need not be at hand for the sets whose content is known.

        Args:
            trial: says which images its runs were trained on.
            dataset: these images, if they are at hand.
            runs: predictions, which may hold the names.
        """
        if dataset is not None:
            found = cls(dataset.class_names, dataset.superclass_names, dataset.superclass_of)
        elif trial.is_cifar100:
            above = tuple(sorted(set(CIFAR100_SUPERCLASS_OF.values())))
            of = tuple(above.index(CIFAR100_SUPERCLASS_OF[name]) for name in CIFAR100.class_names)
            found = cls(CIFAR100.class_names, above, of)
        elif trial.digest == procedural.DIGEST:
            found = cls(procedural.CLASS_NAMES, procedural.SUPERCLASS_NAMES, procedural.SUPERCLASS_OF)
        else:
            found = cls(next((run.class_names for run in runs if run.class_names), ()))
        count = max((run.num_classes for run in runs), default=0)
        if count <= len(found.names):
            return found
        # Predictions of more classes than are named: no name and no superclass can be trusted.
        return cls(tuple(f"class {number}" for number in range(count)))

    def seen(self, runs: Sequence[Predictions]) -> Seen:
        """The classes that have test images or are predicted, in the order of their numbers."""
        return Seen(np.unique(np.concatenate([part for run in runs for part in (run.labels, run.predicted)])))


@dataclass(frozen=True)
class Seen:
    """Class numbers that occur, `numbers` int64 [K] rising, renumbered from 0 to K - 1.

    Labels may have gaps: of 40,001 classes that a file numbers, four may have images.
    """

    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    def renumbered(self, run: Predictions) -> Predictions:
        """`run` with the places of its classes in `numbers` in place of their numbers."""
        labels, predicted = (np.searchsorted(self.numbers, part) for part in (run.labels, run.predicted))
        return Predictions(labels.astype(np.int64), predicted.astype(np.int64), run.confidence)

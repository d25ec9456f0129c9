"""What the class numbers mean."""

from __future__ import annotations

from fastcifar.data import procedural
from fastcifar.data.dataset import Dataset
from fastcifar.data.published import CIFAR100, CIFAR100_SUPERCLASSES
from fastcifar.report.results import Trial


class Classes:
    """What the labels mean, known without the images for the data sets whose content is known.

    Attributes:
        names: of the classes; numbers where nobody says them.
        superclass_names, superclass_of: empty where there are none.
    """

    def __init__(self, trial: Trial, dataset: Dataset | None, num_classes: int) -> None:
        self.superclass_names: tuple[str, ...] = ()
        self.superclass_of: tuple[int, ...] = ()
        if dataset is not None:
            self.names = dataset.class_names
            self.superclass_names, self.superclass_of = dataset.superclass_names, dataset.superclass_of
        elif trial.is_cifar100:
            self.names = CIFAR100.class_names
            above = {name: group for group, names in CIFAR100_SUPERCLASSES.items() for name in names.split()}
            self.superclass_names = tuple(sorted(CIFAR100_SUPERCLASSES))
            self.superclass_of = tuple(self.superclass_names.index(above[name]) for name in self.names)
        elif trial.digest == procedural.DIGEST:
            self.names = procedural.CLASS_NAMES
            self.superclass_names, self.superclass_of = procedural.SUPERCLASS_NAMES, procedural.SUPERCLASS_OF
        else:
            self.names = tuple(f"class {i}" for i in range(num_classes))

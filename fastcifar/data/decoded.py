"""What every decoder returns, and the checks that all of them share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.dataset import SPLITS
from fastcifar.errors import DataError


@dataclass(frozen=True)
class Decoded:
    """Images and labels of both splits as found: any order, names and superclasses only where the layout has them."""

    images: Mapping[str, NDArray[np.uint8]]  # "train", "test": [N, 32, 32, 3]
    labels: Mapping[str, NDArray[np.int64]]  # [N]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    superclass_of: tuple[int, ...] | None = None  # -1 for a class without images
    superclass_names: tuple[str, ...] | None = None


def check_labels(labels: Mapping[str, NDArray[np.int64]], num_classes: int | None, where: Path) -> int:
    """How many classes there are: ``num_classes``, else as many as the labels, which must start at 0, tell."""
    for split in SPLITS:
        if not len(labels[split]):
            raise DataError(f"{where}: the {split} split holds no image")
        low, high = int(labels[split].min()), int(labels[split].max())
        if low < 0 or (num_classes is not None and high >= num_classes):
            wrong = low if low < 0 else high
            allowed = f"0 to {num_classes - 1}" if num_classes is not None else "0 and above"
            raise DataError(f"{where}: label {wrong} in the {split} split; allowed: {allowed}")
    if num_classes is not None:
        return num_classes
    if first := min(int(labels[split].min()) for split in SPLITS):
        raise DataError(f"{where}: labels start at {first}, not at 0")
    return 1 + max(int(labels[split].max()) for split in SPLITS)


def text_of(value: object, where: str) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        text = None
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: {value!r} is not a name")
    return text.strip()

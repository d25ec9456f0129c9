"""`Decoded`, which every decoder returns, and the checks that all decoders share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.dataset import SPLITS
from fastcifar.errors import DataError
from fastcifar.text import quoted

MOST_CLASSES = 2**16  # for labels without names; otherwise one wrong label would ask for terabytes


@dataclass(frozen=True)
class Decoded:
    """Images and labels of both splits, in the order of the source.

    Attributes:
        images: for "train" and "test", uint8 [N, S, S, 3], S the same for both. The channels of grey images are equal.
        labels: for "train" and "test", int64 [N], each from 0 to `num_classes - 1`.
        num_classes: how many classes there are; some may have no image.
        class_names: the name of each class, in the order of the labels; None if the layout has no names.
        superclass_of: the superclass of each class, -1 for a class without images; None if the layout has none.
        superclass_names: the name of each superclass; None if the layout has none.
        files: for "train" and "test", the path of each image below the folder; None if images are not single files.
        notes: remarks for the user about the source.
    """

    images: Mapping[str, NDArray[np.uint8]]
    labels: Mapping[str, NDArray[np.int64]]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    superclass_of: tuple[int, ...] | None = None
    superclass_names: tuple[str, ...] | None = None
    files: Mapping[str, tuple[str, ...]] | None = None
    notes: tuple[str, ...] = ()


SMALLEST, LARGEST = 8, 96
"""The sides of the images that are taken, in pixels. The network halves them four times."""


def is_taken(width: int, height: int) -> bool:
    """Whether images of this size can be trained on as they are."""
    return width == height and SMALLEST <= width <= LARGEST


def how_to_convert(path: Path) -> str:
    """The command that makes images of a size that is taken from the source at `path`, for messages."""
    return f"`fastcifar data convert {quoted(path)} OUT.npz --size 32` scales them"


def square_images(images: NDArray[Any], where: str, convert: str) -> NDArray[np.uint8]:
    """Images as [N, S, S, 3]; grey ones get three equal channels.

    Args:
        images: [N, S, S, 3], or for grey images [N, S, S] or [N, S, S, 1].
        where: what messages call the images.
        convert: how images of another size are made so, for messages.

    Returns:
        uint8 [N, S, S, 3], C-contiguous.

    Raises:
        DataError: the images have another dtype or shape.
    """
    if not are_pictures(images) or not is_taken(*images.shape[1:3]):
        if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[2] == images.shape[3]:
            convert = "images.transpose(0, 2, 3, 1) makes it so"
        elif images.dtype.kind == "f":
            convert = "(images * 255).round().astype(numpy.uint8) makes it so if they go from 0 to 1"
        raise DataError(
            f"{where} is {describe(images)}, not uint8 [N, S, S, 3], or [N, S, S] for grey images, with S from "
            f"{SMALLEST} to {LARGEST}; {convert}"
        )
    return in_three_channels(images)


def are_pictures(images: NDArray[Any]) -> bool:
    """Whether an array holds pictures of any size: uint8 [N, H, W, 3], or [N, H, W] or [N, H, W, 1] for grey ones."""
    return images.dtype == np.uint8 and (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3)))


def in_three_channels(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures as [N, H, W, 3], C-contiguous; grey ones, [N, H, W] or [N, H, W, 1], get three equal channels."""
    if images.ndim == 3 or images.shape[3] == 1:
        images = np.repeat(images.reshape(*images.shape[:3], 1), 3, axis=3)
    return np.ascontiguousarray(images)


def same_size(images: Mapping[str, NDArray[np.uint8]], where: Path) -> None:
    """Checks that the images of both splits have one size.

    Args:
        images: for "train" and "test", [N, S, S, 3].
        where: the source, for messages.

    Raises:
        DataError: they have two sizes.
    """
    train, test = (images[split].shape[1] for split in SPLITS)
    if train != test:
        raise DataError(
            f"{where}: training images of {train}x{train} pixels, test images of {test}x{test}; {how_to_convert(where)}"
        )


def describe(array: NDArray[Any]) -> str:
    """The dtype and shape of an array, such as `uint8 [100, 32, 32, 3]`."""
    return f"{array.dtype} {list(array.shape)}"


def whole_numbers(labels: NDArray[Any], where: str) -> NDArray[np.int64]:
    """Converts labels of any integer dtype to int64.

    Args:
        labels: [N], or [N, 1], as MedMNIST has them.
        where: what messages call the labels.

    Returns:
        int64 [N].

    Raises:
        DataError: the labels are not whole numbers or have another shape, or one of them does not fit int64.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        hint = ""
        if labels.ndim == 2 and labels.dtype.kind in "biuf":
            hint = "; labels.argmax(axis=1) makes it so if each row marks one class"
        elif labels.dtype.kind in "bf":
            hint = "; labels.astype(int) makes it so if none has a fraction"
        elif labels.dtype.kind in "US":
            hint = "; names, label_numbers = np.unique(labels, return_inverse=True) gives label_names and numbers"
        raise DataError(f"{where} is {describe(labels)}, not whole numbers [N]{hint}")
    if labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{where} holds label {int(labels.max())}; allowed: 0 to {MOST_CLASSES - 1}")
    return labels.astype(np.int64)


def check_labels(labels: Mapping[str, NDArray[np.int64]], num_classes: int | None, where: Path) -> int:
    """Checks that every label is the number of a class.

    Args:
        labels: for "train" and "test", int64 [N].
        num_classes: the number of classes; None if the classes have no names.
        where: the source, for messages.

    Returns:
        `num_classes`. If it is None, the largest label plus 1; the labels must then start at 0.

    Raises:
        DataError: a split is empty, or a label is out of range.
    """
    for split in SPLITS:
        if not len(labels[split]):
            raise DataError(f"{where}: the {split} split holds no image")
        low, high = int(labels[split].min()), int(labels[split].max())
        limit = num_classes if num_classes is not None else MOST_CLASSES
        if low < 0 or high >= limit:
            hint = " (images that are to be ignored have to be left out)" if low == -1 else ""
            wrong = low if low < 0 else high
            raise DataError(f"{where}: label {wrong} in the {split} split; allowed: 0 to {limit - 1}{hint}")
    if num_classes is not None:
        return num_classes
    if first := min(int(labels[split].min()) for split in SPLITS):
        raise DataError(f"{where}: labels start at {first}, not at 0")
    return 1 + max(int(labels[split].max()) for split in SPLITS)


def name_of(value: object, where: str) -> str:
    """The name of a class as text.

    Args:
        value: a str, or bytes in UTF-8.
        where: the source, for messages.

    Returns:
        The name, without space around it.

    Raises:
        DataError: `value` is not text, or is empty.
    """
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        text = None
    if not isinstance(text, str) or not text.strip():
        shown = repr(value)
        raise DataError(f"{where}: {shown if len(shown) <= 80 else shown[:77] + '...'} is not a name")
    return text.strip()

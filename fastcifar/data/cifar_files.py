"""Decoding the files of the published versions of CIFAR-10 and CIFAR-100: pickles and binary records -> arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.accepted import SAVE_AS_NPZ
from fastcifar.data.dataset import SPLITS
from fastcifar.data.decoded import Decoded, check_labels, name_of
from fastcifar.data.notes import listed
from fastcifar.data.pickles import PlainArray, unpickle
from fastcifar.errors import DataError


@dataclass(frozen=True)
class Version:
    """One published version, with the names of its files.

    Attributes:
        title: the name of the version, for messages.
        train: the files of the training images, in order.
        test: the file of the test images.
        names: the files with the names of the classes and then of the superclasses. They may be missing.
        superclasses: whether each image also has a superclass label.
        binary: whether the files are records of bytes; otherwise they are pickles.
    """

    title: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: tuple[str, ...]
    superclasses: bool
    binary: bool

    @property
    def required(self) -> tuple[str, ...]:
        """The files that must not be missing."""
        return self.train + self.test


_TEN = tuple(f"data_batch_{i}" for i in range(1, 6))
VERSIONS = (
    Version("CIFAR-100, python version", ("train",), ("test",), ("meta",), True, False),
    Version(
        "CIFAR-100, binary version",
        ("train.bin",),
        ("test.bin",),
        ("fine_label_names.txt", "coarse_label_names.txt"),
        True,
        True,
    ),
    Version("CIFAR-10, python version", _TEN, ("test_batch",), ("batches.meta",), False, False),
    Version(
        "CIFAR-10, binary version",
        tuple(f"{name}.bin" for name in _TEN),
        ("test_batch.bin",),
        ("batches.meta.txt",),
        False,
        True,
    ),
)
EXTRACTED = {  # where the published archives put their files
    "cifar-100-python": "cifar-100-python",
    "cifar-100-binary": "cifar-100-binary",
    "cifar-10-python": "cifar-10-batches-py",
    "cifar-10-binary": "cifar-10-batches-bin",
}


def read_published(version: Version, files: Mapping[str, bytes], where: Path) -> Decoded:
    """Decodes the images and labels of a published version.

    Args:
        version: the version.
        files: the content of its files by name: of all required files, and of the name files that exist.
        where: the folder or archive of the files, for messages.

    Returns:
        The images and labels.

    Raises:
        DataError: a file is damaged, or images and labels contradict each other.
    """
    images, labels, coarse = {}, {}, {}
    for split, names in zip(SPLITS, (version.train, version.test), strict=True):
        read = _read_binary if version.binary else _read_pickle
        parts = [read(files[name], version.superclasses, f"{where}: {name}") for name in names]
        images[split] = np.concatenate([part[0] for part in parts])
        labels[split] = np.concatenate([part[1] for part in parts])
        coarse[split] = np.concatenate([part[2] for part in parts])
    class_names, superclass_names = _published_names(version, files, where)
    num_classes = len(class_names or ()) or (100 if version.superclasses else 10)
    check_labels(labels, num_classes, where)
    if not version.superclasses:
        return Decoded(images, labels, num_classes, class_names)
    above = superclass_of(labels, coarse, num_classes, superclass_names, where)
    return Decoded(images, labels, num_classes, class_names, above, superclass_names)


def _read_binary(
    content: bytes, superclasses: bool, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Decodes records of (a superclass byte,) a class byte, and 1024 bytes each of red, green and blue."""
    width = 3072 + 1 + superclasses
    if not content or len(content) % width:
        raise DataError(f"{where} has {len(content):,} bytes, not a multiple of the {width} of one image: cut short?")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, width)
    return _from_planes(records[:, -3072:]), records[:, -3073].astype(np.int64), records[:, 0].astype(np.int64)


def _from_planes(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _read_pickle(
    content: bytes, superclasses: bool, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    table = unpickle(content, where)
    rows = table.get("data")
    if not isinstance(rows, PlainArray):
        raise DataError(f"{where}: no array under the key 'data'; found {listed([repr(key) for key in table])}")
    images = _from_planes(rows.rows(where))
    keys = ("fine_labels", "coarse_labels") if superclasses else ("labels", "labels")
    fine, coarse = (_label_list(table, key, len(images), where) for key in keys)
    return images, fine, coarse


def _label_list(table: Mapping[str, Any], key: str, count: int, where: str) -> NDArray[np.int64]:
    values = table.get(key)
    if isinstance(values, PlainArray):
        values = values.whole_numbers()
    elif isinstance(values, tuple):
        values = list(values)
    if not isinstance(values, list) or len(values) != count or not all(type(value) is int for value in values):
        raise DataError(f"{where}: {key!r} is not a list of {count:,} whole numbers, one an image")
    if values and not 0 <= min(values) <= max(values) < 2**31:
        wrong = min(values) if min(values) < 0 else max(values)
        raise DataError(f"{where}: {key!r} holds a label out of range: {wrong}")
    return np.array(values, dtype=np.int64)


def _published_names(
    version: Version, files: Mapping[str, bytes], where: Path
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    found: list[tuple[str, ...] | None]
    if version.binary:
        found = [
            tuple(name_of(line, f"{where}: {name}") for line in files[name].splitlines() if line.strip())
            if name in files
            else None
            for name in version.names
        ]
    else:
        name = version.names[0]
        keys = ("fine_label_names", "coarse_label_names") if version.superclasses else ("label_names",)
        if name not in files:
            return None, None
        table = unpickle(files[name], f"{where}: {name}")
        found = []
        for key in keys:
            values = table.get(key)
            if not isinstance(values, list) or not values:
                raise DataError(f"{where}: {name} has no list of names under {key!r}")
            found.append(tuple(name_of(value, f"{where}: {name}") for value in values))
    return found[0], found[1] if len(found) > 1 else None


def superclass_of(
    labels: Mapping[str, NDArray[np.int64]],
    coarse: Mapping[str, NDArray[np.int64]],
    num_classes: int,
    names: tuple[str, ...] | None,
    where: Path,
) -> tuple[int, ...]:
    """The superclass of each class, -1 for a class without images.

    Args:
        labels: for "train" and "test" the class of each image, int64 [N].
        coarse: for "train" and "test" the superclass of each image, int64 [N].
        num_classes: the number of classes.
        names: the name of each superclass; None if they are not known.
        where: the source, for messages.

    Raises:
        DataError: images of one class have different superclasses, or a superclass has no name.
    """
    fine = np.concatenate([labels[split] for split in SPLITS])
    above = np.concatenate([coarse[split] for split in SPLITS])
    table = np.full(num_classes, -1, dtype=np.int64)
    table[fine] = above
    if (wrong := np.flatnonzero(table[fine] != above)).size:
        label = int(fine[wrong[0]])
        seen = sorted(set(above[fine == label].tolist()))
        raise DataError(
            f"{where}: images of class {label} lie in several superclasses: {seen}. Labels that were changed "
            f"afterwards (as in CIFAR-100N) have none; to train on them, {SAVE_AS_NPZ}"
        )
    if names and table.max(initial=0) >= len(names):
        raise DataError(f"{where}: superclass label {table.max()}, but only {len(names)} superclass names")
    return tuple(table.tolist())

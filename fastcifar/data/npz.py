"""Decoding arrays of NumPy, in one .npz or in a folder of .npy files -> images and labels.

The arrays are train_images, train_labels, test_images, test_labels and, optionally, label_names; or, as Keras names
them, x_train, y_train, x_test, y_test.
"""

import math
import warnings
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.dataset import SPLITS
from fastcifar.data.decoded import (
    Decoded,
    are_pictures,
    check_labels,
    describe,
    how_to_convert,
    in_three_channels,
    name_of,
    same_size,
    square_images,
    whole_numbers,
)
from fastcifar.data.images import scaled
from fastcifar.data.notes import listed, nearest
from fastcifar.data.paths import fit_in_memory
from fastcifar.errors import DataError
from fastcifar.files import check_members

KEYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
KERAS = {key: f"{'x' if key.endswith('images') else 'y'}_{key.partition('_')[0]}" for key in KEYS}
"""What Keras calls the arrays."""

Read = Callable[[str], NDArray[Any]]
"""The name of an array -> the array."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path, size: int | None = None) -> Decoded:
    """Reads the images and labels of an .npz. Each array is checked before it is read.

    Args:
        path: the file.
        size: the side to which images are scaled, of whatever size they are; None takes them as they are.

    Returns:
        The images and labels.

    Raises:
        DataError: the file is damaged, an array is missing, or an array has the wrong dtype, shape or values.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                check_members(archive)
                members: dict[str, zipfile.ZipInfo] = {}
                for member in archive.infolist():
                    key = member.filename.removesuffix(".npy")
                    if key in members:
                        raise DataError(f"{path} holds two arrays named {key!r}")
                    members[key] = member
                return _decode(lambda name: _array(archive, members[name], path), members, path, size)
        except (DataError, MemoryError):
            raise
        except OSError as error:
            if error.errno:  # an error of the disk, not of zipfile
                raise
            raise _damaged(path, error) from error
        except Exception as error:  # zipfile and NumPy raise many kinds of errors on damaged files
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged or no .npz of plain arrays ({error})")


def read_npy_folder(folder: Path, size: int | None = None) -> Decoded:
    """Reads the images and labels of a folder with an .npy file for each array.

    Args:
        folder: holds them.
        size: as for `read_npz`.

    Returns:
        The images and labels.

    Raises:
        DataError: as for `read_npz`.
        OSError: a file cannot be read.
    """

    def read(name: str) -> NDArray[Any]:
        path = folder / f"{name}.npy"
        try:
            with path.open("rb") as file:
                return _checked(file, path.stat().st_size, str(path))
        except ValueError as error:  # of NumPy, about objects and damaged headers
            raise _damaged(path, error) from error

    return _decode(read, [path.stem for path in folder.glob("*.npy")], folder, size)


def named_like(keys: Collection[str]) -> bool:
    """Whether a file or folder has the four arrays, under our names or under those of Keras."""
    return set(KEYS) <= set(keys) or set(KERAS.values()) <= set(keys)


def _decode(read: Read, names: Collection[str], path: Path, size: int | None) -> Decoded:
    called = KERAS if set(KERAS.values()) <= set(names) else {key: key for key in KEYS}
    for key in KEYS:
        if called[key] not in names:
            hint = nearest(key, names) or f" The arrays have to be named {', '.join(KEYS)}."
            raise DataError(f"{path} has no array {key!r}; it holds {listed(list(names))}.{hint}")
    images, labels = {}, {}
    for split in SPLITS:
        of_images, of_labels = called[f"{split}_images"], called[f"{split}_labels"]
        found, where = read(of_images), f"{path}: {of_images}"
        if size is not None and are_pictures(found):
            images[split] = scaled(in_three_channels(found), size)
        else:
            images[split] = square_images(found, where, how_to_convert(path))
        labels[split] = whole_numbers(read(of_labels), f"{path}: {of_labels}")
        if len(images[split]) != len(labels[split]):
            raise DataError(f"{path}: {len(images[split]):,} {of_images}, but {len(labels[split]):,} {of_labels}")
    same_size(images, path)
    class_names = _class_names(read, names, path)
    num_classes = check_labels(labels, len(class_names) if class_names else None, path)
    unused = [name for name in names if name.endswith("_images") and name not in KEYS]
    notes = (f"{path} also holds {listed(unused)}, of which nothing is used",) if unused else ()
    return Decoded(images, labels, num_classes, class_names, notes=notes)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    """Reads one array, to the end of its member, so that the checksum is verified."""
    where = f"{path}: {member.filename.removesuffix('.npy')}"
    with archive.open(member) as file:
        return _checked(file, member.file_size, where)


def _checked(file: IO[bytes], size: int, where: str) -> NDArray[Any]:
    """Reads the array of an .npy file of `size` bytes, to its end."""
    _check_header(file, size, where)
    file.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    file.read()
    return array


def _check_header(file: IO[bytes], size: int, where: str) -> None:
    """Checks that a file of `size` bytes is an array with exactly the bytes that its header claims.

    Raises:
        DataError: it is not one.
    """
    start = file.read(len(np.lib.format.MAGIC_PREFIX))
    if start != np.lib.format.MAGIC_PREFIX:
        raise DataError(f"{where} is no array: np.savez writes each as an .npy file")
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # files written by Python 2
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise DataError(f"{where} is an array of format {version}, which holds no plain numbers or text")
        shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        return  # read_array says what is wrong with it
    claimed = math.prod(shape) * dtype.itemsize
    held = size - file.tell()
    if claimed != held:
        raise DataError(f"{where} claims to be {dtype} {list(shape)}, {claimed:,} bytes, but holds {held:,}")
    if not fit_in_memory(claimed):
        raise DataError(f"{where} has {claimed:,} bytes, more than this machine's memory")


def _class_names(read: Read, there: Collection[str], path: Path) -> tuple[str, ...] | None:
    if "label_names" not in there:
        return None
    names = read("label_names")
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(f"{path}: label_names is {describe(names)}, not a list of strings")
    if not len(names):
        raise DataError(f"{path}: label_names holds no name; give one for each class, or leave the array out")
    return tuple(name_of(name, f"{path}: label_names") for name in names.tolist())

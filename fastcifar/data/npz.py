"""Decoding an .npz with train_images, train_labels, test_images, test_labels and optional label_names -> arrays."""

import math
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.dataset import SPLITS
from fastcifar.data.decoded import Decoded, check_labels, describe, name_of, whole_numbers
from fastcifar.data.notes import listed, nearest
from fastcifar.data.paths import fit_in_memory
from fastcifar.errors import DataError

KEYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path) -> Decoded:
    """Reads the images and labels of an .npz. Each array is checked before it is read.

    Args:
        path: the file.

    Returns:
        The images and labels.

    Raises:
        DataError: the file is damaged, an array is missing, or an array has the wrong dtype, shape or values.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                return _decode(archive, path)
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


def _decode(archive: zipfile.ZipFile, path: Path) -> Decoded:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        key = member.filename.removesuffix(".npy")
        if key in members:
            raise DataError(f"{path} holds two arrays named {key!r}")
        members[key] = member
    for key in KEYS:
        if key not in members:
            hint = nearest(key, members) or f" The arrays have to be named {', '.join(KEYS)}."
            raise DataError(f"{path} has no array {key!r}; it holds {listed(list(members))}.{hint}")
    images, labels = {}, {}
    for split in SPLITS:
        images[split] = _check_images(_array(archive, members[f"{split}_images"], path), f"{path}: {split}_images")
        labels[split] = whole_numbers(_array(archive, members[f"{split}_labels"], path), f"{path}: {split}_labels")
        if len(images[split]) != len(labels[split]):
            raise DataError(f"{path}: {len(images[split]):,} {split}_images, but {len(labels[split]):,} {split}_labels")
    class_names = _class_names(archive, members, path)
    num_classes = check_labels(labels, len(class_names) if class_names else None, path)
    unused = [key for key in members if key.endswith("_images") and key not in KEYS]
    notes = (f"{path} also holds {listed(unused)}, of which nothing is used",) if unused else ()
    return Decoded(images, labels, num_classes, class_names, notes=notes)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    """Reads one array, to the end of its member, so that the checksum is verified."""
    where = f"{path}: {member.filename.removesuffix('.npy')}"
    with archive.open(member) as file:
        _check_header(file, member, where)
        file.seek(0)
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        file.read()
    return array


def _check_header(file: IO[bytes], member: zipfile.ZipInfo, where: str) -> None:
    """Checks that a member is an array with exactly the bytes that its header claims.

    Raises:
        DataError: the member is not one.
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
    held = member.file_size - file.tell()
    if claimed != held:
        raise DataError(f"{where} claims to be {dtype} {list(shape)}, {claimed:,} bytes, but holds {held:,}")
    if not fit_in_memory(claimed):
        raise DataError(f"{where} has {claimed:,} bytes, more than this machine's memory")


def _check_images(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    hint = ""
    if images.ndim == 4 and images.shape[1:] == (3, 32, 32):
        hint = "; transpose(0, 2, 3, 1) makes it so"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
        raise DataError(f"{where} is {describe(images)}, not uint8 [N, 32, 32, 3]{hint}")
    return np.ascontiguousarray(images)


def _class_names(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], path: Path) -> tuple[str, ...] | None:
    if "label_names" not in members:
        return None
    names = _array(archive, members["label_names"], path)
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(f"{path}: label_names is {describe(names)}, not a list of strings")
    if not len(names):
        raise DataError(f"{path}: label_names holds no name; give one for each class, or leave the array out")
    return tuple(name_of(name, f"{path}: label_names") for name in names.tolist())

"""An .npz with train_images, train_labels, test_images, test_labels and, where it has them, label_names -> arrays."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.dataset import SPLITS
from fastcifar.data.decoded import Decoded, check_labels, text_of
from fastcifar.data.notes import nearest
from fastcifar.errors import DataError


def read_npz(path: Path) -> Decoded:
    images, labels = {}, {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in (f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")):
                if key not in archive:
                    raise DataError(
                        f"{path} has no array {key!r}; it holds {', '.join(archive.files) or 'nothing'}."
                        f"{nearest(key, archive.files)}"
                    )
            for split in SPLITS:
                images[split] = _check_images(archive[f"{split}_images"], f"{path}: {split}_images")
                labels[split] = _check_label_array(archive[f"{split}_labels"], f"{path}: {split}_labels")
                if len(images[split]) != len(labels[split]):
                    raise DataError(
                        f"{path}: {len(images[split]):,} {split}_images, but {len(labels[split]):,} {split}_labels"
                    )
            names = archive["label_names"] if "label_names" in archive else None
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is damaged or no .npz of plain arrays ({error})") from error
    class_names = None
    if names is not None:
        if names.ndim != 1 or names.dtype.kind not in "US":
            raise DataError(f"{path}: label_names is {_describe(names)}, not a list of strings")
        class_names = tuple(text_of(name, f"{path}: label_names") for name in names.tolist())
    num_classes = check_labels(labels, len(class_names) if class_names else None, path)
    return Decoded(images, labels, num_classes, class_names)


def _describe(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _check_images(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    hint = ""
    if images.ndim == 4 and images.shape[1:] == (3, 32, 32):
        hint = "; transpose(0, 2, 3, 1) makes it so"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
        raise DataError(f"{where} is {_describe(images)}, not uint8 [N, 32, 32, 3]{hint}")
    return np.ascontiguousarray(images)


def _check_label_array(labels: NDArray[Any], where: str) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{where} is {_describe(labels)}, not whole numbers [N]")
    return labels.astype(np.int64)

"""predictions.npz: what a run's model says of each test image, and which image and which class that is.

Arrays of an entry for each test image, in the data set's canonical order:

    labels              int16, or a wider integer where a class number needs it: the image's class
    predicted           of the same type: the class that the model gives it
    confidence          float32, 0 to 1: the probability of the predicted class
    label_probability   float32, 0 to 1: the probability of the image's class
    places              where the image is in the source: its number in the test arrays or files, counted from 0, or its
                        file's path relative to the folder; missing in files of earlier versions

and one of an entry for each class:

    class_names         text: class number k is called class_names[k]; missing in files of earlier versions

`numpy.load(path)` reads it; nothing in it is a pickle.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar import files
from fastcifar.errors import CheckpointError
from fastcifar.run.names import PREDICTIONS, advice

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST = 2**32
"""Bytes of all arrays together; those of ten million images are less."""

_AN_IMAGE_EACH = {"labels": "iu", "predicted": "iu", "confidence": "f", "label_probability": "f", "places": "iuUS"}
"""Array -> the kinds of numbers or text that it may hold."""


def write_predictions(folder: Path, predictions: Mapping[str, NDArray[Any]]) -> None:
    """Writes predictions.npz in one step.

    Args:
        folder: the run folder.
        predictions: the arrays of the module's description. Class numbers of any integer type are written as int16, or
            as the narrowest wider type that holds them.

    Raises:
        FastcifarError: the file cannot be written.
    """
    import numpy as np

    arrays = dict(predictions)
    classes = [name for name in ("labels", "predicted") if name in arrays]
    largest = max((int(arrays[name].max(initial=0)) for name in classes), default=0)
    dtype = next(t for t in (np.int16, np.int32, np.int64) if largest <= np.iinfo(t).max)
    for name in classes:
        arrays[name] = arrays[name].astype(dtype)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    files.replace(folder / PREDICTIONS, content.getvalue(), advice(folder))


def read_predictions(folder: Path) -> dict[str, NDArray[Any]] | None:
    """Reads predictions.npz.

    Args:
        folder: the run folder.

    Returns:
        The arrays by name; None while there is no such file.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / PREDICTIONS
    try:
        content = files.read(path)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {files.refusal(path, problem)}.") from problem
    try:
        arrays = _arrays(content)
        _check(arrays)
    except Exception as problem:  # what numpy and zipfile raise over wrong bytes is of many kinds
        raise CheckpointError(f"{path} is damaged: {problem}. Delete it: it is made again when needed.") from problem
    return arrays


def _arrays(content: bytes) -> dict[str, NDArray[Any]]:
    import numpy as np

    with zipfile.ZipFile(io.BytesIO(content)) as members:
        size = sum(member.file_size for member in members.infolist())
        files.check_members(members)
    if size > _LARGEST:
        raise ValueError(f"its arrays claim {size:,} bytes")
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _check(arrays: Mapping[str, Any]) -> None:
    """Refuses what the module's description does not allow.

    Raises:
        ValueError: an array is missing, of another type or of another length.
    """
    for name in ("labels", "predicted", "confidence"):
        if name not in arrays:
            raise ValueError(f"it has no {name}")
    count = arrays["labels"].shape
    for name, kinds in _AN_IMAGE_EACH.items():
        if name not in arrays:
            continue
        array = arrays[name]
        if getattr(array, "dtype", None) is None or array.dtype.kind not in kinds:
            raise ValueError(f"{name} is of another type than it should be")
        if array.ndim != 1 or array.shape != count:
            raise ValueError(f"{name} has the shape {array.shape}, labels has {count}")
    names = arrays.get("class_names")
    largest = max(int(arrays[name].max(initial=0)) for name in ("labels", "predicted"))
    if min(int(arrays[name].min(initial=0)) for name in ("labels", "predicted")) < 0:
        raise ValueError("a class number is below 0")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U" or len(names) <= largest):
        raise ValueError(f"class_names does not name class {largest}")

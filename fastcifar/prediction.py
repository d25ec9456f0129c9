"""What a run's model says of any pictures: `predict` reads them, scales them to the run's images, and ranks classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fastcifar.augment import normalization_table, normalize
from fastcifar.checkpoint import Weights, load_model
from fastcifar.data.images import SUFFIXES, fitted, no_warnings, open_picture
from fastcifar.data.paths import is_litter, kind_of, reading
from fastcifar.errors import DataError
from fastcifar.evaluation import images_of
from fastcifar.run.folder import RunFolder

Fit = Literal["crop", "stretch"]
_TOGETHER = 256  # pictures that are decoded and classified together


@dataclass(frozen=True)
class Guess:
    """A class that a picture may show.

    Attributes:
        class_name: the class.
        superclass: its superclass; empty where superclasses are not known.
        probability: 0 to 1.
    """

    class_name: str
    superclass: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the model says of one picture.

    Attributes:
        file: the picture.
        width: in pixels, upright.
        height: in pixels, upright.
        resized: how it was brought to the size of the run's images, in words; empty if it had that size.
        guesses: the most probable class first.
    """

    file: Path
    width: int
    height: int
    resized: str
    guesses: tuple[Guess, ...]


def predict(
    run: RunFolder,
    paths: Sequence[Path],
    *,
    top: int = 5,
    fit: Fit = "crop",
    data: str | None = None,
    weights: Weights = "last",
) -> list[Prediction]:
    """Classifies pictures of any size with a run's model, on the CPU in float32.

    Args:
        run: the run folder.
        paths: pictures, and folders, of which all pictures are taken, those in folders inside too.
        top: how many classes are given for a picture; at most as many as there are.
        fit: `crop` scales the centre square of a picture to the size of the run's images, `stretch` the whole picture.
            Both are bicubic and, where they shrink, average. A picture of that size is taken as it is.
        data: where the run's images are now, for a run of an earlier version, which does not say its classes.
        weights: as for `checkpoint.chosen`.

    Returns:
        The predictions, in the order of the paths, and of the names inside a folder.

    Raises:
        DataError: a path leads to no picture, or a picture cannot be read or has no single meaning in 8-bit RGB.
        CheckpointError: the run's checkpoint is missing or damaged.
    """
    files = [file for path in paths for file in _pictures(path)]
    model, images = load_model(run, weights), images_of(run, data)
    table = normalization_table(run.config.mean, run.config.std)
    found: list[Prediction] = []
    with no_warnings(), ThreadPoolExecutor() as pool:
        for part in _parts(files):
            read = list(pool.map(partial(_read, size=images.size, channels=run.config.channels, fit=fit), part))
            pixels = torch.from_numpy(np.stack([picture for picture, _, _ in read]))
            with torch.no_grad():
                probabilities, classes = (
                    model(normalize(pixels, table, torch.float32)).softmax(1).sort(1, descending=True)
                )
            for file, (_, (width, height), resized), row, order in zip(
                part, read, probabilities.tolist(), classes.tolist(), strict=True
            ):
                best = list(zip(order, row, strict=True))[:top]
                guesses = (Guess(images.class_names[k], images.superclass(k), p) for k, p in best)
                found.append(Prediction(file, width, height, resized, tuple(guesses)))
    return found


def _pictures(path: Path) -> Iterator[Path]:
    """The pictures that a path names.

    Raises:
        DataError: it names none.
    """
    with reading(path):
        kind = kind_of(path)
        if kind == "nothing":
            raise DataError(f"no such file or folder: {path}")
        if kind == "file":
            yield path
            return
        if kind != "folder":
            raise DataError(f"{path} is {kind}, and pictures are read from files and folders alone")
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        files = [file for file in inside if not any(map(is_litter, file.relative_to(path).parts))]
        if not files:
            raise DataError(f"{path} holds no picture: files that end in .png, .jpg, .webp and so on were looked for")
        yield from files


def _parts(files: Sequence[Path]) -> Iterable[Sequence[Path]]:
    return (files[start : start + _TOGETHER] for start in range(0, len(files), _TOGETHER))


def _read(file: Path, size: int, channels: int, fit: Fit) -> tuple[NDArray[np.uint8], tuple[int, int], str]:
    """A picture as uint8 [size, size, 3], its own size, and how it was brought from one to the other."""
    picture = open_picture(file)
    if channels == 1:
        picture = picture.convert("L").convert("RGB")
    width, height = picture.size
    what = f"whole {width}x{height}"
    if fit == "crop" and width != height:
        what = f"centre {min(width, height)}x{min(width, height)} of {width}x{height}"
    resized = "" if (width, height) == (size, size) else f"{what} to {size}x{size}"
    return np.asarray(fitted(picture, size, crop=fit == "crop")), picture.size, resized

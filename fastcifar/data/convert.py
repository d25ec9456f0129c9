"""Making an .npz of a size that is taken from images of any size."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastcifar import files
from fastcifar.data import layouts
from fastcifar.data.dataset import SPLITS
from fastcifar.data.images import scaled
from fastcifar.data.notes import note
from fastcifar.errors import UsageError
from fastcifar.text import quoted


def convert(source: Path, out: Path, size: int) -> dict[str, int]:
    """Writes images of any layout, scaled, to an .npz. Notes on the source, such as ignored files, go to stderr.

    The centre square of each image is scaled, bicubic and, where it shrinks, averaging. Images of the size stay as they
    are.

    Args:
        source: the images, of any size.
        out: the .npz, which must not exist yet.
        size: the side of the images in it, in pixels.

    Returns:
        The number of images in each split.

    Raises:
        UsageError: `out` exists, or is no .npz.
        DataError: the images cannot be read.
    """
    if out.suffix != ".npz" or files.holds(out):
        problem = "exists already, and nothing is ever overwritten" if files.holds(out) else "has to end in .npz"
        raise UsageError(f"{quoted(out)} {problem}")
    decoded = layouts.locate(source).read(size)
    for text in decoded.notes:
        note(text)
    arrays: dict[str, NDArray[np.generic]] = {}
    for split in SPLITS:
        images = decoded.images[split]
        if images.shape[1] != size:  # of a layout whose images have one size
            images = scaled(images, size)
        arrays |= {f"{split}_images": images, f"{split}_labels": decoded.labels[split]}
    if decoded.class_names:
        arrays["label_names"] = np.array(decoded.class_names, dtype=np.str_)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    files.replace(out, content.getvalue())
    return {split: len(decoded.labels[split]) for split in SPLITS}

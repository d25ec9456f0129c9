"""An image folder, {train,test}/<class>/*.png or any other format of Pillow -> arrays."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.dataset import SPLITS
from fastcifar.data.decoded import Decoded
from fastcifar.data.notes import nearest, note
from fastcifar.errors import DataError


def read_image_folder(folder: Path) -> Decoded:
    class_names = {split: sorted(p.name for p in (folder / split).iterdir() if p.is_dir()) for split in SPLITS}
    for split, other in (SPLITS, SPLITS[::-1]):
        if missing := [name for name in class_names[split] if name not in class_names[other]]:
            raise DataError(
                f"{folder}: class {missing[0]!r} is in {split}/ but not in {other}/ ({len(missing)} such)."
                f"{nearest(missing[0], class_names[other])}"
            )
    if not class_names["train"]:
        raise DataError(f"{folder}: train/ and test/ hold no class folders")
    images, labels, ignored = {}, {}, []
    for split in SPLITS:
        files, targets = [], []
        for label, name in enumerate(class_names[split]):
            inside = sorted(p for p in (folder / split / name).iterdir() if not p.name.startswith("."))
            usable = [p for p in inside if p.suffix.lower() in _image_suffixes() and p.is_file()]
            ignored += sorted(set(inside) - set(usable))
            if not usable:
                raise DataError(f"{folder / split / name} holds no image")
            files += usable
            targets += [label] * len(usable)
        images[split] = _open_images(files)
        labels[split] = np.array(targets, dtype=np.int64)
    if ignored:
        note(f"ignored {len(ignored)} of {folder} that are no image files, the first {ignored[0]}")
    return Decoded(images, labels, len(class_names["train"]), tuple(class_names["train"]))


def _image_suffixes() -> set[str]:
    from PIL import Image

    return set(Image.registered_extensions())


def _open_images(files: Sequence[Path]) -> NDArray[np.uint8]:
    images = np.empty((len(files), 32, 32, 3), dtype=np.uint8)

    def open_chunk(start: int) -> None:
        for i in range(start, min(start + 256, len(files))):
            images[i] = _open_image(files[i])

    with ThreadPoolExecutor() as pool:
        list(pool.map(open_chunk, range(0, len(files), 256)))  # the first problem in order of the files is raised
    return images


def _open_image(file: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.size != (32, 32):
                raise DataError(f"{file} has {image.width}x{image.height} pixels; only 32x32 is taken")
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise DataError(f"{file} holds {frames} pictures: which one is meant?")
            if image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema() != (255, 255):
                raise DataError(f"{file} is partly transparent: lay it on a colour first")
            if image.mode not in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"):
                raise DataError(f"{file} is of mode {image.mode}, which has no exact 8-bit RGB")
            return np.asarray(image.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise DataError(f"{file} is damaged or no image ({error})") from error

"""Images, labels and what the labels mean: ``Split`` and ``Dataset``, their content digests and statistics."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastcifar.errors import UsageError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Split:
    """Images, uint8 ``[N, 32, 32, 3]`` RGB, C-contiguous, and their labels, int64 ``[N]``."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Both splits in canonical order, and what their labels mean.

    ``digest`` is the SHA-256 of the content, the same for any order and layout of the same images and labels.
    ``superclass_names`` and ``superclass_of`` (an index a class) are empty where superclasses are not known.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...]
    superclass_of: tuple[int, ...]
    digest: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def train_val(self, val_size: int, split_seed: int) -> tuple[Split, Split]:
        """Split off ``val_size`` random training images for validation: ``(train, val)``, disjoint, not stratified.

        A pure function of the content, ``val_size`` and ``split_seed`` (a whole number from 0). The validation images
        of a smaller ``val_size`` are among those of a larger one. Raises UsageError.
        """
        count = len(self.train)
        if not 0 <= val_size < count:
            raise UsageError(
                f"val_size = {val_size}: {self.name} has {count:,} training images; allowed: 0 to {count - 1}"
            )
        if split_seed < 0:
            raise UsageError(f"split_seed = {split_seed}: allowed: whole numbers from 0")
        # Sorting raw Philox output: Generator.permutation may change between versions of NumPy, this may not.
        keys = np.random.Philox(np.random.SeedSequence(split_seed)).random_raw(count)
        order = np.argsort(keys, kind="stable")
        val, train = order[:val_size], order[val_size:]
        images, labels = self.train.images, self.train.labels
        return Split(images[train], labels[train]), Split(images[val], labels[val])


def split_digest(split: Split) -> str:
    """SHA-256 of a split's images and labels, the same for any order of them."""
    return sorted_by_content(split)[1]


def sorted_by_content(split: Split) -> tuple[NDArray[np.intp], str]:
    count = len(split)
    labels = split.labels.astype("<i8")
    pairs = zip(split.images, labels, strict=True)
    digests = [hashlib.sha256(image.tobytes() + label.tobytes()).digest() for image, label in pairs]
    order = sorted(range(count), key=digests.__getitem__)
    return np.array(order, dtype=np.intp), hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def joined(digests: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(digests[split] for split in SPLITS).encode()).hexdigest()


@dataclass(frozen=True)
class SplitInfo:
    """What ``info`` counts in one split. Pixel statistics are in R, G, B order, of pixels from 0 to 1."""

    count: int
    class_min: int
    class_max: int
    class_mean: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]  # over all pixels of the split
    image_std: tuple[float, float, float]  # mean over the images of each image's own (ddof 1)


def info(dataset: Dataset) -> dict[str, SplitInfo]:
    """Counts, class balance and channel statistics of each split: ``{"train": SplitInfo, "test": SplitInfo}``."""
    return {
        "train": _split_info(dataset.train, dataset.num_classes),
        "test": _split_info(dataset.test, dataset.num_classes),
    }


def _split_info(split: Split, num_classes: int) -> SplitInfo:
    pixels = 32 * 32
    total, total_squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
    image_std = np.zeros(3)
    for start in range(0, len(split), 1000):
        chunk = split.images[start : start + 1000].reshape(-1, pixels, 3).astype(np.uint16)
        sums = chunk.sum(axis=1, dtype=np.int64)
        squares = (chunk * chunk).sum(axis=1, dtype=np.int64)  # 255 * 255 fits in 16 bits
        total += sums.sum(axis=0)
        total_squares += squares.sum(axis=0)
        image_std += np.sqrt((squares - sums * sums / pixels) / (pixels - 1)).sum(axis=0)
    count = len(split) * pixels
    mean = total / count
    std = np.sqrt(total_squares / count - mean * mean)
    per_class = np.bincount(split.labels, minlength=num_classes)

    def rgb(values: NDArray[np.float64]) -> tuple[float, float, float]:
        red, green, blue = (values / 255).tolist()
        return red, green, blue

    return SplitInfo(
        len(split),
        int(per_class.min()),
        int(per_class.max()),
        float(per_class.mean()),
        rgb(mean),
        rgb(std),
        rgb(image_std / len(split)),
    )

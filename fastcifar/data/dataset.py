"""`Split` and `Dataset`: images, labels and the names of the labels, with digests of the content and statistics."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.errors import UsageError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Split:
    """Images with their labels, and the place of each image in its source.

    Attributes:
        images: uint8 [N, S, S, 3] RGB, C-contiguous. The channels of grey images are equal.
        labels: int64 [N].
        places: int64 [N], the index of each image in its source. In an .npz or in CIFAR's files it is the row in the
            split's array (the five files of CIFAR-10 count as one array). In an image folder it is the index in the
            list of the split's files, sorted by class name, then by file name. None if not known.
        files: for an image folder, the path of each image below the folder, such as `test/cat/007.png`, made printable
            by `text.printable`. None for every other source.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    places: NDArray[np.int64] | None = None
    files: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def is_grey(self) -> bool:
        """Whether the three channels of all images are equal."""
        chunks = (self.images[start : start + 1000] for start in range(0, len(self), 1000))
        return all((chunk == chunk[..., :1]).all() for chunk in chunks)

    def take(self, index: NDArray[np.integer[Any]]) -> "Split":
        """A split of some of the images.

        Args:
            index: int [M], which images, in the order of the new split.
        """
        return Split(
            self.images[index],
            self.labels[index],
            None if self.places is None else self.places[index],
            None if self.files is None else tuple(self.files[i] for i in index.tolist()),
        )


@dataclass(frozen=True)
class Dataset:
    """The train and test split in canonical order (see `canonical`), and the names of their classes.

    Attributes:
        name: the name of the published data set, or of the file or folder.
        train: the training images.
        test: the test images.
        class_names: the name of each class, sorted; a label is an index into it.
        superclass_names: the name of each superclass; empty if superclasses are not known.
        superclass_of: for each class the index of its superclass; empty if superclasses are not known.
        digest: a SHA-256 of the content. It is the same for the same images and labels in any order and layout.
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
        """The number of classes."""
        return len(self.class_names)

    def train_val(self, val_size: int, split_seed: int) -> tuple[Split, Split]:
        """Splits off random training images for validation, not stratified.

        The result depends only on the content and the two arguments. With a larger `val_size` and the same seed, the
        validation images include all validation images of a smaller `val_size`.

        Args:
            val_size: the number of validation images. With 0 all images are training images.
            split_seed: a whole number from 0.

        Returns:
            The training split and the validation split.

        Raises:
            UsageError: either argument is out of range.
        """
        count = len(self.train)
        if not 0 <= val_size < count:
            allowed = f"0 to {count - 1}" if count > 1 else "0"
            raise UsageError(
                f"val_size = {val_size}: {self.name} has {count:,} training images; allowed: {allowed}. "
                "--val-size N sets it, and with 0 every one of them is trained on."
            )
        if split_seed < 0:
            raise UsageError(f"split_seed = {split_seed}: allowed: whole numbers from 0")
        # Raw Philox output, sorted, because Generator.permutation may change between versions of NumPy.
        keys = np.random.Philox(np.random.SeedSequence(split_seed)).random_raw(count)
        order = np.argsort(keys, kind="stable")
        return self.train.take(order[val_size:]), self.train.take(order[:val_size])


def sorted_by_content(split: Split) -> tuple[NDArray[np.intp], str]:
    """The canonical order of a split, and the digest that names its content.

    Args:
        split: images and labels in any order.

    Returns:
        The indices, intp [N], that sort the images by the SHA-256 of their bytes and label; and the SHA-256 over these
        sorted hashes.
    """
    count = len(split)
    labels = split.labels.astype("<i8")
    pairs = zip(split.images, labels, strict=True)
    digests = [hashlib.sha256(image.tobytes() + label.tobytes()).digest() for image, label in pairs]
    order = sorted(range(count), key=digests.__getitem__)
    return np.array(order, dtype=np.intp), hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def split_digest(split: Split) -> str:
    """The SHA-256 of a split's images and labels, which is the same for any order of them."""
    return sorted_by_content(split)[1]


def joined(digests: Mapping[str, str]) -> str:
    """The `Dataset.digest` of a data set.

    Args:
        digests: the `split_digest` of each split: `{"train": ..., "test": ...}`.
    """
    return hashlib.sha256("".join(digests[split] for split in SPLITS).encode()).hexdigest()


@dataclass(frozen=True)
class SplitInfo:
    """Statistics of one split. Statistics of pixels are in R, G, B order, for pixels from 0 to 1.

    Attributes:
        count: the number of images.
        class_min: the number of images in the smallest class.
        class_max: the number of images in the largest class.
        class_mean: the mean number of images in a class.
        mean: the mean of all pixels.
        std: the standard deviation of all pixels.
        image_std: the mean over the images of each image's standard deviation (with ddof = 1).
    """

    count: int
    class_min: int
    class_max: int
    class_mean: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_std: tuple[float, float, float]


def info(dataset: Dataset) -> dict[str, SplitInfo]:
    """Counts images, classes and pixels.

    Args:
        dataset: the data set.

    Returns:
        The statistics of each split: `{"train": SplitInfo, "test": SplitInfo}`.
    """
    return {
        "train": _split_info(dataset.train, dataset.num_classes),
        "test": _split_info(dataset.test, dataset.num_classes),
    }


Channels = tuple[float, float, float]


def channel_statistics(split: Split) -> tuple[Channels, Channels]:
    """The mean and the standard deviation of all pixels of a split, for normalisation.

    Args:
        split: at least one image.

    Returns:
        Mean and deviation of each channel, for pixels from 0 to 1, rounded to four digits; the deviation is at least
        0.001.
    """
    found = _split_info(split, 1 + int(split.labels.max()))

    def rounded(values: Channels, least: float) -> Channels:
        red, green, blue = (max(round(value, 4), least) for value in values)
        return red, green, blue

    return rounded(found.mean, 0.0), rounded(found.std, 0.001)


def _split_info(split: Split, num_classes: int) -> SplitInfo:
    pixels = split.images.shape[1] * split.images.shape[2]
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

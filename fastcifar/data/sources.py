"""Where images come from: a name or a path -> Dataset, in one canonical order, decoded once and cached.

The images of a split are sorted by the SHA-256 of their bytes and label, whatever file, folder or archive they came in:
the same seed then draws the same validation split everywhere, and a digest of that order names the content itself.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data import download, layouts, procedural, store
from fastcifar.data.layouts import SPLITS, Decoded
from fastcifar.errors import DataError, UsageError

CIFAR100_DIGESTS = {  # split_digest of the published images
    "train": "f21948361e3a1c94d1f14ec03fe682372044407fa6a618f020b2ed8dcc41d84d",
    "test": "dc83e74dc0797ec7de75164abeb59d8c66b9677d62e46ddb8ce1ab1608ba1b7d",
}
PROCEDURAL_DIGEST = "ad1f2e581993a5b3c6f0f9f4d0d4e7ff884f18d16046bcfd667b5d256e4723cb"  # Dataset.digest
CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
_CIFAR100_SUPERCLASS = {name: above for above, names in CIFAR100_SUPERCLASSES.items() for name in names.split()}


@dataclass(frozen=True)
class Published:
    """A published data set: where it lies and how its content is known."""

    name: str
    url: str
    class_names: tuple[str, ...]
    counts: Mapping[str, int]
    digests: Mapping[str, str] | None = None  # split_digest of each split; None where no copy was at hand to take it
    archive_md5s: tuple[str, ...] = ()  # as published, for want of digests; only told of, as any repacking changes them

    @property
    def digest(self) -> str | None:
        """The ``Dataset.digest`` of the published images, where it is known."""
        return _joined(self.digests) if self.digests else None

    def check(self, dataset: "Dataset") -> None:
        """Raise DataError unless ``dataset`` holds this set's images: all of them, and where known no other."""
        if dataset.class_names != self.class_names:
            raise DataError(f"its classes are not those of {self.name}")
        for split in SPLITS:
            counts = np.bincount(getattr(dataset, split).labels, minlength=dataset.num_classes)
            expected = self.counts[split]
            if counts.sum() != expected or len(set(counts.tolist())) > 1:
                raise DataError(
                    f"its {split} split has {counts.sum():,} images, {counts.min():,} to {counts.max():,} a class; "
                    f"{self.name} has {expected:,}, {expected // dataset.num_classes:,} a class"
                )
        if self.digest and dataset.digest != self.digest:
            raise DataError(f"its images are not those of {self.name}: the content digest differs")


CIFAR100 = Published(
    "cifar100",
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    tuple(sorted(_CIFAR100_SUPERCLASS)),
    {"train": 50_000, "test": 10_000},
    CIFAR100_DIGESTS,
)
CIFAR10 = Published(
    "cifar10",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    {"train": 50_000, "test": 10_000},
    archive_md5s=("c58f30108f718f92721af3b95e74349a", "c32a1d4ab5d03f1284b67883e8d87530"),  # python, binary version
)
PUBLISHED = {published.name: published for published in (CIFAR100, CIFAR10)}
NAMES = (*PUBLISHED, "procedural")


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


def load(data: str, *, mirror: str = "", cache: Path | None = None, progress: bool = True) -> Dataset:
    """The images that ``data`` names: cifar100, cifar10, procedural, or a path to any layout of ``layouts.ACCEPTED``.

    A published set is downloaded if the cache lacks it, from its official address or from ``mirror``: the http, https
    or file URL of the archive or of the folder that holds it. ``cache`` is the folder of the decoded copies (default:
    ``$FASTCIFAR_DATA``, else the user's cache folder). Raises DataError.
    """
    folder = cache if cache is not None else store.default_folder()
    if data == "procedural":
        return _from_entry(store.cached(folder, data, PROCEDURAL_DIGEST, lambda: _to_entry(_procedural())))
    if data in PUBLISHED:
        return load_published(PUBLISHED[data], mirror=mirror, cache=folder, progress=progress)
    path = Path(data).expanduser()
    if not path.exists() and len(path.parts) < 2:
        names = [*NAMES, *(p.name for p in Path().iterdir())]
        raise DataError(
            f"data = {data!r} is neither a data set ({', '.join(NAMES)}) nor a file or folder here."
            f"{layouts.nearest(data, names)}"
        )
    source = layouts.locate(path)
    return _from_entry(store.cached(folder, _entry_name(source.path), source.fingerprint(), lambda: _decode(source)))


def load_published(published: Published, *, mirror: str, cache: Path, progress: bool) -> Dataset:
    """``published`` from the cache, else from the archive in it, else downloaded; kept if ``check`` accepts it."""

    def build() -> store.Entry:
        def decode(path: Path) -> store.Entry:
            dataset = _dataset(layouts.locate(path).read(), published.name)
            published.check(dataset)
            if published.archive_md5s and _md5(path) not in published.archive_md5s:
                store.note(
                    f"classes, counts and shapes are those of {published.name}, but this is not byte for byte an "
                    "archive as published: packed anew, or altered"
                )
            return _to_entry(dataset)

        return download.obtain(
            published.url, mirror, cache / "downloads", decode, title=published.name, progress=progress
        )

    return _from_entry(store.cached(cache, published.name, str(published.digests), build))


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if path.is_file() else ""


def split_digest(split: Split) -> str:
    """SHA-256 of a split's images and labels, the same for any order of them."""
    return _sorted_by_content(split)[1]


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


# ---------------------------------------------------------------------------------------------------- canonical order


def _sorted_by_content(split: Split) -> tuple[NDArray[np.intp], str]:
    count = len(split)
    labels = split.labels.astype("<i8")
    pairs = zip(split.images, labels, strict=True)
    digests = [hashlib.sha256(image.tobytes() + label.tobytes()).digest() for image, label in pairs]
    order = sorted(range(count), key=digests.__getitem__)
    return np.array(order, dtype=np.intp), hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _dataset(decoded: Decoded, name: str) -> Dataset:
    """Put images in order of content, classes in order of name, and find out what the classes are called."""
    class_names, superclass_of = decoded.class_names, decoded.superclass_of
    rank = np.arange(decoded.num_classes)
    if class_names:
        if len(set(class_names)) < len(class_names):
            twice = next(n for i, n in enumerate(class_names) if n in class_names[:i])
            raise DataError(f"two classes are both named {twice!r}")
        by_name = sorted(range(len(class_names)), key=class_names.__getitem__)
        rank[by_name] = np.arange(len(class_names))
        class_names = tuple(class_names[i] for i in by_name)
        superclass_of = tuple(superclass_of[i] for i in by_name) if superclass_of else None
    splits, digests = {}, {}
    for split in SPLITS:
        unsorted = Split(decoded.images[split], rank[decoded.labels[split]])
        order, digests[split] = _sorted_by_content(unsorted)
        splits[split] = Split(unsorted.images[order], unsorted.labels[order])
    if class_names is None:
        known = digests == CIFAR100_DIGESTS
        class_names = CIFAR100.class_names if known else tuple(f"class {i}" for i in range(decoded.num_classes))
    superclasses = _superclasses(class_names, decoded.superclass_names, superclass_of)
    return Dataset(name, splits["train"], splits["test"], class_names, *superclasses, _joined(digests))


def _joined(digests: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(digests[split] for split in SPLITS).encode()).hexdigest()


def _superclasses(
    class_names: tuple[str, ...], names: tuple[str, ...] | None, found: tuple[int, ...] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and one index a class: CIFAR-100's as published, which the layout must not contradict, else its own."""
    if class_names != CIFAR100.class_names:
        if not found or -1 in found:
            return (), ()
        return names or tuple(f"superclass {i}" for i in range(1 + max(found))), found
    published_names = tuple(sorted(CIFAR100_SUPERCLASSES))
    published = tuple(published_names.index(_CIFAR100_SUPERCLASS[name]) for name in class_names)
    for name, here, there in zip(class_names, published, found or published, strict=True):
        stated = dict(enumerate(names or published_names)).get(there, f"number {there}")
        if there != -1 and stated != published_names[here]:
            raise DataError(f"superclass of {name}: {stated} as labelled, {published_names[here]} as published")
    return published_names, published


# ---------------------------------------------------------------------------------------------------- cache entries


def _decode(source: layouts.Source) -> store.Entry:
    try:
        dataset = _dataset(source.read(), source.path.name.split(".")[0] or "images")
    except DataError as error:
        where = "" if str(source.path) in str(error) else f"{source.path}: "
        raise DataError(f"{where}{error}") from error
    for published in PUBLISHED.values():
        if dataset.class_names == published.class_names:
            try:
                published.check(dataset)
                dataset = replace(dataset, name=published.name)
            except DataError as error:
                store.note(f"{source.path} has the classes of {published.name}, but {error}: accuracies do not compare")
    return _to_entry(dataset)


def _procedural() -> Dataset:
    drawn = procedural.generate()
    images = {split: drawn[split][0] for split in SPLITS}
    labels = {split: drawn[split][1] for split in SPLITS}
    names, above, superclass_names = procedural.CLASS_NAMES, procedural.SUPERCLASS_OF, procedural.SUPERCLASS_NAMES
    dataset = _dataset(Decoded(images, labels, len(names), names, above, superclass_names), "procedural")
    if dataset.digest != PROCEDURAL_DIGEST:
        store.note("this machine draws other procedural images than the developers' did: accuracies do not compare")
    return dataset


def _entry_name(path: Path) -> str:
    """A file name for the cache that tells its source: two paths never share one."""
    readable = re.sub(r"[^A-Za-z0-9-]+", "-", path.name.split(".")[0])[:40].strip("-")
    return f"{readable or 'images'}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"


def _to_entry(dataset: Dataset) -> store.Entry:
    arrays: dict[str, NDArray[Any]] = {}
    for name in SPLITS:
        split = getattr(dataset, name)
        arrays |= {f"{name}_images": split.images, f"{name}_labels": split.labels}
    meta = {
        "name": dataset.name,
        "class_names": dataset.class_names,
        "superclass_names": dataset.superclass_names,
        "superclass_of": dataset.superclass_of,
        "digest": dataset.digest,
    }
    return store.Entry(arrays, meta)


def _from_entry(entry: store.Entry) -> Dataset:
    arrays, meta = entry.arrays, entry.meta
    return Dataset(
        meta["name"],
        Split(arrays["train_images"], arrays["train_labels"]),
        Split(arrays["test_images"], arrays["test_labels"]),
        tuple(meta["class_names"]),
        tuple(meta["superclass_names"]),
        tuple(meta["superclass_of"]),
        meta["digest"],
    )

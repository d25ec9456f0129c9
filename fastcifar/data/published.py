"""The published data sets: their addresses, the names of their classes, and how to recognise their content."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

from fastcifar.data.dataset import SPLITS, Dataset, joined
from fastcifar.errors import DataError

CIFAR100_DIGESTS = {  # split_digest of the published images
    "train": "f21948361e3a1c94d1f14ec03fe682372044407fa6a618f020b2ed8dcc41d84d",
    "test": "dc83e74dc0797ec7de75164abeb59d8c66b9677d62e46ddb8ce1ab1608ba1b7d",
}
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
CIFAR100_SUPERCLASS_OF = {name: above for above, names in CIFAR100_SUPERCLASSES.items() for name in names.split()}


@dataclass(frozen=True)
class Mirror:
    """One place that has a published data set.

    Attributes:
        urls: the address of each file.
        size: of all files together, in bytes; 0 if not known.
    """

    urls: tuple[str, ...]
    size: int = 0

    @property
    def host(self) -> str:
        """The name of its server."""
        return urlsplit(self.urls[0]).hostname or "this machine"

    @property
    def is_parquet(self) -> bool:
        """Whether its files are Parquet files, which only pyarrow reads."""
        return any(urlsplit(url).path.endswith(".parquet") for url in self.urls)

    def __str__(self) -> str:
        return " and ".join(self.urls)


@dataclass(frozen=True)
class Published:
    """A published data set.

    Attributes:
        name: its name for `--data`.
        mirrors: where it can be downloaded from, in the order in which the mirrors are tried.
        class_names: its classes, sorted.
        counts: the number of images in each split.
        digests: the `split_digest` of each split; None if not known.
        archive_md5s: the MD5 of each published archive, which is checked if the digests are not known. Another MD5 only
            gives a note, because packing an archive anew changes its MD5.
    """

    name: str
    mirrors: tuple[Mirror, ...]
    class_names: tuple[str, ...]
    counts: Mapping[str, int]
    digests: Mapping[str, str] | None = None
    archive_md5s: tuple[str, ...] = ()

    @property
    def digest(self) -> str | None:
        """The `Dataset.digest` of the published images; None if not known."""
        return joined(self.digests) if self.digests else None

    def check(self, dataset: Dataset) -> None:
        """Checks that a data set is this published data set.

        The classes and the numbers of images are compared and, if it is known, the digest.

        Args:
            dataset: the data set to check.

        Raises:
            DataError: classes, numbers of images or the digest differ.
        """
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


def _parquet(folder: str, size: int) -> Mirror:
    at = f"https://huggingface.co/datasets/uoft-cs/{folder}"
    return Mirror(tuple(f"{at}/{split}-00000-of-00001.parquet" for split in SPLITS), size)


# Since June 2026 the university's server takes an hour for one archive. It is asked first where the digest of the
# content is not known, because the archive's MD5 is.
CIFAR100 = Published(
    "cifar100",
    (
        _parquet("cifar100/resolve/main/cifar100", 142_291_368),
        Mirror(("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",), 169_001_437),
    ),
    tuple(sorted(CIFAR100_SUPERCLASS_OF)),
    {"train": 50_000, "test": 10_000},
    CIFAR100_DIGESTS,
)
CIFAR10 = Published(
    "cifar10",
    (
        Mirror(("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",), 170_498_071),
        _parquet("cifar10/resolve/main/plain_text", 143_646_105),
    ),
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    {"train": 50_000, "test": 10_000},
    archive_md5s=("c58f30108f718f92721af3b95e74349a", "c32a1d4ab5d03f1284b67883e8d87530"),  # python, binary version
)
PUBLISHED = {published.name: published for published in (CIFAR100, CIFAR10)}

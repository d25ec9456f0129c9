"""One canonical order for images and classes, whatever file, folder or archive they came in.

The images of a split are sorted by the SHA-256 of their bytes and label: the same seed then draws the same validation
split everywhere, and a digest of that order names the content itself.
"""

import numpy as np

from fastcifar.data.dataset import SPLITS, Dataset, Split, joined, sorted_by_content
from fastcifar.data.decoded import Decoded
from fastcifar.data.published import CIFAR100, CIFAR100_DIGESTS, CIFAR100_SUPERCLASS_OF, CIFAR100_SUPERCLASSES
from fastcifar.errors import DataError
from fastcifar.text import printable


def in_canonical_order(decoded: Decoded, name: str) -> Dataset:
    """Put images in order of content and classes in order of name, and find out what the classes are called.

    Args:
        decoded: Images and labels as they lie in the source.
        name: What the data set is called.

    Returns:
        The data set; each split knows the place of each image in the source. Names are made fit to be shown.

    Raises:
        DataError: Two classes share a name, or superclasses contradict those of CIFAR-100.
    """
    class_names, superclass_of = decoded.class_names, decoded.superclass_of
    rank = np.arange(decoded.num_classes)
    if class_names:
        by_name = sorted(range(len(class_names)), key=class_names.__getitem__)
        rank[by_name] = np.arange(len(class_names))
        class_names = tuple(printable(class_names[i]) for i in by_name)
        superclass_of = tuple(superclass_of[i] for i in by_name) if superclass_of else None
        if len(set(class_names)) < len(class_names):
            twice = next(n for i, n in enumerate(class_names) if n in class_names[:i])
            raise DataError(f"two classes are both named {twice!r}")
    splits, digests = {}, {}
    for split in SPLITS:
        images, labels = decoded.images[split], rank[decoded.labels[split]]
        files = tuple(map(printable, decoded.files[split])) if decoded.files else None
        as_found = Split(images, labels, np.arange(len(labels)), files)
        order, digests[split] = sorted_by_content(as_found)
        splits[split] = as_found.take(order)
    if class_names is None:
        known = digests == CIFAR100_DIGESTS
        class_names = CIFAR100.class_names if known else tuple(f"class {i}" for i in range(decoded.num_classes))
    superclass_names = tuple(map(printable, decoded.superclass_names)) if decoded.superclass_names else None
    superclasses = _superclasses(class_names, superclass_names, superclass_of)
    return Dataset(name, splits["train"], splits["test"], class_names, *superclasses, joined(digests))


def _superclasses(
    class_names: tuple[str, ...], names: tuple[str, ...] | None, found: tuple[int, ...] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names of the superclasses, and the index of each class's.

    Those of CIFAR-100's classes are as published, and the layout must not contradict them. Other classes have those of
    the layout, or none.
    """
    if class_names != CIFAR100.class_names:
        if not found or -1 in found:
            return (), ()
        return names or tuple(f"superclass {i}" for i in range(1 + max(found))), found
    published_names = tuple(sorted(CIFAR100_SUPERCLASSES))
    published = tuple(published_names.index(CIFAR100_SUPERCLASS_OF[name]) for name in class_names)
    for name, here, there in zip(class_names, published, found or published, strict=True):
        stated = dict(enumerate(names or published_names)).get(there, f"number {there}")
        if there != -1 and stated != published_names[here]:
            raise DataError(f"superclass of {name}: {stated} as labelled, {published_names[here]} as published")
    return published_names, published

"""One canonical order of images and classes, for every layout that they can come in.

The images of a split are sorted by the SHA-256 of their bytes and label. So the same seed draws the same validation
split from every layout, and a digest over the sorted images identifies the content.
"""

import numpy as np

from fastcifar.data.dataset import SPLITS, Dataset, Split, joined, sorted_by_content
from fastcifar.data.decoded import Decoded
from fastcifar.data.published import CIFAR100, CIFAR100_DIGESTS, CIFAR100_SUPERCLASS_OF, CIFAR100_SUPERCLASSES
from fastcifar.errors import DataError
from fastcifar.text import printable


def in_canonical_order(decoded: Decoded, name: str) -> Dataset:
    """Sorts images by content and classes by name, and finds the names of the classes.

    Args:
        decoded: images and labels in the order of the source.
        name: the name of the data set.

    Returns:
        The data set. Each split knows the place of each image in the source. All names are made printable.

    Raises:
        DataError: two classes have the same name, or the superclasses of CIFAR-100's classes are not CIFAR-100's.
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
    if digests == CIFAR100_DIGESTS:  # whatever the layout calls the classes: in Hugging Face's copy, crab is "cra"
        class_names = CIFAR100.class_names
    elif class_names is None:
        class_names = tuple(f"class {i}" for i in range(decoded.num_classes))
    superclass_names = tuple(map(printable, decoded.superclass_names)) if decoded.superclass_names else None
    superclasses = _superclasses(class_names, superclass_names, superclass_of)
    return Dataset(name, splits["train"], splits["test"], class_names, *superclasses, joined(digests))


def _superclasses(
    class_names: tuple[str, ...], names: tuple[str, ...] | None, found: tuple[int, ...] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The superclasses of a data set.

    The classes of CIFAR-100 have the published superclasses, which the layout must not contradict. Other classes have
    the superclasses of the layout, or none.

    Args:
        class_names: the names of the classes, sorted.
        names: the names of the superclasses in the layout; None if it has none.
        found: the superclass of each class in the layout; None if it has none.

    Returns:
        The names of the superclasses, and for each class the index of its superclass.

    Raises:
        DataError: the layout contradicts the published superclasses.
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

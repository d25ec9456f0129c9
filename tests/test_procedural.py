"""The procedural set: the same bytes everywhere, balanced, and with superclasses that can be seen."""

import hashlib
import inspect
import re

import numpy as np
import pytest

from fastcifar.data import procedural, sources
from fastcifar.data.dataset import Dataset


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return sources.load("procedural")


def test_bytes_are_the_same_on_every_machine(dataset: Dataset) -> None:
    assert dataset.digest == procedural.DIGEST


def test_only_operations_that_round_alike_everywhere() -> None:
    """sin, exp, pow, sums of floats and BLAS may differ in the last bit from one processor to the next."""
    code = inspect.getsource(procedural)
    used = set(re.findall(r"np\.(\w+)\(", code))
    exact = {
        "abs",
        "arange",
        "array",
        "asarray",
        "clip",
        "concatenate",
        "float32",
        "floor",
        "maximum",
        "minimum",
        "sqrt",
    }
    assert used <= exact | {"uint64"}
    assert not re.search(r"\*\*|@ |\.(mean|std|dot)\(", code)
    assert re.findall(r"\.sum\(.*\)", code) == [".sum(axis=-1, dtype=np.int32)"]


def test_shape_and_balance(dataset: Dataset) -> None:
    for split, per_class in ((dataset.train, procedural.TRAIN_PER_CLASS), (dataset.test, procedural.TEST_PER_CLASS)):
        assert split.images.shape == (100 * per_class, 32, 32, 3) and split.images.dtype == np.uint8
        assert np.bincount(split.labels).tolist() == [per_class] * 100
    assert dataset.num_classes == 100 and len(dataset.superclass_names) == 20
    assert np.bincount(dataset.superclass_of).tolist() == [5] * 20
    for name, above in zip(dataset.class_names, dataset.superclass_of, strict=True):
        assert name.startswith(f"{dataset.superclass_names[above]}_")


def test_every_image_is_another(dataset: Dataset) -> None:
    images = np.concatenate([dataset.train.images, dataset.test.images])
    assert len({hashlib.sha256(image.data).digest() for image in images}) == len(images)


def test_seed_and_sizes() -> None:
    first, again, other = (procedural.generate(seed, 2, 1) for seed in (5, 5, 6))
    assert np.array_equal(first["train"][0], again["train"][0])
    assert not np.array_equal(first["train"][0], other["train"][0])
    assert first["train"][0].shape == (200, 32, 32, 3) and first["test"][1].tolist() == list(range(100))


def test_superclasses_show_and_classes_are_not_told_by_the_mean_colour(dataset: Dataset) -> None:
    """The nearest mean colour finds the superclass far above chance (5 %), but not the class."""
    means = dataset.train.images.mean(axis=(1, 2))
    above = np.array(dataset.superclass_of)
    centres = np.array([means[dataset.train.labels == label].mean(axis=0) for label in range(100)])
    found = ((dataset.test.images.mean(axis=(1, 2))[:, None] - centres) ** 2).sum(axis=-1).argmin(axis=1)
    superclass_accuracy = (above[found] == above[dataset.test.labels]).mean()
    assert superclass_accuracy > 0.3
    assert (found == dataset.test.labels).mean() < 0.7

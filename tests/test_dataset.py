"""The validation split, the digest of the content, and the statistics of a data set."""

import data_files
import numpy as np
import pytest
from data_files import SPLITS, load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar.data.dataset import Dataset, Split, info, split_digest
from fastcifar.errors import UsageError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(data_files.write_npz(tmp_path_factory.mktemp("tiny") / "c.npz", SPLITS))


@given(st.integers(0, 19), st.integers(0, 3071), st.integers(0, 7))
@settings(max_examples=20, deadline=None)
def test_one_bit_or_label_changes_the_digest(image: int, pixel: int, bit: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(20) // 2
    split = Split(images, labels)
    other = images.copy()
    other.reshape(20, -1)[image, pixel] ^= 1 << bit
    assert split_digest(Split(other, labels)) != split_digest(split)
    relabelled = labels.copy()
    relabelled[image] = (labels[image] + 1) % 10
    assert split_digest(Split(images, relabelled)) != split_digest(split)


# ---------------------------------------------------------------------------------------------------- split, info


@given(st.integers(0, 199), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_split_is_disjoint_and_covers(tiny: Dataset, val_size: int, seed: int) -> None:
    train, val = tiny.train_val(val_size, seed)
    assert len(val) == val_size and len(train) == 200 - val_size
    found = [image.tobytes() for part in (train, val) for image in part.images]
    assert sorted(found) == sorted(image.tobytes() for image in tiny.train.images)
    assert np.array_equal(tiny.train_val(199, seed)[1].images[:val_size], val.images)  # a larger one has it all
    again = tiny.train_val(val_size, seed)
    assert np.array_equal(again[1].images, val.images) and np.array_equal(again[0].labels, train.labels)


def test_split_depends_on_the_seed_and_never_on_numpys_version(tiny: Dataset) -> None:
    index = {image.tobytes(): i for i, image in enumerate(tiny.train.images)}
    picked = [[index[image.tobytes()] for image in tiny.train_val(5, seed)[1].images] for seed in (0, 1)]
    assert picked == [[151, 167, 0, 136, 72], [185, 2, 41, 20, 143]]


def test_split_is_not_stratified_but_random(tiny: Dataset) -> None:
    counts = np.mean([np.bincount(tiny.train_val(100, seed)[1].labels, minlength=100) for seed in range(200)], axis=0)
    assert abs(counts - 1).max() < 0.3


@pytest.mark.parametrize("val_size", [-1, 200, 10_000])
def test_val_size_out_of_range(tiny: Dataset, val_size: int) -> None:
    with pytest.raises(UsageError, match=rf"val_size = {val_size}: c has 200 training images; allowed: 0 to 199"):
        tiny.train_val(val_size, 0)


def test_split_seed_out_of_range(tiny: Dataset) -> None:
    with pytest.raises(UsageError, match="split_seed = -1"):
        tiny.train_val(1, -1)


def test_info_counts_what_numpy_counts(tiny: Dataset) -> None:
    images = np.concatenate([tiny.train.images] * 6)  # more than one chunk
    labels = np.concatenate([tiny.train.labels] * 5 + [np.zeros(200, np.int64)])
    dataset = Dataset("x", Split(images, labels), tiny.test, tiny.class_names, (), (), "")
    found = info(dataset)
    pixels = images.astype(np.float64).reshape(len(images), -1, 3) / 255
    train = found["train"]
    assert (train.count, train.class_min, train.class_max, train.class_mean) == (1200, 10, 210, 12.0)
    np.testing.assert_allclose(train.mean, pixels.mean(axis=(0, 1)), rtol=1e-12)
    np.testing.assert_allclose(train.std, pixels.std(axis=(0, 1)), rtol=1e-10)
    np.testing.assert_allclose(train.image_std, pixels.std(axis=1, ddof=1).mean(axis=0), rtol=1e-10)
    assert found["test"].count == 100


# ---------------------------------------------------------------------------------------------------- all and nothing


def test_every_image_can_be_trained_on(tiny: Dataset) -> None:
    train, val = tiny.train_val(0, 3)
    assert sorted(image.tobytes() for image in train.images) == sorted(image.tobytes() for image in tiny.train.images)
    assert val.images.shape == (0, 32, 32, 3) and val.images.dtype == np.uint8
    assert val.labels.shape == (0,) and val.labels.dtype == np.int64
    assert val.places is not None and val.places.shape == (0,) and len(val) == 0
    assert np.array_equal(tiny.train_val(50, 3)[0].images, train.images[50:])  # the seed's one order


def test_places_go_with_their_images(tiny: Dataset) -> None:
    by_place = dict(zip(tiny.train.places.tolist(), tiny.train.images, strict=True))  # type: ignore[union-attr]
    for split in tiny.train_val(30, 1):
        assert split.places is not None
        assert all(
            np.array_equal(by_place[place], image)
            for place, image in zip(split.places.tolist(), split.images, strict=True)
        )


def test_files_go_with_their_images() -> None:
    split = Split(np.zeros((3, 32, 32, 3), np.uint8), np.arange(3), np.array([2, 0, 1]), ("c", "a", "b"))
    taken = split.take(np.array([2, 0]))
    assert taken.labels.tolist() == [2, 0] and taken.files == ("b", "c")
    assert taken.places is not None and taken.places.tolist() == [1, 2]
    assert Split(split.images, split.labels).take(np.array([1])).places is None


@pytest.mark.parametrize("count", [1, 5])
def test_range_of_val_size_can_be_used(count: int) -> None:
    """The bug: the message said "allowed: 0 to 19", but 0 was refused; it did not name the option."""
    few = Split(np.zeros((count, 32, 32, 3), np.uint8), np.zeros(count, np.int64))
    dataset = Dataset("few", few, few, ("a",), (), (), "")
    allowed = "0 to 4" if count > 1 else "0"
    with pytest.raises(UsageError, match=rf"allowed: {allowed}\. --val-size N sets it, and with 0 every one of them"):
        dataset.train_val(10_000, 0)
    assert len(dataset.train_val(0, 0)[0]) == count

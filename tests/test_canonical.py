"""Images and classes have one canonical order, in whatever order the source has them."""

import pickle
from pathlib import Path
from typing import Any

import data_files
import numpy as np
import pytest
from data_files import FINE, SPLITS, load, same
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data.canonical import in_canonical_order
from fastcifar.data.dataset import Dataset
from fastcifar.data.decoded import Decoded
from fastcifar.errors import DataError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(data_files.write_npz(tmp_path_factory.mktemp("tiny") / "c.npz", SPLITS))


@given(st.permutations(range(20)), st.permutations(range(10)))
@settings(max_examples=20, deadline=None)
def test_order_does_not_matter(images_order: list[int], classes_order: list[int]) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    images[1] = images[0]  # twice the same image, once with the same label
    labels = np.arange(20) // 2
    names = tuple(f"name {i}" for i in range(10))
    reference = _dataset(images, labels, names)
    shuffled = np.array(images_order)
    new_label = np.argsort(classes_order)
    dataset = _dataset(images[shuffled], new_label[labels[shuffled]], tuple(names[i] for i in classes_order))
    assert same(dataset, reference)


def _dataset(images: Any, labels: Any, names: tuple[str, ...] | None) -> Dataset:
    pair = {"train": images, "test": images}, {"train": labels, "test": labels}
    return in_canonical_order(Decoded(*pair, len(names) if names else 10, names), "x")


# ---------------------------------------------------------------------------------------------------- names


def test_superclasses_come_with_the_names(tiny: Dataset) -> None:
    assert len(tiny.superclass_names) == 20 and np.bincount(tiny.superclass_of).tolist() == [5] * 20
    of = {name: tiny.superclass_names[above] for name, above in zip(tiny.class_names, tiny.superclass_of, strict=True)}
    assert (of["apple"], of["otter"], of["tractor"]) == ("fruit_and_vegetables", "aquatic_mammals", "vehicles_2")


def test_contradicting_superclass_is_refused(tmp_path: Path) -> None:
    files = data_files.python_files(SPLITS)
    names = pickle.loads(files["meta"], encoding="bytes")
    names[b"coarse_label_names"][0:2] = names[b"coarse_label_names"][1::-1]
    files["meta"] = data_files.python2_pickle(names)
    with pytest.raises(DataError, match="superclass of aquarium_fish: aquatic_mammals as labelled, fish as published"):
        load(data_files.write_files(tmp_path / "py", files))


def test_superclass_that_differs_between_images_is_refused(tmp_path: Path) -> None:
    files = data_files.binary_files(SPLITS)
    content = bytearray(files["train.bin"])
    content[0] ^= 1
    with pytest.raises(DataError, match=r"images of class \d+ lie in several superclasses"):
        load(data_files.write_files(tmp_path / "bin", files | {"train.bin": bytes(content)}))


def test_superclasses_of_other_names_are_the_layouts_own(tmp_path: Path) -> None:
    files = data_files.binary_files(SPLITS) | {"fine_label_names.txt": b"".join(b"n%02d\n" % i for i in range(100))}
    dataset = load(data_files.write_files(tmp_path / "bin", files))
    assert dataset.superclass_names == data_files.COARSE and dataset.superclass_of == data_files.COARSE_OF
    del files["coarse_label_names.txt"], files["fine_label_names.txt"]
    dataset = load(data_files.write_files(tmp_path / "bin2", files))
    assert dataset.class_names[7] == "class 7" and dataset.superclass_names[3] == "superclass 3"


def test_names_that_are_not_there(tmp_path: Path) -> None:
    arrays = {
        f"{s}_{kind}": a for s, pair in SPLITS.items() for kind, a in zip(("images", "labels"), pair, strict=True)
    }
    np.savez(tmp_path / "c.npz", **arrays)
    dataset = load(tmp_path / "c.npz")
    assert dataset.class_names == tuple(f"class {i}" for i in range(100)) and dataset.superclass_of == ()


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two classes are both named 'apple'"):
        load(data_files.write_npz(tmp_path / "c.npz", SPLITS, label_names=np.array(["apple", "apple", *FINE[2:]])))


def test_published_names_with_other_images_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load(data_files.write_npz(tmp_path / "c.npz", SPLITS))
    assert dataset.name == "c"
    note = capsys.readouterr().err
    assert "has the classes of cifar100, but its train split has 200 images, 2 to 2 a class" in note

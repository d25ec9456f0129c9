"""Every layout gives the same data set, in the same order, and what a path holds is recognised or told."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_files
import numpy as np
import pytest
from data_files import SPLITS, SPLITS10, load, same

from fastcifar.data import layouts, sources
from fastcifar.data.dataset import Dataset
from fastcifar.data.published import CIFAR10
from fastcifar.errors import DataError


def dump2(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def dump4(value: object) -> bytes:
    return pickle.dumps(value, protocol=4)


def text_keys(value: dict[bytes, Any]) -> bytes:
    return dump4({key.decode(): entry for key, entry in value.items()})


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "python 2 pickles": lambda p: data_files.write_files(p / "py", data_files.python_files(SPLITS)),
    "python 3 pickles, protocol 2": lambda p: data_files.write_files(p / "py", data_files.python_files(SPLITS, dump2)),
    "python 3 pickles, protocol 4": lambda p: data_files.write_files(p / "py", data_files.python_files(SPLITS, dump4)),
    "pickles with text keys": lambda p: data_files.write_files(p / "py", data_files.python_files(SPLITS, text_keys)),
    "binary": lambda p: data_files.write_files(p / "bin", data_files.binary_files(SPLITS)),
    "npz": lambda p: data_files.write_npz(p / "c.npz", SPLITS),
    "image folder": lambda p: data_files.write_folder(p / "images", SPLITS),
    "python archive": lambda p: data_files.write_archive(p / "a.tar.gz", data_files.python_files(SPLITS)),
    "binary archive": lambda p: data_files.write_archive(p / "a.tar.gz", data_files.binary_files(SPLITS)),
    "tar": lambda p: data_files.write_archive(p / "a.tar", data_files.binary_files(SPLITS)),
    "tar.xz, unusual name": lambda p: data_files.write_archive(p / "x" / "a.xz", data_files.binary_files(SPLITS)),
    "folder above": lambda p: data_files.write_files(p / "above" / "py", data_files.python_files(SPLITS)).parent,
    "folder above an archive": lambda p: (
        data_files.write_archive(p / "above" / "a.tgz".replace("tgz", "tar.gz"), data_files.python_files(SPLITS)).parent
    ),
}
LAYOUTS10: dict[str, Callable[[Path], Path]] = {
    "pickles": lambda p: data_files.write_files(p / "py", data_files.python10_files(SPLITS10)),
    "binary": lambda p: data_files.write_files(p / "bin", data_files.binary10_files(SPLITS10)),
    "archive": lambda p: data_files.write_archive(p / "a.tar.gz", data_files.python10_files(SPLITS10)),
    "npz": lambda p: data_files.write_npz(p / "c.npz", SPLITS10, label_names=np.array(CIFAR10.class_names)),
    "image folder": lambda p: data_files.write_folder(p / "images", SPLITS10, CIFAR10.class_names),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(data_files.write_npz(tmp_path_factory.mktemp("tiny") / "c.npz", SPLITS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return data_files.write_folder(tmp_path / "images", SPLITS10, CIFAR10.class_names)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_data_set(layout: str, tiny: Dataset, tmp_path: Path) -> None:
    dataset = load(LAYOUTS[layout](tmp_path))
    assert same(dataset, tiny)
    for split in (dataset.train, dataset.test):
        assert (
            split.images.dtype == np.uint8 and split.images.flags.c_contiguous and split.images.shape[1:] == (32, 32, 3)
        )
        assert split.labels.dtype == np.int64


def test_pixels_and_labels_are_kept(tiny: Dataset) -> None:
    for split, (images, labels) in zip((tiny.train, tiny.test), SPLITS.values(), strict=True):
        pairs = sorted((label, image.tobytes()) for image, label in zip(split.images, split.labels, strict=True))
        assert pairs == sorted((label, image.tobytes()) for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS10)
def test_every_layout_of_cifar10(layout: str, tmp_path: Path) -> None:
    reference = load(
        data_files.write_npz(tmp_path / "r" / "r.npz", SPLITS10, label_names=np.array(CIFAR10.class_names))
    )
    dataset = load(LAYOUTS10[layout](tmp_path))
    assert same(dataset, reference)
    assert dataset.num_classes == 10 and dataset.superclass_of == () and dataset.class_names[3] == "cat"


# ---------------------------------------------------------------------------------------------------- recognising


def test_unknown_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"'cifar-100' is neither .* Did you mean 'cifar100'\?"):
        sources.load("cifar-100")


def test_missing_path_names_the_nearest(tmp_path: Path) -> None:
    path = data_files.write_npz(tmp_path / "cifar100.npz", SPLITS)
    with pytest.raises(DataError, match=r"no such file or folder: .*cifar10\.npz\. Did you mean 'cifar100\.npz'\?"):
        load(path.with_name("cifar10.npz"))


def test_folder_without_images_says_what_it_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "train_data").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError) as error:
        load(tmp_path)
    text = str(error.value)
    assert "looked for: the published archive (cifar-100-python.tar.gz" in text
    assert "found: notes.txt, train_data/" in text
    assert "is train_data/ meant to be train/?" in text
    with pytest.raises(DataError, match="found: nothing"):
        load(tmp_path / "train_data")


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        ("test", "train belongs to CIFAR-100, python version, but test is missing"),
        ("data_batch_3", "data_batch_1 belongs to CIFAR-10, python version, but data_batch_3 is missing"),
    ],
)
def test_incomplete_copy_names_what_is_missing(missing: str, hint: str, tmp_path: Path) -> None:
    files = data_files.python10_files(SPLITS10) if "batch" in missing else data_files.python_files(SPLITS)
    del files[missing]
    with pytest.raises(DataError, match=hint):
        load(data_files.write_files(tmp_path / "py", files))


@pytest.mark.parametrize("part", ["train", "test"])
def test_one_half_of_an_image_folder(part: str, folder: Path) -> None:
    with pytest.raises(DataError, match=rf"It is one part of {folder} \(image folder\): name that folder"):
        load(folder / part)


@pytest.mark.parametrize("part", ["train", "meta"])
def test_one_file_of_a_published_version(part: str, tmp_path: Path) -> None:
    folder = data_files.write_files(tmp_path / "py", data_files.python_files(SPLITS))
    with pytest.raises(DataError, match=rf"It is one part of {folder} \(CIFAR-100, python version\): name that folder"):
        load(folder / part)


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("Training/", "Training/ meant to be train/"),
        ("cifar-100-pyton/", "meant to be cifar-100-python/"),
        ("tran.bin", ""),
    ],
)
def test_hints_at_a_near_name(entry: str, hint: str, tmp_path: Path) -> None:
    assert hint in layouts._hint(tmp_path, entry)


def test_file_that_vanishes(folder: Path) -> None:
    (folder / "train" / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(DataError, match=r"cannot read .*gone\.png: No such file or directory"):
        load(folder)


def test_image_folder_without_test(tmp_path: Path) -> None:
    folder = data_files.write_folder(tmp_path / "images", SPLITS10, CIFAR10.class_names)
    shutil.rmtree(folder / "test")
    with pytest.raises(DataError, match="train/ is there, but test/ is missing"):
        load(folder)


def test_ambiguous_folder_lists_what_it_holds(tmp_path: Path) -> None:
    data_files.write_npz(tmp_path / "a" / "one.npz", SPLITS)
    data_files.write_files(tmp_path / "a" / "two", data_files.binary_files(SPLITS))
    with pytest.raises(DataError) as error:
        load(tmp_path / "a")
    text = str(error.value)
    assert "more than one set of images; name one of them" in text
    assert "one.npz  (npz)" in text and "two  (CIFAR-100, binary version)" in text


def test_archive_beside_what_it_was_extracted_to(tiny: Dataset, tmp_path: Path) -> None:
    files = data_files.python_files(SPLITS)
    data_files.write_archive(tmp_path / "a" / "cifar-100-python.tar.gz", files)
    data_files.write_files(tmp_path / "a" / "cifar-100-python", files)
    assert same(load(tmp_path / "a"), tiny)


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"a\.bin is neither an \.npz nor a tar archive"):
        load(tmp_path / "a.bin")

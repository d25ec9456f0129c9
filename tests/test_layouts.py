"""All layouts give the same data set in the same order; what a path holds is recognised, or the error says it."""

import gzip
import lzma
import os
import pickle
import shutil
import zipfile
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
    assert "looked for:\n    a published archive, cifar-{100,10}-{python,binary}.tar.gz\n" in text
    layouts = text.partition("looked for:\n")[2].partition("  found: ")[0].splitlines()
    assert len(layouts) == 7 and max(map(len, layouts)) <= 79 - len("fastcifar: "), "a layout on a line"
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


# ---------------------------------------------------------------------------------------------------- something else

ARRAY = "make an .npz of it: np.savez"
FOREIGN: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "x.h5": (b"\x89HDF\r\n\x1a\n" + bytes(64), ("an HDF5 file", ARRAY)),
    "x.mat": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", ("a MATLAB file", ARRAY)),
    "x.feather": (b"ARROW1" + bytes(64), ("an Arrow file", "end in .arrow")),
    "x.npy": (b"\x93NUMPY\x01\x00", ("a single NumPy array", ARRAY)),
    "x.pkl": (pickle.dumps({"a": 1}), ("a pickle", ARRAY)),
    "x.gz": (gzip.compress(b"hello"), ("a gzip file that holds no tar", "gunzip")),
    "x.xz": (lzma.compress(b"hello"), ("an xz file that holds no tar", "unxz")),
    "x.tar.zst": (b"(\xb5/\xfd" + bytes(64), ("a Zstandard file", "zstd -d")),
    "x.7z": (b"7z\xbc\xaf'\x1c", ("a 7-Zip archive", "unpack it")),
    "x.rar": (b"Rar!\x1a\x07", ("a RAR archive", "unpack it")),
    "x.png": (b"\x89PNG\r\n\x1a\n", ("a single picture", "name the folder")),
    "x.npz": (b"<!DOCTYPE html><html></html>", ("a web page", "download the file itself")),
    "x.tar.gz": (b"<html></html>", ("a web page", "download the file itself")),
    "y.tar.gz": (b"version https://git-lfs.github.com/spec/v1\n", ("a pointer of Git LFS", "git lfs pull")),
    "y.npz": (b"", ("empty", "download or copy it again")),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_kinds_are_called_by_name(name: str, tmp_path: Path) -> None:
    content, words = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        load(tmp_path / name)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / name} is neither an .npz nor a tar archive. It is ") and len(text) < 1000
    assert all(word in text for word in words)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([f"train/cat/{i}.png" for i in range(60_000)], ("a zip archive of other files", "unpack it (unzip FILE)")),
        (["archive/data.pkl", "archive/version"], ("a PyTorch file", "torch.load", ARRAY)),
        (["[Content_Types].xml"], ("an Office document",)),
        ([], ("a zip archive of other files",)),
    ],
    ids=["images", "torch", "office", "nothing"],
)
def test_zips_that_are_no_npz(names: list[str], words: tuple[str, ...], tmp_path: Path) -> None:
    """The bug: the message listed 60,000 names, 1.85 MB on one line."""
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    with pytest.raises(DataError) as error:
        load(tmp_path / "c.zip")
    assert all(word in str(error.value) for word in words) and len(str(error.value)) < 1000


@pytest.mark.parametrize("name", ["x", "x.npz", "x.tar.gz"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_refused_at_once(kind: str, name: str, tmp_path: Path) -> None:
    """The bug: opening a pipe that nobody writes to waits forever."""
    (tmp_path / "inside").mkdir()
    for path in (tmp_path / name, tmp_path / "inside" / name):
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(
        DataError, match=rf"{name} is a (named )?{kind}, and images are read from files and folders alone"
    ):
        load(tmp_path / name)
    with pytest.raises(DataError, match="inside holds no images that fastcifar knows"):
        load(tmp_path / "inside")


def test_published_file_that_is_a_link_to_a_device(tmp_path: Path) -> None:
    folder = data_files.write_files(tmp_path / "py", data_files.python_files(SPLITS))
    (folder / "test").unlink()
    (folder / "test").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="test is a device, not a file"):
        load(folder)


def test_published_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    folder = data_files.write_files(tmp_path / "py", data_files.python_files(SPLITS))
    with (folder / "test").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"test: it has 1,099,511,627,776 bytes, where at most 536,870,912"):
        load(folder)


def test_links_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").symlink_to("/nowhere/at/all")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    for name in ("gone", str(tmp_path / "gone")):
        with pytest.raises(DataError, match="gone is a link to /nowhere/at/all, which is not there"):
            sources.load(name, cache=tmp_path / "cache")
    with pytest.raises(DataError, match="cannot read loop: Too many levels of symbolic links"):
        sources.load("loop", cache=tmp_path / "cache")


def test_what_cannot_be_looked_into_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: an unreadable folder, such as another user's, hid the data beside it."""
    data_files.write_npz(tmp_path / "disk" / "z.npz", SPLITS)
    (tmp_path / "disk" / "closed").mkdir()
    (tmp_path / "disk" / "lost+found").mkdir()
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.parent.name in ("closed", "lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert load(tmp_path / "disk").num_classes == 100
    (tmp_path / "disk" / "z.npz").unlink()
    with pytest.raises(DataError, match=r"cannot be looked into: closed \(Permission denied\)"):
        load(tmp_path / "disk")


@pytest.mark.parametrize("name", [".cache", "__MACOSX", "$RECYCLE.BIN"])
def test_hidden_and_system_folders_are_not_searched(name: str, tiny: Dataset, tmp_path: Path) -> None:
    for folder in ("data", name):
        data_files.write_npz(tmp_path / "disk" / folder / "c.npz", SPLITS)
        data_files.write_files(tmp_path / "disk" / folder / "py", data_files.python_files(SPLITS))
    shutil.rmtree(tmp_path / "disk" / "data")
    data_files.write_files(tmp_path / "disk" / "data", data_files.python_files(SPLITS))
    data_files.write_files(tmp_path / "disk" / name / "more", data_files.python_files(SPLITS))
    assert same(load(tmp_path / "disk", tmp_path / "cache"), tiny)


def test_lists_are_short_however_much_there_is(tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / "many" / f"{i:03d}{'x' * 200}").mkdir(parents=True)
    with pytest.raises(DataError, match="found: 000x.* and 192 more") as error:
        load(tmp_path / "many")
    assert len(str(error.value)) < 1200
    for i in range(60):
        (tmp_path / "more" / f"{i}").mkdir(parents=True)
        for split in ("train", "test"):
            (tmp_path / "more" / f"{i}" / split).mkdir()
    with pytest.raises(DataError, match="and 40 more"):
        load(tmp_path / "more")

"""Images are decoded once, and again if the source has changed. Published images are recognised by their content."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_files
import numpy as np
import pytest
from data_files import SPLITS, SPLITS10, first_image, load, same
from PIL import Image

from fastcifar.data import cache, layouts, sources
from fastcifar.data.canonical import in_canonical_order
from fastcifar.data.dataset import Dataset, info, split_digest
from fastcifar.data.decoded import Decoded
from fastcifar.data.published import CIFAR10, CIFAR100, CIFAR100_DIGESTS
from fastcifar.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return data_files.write_folder(tmp_path / "images", SPLITS10, CIFAR10.class_names)


def test_decoded_once_until_the_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    reads = []
    read = layouts.Source.read
    monkeypatch.setattr(layouts.Source, "read", lambda source: reads.append(source) or read(source))
    first, second = load(path), load(path)
    assert len(reads) == 1 and same(first, second)
    data_files.write_npz(path, data_files.make_splits(7))
    assert load(path).digest != first.digest
    assert len(reads) == 2
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    load(path)
    assert len(reads) == 3


def test_one_changed_image_of_a_folder_is_seen(folder: Path) -> None:
    first = load(folder)
    path = first_image(folder)
    Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    second = load(folder)
    assert second.digest != first.digest
    path.unlink()
    assert load(folder).digest not in (first.digest, second.digest)


def test_cache_holds_no_pickle(tmp_path: Path) -> None:
    load(data_files.write_npz(tmp_path / "c.npz", SPLITS))
    (entry,) = (tmp_path / "cache").glob("*.safetensors")
    content = entry.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {"train_images", "test_labels", "__metadata__"} < set(header)


# ---------------------------------------------------------------------------------------------------- the real data


@pytest.fixture(scope="module")
def real(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(real_data / "cifar100.npz", tmp_path_factory.mktemp("real"))


@pytest.mark.real_data
@pytest.mark.parametrize("layout", ["cifar-100-python", "folder"])
def test_real_layouts_are_the_same_data_set(layout: str, real: Dataset, real_data: Path, tmp_path: Path) -> None:
    dataset = load(real_data / layout, tmp_path / "cache")
    assert same(dataset, real) and dataset.name == real.name == "cifar100"
    CIFAR100.check(dataset)


@pytest.mark.real_data
def test_real_digests(real: Dataset) -> None:
    assert {
        "train": split_digest(real.train),
        "test": split_digest(real.test),
    } == CIFAR100_DIGESTS
    with pytest.raises(DataError, match="content digest differs"):
        changed = real.test.images.copy()
        changed[0, 0, 0, 0] ^= 1
        decoded = Decoded(
            {"train": real.train.images, "test": changed},
            {"train": real.train.labels, "test": real.test.labels},
            100,
            real.class_names,
        )
        CIFAR100.check(in_canonical_order(decoded, "x"))


@pytest.mark.real_data
def test_real_statistics(real: Dataset) -> None:
    """The published values: mean and std of each channel, and the mean of each image's own std (ddof = 1)."""
    found = info(real)
    train = found["train"]
    np.testing.assert_allclose(train.mean, (0.50707516, 0.48654887, 0.44091784), atol=5e-9)
    np.testing.assert_allclose(train.std, (0.26733429, 0.25643846, 0.27615047), atol=5e-9)
    np.testing.assert_allclose(train.image_std, (0.2009, 0.1984, 0.2023), atol=5e-5)
    assert (train.count, train.class_min, train.class_max) == (50_000, 500, 500)
    assert (found["test"].count, found["test"].class_min, found["test"].class_max) == (10_000, 100, 100)


@pytest.mark.real_data
def test_unnamed_cifar100_is_known_by_its_content(real: Dataset, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "unnamed.npz",
        train_images=real.train.images[::-1],
        train_labels=real.train.labels[::-1].astype(np.uint8),
        test_images=real.test.images,
        test_labels=real.test.labels,
    )
    assert same(load(tmp_path / "unnamed.npz"), real)


# ---------------------------------------------------------------------------------------------------- what changes


OTHER10 = data_files.make_splits(7, num_classes=10, per_class=5)


def test_files_exchanged_between_classes_are_seen(tmp_path: Path) -> None:
    """The bug: names, sizes and times stayed the same (as a tar or zip sets them), and the old labels were used."""
    folder = data_files.write_folder(tmp_path / "images", SPLITS10, CIFAR10.class_names)
    for path in folder.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))  # all of one size
        path.unlink()
    cat, dog = (sorted((folder / "train" / name).iterdir())[0] for name in ("cat", "dog"))
    dog = dog.rename(dog.with_name(cat.name))
    for path in folder.rglob("*.bmp"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    before = load(folder)
    cat.rename(tmp_path / "x")
    dog.rename(cat)
    (tmp_path / "x").rename(dog)
    after = load(folder)
    assert after.digest != before.digest
    assert same(load(folder, tmp_path / "fresh"), after)


@pytest.mark.parametrize("layout", ["npz", "tar", "pickles"])
@pytest.mark.parametrize("how", ["written in place", "put in its place"])
def test_one_changed_byte_is_seen(layout: str, how: str, tmp_path: Path) -> None:
    """Name, size and time of writing stay the same; the inode's time of change does not."""
    if layout == "npz":
        path = file = data_files.write_npz(tmp_path / "c.npz", SPLITS10, label_names=np.array(CIFAR10.class_names))
        other = data_files.write_npz(tmp_path / "d" / "c.npz", OTHER10, label_names=np.array(CIFAR10.class_names))
    elif layout == "tar":
        path = file = data_files.write_archive(tmp_path / "c.tar", data_files.binary10_files(SPLITS10))
        other = data_files.write_archive(tmp_path / "d" / "c.tar", data_files.binary10_files(OTHER10))
    else:
        path = data_files.write_files(tmp_path / "c", data_files.binary10_files(SPLITS10))
        file = path / "data_batch_1.bin"
        other = data_files.write_files(tmp_path / "d", data_files.binary10_files(OTHER10)) / "data_batch_1.bin"
    os.utime(file, (1_600_000_000, 1_600_000_000))
    before = load(path, tmp_path / "cache")
    if how == "written in place":
        file.write_bytes(other.read_bytes())
    else:
        other.replace(file)
    os.utime(file, (1_600_000_000, 1_600_000_000))
    assert load(path, tmp_path / "cache").digest != before.digest


def test_source_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    read = layouts.Source.read

    def read_slowly(source: layouts.Source) -> Decoded:
        decoded = read(source)
        path.touch()
        return decoded

    monkeypatch.setattr(layouts.Source, "read", read_slowly)
    with pytest.raises(DataError, match=r"c\.npz changed while it was read"):
        load(path)
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_entries_without_places_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry of an earlier version has the right images, but does not tell the place of each in the source."""
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    with monkeypatch.context() as earlier:
        earlier.setattr(cache, "FORMAT", cache.FORMAT_WITHOUT_PLACES)
        load(path)
    assert load(path).train.places is not None


@pytest.mark.parametrize("archive_is_here", [True, False])
def test_published_entries_without_places(
    archive_is_here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the archive is gone, an entry of an earlier version is used: making it anew would need the network."""
    archive = data_files.write_archive(tmp_path / "cifar-100-python.tar.gz", data_files.python_files(SPLITS))
    published = data_files.published(SPLITS, archive.as_uri())
    known = {"mirror": "", "cache": tmp_path / "cache", "progress": False}
    with monkeypatch.context() as earlier:
        earlier.setattr(cache, "FORMAT", cache.FORMAT_WITHOUT_PLACES)
        earlier.setattr(sources, "_to_entry", without_places(sources._to_entry))
        first = sources.load_published(published, **known)
    if archive_is_here:
        (tmp_path / "cache" / "downloads").mkdir()
        archive.rename(tmp_path / "cache" / "downloads" / "tiny.download")
    else:
        archive.unlink()
    again = sources.load_published(published, **known)
    assert same(again, first) and (again.train.places is not None) == archive_is_here


def without_places(to_entry: Callable[..., cache.Entry]) -> Callable[..., cache.Entry]:
    def called(*args: Any) -> cache.Entry:
        entry = to_entry(*args)
        arrays = {key: array for key, array in entry.arrays.items() if not key.endswith("places")}
        return cache.Entry(arrays, {key: value for key, value in entry.meta.items() if key != "notes"})

    return called


def test_notes_are_told_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bug: the notes were shown only at the first load, and not when training."""
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    for _ in range(3):
        load(path)
        assert "accuracies do not compare" in capsys.readouterr().err

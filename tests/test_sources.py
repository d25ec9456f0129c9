"""Decoded once, and anew where the source has changed; the published images by their content."""

import json
import os
from pathlib import Path

import data_files
import numpy as np
import pytest
from data_files import SPLITS, SPLITS10, first_image, load, same
from PIL import Image

from fastcifar.data import layouts
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
    """The check values of the study: channel mean, channel std, and the mean of the images' own std (ddof 1)."""
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

"""Parquet files as Hugging Face publishes them give the same data set as every other layout."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import data_files
import numpy as np
import pytest
from data_files import FINE, SPLITS, SPLITS10, load, same
from PIL import Image

from fastcifar.data.convert import convert
from fastcifar.data.dataset import Dataset
from fastcifar.data.published import CIFAR10, CIFAR100
from fastcifar.errors import DataError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(data_files.write_npz(tmp_path_factory.mktemp("npz") / "c.npz", SPLITS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return data_files.write_files(tmp_path / "cifar100", data_files.parquet_files(SPLITS))


@pytest.mark.parametrize("named", ["", "train-00000-of-00001.parquet", "test-00000-of-00001.parquet", ".."])
def test_the_folder_or_one_of_its_files(named: str, folder: Path, tiny: Dataset, tmp_path: Path) -> None:
    assert same(load(folder / named, tmp_path / "cache"), tiny)


def test_the_layout_of_converted_files(tiny: Dataset, tmp_path: Path) -> None:
    """refs/convert/parquet: a folder for each split, with a numbered file for each part."""
    for split, (images, labels) in SPLITS.items():
        parts = {
            f"{i:04}.parquet": data_files.parquet_bytes(*part)
            for i, part in enumerate(zip(np.array_split(images, 2), np.array_split(labels, 2), strict=True))
        }
        data_files.write_files(tmp_path / "default" / split, parts)
    for named in ("default", "default/train/0000.parquet", "."):
        assert same(load(tmp_path / named, tmp_path.parent / "cache"), tiny)


def both_splits() -> bytes:
    """One Parquet file with a column for the split."""
    images, labels = (np.concatenate([SPLITS[split][i] for split in ("train", "test")]) for i in (0, 1))
    split = ["train"] * len(SPLITS["train"][1]) + ["test"] * len(SPLITS["test"][1])
    return data_files.parquet_bytes(images, labels, split=split)


def test_one_file_with_a_column_for_the_split(tiny: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    path.write_bytes(both_splits())
    assert same(load(path), tiny) and same(load(tmp_path), tiny)
    path.write_bytes(data_files.parquet_bytes(*SPLITS["train"]))
    with pytest.raises(DataError, match=r"c\.parquet does not say which images are for training .* no column 'split'"):
        load(path)


def test_a_file_below_a_folder_that_cannot_be_listed(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mode 711, which shared machines have above a user's folder."""
    path = data_files.write_files(tmp_path / "closed" / "own", {"c.parquet": both_splits()}) / "c.parquet"
    iterdir = Path.iterdir

    def listed(folder: Path) -> Any:
        if folder.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", listed)
    assert same(load(path, tmp_path / "cache"), tiny)


def test_ten_classes_without_superclasses(tmp_path: Path) -> None:
    files = data_files.parquet_files(SPLITS10, names=CIFAR10.class_names)
    dataset = load(data_files.write_files(tmp_path / "plain_text", files))
    archive = data_files.write_archive(tmp_path / "c.tar.gz", data_files.python10_files(SPLITS10))
    assert same(dataset, load(archive)) and dataset.class_names == CIFAR10.class_names


def test_without_metadata_and_with_other_names_of_columns(tmp_path: Path) -> None:
    """As other programs write them: images as plain bytes, no names of classes."""
    files = {}
    for split, (images, labels) in SPLITS.items():
        pngs = []
        for image in images:
            out = io.BytesIO()
            Image.fromarray(image).save(out, "PNG")
            pngs.append(out.getvalue())
        more = {"img": None, "fine_label": None, "coarse_label": None, "image": pngs, "label": labels.tolist()}
        files[f"{split}.parquet"] = data_files.parquet_bytes(images[:0], labels[:0], names=None, **more)
    dataset = load(data_files.write_files(tmp_path / "plain", files))
    assert dataset.class_names[26] == "class 26" and dataset.superclass_names == ()
    assert len(dataset.train) == len(SPLITS["train"][1])


def sized(folder: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    """Parquet files with ten images of a size, height and width, for each split."""
    rng = np.random.default_rng(0)
    splits = {
        split: (rng.integers(0, 256, (10, *size, 3), dtype=np.uint8), np.arange(10) % 2)
        for split, size in sizes.items()
    }
    return data_files.write_files(folder, data_files.parquet_files(splits, names=("cat", "dog"), coarse_label=None))


def test_images_of_another_size_are_taken_as_they_are(tmp_path: Path) -> None:
    dataset = load(sized(tmp_path / "own", {"train": (20, 20), "test": (20, 20)}))
    assert dataset.train.images.shape == (10, 20, 20, 3) and dataset.class_names == ("cat", "dog")


@pytest.mark.parametrize(("train", "test"), [((97, 97), (97, 97)), ((20, 24), (20, 24)), ((20, 20), (32, 32))])
def test_what_is_not_taken_names_the_command_that_converts_it(
    tmp_path: Path, train: tuple[int, int], test: tuple[int, int]
) -> None:
    folder = sized(tmp_path / "own", {"train": train, "test": test})
    with pytest.raises(DataError, match=r"\.parquet, image 0 has .* pixels.*; `fastcifar data convert .* --size 32`"):
        load(folder)
    convert(folder, tmp_path / "out.npz", 32)
    assert load(tmp_path / "out.npz").train.images.shape == (10, 32, 32, 3)


def test_a_changed_file_is_read_again(folder: Path, tmp_path: Path) -> None:
    first = load(folder, tmp_path / "cache")
    files = data_files.parquet_files(data_files.make_splits(3))
    (folder / "test-00000-of-00001.parquet").write_bytes(files["test-00000-of-00001.parquet"])
    assert load(folder, tmp_path / "cache").digest != first.digest


def test_a_third_split_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "validation-00000-of-00001.parquet").write_bytes(b"PAR1")
    load(folder, tmp_path / "cache")
    assert "also holds validation-00000-of-00001.parquet, of which nothing is used" in capsys.readouterr().err


def test_without_pyarrow(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.data.parquet.is_available", lambda: False)
    with pytest.raises(DataError, match=r"not installed, pyarrow: pip install 'fastcifar\[parquet\]'"):
        load(folder, tmp_path / "cache")


LABELS = SPLITS["test"][1].tolist()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"img": None}, r"has no column for an image, img or image; it has fine_label, coarse_label"),
        ({"fine_label": None}, r"has no column for a label, fine_label or label; it has img, coarse_label"),
        ({"fine_label": [*LABELS[:-1], None]}, "1 rows have no fine_label"),
        ({"fine_label": [*LABELS[:-1], 100]}, "label 100 in the test split; allowed: 0 to 99"),
        ({"fine_label": [float(label) for label in LABELS]}, "fine_label is float64 .* not whole numbers"),
        ({"coarse_label": [(label + 1) % 20 for label in LABELS]}, "images of class .* lie in several superclasses"),
        ({"coarse_label": None}, "has other columns or names of classes than .*train"),
        ({"names": FINE[:-1]}, "has other columns or names of classes than .*train"),
        ({"img": [{"bytes": b"x", "path": ""}] * len(LABELS)}, r"test-.*\.parquet, image 0 is damaged or no image"),
        ({"img": [{"bytes": None, "path": "a"}] * len(LABELS)}, "'img' lacks 100 images, or has only their paths"),
        ({"img": LABELS}, "the column 'img' holds no images, but int64"),
    ],
)
def test_what_cannot_be_right_is_named(more: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    file = folder / "test-00000-of-00001.parquet"
    file.write_bytes(data_files.parquet_bytes(*SPLITS["test"], **more))
    with pytest.raises(DataError, match=message):
        load(folder, tmp_path / "cache")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """What `DatasetDict.save_to_disk` of the library `datasets` leaves, and what it keeps there afterwards."""
    root = tmp_path / "saved"
    for split, (images, labels) in SPLITS.items():
        halves = zip(np.array_split(images, 2), np.array_split(labels, 2), strict=True)
        files = {f"data-0000{i}-of-00002.arrow": data_files.arrow_bytes(*half) for i, half in enumerate(halves)}
        files |= {
            "dataset_info.json": b"{}",
            "state.json": b"{}",
            "cache-12ab.arrow": files["data-00000-of-00002.arrow"],
        }
        data_files.write_files(root / split, files)
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return root


@pytest.mark.parametrize("named", ["", "train/data-00001-of-00002.arrow", ".."])
def test_what_save_to_disk_leaves(named: str, saved: Path, tiny: Dataset, tmp_path: Path) -> None:
    assert same(load(saved / named, tmp_path / "cache"), tiny)


@pytest.mark.parametrize("as_file", [False, True])
def test_arrow_files_of_both_kinds(as_file: bool, tiny: Dataset, tmp_path: Path) -> None:
    for split, part in SPLITS.items():
        (tmp_path / f"c-{split}.arrow").write_bytes(data_files.arrow_bytes(*part, as_file=as_file))
    assert same(load(tmp_path), tiny)


def shorten(file: Path, keep: float) -> None:
    os.truncate(file, int(file.stat().st_size * keep))


@pytest.mark.parametrize("keep", [0, 0.001, 0.5])
def test_a_cut_arrow_file(keep: float, saved: Path, tmp_path: Path) -> None:
    shorten(saved / "test/data-00000-of-00002.arrow", keep)
    with pytest.raises(DataError, match=r"data-.*\.arrow is not a whole Arrow file"):
        load(saved, tmp_path / "cache")


def test_an_arrow_file_cut_between_two_batches(saved: Path, tmp_path: Path) -> None:
    """pyarrow reads what is left, without a word."""
    file = saved / "test/data-00000-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"is not a whole Arrow file \(its end is missing\): download or copy it again"):
        load(saved, tmp_path / "cache")


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
def test_a_cut_file(keep: float, folder: Path, tmp_path: Path) -> None:
    file = folder / "test-00000-of-00001.parquet"
    shorten(file, keep)
    with pytest.raises(DataError, match=r"test-.*\.parquet is not a whole Parquet file"):
        load(folder, tmp_path / "cache")


@pytest.mark.real_data
def test_the_real_images_keep_their_digest(real_data: Path, tmp_path: Path) -> None:
    """Hugging Face's copy calls class 26 "cra"."""
    with np.load(real_data / "cifar100.npz") as arrays:
        splits = {s: (arrays[f"{s}_images"], arrays[f"{s}_labels"].astype(np.int64)) for s in ("train", "test")}
    names = tuple("cra" if name == "crab" else name for name in FINE)
    dataset = load(data_files.write_files(tmp_path / "hf", data_files.parquet_files(splits, names=names)))
    assert dataset.name == "cifar100" and dataset.digest == CIFAR100.digest
    CIFAR100.check(dataset)

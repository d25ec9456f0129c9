"""An .npz is read if each of its arrays is what it should be."""

import io
import zipfile
from pathlib import Path
from typing import Any

import data_files
import numpy as np
import pytest
from data_files import SPLITS, load, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar.data import npz
from fastcifar.data.canonical import in_canonical_order
from fastcifar.errors import DataError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_images": np.zeros((200, 3, 32, 32), np.uint8)},
            r"not uint8 \[N, S, S, 3\], .*; images\.transpose\(0, 2, 3, 1\) makes it so",
        ),
        ({"train_images": np.zeros((200, 32, 32, 3), np.float32)}, r"train_images is float32 \[200, 32, 32, 3\], not"),
        ({"test_images": np.zeros((100, 28, 28, 3), np.uint8)}, "images of 32x32 pixels, test images of 28x28"),
        ({"test_images": np.zeros((100, 32, 28, 3), np.uint8)}, r"test_images is uint8 \[100, 32, 28, 3\], not"),
        ({"train_labels": np.zeros(200)}, r"train_labels is float64 \[200\], not whole numbers \[N\]"),
        ({"train_labels": np.zeros((200, 2), int)}, r"train_labels is int64 \[200, 2\], not whole numbers \[N\]"),
        ({"train_labels": np.zeros(199, int)}, "200 train_images, but 199 train_labels"),
        ({"train_labels": np.full(200, 100)}, "label 100 in the train split; allowed: 0 to 99"),
        ({"test_labels": np.full(100, -1)}, "label -1 in the test split; allowed: 0 to 99"),
        (
            {"test_images": np.zeros((0, 32, 32, 3), np.uint8), "test_labels": np.zeros(0, int)},
            "test split holds no image",
        ),
        ({"label_names": np.array([], dtype="U1")}, "label_names holds no name"),
        ({"label_names": np.arange(100)}, r"label_names is int64 \[100\], not a list of strings"),
        ({"train_labels": np.array([object()] * 200)}, "damaged or no .npz of plain arrays .*allow_pickle"),
    ],
)
def test_wrong_npz(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(data_files.write_npz(tmp_path / "c.npz", SPLITS, **change))


def test_npz_with_a_misspelt_key(tmp_path: Path) -> None:
    arrays = {"train_image": SPLITS["train"][0], "train_labels": SPLITS["train"][1]}
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(DataError, match=r"no array 'train_images'; it holds .* Did you mean 'train_image'\?"):
        load(tmp_path / "c.npz")


def test_unnamed_labels_start_at_0(tmp_path: Path) -> None:
    splits = {split: (images, labels + 1) for split, (images, labels) in SPLITS.items()}
    arrays = {
        f"{s}_{kind}": a for s, pair in splits.items() for kind, a in zip(("images", "labels"), pair, strict=True)
    }
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(DataError, match="labels start at 1, not at 0"):
        load(tmp_path / "c.npz")


@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_npz_cut_short(kept: float, tmp_path: Path) -> None:
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(DataError, match=r"c\.npz"):
        load(path)


def test_npz_with_a_flipped_bit(tmp_path: Path) -> None:
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        load(path)


# ---------------------------------------------------------------------------------------------------- labels

SMALL = data_files.make_splits(0, num_classes=4, per_class=5)


def small_npz(path: Path, labels: Any = None, **more: Any) -> Path:
    """An .npz with four classes without names. `labels` maps the training labels to what is written."""
    arrays = {f"{s}_images": pair[0] for s, pair in SMALL.items()} | {f"{s}_labels": p[1] for s, p in SMALL.items()}
    if labels is not None:
        arrays["train_labels"] = labels(arrays["train_labels"])
    np.savez(path, **(arrays | more))
    return path


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda y: np.where(y == 3, 2**40, y), "label 1099511627776 in the train split; allowed: 0 to 65535"),
        (lambda y: np.where(y == 3, 65536, y), "label 65536 in the train split; allowed: 0 to 65535"),
        (lambda y: np.where(y == 3, 2**63 + 5, y.astype(np.uint64)), "label 9223372036854775813; allowed: 0 to 65535"),
        (lambda y: np.where(y == 3, -1, y), "label -1 in the train split; .*to be ignored have to be left out"),
        (lambda y: y - 5, "label -5 in the train split; allowed: 0 to 65535"),
        (lambda y: y.astype(np.float32), r"float32 \[20\], not whole numbers \[N\]; labels\.astype\(int\) makes it so"),
        (lambda y: np.eye(4, dtype=np.uint8)[y], r"uint8 \[20, 4\], .*; labels\.argmax\(axis=1\) makes it so"),
        (lambda y: y[:, None] / 2, r"float64 \[20\], not whole numbers \[N\]; labels\.astype\(int\) makes it so"),
        (lambda y: np.array(list("abcd"))[y], r"not whole numbers \[N\]; names, label_numbers = np\.unique"),
        (lambda y: y > 1, r"bool \[20\], not whole numbers"),
        (lambda y: np.int64(3), r"int64 \[\], not whole numbers"),
        (lambda y: y.astype("m8[s]"), r"timedelta64\[s\] \[20\], not whole numbers"),
    ],
)
def test_labels_that_are_no_class_numbers(labels: Any, message: str, tmp_path: Path) -> None:
    """The bug: a label of 2**40 asked for 8 TiB of memory, and a label beyond int64 became negative."""
    with pytest.raises(DataError, match=message):
        load(small_npz(tmp_path / "c.npz", labels))


@pytest.mark.parametrize(
    ("highest", "kind", "empty"), [(255, np.uint8, 252), (40_000, np.int64, 39_997), (65_535, np.uint16, 65_532)]
)
def test_labels_with_gaps_are_told_each_time(
    highest: int, kind: type, empty: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wild(labels: Any) -> Any:
        return np.where(labels == 3, highest, labels).astype(kind)

    path = small_npz(tmp_path / "c.npz", wild, test_labels=np.arange(4) % 3)
    for _ in range(2):
        dataset = load(path)
        assert dataset.num_classes == highest + 1 and dataset.train.labels.max() == highest
        assert (
            f"labels go from 0 to {highest}, but {empty:,} of these {highest + 1:,} classes have no training image, "
            "the first 'class 3'"
        ) in capsys.readouterr().err


def test_names_without_images_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(small_npz(tmp_path / "c.npz", label_names=np.array(list("abcdef"))))
    assert "2 of these 6 classes have no training image, the first 'e'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["u1", "<u2", ">i4", "u8", ">i8"])
def test_any_type_of_whole_numbers(kind: str, tmp_path: Path) -> None:
    expected = load(small_npz(tmp_path / "a.npz"))
    assert same(load(small_npz(tmp_path / "c.npz", lambda y: y.astype(kind)), tmp_path / "other"), expected)


# ---------------------------------------------------------------------------------------------------- members


def member(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def header(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": kind, "fortran_order": False, "shape": shape})
    return out.getvalue()


def zipped(path: Path, train_images: bytes) -> Path:
    """An .npz, written by hand, whose first array is `train_images`."""
    arrays = {f"{s}_{kind}.npy": member(SMALL[s][kind == "labels"]) for s in SMALL for kind in ("images", "labels")}
    with zipfile.ZipFile(path, "w") as archive:
        for key, content in (arrays | {"train_images.npy": train_images}).items():
            archive.writestr(key, content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc", r"train_images is no array: np\.savez writes each as an \.npy file"),
        (header((10**9, 32, 32, 3)), r"claims to be uint8 \[1000000000, .*, 3,072,000,000,000 bytes, but holds 0"),
        (header((-1, 32, 32, -3)), "claims to be"),
        (header((1, 32, 32, 3)) + bytes(9999), "3,072 bytes, but holds 9,999"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '|u1',", "is damaged or no .npz of plain arrays"),
        (b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000, "is damaged or no .npz of plain arrays"),
        (b"\x93NUMPY\x09\x00\x10\x00", r"array of format \(9, 0\)"),
    ],
)
def test_members_that_are_no_arrays(content: bytes, message: str, tmp_path: Path) -> None:
    """The bug: np.load returns a member that is no array as bytes, and reserves the memory that a header claims."""
    with pytest.raises(DataError, match=message):
        load(zipped(tmp_path / "c.npz", content))


def test_member_without_the_ending_of_an_array(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for key in ("train_images", "train_labels", "test_images", "test_labels"):
            archive.writestr(key, b"abc")
    with pytest.raises(DataError, match="train_images is no array"):
        load(tmp_path / "x.npz")


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    path = zipped(tmp_path / "c.npz", member(SMALL["train"][0]))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images", member(SMALL["train"][0]))
    with pytest.raises(DataError, match="holds two arrays named 'train_images'"):
        load(path)


def test_more_than_the_memory_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "fit_in_memory", lambda size: size < 10_000)
    with pytest.raises(DataError, match="train_images has 61,440 bytes, more than this machine's memory"):
        load(small_npz(tmp_path / "c.npz"))


@pytest.mark.parametrize(("at", "value"), [(8, 1), (10, 99)], ids=["encrypted", "unknown compression"])
def test_member_that_cannot_be_unpacked(at: int, value: int, tmp_path: Path) -> None:
    path = zipped(tmp_path / "c.npz", member(SMALL["train"][0]))
    content = bytearray(path.read_bytes())
    for start, inside in ((b"PK\x01\x02", at), (b"PK\x03\x04", at - 2)):
        place = content.index(start)
        while place >= 0:
            content[place + inside] = value
            place = content.find(start, place + 1)
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged or no .npz of plain arrays"):
        load(path)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_is_found_or_changes_nothing(data: st.DataObject, tmp_path: Path) -> None:
    path = small_npz(tmp_path / "c.npz")
    expected, content = in_canonical_order(npz.read_npz(path), "c"), bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        assert same(in_canonical_order(npz.read_npz(path), "c"), expected)
    except DataError as error:
        assert str(path) in str(error) and len(str(error)) < 2000


def test_an_array_that_is_hidden_is_missed(tmp_path: Path) -> None:
    """The bug: a damaged length in the archive's directory skipped the class names, in silence."""
    path = small_npz(tmp_path / "c.npz", last=np.zeros(1))
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\1\2", 0, content.rfind(b"PK\1\2"))
    content[entry + 33] ^= 0x80  # of the comment behind the last entry but one
    path.write_bytes(content)
    with pytest.raises(DataError, match="the archive's directory is damaged behind"):
        load(path)


def test_arrays_that_are_not_used_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = SMALL["test"]
    load(small_npz(tmp_path / "c.npz", val_images=images, val_labels=labels))
    assert "c.npz also holds val_images, of which nothing is used" in capsys.readouterr().err


def test_arrays_by_the_names_of_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x_train=np.zeros(1), **{f"a{i}" * 100: np.zeros(1) for i in range(50)})
    with pytest.raises(DataError, match="The arrays have to be named train_images, train_labels, test_") as error:
        load(tmp_path / "c.npz")
    assert len(str(error.value)) < 1500


def test_each_image_knows_its_row(tmp_path: Path) -> None:
    path = small_npz(tmp_path / "c.npz")
    for _ in range(2):  # decoded, then from the cache
        dataset = load(path)
        for name, split in (("train", dataset.train), ("test", dataset.test)):
            assert split.files is None and split.places is not None and split.places.dtype == np.int64
            assert np.array_equal(SMALL[name][0][split.places], split.images)
            assert np.array_equal(SMALL[name][1][split.places], split.labels)

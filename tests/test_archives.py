"""Archives are read in memory and to their end, and nothing in them is trusted."""

import io
import tarfile
from pathlib import Path

import data_files
import pytest
from data_files import SPLITS, load, same

from fastcifar.data import archives
from fastcifar.data.canonical import in_canonical_order
from fastcifar.data.dataset import Dataset
from fastcifar.errors import DataError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(data_files.write_npz(tmp_path_factory.mktemp("tiny") / "c.npz", SPLITS))


def test_member_paths_are_not_trusted(tiny: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.tar.gz"
    data_files.write_archive(path, data_files.python_files(SPLITS), inside="../../..//etc")
    before = sorted(tmp_path.rglob("*"))
    assert same(load(path, tmp_path / "cache"), tiny)
    assert [p for p in sorted(tmp_path.rglob("*")) if (tmp_path / "cache") not in (p, *p.parents)] == before


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    files = data_files.python_files(SPLITS)
    train = files.pop("train")
    (tmp_path / "train").write_bytes(train)
    path = data_files.write_archive(tmp_path / "a.tar", files)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("cifar/train")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "train")
        archive.addfile(link)
    with pytest.raises(DataError, match="holds no published version of CIFAR.*of which it has meta, test\n"):
        load(path)


def test_archive_with_two_of_one_name(tmp_path: Path) -> None:
    path = data_files.write_archive(tmp_path / "a.tar", data_files.python_files(SPLITS))
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("other/train"), io.BytesIO())
    with pytest.raises(DataError, match="more than one file named train"):
        load(path)


def test_oversized_member_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST_FILE", 1000)
    path = data_files.write_archive(tmp_path / "a.tar.gz", data_files.python_files(SPLITS))
    with pytest.raises(DataError, match="more than any CIFAR file has"):
        load(path)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "tar.bz2", "tar"])
@pytest.mark.parametrize("kept", [0.001, 0.5, 0.98])
def test_archive_cut_short(kind: str, kept: float, tmp_path: Path) -> None:
    path = data_files.write_archive(tmp_path / f"a.{kind}", data_files.python_files(SPLITS))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=r"is not a whole archive|holds no published version"):
        load(path)


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """The bug: a gzip's checksum is after the end of the tar, and was not read; 28 of 91 flips passed."""
    splits = data_files.make_splits(0, per_class=1)
    path = data_files.write_archive(tmp_path / "a.tar.gz", data_files.binary_files(splits))
    expected = in_canonical_order(archives.read_archive(path), "a")
    content = path.read_bytes()
    found = 0
    for place in range(0, len(content), len(content) // 90):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert same(in_canonical_order(archives.read_archive(path), "a"), expected)
        except DataError as error:
            assert str(path) in str(error)
            found += 1
    assert found >= 85  # what remains is the gzip's own header: its time and its system


def test_hidden_members_are_skipped(tiny: Dataset, tmp_path: Path) -> None:
    path = data_files.write_archive(tmp_path / "a.tar", data_files.python_files(SPLITS))
    with tarfile.open(path, "a") as archive:
        for name in ("__MACOSX/cifar/train", "cifar/.backup/test", ".git/meta"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert same(load(path), tiny)


def test_archive_of_an_image_folder(tmp_path: Path) -> None:
    path = data_files.write_archive(tmp_path / "a.tar", {f"{i}.png": b"x" for i in range(1000)}, "train/cat")
    with pytest.raises(DataError, match="it holds train/cat/0.png, .* and 997 more: if these are images, unpack it"):
        load(path)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.gz", "a"])
@pytest.mark.parametrize("kept", [5, 40, 1000])
def test_pieces_of_an_archive_under_any_name(name: str, kept: int, tmp_path: Path) -> None:
    content = data_files.write_archive_bytes("gz", data_files.python_files(SPLITS))
    (tmp_path / name).write_bytes(content[:kept])
    with pytest.raises(DataError, match="is not a whole archive|is neither an .npz nor a tar archive") as error:
        load(tmp_path / name)
    assert "\n" not in str(error.value).partition(" Accepted:")[0]

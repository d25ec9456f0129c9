"""Archives are read in memory, whole, and trusted in nothing."""

import io
import tarfile
from pathlib import Path

import data_files
import pytest
from data_files import SPLITS, load, same

from fastcifar.data import archives
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

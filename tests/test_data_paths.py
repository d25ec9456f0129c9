"""Every path that a user may give leads to data, or to an error of ours that names the path."""

import os
import subprocess
import sys
from pathlib import Path

import data_files
import pytest
from data_files import SPLITS, load

from fastcifar.data import cache, sources
from fastcifar.data.notes import listed, message, nearest, note
from fastcifar.errors import DataError
from fastcifar.text import printable

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("", "data = '': an empty path names nothing"),
        ("  ", "data = '  ': an empty path names nothing"),
        ("a\0b", r"no path holds a NUL"),
        ("~nosuchuser", "data = '~nosuchuser': no such folder: there is no user nosuchuser"),
        ("~nosuchuser/x.npz", "data = '~nosuchuser/x.npz': no such folder"),
        ("a" * 300, f"cannot read {'a' * 300}: File name too long"),
        ("/tmp/" + "a/" * 3000, "cannot read /tmp/a/a.*: File name too long"),
        ("nowhere/x.npz", "no such file or folder: nowhere/x.npz"),
        (f"{__file__}/x.npz", "no such file or folder"),
        ("https://host/cifar-100-python.tar.gz", "--data cifar100 --mirror https://host/cifar-100-python.tar.gz"),
        ("https:/host/x", "is a URL, not a path"),
        ("s3://bucket/x", "is a URL, not a path. Download the file, then give its path"),
        ("file:///tmp/x.npz", "is a URL, not a path. Give the path itself"),
    ],
)
def test_paths_that_lead_nowhere(data: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said) as error:
        sources.load(data, cache=tmp_path)
    assert len(str(error.value)) < 1000 and error.value.exit_code == 3


@pytest.mark.parametrize("data", ["CIFAR100", "CIFAR-100", "Cifar_100", "cifar 100"])
def test_names_in_another_spelling(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"Did you mean 'cifar100'\?"):
        sources.load(data, cache=tmp_path)


@pytest.mark.parametrize(
    ("data", "meant"), [("CIFAR10", "cifar10"), ("CIFAR-10", "cifar10"), ("Procedual", "procedural")]
)
def test_the_nearest_name_is_meant(data: str, meant: str) -> None:
    assert nearest(data, sources.NAMES) == f" Did you mean {meant!r}?"


def test_no_hint_where_nothing_is_near() -> None:
    assert nearest("mnist", sources.NAMES) == ""


def test_paths_that_are_not_utf8(tmp_path: Path) -> None:
    expected = load(data_files.write_npz(tmp_path / "c.npz", SPLITS)).digest
    folder = os.fsencode(tmp_path) + b"/\xe9t\xe9"
    os.mkdir(folder)
    os.rename(tmp_path / "c.npz", folder + b"/d\xe9.npz")
    for _ in range(2):
        dataset = sources.load(os.fsdecode(folder + b"/d\xe9.npz"), cache=Path(os.fsdecode(folder + b"/cache")))
        assert dataset.digest == expected and dataset.name == r"d\xe9"
    with pytest.raises(DataError) as error:
        sources.load(os.fsdecode(folder + b"/\x1b[31m.npz"), cache=tmp_path)
    str(error.value).encode()  # fit for a file in UTF-8
    assert r"\xe9t\xe9/\x1b[31m.npz" in str(error.value)


def test_what_the_system_refuses_names_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", closed)
    with pytest.raises(DataError, match=f"cannot read {tmp_path}/x.npz: Permission denied"):
        sources.load(str(tmp_path / "x.npz"), cache=tmp_path)


def test_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(DataError, match="nor a file or folder here"):
        sources.load("x.npz", cache=tmp_path)
    with pytest.raises(DataError, match="cannot read x.npz: No such file or directory"):
        sources.absolute("x.npz")
    monkeypatch.chdir(tmp_path)


def test_more_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    monkeypatch.setattr("fastcifar.data.sources.in_canonical_order", full)
    with pytest.raises(DataError, match="does not fit in this machine's memory"):
        load(path)


def test_paths_as_objects(tmp_path: Path) -> None:
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    assert sources.load(path, cache=tmp_path).digest == load(path).digest
    assert sources.absolute(path) == str(path)


# ---------------------------------------------------------------------------------------------------- written down


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    (tmp_path / "link").symlink_to("work")
    monkeypatch.chdir(tmp_path / "work")
    assert [sources.absolute(name) for name in sources.NAMES] == list(sources.NAMES)
    assert sources.absolute("x.npz") == f"{tmp_path}/work/x.npz"
    assert sources.absolute("~/x.npz") == f"{tmp_path}/home/x.npz"
    assert sources.absolute(f"{tmp_path}/link/../x.npz") == f"{tmp_path}/link/../x.npz"  # links are not looked through
    with pytest.raises(DataError, match="no such folder: there is no user nosuchuser"):
        sources.absolute("~nosuchuser/x")


def test_what_would_be_downloaded(tmp_path: Path) -> None:
    assert sources.download_size("procedural", cache=tmp_path) == 0
    assert sources.download_size("some/path.npz", cache=tmp_path) == 0
    assert sources.download_size("cifar100", cache=tmp_path) == 142_291_368
    assert sources.download_size("cifar100", mirror="https://host/x", cache=tmp_path) == 142_291_368
    assert sources.download_size("cifar100", mirror="file:///tmp/x", cache=tmp_path) == 0
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "cifar100.download").touch()
    assert sources.download_size("cifar100", cache=tmp_path) == 0
    assert sources.download_size("cifar10", cache=tmp_path) == 170_498_071


# ---------------------------------------------------------------------------------------------------- the home folder

NOBODY = """
import os, pwd, sys
from pathlib import Path
def nobody(*_):
    raise KeyError("no such user")
pwd.getpwuid = pwd.getpwnam = nobody
for name in ("HOME", "FASTCIFAR_DATA", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
from fastcifar.data import sources
from fastcifar.errors import DataError
try:
    print(sources.load(sys.argv[1]).num_classes)
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("data", "out", "told"),
    [
        ("c.npz", "100", "Decoding without a cache"),
        ("cifar100", "there is no folder to keep data in: HOME is not set", ""),
        ("~/c.npz", "data = '~/c.npz': no such folder: this user has no home folder", "Decoding without a cache"),
    ],
)
def test_without_a_home_folder(data: str, out: str, told: str, tmp_path: Path) -> None:
    """As in a container that runs with a user id that it does not know."""
    data_files.write_npz(tmp_path / "c.npz", SPLITS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, data], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(out)
    assert told in done.stderr and ("FASTCIFAR_DATA=FOLDER names one" in done.stdout + done.stderr)


def test_cache_in_the_home_folder_of_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    monkeypatch.setenv("FASTCIFAR_DATA", "~nosuchuser/x")
    with pytest.raises(
        DataError, match="FASTCIFAR_DATA = '~nosuchuser/x': no such folder: there is no user nosuchuser"
    ):
        sources.load(str(path))
    with pytest.raises(DataError, match="no such folder"):
        cache.default_folder()


# ---------------------------------------------------------------------------------------------------- what is shown


def test_printable() -> None:
    assert printable("a b\tc\nd\x1b[1m\x7f\u202e\u2028\udce9") == r"a b\tc\nd\x1b[1m\x7f\u202e\u2028\xe9"
    assert printable("naïve 猫 <i>$x$ | `y`") == "naïve 猫 <i>$x$ | `y`"
    assert message("a\n\tb\x1b") == "a\n\tb\\x1b" and len(message("x" * 10_000)) < 5000


def test_listed() -> None:
    assert listed(["a", "b"]) == "a, b" and listed([]) == "nothing"
    assert listed([str(i) for i in range(10_000)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 9,992 more"
    assert listed(["x" * 100]) == "x" * 57 + "..."


def test_note_where_nobody_listens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """If the shell closes stderr, sys.stderr is None, and print(file=None) prints to stdout."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        note("hello")
    assert capsys.readouterr() == ("", "")

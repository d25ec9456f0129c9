"""Files: whole after a crash, read only if they are ordinary files, and the system's errors in words."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastcifar import files
from fastcifar.errors import FastcifarError


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    files.replace(path, b"one")
    files.replace(path, b"two")
    assert path.read_bytes() == b"two" and [entry.name for entry in tmp_path.iterdir()] == ["x.json"]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FastcifarError, match=r"no room to write .*x.json: .* MiB free .*Make room first\.$"):
        files.replace(path, b"three", "Make room first.")
    assert path.read_bytes() == b"two" and [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("number", "inodes", "said"),
    [
        (errno.ENOSPC, 0, "1.0 MiB are needed, 7.0 MiB free, but no inode for another file: df -i (No"),
        (errno.ENOSPC, 9, "1.0 MiB are needed, 7.0 MiB free (No"),
        (errno.EDQUOT, 9, "1.0 MiB are needed, 7.0 MiB free, but this user's quota is used up: quota -s (Disk"),
    ],
    ids=["inodes", "bytes", "quota"],
)
def test_a_full_disk_says_what_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, inodes: int, said: str
) -> None:
    found = SimpleNamespace(f_bavail=7, f_frsize=2**20, f_files=100, f_favail=inodes)
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    with pytest.raises(FastcifarError) as caught, files.explained(tmp_path / "x" / "y", 2**20, "Make room."):
        raise OSError(number, os.strerror(number))
    assert said in str(caught.value) and str(caught.value).endswith("). Make room.")


def test_what_is_added_is_added_or_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    files.write(path, b"a\n")
    files.append(path, b"b\n")
    assert path.read_bytes() == b"a\nb\n"
    with pytest.raises(FastcifarError, match="nowhere cannot be written: No such file"):
        files.append(tmp_path / "nowhere", b"x")


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a device"])
def test_only_files_are_read(tmp_path: Path, kind: str) -> None:
    """A pipe without a writer would be waited for, /dev/zero would fill the memory."""
    path = tmp_path / "x"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match=f"it is {kind}"):
        files.read(path)


def test_no_more_is_read_than_makes_sense(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert files.read(path, 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, where at most 4 make sense"):
        files.read(path, 4)


def test_a_broken_link_is_something(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert files.holds(tmp_path / "link")
    assert not files.holds(tmp_path / "nowhere") and not files.holds(tmp_path / "link" / "x")


def test_a_refusal_says_what_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied")
    inside = tmp_path / "a" / "b"
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "a" or mode != os.X_OK)
    expected = f"Permission denied (the folder {tmp_path}/a does not let this user in)"
    assert files.refusal(inside, denied) == expected
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "a" or mode != os.W_OK)
    expected = f"Permission denied (this user may not write to the folder {tmp_path}/a)"
    assert files.refusal(inside, denied) == expected
    inside.touch()
    assert files.refusal(inside, denied) == "Permission denied"  # the file's own
    long = OSError(errno.ENAMETOOLONG, "File name too long")
    assert files.refusal(Path("x" * 300), long) == "File name too long (a name of 300 bytes, a path of 300)"
    assert files.refusal(Path("x"), ValueError("embedded null byte")) == "embedded null byte"

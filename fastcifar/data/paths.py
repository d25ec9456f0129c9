"""A user's path: what it means, what lies there, and its bytes, read so that no pipe or device can stop the program."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastcifar.errors import DataError

# Folders and files that systems and programs leave beside people's data, in lower case.
_SYSTEM_NAMES = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "system volume information",
}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_litter(name: str) -> bool:
    """Whether an entry of a folder is hidden, or left there by the system, and so never part of the data."""
    return (name.startswith(".") and name not in (".", "..")) or name.casefold() in _SYSTEM_NAMES


def user_path(text: str, what: str = "data") -> Path:
    """What a path typed by a user means.

    Args:
        text: The path as typed; ``~`` and ``~name`` stand for home folders.
        what: The setting or variable that it was given to, for messages.

    Returns:
        The path, still relative if it was typed so. Nothing need be there.

    Raises:
        DataError: ``text`` is empty, a URL, holds a NUL, or names the home folder of nobody.
    """
    if not text.strip():
        raise DataError(f"{what} is empty: expected the path of a file or folder")
    if _URL.match(text):
        raise DataError(
            f"{what} = {text!r} is a URL, not a path. To download a published set from there, give its name and the "
            f"address: --data cifar100 --mirror {text}. Any other file: download it, then name the file."
        )
    if "\0" in text:
        raise DataError(f"{what} = {text!r}: no path holds a NUL")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise DataError(f"{what} = {text!a} cannot be written in the encoding of this system's paths") from error
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        user = text.split("/", 1)[0]
        whose = f"there is no user {user[1:]!r}" if user != "~" else "HOME is not set, and this user has no entry"
        raise DataError(f"no such folder: {user} ({whose}), in {what} = {text!r}")
    return Path(expanded)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says of a path that cannot be read into a DataError that names the path."""
    try:
        yield
    except OSError as error:
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else path
        raise DataError(f"cannot read {where}: {error.strerror or error}") from error


def kind_of(path: Path) -> str:
    """What lies at a path, links followed: "file", "folder", "nothing", or "a pipe" and the like.

    Raises:
        OSError: The system does not tell.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "something else")


def read_bytes(path: Path, most: int) -> bytes:
    """The content of an ordinary file.

    Args:
        path: The file.
        most: How many bytes it may have.

    Raises:
        DataError: The file cannot be read, is a pipe or a device, or has more bytes than ``most``.
    """
    with reading(path):
        # O_NONBLOCK: without it, opening a pipe that nobody writes to waits for ever.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise DataError(f"{path} is no ordinary file")
            if about.st_size > most:
                raise DataError(f"{path} has {about.st_size:,} bytes; at most {most:,} are taken")
            return file.read(most)


def fit_in_memory(size: int) -> bool:
    """Whether this machine has as much memory as an array of ``size`` bytes would take."""
    return size <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

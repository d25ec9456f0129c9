"""A user's path: what it means, what lies there, and its bytes, read so that no pipe or device can stop the program."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastcifar import files
from fastcifar.errors import DataError
from fastcifar.paths import given

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
    if url := _URL.match(text):
        advice = "Download the file, then give its path."
        if url[0].lower() == "file:/":
            advice = "Give the path itself."
        elif url[0].lower() in ("http:/", "https:/"):
            advice = (
                "To download a published set from there, give its name and the address: "
                f"--data cifar100 --mirror {text}. Any other file: download it, then give its path."
            )
        raise DataError(f"{what} = {text!r} is a URL, not a path. {advice}")
    try:
        os.fsencode(text)
        return given(text.strip() and text)
    except UnicodeEncodeError as error:
        raise DataError(f"{what} = {text!a} cannot be written in the encoding of this system's paths") from error
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{what} = {text!r}: {getattr(error, 'strerror', error)}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says of a path that cannot be read into a DataError that names the path.

    Args:
        path: What is named where the system names no path.
    """
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        where = str(named)
        if len(where) > 400:
            where = f"{where[:300]}...{where[-60:]}"
        raise DataError(f"cannot read {where}: {files.refusal(named, error)}") from error


def kind_of(path: Path) -> str:
    """What lies at a path, links followed: "file", "folder", "nothing", or "a named pipe" and the like.

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
    return files.KINDS.get(stat.S_IFMT(mode), "something else")


def read_bytes(path: Path, most: int) -> bytes:
    """The content of an ordinary file.

    Args:
        path: The file.
        most: How many bytes it may have.

    Raises:
        DataError: The file cannot be read, is a pipe or a device, or has more bytes than ``most``.
    """
    with reading(path):
        return files.read(path, most)


def fit_in_memory(size: int) -> bool:
    """Whether this machine has as much memory as an array of ``size`` bytes would take."""
    return size <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

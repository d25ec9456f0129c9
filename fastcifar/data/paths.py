"""A path given by the user: what it means, what it leads to, and reading it, which no pipe or device can block."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastcifar import files
from fastcifar.errors import DataError
from fastcifar.paths import given

# Folders and files that operating systems and programs leave beside the user's data, in lower case.
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
    """Whether an entry of a folder is not part of the data, because it is hidden or was left by the system."""
    return (name.startswith(".") and name not in (".", "..")) or name.casefold() in _SYSTEM_NAMES


def user_path(text: str, what: str = "data") -> Path:
    """The path that a user's text means.

    Args:
        text: the text; `~` and `~name` stand for home folders.
        what: the setting or variable that holds the text, for messages.

    Returns:
        The path, relative if the text is relative. It need not exist.

    Raises:
        DataError: `text` is empty, is a URL, holds a NUL, or starts with `~name` and there is no such user.
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
    """A context in which the system's errors raise DataError with the path that cannot be read.

    Args:
        path: the path to name if the system's error has none.

    Raises:
        DataError: something cannot be read.
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
    """What a path leads to. Links are followed.

    Args:
        path: the path.

    Returns:
        "file", "folder", "nothing", or another kind in words, such as "a named pipe".

    Raises:
        OSError: the system does not tell.
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
    """Reads an ordinary file.

    Args:
        path: the file.
        most: how many bytes it may have.

    Returns:
        The content.

    Raises:
        DataError: the file cannot be read, is a pipe or a device, or has more bytes than `most`.
    """
    with reading(path):
        return files.read(path, most)


def fit_in_memory(size: int) -> bool:
    """Whether an array of `size` bytes fits this machine's memory."""
    return size <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

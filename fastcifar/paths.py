"""One rule for the paths that a person gives, wherever they are given, and for what the system says of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from fastcifar.errors import UsageError
from fastcifar.files import refusal
from fastcifar.text import one_line


def given(text: str) -> Path:
    """The path that a person wrote: `~` and `~name` are home folders, as in a shell.

    Args:
        text: as written on the command line, in an environment variable or in a file.

    Returns:
        The path, relative to the working folder where `text` is.

    Raises:
        FileNotFoundError: nothing is written, there is no such user, or this user has no home folder.
        ValueError: it holds a NUL, which no path does.
    """
    if not text:
        raise FileNotFoundError(errno.ENOENT, "an empty path names nothing", text)
    if "\0" in text:
        raise ValueError(f"{one_line(text)}: no path holds a NUL character")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        name = text.partition("/")[0].removeprefix("~")
        why = f"there is no user {name}" if name else "this user has no home folder: set HOME"
        raise FileNotFoundError(errno.ENOENT, f"no such folder: {why}", text) from None


def absolute(setting: str, text: str) -> str:
    """The path of a setting, independent of the working folder; nothing where nothing is given.

    Raises:
        UsageError: it is no path.
    """
    try:
        return str(given(text).absolute()) if text else ""
    except (OSError, ValueError) as error:
        raise UsageError(f"{setting} = {text}: {getattr(error, 'strerror', None) or error}") from error


def refused(error: OSError, roots: Iterable[Path]) -> str | None:
    """What the system refused, in a line, where it refused a path that lies at, under or above one of `roots`.

    Args:
        error: what the system said.
        roots: the paths that a person gave, and the folders that are taken where no path is given.

    Returns:
        The path with the reason; None where the error is of another path or of none.
    """
    names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, bytes)) and name]
    if not names or not error.strerror:
        return None
    for name in names:
        path = Path(os.path.abspath(os.fsdecode(name)))
        for root in roots:
            there = Path(os.path.abspath(root))
            if path == there or there in path.parents or path in there.parents:
                return f"{one_line(os.fsdecode(name))}: {refusal(path, error)}"
    return None

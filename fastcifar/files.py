"""Files that a crash leaves whole: written aside, forced to disk, and put in place in one step."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fastcifar.errors import FastcifarError


def write(path: Path, content: bytes) -> None:
    """Writes a file and forces it to disk.

    Args:
        path: the file, made or replaced in place.
        content: all of it.

    Raises:
        OSError: what the system says.
    """
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Forces a file, or a folder's entries, to disk.

    Raises:
        OSError: what the system says.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes, advice: str = "") -> None:
    """Writes a file so that a reader, and whoever comes after a crash, sees the old content or the new.

    Args:
        path: the file. Its content goes to `path`.new first, which is then renamed.
        content: all of it.
        advice: what a message about a full disk ends with.

    Raises:
        FastcifarError: `path` cannot be written; its old content stays.
    """
    new = path.with_name(f"{path.name}.new")
    with explained(path, len(content), advice):
        try:
            write(new, content)
            os.replace(new, path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise
        sync(path.parent)


def append(path: Path, content: bytes, advice: str = "") -> None:
    """Adds to the end of a file that exists. Whatever part of `content` does not fit is taken back.

    Args:
        path: the file.
        content: what is added.
        advice: what a message about a full disk ends with.

    Raises:
        FastcifarError: `path` cannot be written; it is as it was.
    """
    with explained(path, len(content), advice):
        size = path.stat().st_size
        try:
            with open(path, "ab") as file:
                file.write(content)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, size)  # works on a full disk too
            raise


@contextlib.contextmanager
def explained(path: Path, num_bytes: int, advice: str = "") -> Iterator[None]:
    """Turns the system's refusal to write into a message.

    Args:
        path: what is written inside the context.
        num_bytes: how much that is.
        advice: what a message about a full disk ends with.

    Raises:
        FastcifarError: an `OSError` inside the context, with the path and the reason.
    """
    try:
        yield
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = "an unknown amount"
            with contextlib.suppress(OSError):
                free = f"{shutil.disk_usage(path.parent).free / 2**20:,.1f} MiB"
            need = f"{num_bytes / 2**20:,.1f} MiB are needed, {free} free"
            text = f"no room to write {path}: {need} ({problem.strerror}). {advice}"
            raise FastcifarError(text.rstrip()) from problem
        raise FastcifarError(f"{path} cannot be written: {problem.strerror or problem}.") from problem

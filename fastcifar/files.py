"""Files that a crash leaves whole, and refusals of the system in words.

A file is written aside, forced to disk, and put in place in one step. A file is read only if it is one: a named pipe
would be waited for, a device would never end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fastcifar.errors import FastcifarError

LARGEST = 2**30
"""Bytes that `read` takes at most, if nothing else is said."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for a file."""

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What lies at a path that is no file, by `stat.S_IFMT` of its mode."""


def read(path: Path, most: int = LARGEST) -> bytes:
    """Reads a file as a whole.

    Args:
        path: the file.
        most: how many bytes it may have.

    Returns:
        Its content.

    Raises:
        OSError: what the system says; also that `path` is no file, or has more than `most` bytes.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, where a file is wanted", str(path))
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, where at most {most:,} make sense", str(path))
    return path.read_bytes()


def check_members(archive: zipfile.ZipFile) -> None:
    """Refuses a zip archive of which a damaged length hides members: zipfile does not miss them.

    Args:
        archive: open for reading.

    Raises:
        ValueError: the comment or the extra field of a member holds the entry of the next one.
    """
    for member in archive.infolist():
        if b"PK\1\2" in member.extra + member.comment:
            raise ValueError(f"the archive's directory is damaged behind {member.filename!r}")


def holds(path: Path) -> bool:
    """Whether something is at `path`, be it a broken link.

    Raises:
        OSError: the system does not let us look.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def refusal(path: Path, problem: OSError | ValueError) -> str:
    """Why the system refuses a path, in words.

    Args:
        path: what was asked for.
        problem: what the system or Python said.

    Returns:
        Such as `Permission denied (the folder /home/other lets nobody else in)`.
    """
    if not isinstance(problem, OSError):  # such as a NUL in a name
        return str(problem)
    reason = problem.strerror or str(problem)
    if problem.errno in (errno.EACCES, errno.EPERM):
        for folder in reversed(path.absolute().parents):
            if os.path.isdir(folder) and not os.access(folder, os.X_OK):
                return f"{reason} (the folder {folder} does not let this user in)"
        above = next((folder for folder in path.absolute().parents if os.path.isdir(folder)), None)
        if above is not None and not os.path.lexists(path) and not os.access(above, os.W_OK):
            return f"{reason} (this user may not write to the folder {above})"
    if problem.errno in (errno.EMFILE, errno.ENFILE):
        return f"{reason} (raise the limit of this shell: ulimit -n 4096)"
    if problem.errno == errno.ENAMETOOLONG:
        longest = max(path.parts, key=lambda part: len(os.fsencode(part)), default="")
        return f"{reason} (a name of {len(os.fsencode(longest))} bytes, a path of {len(os.fsencode(path))})"
    return reason


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


def make_folder(path: Path, *, exist_ok: bool = False) -> None:
    """Makes a folder, and those above it, so that a power cut does not take them with all that they hold.

    Args:
        path: the folder.
        exist_ok: whether it may be there already.

    Raises:
        OSError: what the system says.
    """
    new = [folder for folder in (path, *path.parents) if not os.path.isdir(folder)]
    path.mkdir(parents=True, exist_ok=exist_ok)
    for folder in new:
        with contextlib.suppress(OSError):  # a folder that may be written to and not read
            sync(folder.parent)


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


def room(path: Path, problem: OSError) -> str:
    """What is short where a file does not fit.

    Args:
        path: the file, or a folder on the same file system.
        problem: what the system said, with a number that is in `FULL`.

    Returns:
        Such as `0.2 MiB free`.
    """
    try:
        found = os.statvfs(next(folder for folder in (path, *path.absolute().parents) if folder.is_dir()))
    except OSError:
        return "an unknown amount free"
    free = f"{found.f_bavail * found.f_frsize / 2**20:,.1f} MiB free"
    if problem.errno == errno.EDQUOT:
        return f"{free}, but this user's quota is used up: quota -s"
    if found.f_files and not found.f_favail:
        return f"{free}, but no inode for another file: df -i"
    return free


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
        if problem.errno in FULL:
            if problem.errno == errno.EFBIG:
                advice = "Raise the limit of this shell: ulimit -f."
            need = f"{num_bytes / 2**20:,.1f} MiB are needed, {room(path, problem)}"
            text = f"no room to write {path}: {need} ({problem.strerror}). {advice}"
            raise FastcifarError(text.rstrip()) from problem
        raise FastcifarError(f"{path} cannot be written: {refusal(path, problem)}.") from problem

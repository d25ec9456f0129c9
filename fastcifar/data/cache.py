"""The local cache: a safetensors file for each source with its decoded arrays; each read verifies the checksum.

An entry is replaced by renaming a file, so that a reader sees either the old or the new entry. If several processes
want the same missing entry, one makes it and the others wait.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar import files
from fastcifar.data.notes import note
from fastcifar.data.paths import user_path
from fastcifar.errors import DataError

FORMAT = "2"  # is raised when older entries can no longer be used; they are then made anew
FORMAT_WITHOUT_PLACES = "1"  # entries with the right images, but without `places`
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Entry:
    """What one source holds once decoded.

    Attributes:
        arrays: the arrays by name.
        meta: what else the source says, in values that JSON can hold.
    """

    arrays: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any]


class NoHomeError(DataError):
    """There is no folder for a cache, because this user has no home folder."""


def default_folder() -> Path:
    """The folder where decoded data is kept by default.

    Returns:
        `$FASTCIFAR_DATA`, else the user's cache folder (`~/.cache/fastcifar` on Linux). It need not exist yet.

    Raises:
        NoHomeError: FASTCIFAR_DATA is not set, and this user has no home folder.
        DataError: FASTCIFAR_DATA starts with `~NAME`, and there is no such user.
    """
    if chosen := os.environ.get("FASTCIFAR_DATA"):
        return user_path(chosen, "FASTCIFAR_DATA")
    import platformdirs

    try:
        return Path(platformdirs.user_cache_dir("fastcifar"))
    except RuntimeError as error:
        raise NoHomeError(
            "there is no folder to keep data in: HOME is not set, and this user has no entry in the system's list. "
            "FASTCIFAR_DATA=FOLDER names one."
        ) from error


def cached(
    folder: Path, name: str, fingerprint: str, build: Callable[[], Entry], formats: Collection[str] = (FORMAT,)
) -> Entry:
    """Reads an entry of the cache, or makes it.

    An entry that is missing, damaged or of another fingerprint is made anew.

    Args:
        folder: the cache. If it cannot be written, a note says so, and the entry is made but not kept.
        name: the entry's name.
        fingerprint: identifies the content that the entry was made from.
        build: makes the entry.
        formats: the formats that an entry may have.

    Returns:
        The entry.

    Raises:
        DataError: `build` raised it, the disk is full, or the entry is there but cannot be read.
    """
    path = folder / f"{name}.safetensors"
    if entry := _read(path, fingerprint, formats):
        return entry
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = hold(folder, name)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise cannot_write(folder, error) from error
        note(
            f"the data cache {folder} cannot be written ({error.strerror}): decoding without it. "
            "FASTCIFAR_DATA=FOLDER names another."
        )
        return build()
    with held:
        if entry := _read(path, fingerprint, formats, tell=True):  # another process may have made it meanwhile
            return entry
        entry = build()
        _write(path, fingerprint, entry, alone=not isinstance(held, nullcontext))
    return entry


def holds(folder: Path, name: str, fingerprint: str, formats: Collection[str] = (FORMAT,)) -> bool:
    """Whether the cache has an entry. Only its header is read, so that the entry may still be damaged.

    Args:
        folder: as for `cached`.
        name: as for `cached`.
        fingerprint: as for `cached`.
        formats: as for `cached`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / f"{name}.safetensors", framework="np") as file:
            header = file.metadata() or {}
    except (OSError, SafetensorError):
        return False
    return header.get("format") in formats and header.get("fingerprint") == fingerprint


def hold(folder: Path, name: str) -> AbstractContextManager[object]:
    """Locks `folder/.NAME.lock` against all other processes. If it has to wait, a note says so.

    Args:
        folder: the cache.
        name: what is locked.

    Returns:
        A context that releases the lock. Where the file system has no locks, a note says so and nothing is locked.

    Raises:
        OSError: the lock's file cannot be written.
    """
    import filelock

    lock = filelock.FileLock(folder / f".{name}.lock")
    try:
        return lock.acquire(timeout=1)
    except filelock.Timeout:
        note(f"waiting for another process that is preparing {name} in {folder}")
        return lock.acquire()
    except NotImplementedError:  # some network file systems
        note(f"{folder} knows no locks: two processes that start at once may both prepare {name}")
        return nullcontext()


def cannot_write(path: Path, error: OSError) -> DataError:
    """The error for a file of the cache that cannot be written.

    Args:
        path: the file or folder that could not be written.
        error: the system's error.

    Returns:
        An error with the path, the reason and what to do about it; if the disk is full, also the free space.
    """
    reason = error.strerror or str(error)
    if error.errno in files.FULL:
        reason += f", {files.room(path, error)}"
    return DataError(f"cannot write {path}: {reason}. FASTCIFAR_DATA=FOLDER keeps the data in another folder.")


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power failure, on systems that can do so."""
    with suppress(OSError):
        files.sync(folder)


def _checksum(arrays: Mapping[str, NDArray[Any]], meta: str) -> str:
    digest = hashlib.sha256(meta.encode())
    for name in sorted(arrays):
        digest.update(f"\0{name}\0{arrays[name].dtype.str}\0{arrays[name].shape}\0".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data.cast("B"))
    return digest.hexdigest()


def _read(path: Path, fingerprint: str, formats: Collection[str], tell: bool = False) -> Entry | None:
    """The entry; None if it is missing, damaged (with `tell`, a note says so), or of another fingerprint or format."""
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
        if header.get("format") not in formats or header.get("fingerprint") != fingerprint:
            return None
        arrays = load_file(path)
        if _checksum(arrays, header["meta"]) != header["sha256"]:
            raise ValueError("its content does not match its checksum")
        return Entry(arrays, json.loads(header["meta"]))
    except (FileNotFoundError, PermissionError):  # writing a new one then works, or says why not
        return None
    except OSError as error:
        raise DataError(
            f"cannot read the cached data {path}: {error.strerror or error}. "
            "FASTCIFAR_DATA=FOLDER keeps the data in another folder."
        ) from error
    except (SafetensorError, ValueError, KeyError) as error:
        if tell:
            note(f"the cached data {path} is damaged ({error}): making it anew")
        return None


def _write(path: Path, fingerprint: str, entry: Entry, alone: bool) -> None:
    from safetensors.numpy import save

    meta = json.dumps(entry.meta)
    header = {"format": FORMAT, "fingerprint": fingerprint, "meta": meta, "sha256": _checksum(entry.arrays, meta)}
    unfinished = path.with_name(f".{path.stem}.tmp" if alone else f".{path.stem}.{os.getpid()}.tmp")
    try:
        files.write(unfinished, save(dict(entry.arrays), metadata=header))
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
    sync_folder(path.parent)

"""The local cache: decoded arrays in one safetensors file a source, checked byte for byte when read.

An entry is replaced by an atomic rename, so that a reader sees an old or a new one and never half of one; processes
that want the same missing entry wait for the first to make it.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.notes import note
from fastcifar.errors import DataError

FORMAT = "1"  # goes up when entries written before can no longer be used: they are then made anew
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Entry:
    """Arrays by name, and what belongs to them as JSON."""

    arrays: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any]


def default_folder() -> Path:
    """``$FASTCIFAR_DATA``, else the user's cache folder (``~/.cache/fastcifar`` on Linux)."""
    if chosen := os.environ.get("FASTCIFAR_DATA"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("fastcifar"))


def cached(folder: Path, name: str, fingerprint: str, build: Callable[[], Entry]) -> Entry:
    """The entry ``name``, from ``folder`` if it holds it whole and of this ``fingerprint``, else from ``build()``.

    A damaged entry is made anew, with a note; so is one whose fingerprint differs. Where the folder cannot be written,
    ``build()`` is used without keeping its result, with a note. A full disk raises DataError.
    """
    path = folder / f"{name}.safetensors"
    if entry := _read(path, fingerprint):
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
        if entry := _read(path, fingerprint, tell=True):  # made by another process meanwhile?
            return entry
        entry = build()
        _write(path, fingerprint, entry)
    return entry


def hold(folder: Path, name: str) -> AbstractContextManager[object]:
    """Take ``folder/.NAME.lock`` against every other process, saying so when it has to be waited for."""
    import filelock

    lock = filelock.FileLock(folder / f".{name}.lock")
    try:
        return lock.acquire(timeout=1)
    except filelock.Timeout:
        note(f"waiting for another process that is preparing {name} in {folder}")
        return lock.acquire()


def cannot_write(path: Path, error: OSError) -> DataError:
    """The error of a cache that cannot take a file, with what to do about it."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        with suppress(OSError):
            room = os.statvfs(path if path.is_dir() else path.parent)
            reason += f", {room.f_bavail * room.f_frsize / 2**20:,.0f} MiB free"
    return DataError(f"cannot write {path}: {reason}. FASTCIFAR_DATA=FOLDER keeps the data in another folder.")


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _checksum(arrays: Mapping[str, NDArray[Any]], meta: str) -> str:
    digest = hashlib.sha256(meta.encode())
    for name in sorted(arrays):
        digest.update(f"\0{name}\0{arrays[name].dtype.str}\0{arrays[name].shape}\0".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data.cast("B"))
    return digest.hexdigest()


def _read(path: Path, fingerprint: str, tell: bool = False) -> Entry | None:
    """The entry, or None where there is none that is whole and of this fingerprint."""
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
        if header.get("format") != FORMAT or header.get("fingerprint") != fingerprint:
            return None
        arrays = load_file(path)
        if _checksum(arrays, header["meta"]) != header["sha256"]:
            raise ValueError("its content does not match its checksum")
        return Entry(arrays, json.loads(header["meta"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read the cached data {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        if tell:
            note(f"the cached data {path} is damaged ({error}): making it anew")
        return None


def _write(path: Path, fingerprint: str, entry: Entry) -> None:
    from safetensors.numpy import save

    meta = json.dumps(entry.meta)
    header = {"format": FORMAT, "fingerprint": fingerprint, "meta": meta, "sha256": _checksum(entry.arrays, meta)}
    unfinished = path.with_name(f".{path.stem}.tmp")  # ours alone: the lock is held
    try:
        with unfinished.open("wb") as file:
            file.write(save(dict(entry.arrays), metadata=header))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
    sync_folder(path.parent)

"""What worker processes need from the machine (files, sockets, shared memory), and the errors if it is missing."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import tempfile
from collections.abc import Iterator

from fastcifar.config import Config
from fastcifar.errors import LoaderError
from fastcifar.run import environment

_SOCKET_BYTES = 107
"""The longest path of a socket on Linux."""

_SOCKET_NAME = "/pymp-12345678/listener-12345678"
"""What multiprocessing puts behind the temporary folder."""

_FILES, _FILES_A_WORKER = 20, 6
"""Files that the loader opens beside those that are open, and for each worker: its pipes, its sentinel, and two tensors
for each of the two batches that it is ahead. Measured: 11 and 6 at the highest."""


def num_workers(config: Config, num_images: int) -> int:
    """The number of worker processes: as asked for, or one for each core; at most one for each batch."""
    cores = max(1, int(environment.usable_cores() or 1))
    return min(config.loader_workers or cores, -(-num_images // config.batch_size))


def check_processes(workers: int) -> None:
    """Refuses to start worker processes where they are bound to fail.

    The limit of open files is raised as far as this user may.

    Args:
        workers: how many processes are wanted.

    Raises:
        LoaderError: the path of the temporary folder is too long, or too few files may be opened.
    """
    folder = tempfile.gettempdir()
    if (excess := len(os.fsencode(folder + _SOCKET_NAME)) - _SOCKET_BYTES) > 0:
        raise LoaderError(_too_long(f"TMPDIR = {folder} is {excess} bytes too long"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _open_files() + _FILES + _FILES_A_WORKER * workers
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard == resource.RLIM_INFINITY or hard >= needed:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            return
    raise LoaderError(_too_few(f"{workers} worker processes need {needed} open files, and {soft} are allowed here"))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns what a worker process leaves behind when it dies, or cannot be started, into a message.

    Raises:
        LoaderError: it says what to change.
    """
    try:
        yield
    except (RuntimeError, EOFError, OSError) as error:
        text = str(error)
        if "AF_UNIX path too long" in text:
            raise LoaderError(_too_long(f"TMPDIR = {tempfile.gettempdir()} is too long")) from error
        if "Too many open files" in text or getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            raise LoaderError(_too_few("too many files are open")) from error
        if isinstance(error, RuntimeError) and "DataLoader worker" not in text and "shared memory" not in text:
            raise
        raise LoaderError(
            "loader = torchvision: a worker process is gone, or shared memory is full: lower --loader-workers, or make "
            f"/dev/shm larger (docker run --shm-size=8g), and go on with --resume ({text or type(error).__name__})"
        ) from error


def _too_long(what: str) -> str:
    return (
        f"loader = torchvision: {what}: the worker processes talk through sockets in it, whose paths may have "
        f"{_SOCKET_BYTES} bytes; name a shorter folder (export TMPDIR=/tmp), or train with --loader resident"
    )


def _too_few(what: str) -> str:
    return (
        f"loader = torchvision: {what}: raise the limit (ulimit -n 1024), lower --loader-workers, or train with "
        "--loader resident"
    )


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # not Linux
        return 16

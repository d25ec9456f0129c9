"""What worker processes need, and the messages on machines that do not have it."""

import errno
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import tiny_config

from fastcifar.errors import LoaderError, UsageError
from fastcifar.loaders import check_available, workers
from fastcifar.target import Target

CONFIG = tiny_config(loader="torchvision", loader_workers=4)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """The limit of open files that this process seems to have is the last in the list. The real limit stays."""
    found = [(1024, 1024)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: found[-1])

    def set_limit(_: int, new: tuple[int, int]) -> None:
        if new[1] == 666:
            raise ValueError("not allowed to raise maximum limit")
        found.append(new)

    monkeypatch.setattr(resource, "setrlimit", set_limit)
    monkeypatch.setattr(workers, "_open_files", lambda: 10)
    yield found


def test_enough_files_are_enough(limits: list[tuple[int, int]]) -> None:
    workers.check_processes(4)
    limits.append((54, 54))
    workers.check_processes(4)
    limits.append((resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    workers.check_processes(1000)


def test_too_few_files_say_what_to_raise(limits: list[tuple[int, int]]) -> None:
    """The bug: "unexpected RuntimeError, this is a fault of fastcifar", and a traceback of DataLoader's on stderr."""
    limits.append((32, 32))
    with pytest.raises(LoaderError, match=r"4 worker processes need 54 open files, and 32 are allowed.*ulimit -n"):
        workers.check_processes(4)
    limits.append((32, 666))
    with pytest.raises(LoaderError, match="--loader-workers"):
        workers.check_processes(4)


def test_a_soft_limit_is_raised_as_far_as_is_needed(limits: list[tuple[int, int]]) -> None:
    limits.append((32, 4096))
    workers.check_processes(4)
    assert limits[-1] == (54, 4096)


def test_a_long_tmpdir_is_named(monkeypatch: pytest.MonkeyPatch, limits: list[tuple[int, int]]) -> None:
    for length, fits in ((75, True), (76, False), (109, False)):
        monkeypatch.setattr(tempfile, "gettempdir", lambda length=length: "/" + "x" * (length - 1))
        if fits:
            workers.check_processes(1)
        else:
            with pytest.raises(LoaderError, match=f"TMPDIR = /xxx.* is {length - 75} bytes too long.*TMPDIR=/tmp"):
                workers.check_processes(1)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("AF_UNIX path too long"), "export TMPDIR=/tmp"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), "ulimit -n"),
        (RuntimeError("unable to open shared memory object: Too many open files (24)"), "ulimit -n"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal"), "a worker process is gone"),
        (OSError(errno.ENOSPC, "No space left on device"), "/dev/shm"),
        (EOFError(), "EOFError"),
    ],
    ids=str,
)
def test_what_a_dead_process_leaves_behind_is_explained(error: Exception, message: str) -> None:
    with pytest.raises(LoaderError, match=message), workers.explained():
        raise error


def test_other_errors_pass(limits: list[tuple[int, int]]) -> None:
    with pytest.raises(RuntimeError, match="of a transform"), workers.explained():
        raise RuntimeError("of a transform")


def test_what_a_run_needs_is_asked_before_its_folder_is_made(
    monkeypatch: pytest.MonkeyPatch, limits: list[tuple[int, int]]
) -> None:
    check_available(Target(CONFIG), 100)
    limits.append((20, 20))
    with pytest.raises(LoaderError, match="4 worker processes"):
        check_available(Target(CONFIG), 100)
    with pytest.raises(LoaderError, match="2 worker processes"):
        check_available(Target(CONFIG), 2 * CONFIG.batch_size)
    check_available(Target(tiny_config()), 100)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UsageError, match=r"pip install 'fastcifar\[torchvision\]'"):
        check_available(Target(CONFIG), 100)


def test_the_measured_number_of_files_is_not_too_low() -> None:
    """The open files of this process are counted; without /proc the number is a guess."""
    before = workers._open_files()
    with open(os.devnull), open(Path(__file__)):
        assert workers._open_files() == before + 2

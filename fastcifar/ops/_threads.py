"""The threads that compute the ops on a CPU: PyTorch's, or the extension's own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

from fastcifar.ops._library import available, check_schema

if available("cpu"):
    check_schema("fastcifar", "_set_own_threads", "_set_own_threads(int threads) -> int")


@contextlib.contextmanager
def own_threads() -> Iterator[None]:
    """A context in which the extension's own threads compute the ops, as many as PyTorch has, and PyTorch has one.

    At the end of each op PyTorch's threads wait for each other, and so for one that another program keeps from its
    core. The extension's threads wait only for parts that are begun, and help to end them (`csrc/cpu/team.h`). The two
    kinds would keep each other from their cores, because idle threads wait for work without sleeping: so this is for
    code that does nearly all its work in ops of this package.

    Without compiled kernels, or with one thread, nothing is different. Results are the same to the last bit in any
    number of threads, PyTorch's products excepted. Several of Python's threads may be in such a context at a time: the
    first one decides how many threads there are, and the extension's compute until the last one leaves.
    """
    if not available("cpu") or getattr(_here, "inside", False):
        yield
        return
    with _users.lock:
        if not _users.count:
            _users.threads = torch.get_num_threads()
            torch.ops.fastcifar._set_own_threads(_users.threads if _users.threads > 1 else 0)
        threads = _users.threads  # and not PyTorch's: to a thread that is new to PyTorch that is 1 now
        _users.count += 1
    _here.inside = True
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _here.inside = False
        with _users.lock:
            _users.count -= 1
            if not _users.count:
                torch.ops.fastcifar._set_own_threads(0)


class _Users:
    """How many of Python's threads are in `own_threads`, and how many threads PyTorch had when the first one came."""

    def __init__(self) -> None:
        self.lock, self.count, self.threads = threading.Lock(), 0, 0


_users, _here = _Users(), threading.local()

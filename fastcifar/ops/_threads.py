"""The threads that compute the ops on a CPU: PyTorch's, or the extension's own."""

from __future__ import annotations

import contextlib
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
    number of threads, PyTorch's products excepted.
    """
    threads = torch.get_num_threads()
    if threads < 2 or not available("cpu"):
        yield
        return
    before = torch.ops.fastcifar._set_own_threads(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.ops.fastcifar._set_own_threads(before)

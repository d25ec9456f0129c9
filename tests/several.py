"""Starts `fastcifar` in several processes, as torchrun does: python tests/several.py K WORD ...

One interpreter imports torch and forks, so that a test costs one start and not K. It prints the exit codes.
With DOUBLE=1 all is computed in float64: one backward of a small network amplifies roundings 100,000 times.
With STOP="RANK:SIGNAL:FILE:LINES" that process gets the signal as soon as the file has so many lines.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from fastcifar import session, target, trainer  # noqa: F401  imported before the forks
from fastcifar.cli.main import main
from fastcifar.engines import Engine
from fastcifar.model import MobileNet, build_model


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def signalled(child: int, number: int, file: Path, lines: int) -> None:
    while not file.exists() or file.read_text().count("\n") < lines:
        time.sleep(0.01)
    os.kill(child, number)


def compute_in_float64() -> None:
    def double(*arguments: Any) -> MobileNet:
        return build_model(*arguments).double()

    session.build_model = double
    target._DTYPES["fp32"] = torch.float64
    Engine._autocast = lambda self: contextlib.nullcontext()  # type: ignore[method-assign]


def start(size: int, words: list[str]) -> list[int]:
    """The exit codes of `fastcifar WORD ...` in `size` processes, in the order of the ranks."""
    if os.environ.get("DOUBLE"):
        compute_in_float64()
    torch.set_num_threads(1)  # before any work: OpenMP's threads do not outlive a fork
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank))
            code = main(words)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    if stop := os.environ.get("STOP"):
        rank, number, file, lines = stop.split(":")
        threading.Thread(target=signalled, args=(children[int(rank)], int(number), Path(file), int(lines))).start()
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    print(start(int(sys.argv[1]), sys.argv[2:]))

"""How many threads PyTorch has on the CPU: no more than the quota of a container lets run.

PyTorch would start one for each core of the machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path

from fastcifar.ranks import Ranks
from fastcifar.run.environment import allowed_cores, usable_cores
from fastcifar.ui.notes import note

COUNT = "OMP_NUM_THREADS"
GPUS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""One of them is there where an NVIDIA driver is, on Linux and in Windows' Linux."""


def limit(device: str) -> None:
    """Limits the number of PyTorch's threads to the quota of a container, and says so.

    OpenMP reads the number as PyTorch is imported: afterwards this does nothing. What the user has chosen stays, and
    where a GPU trains nothing is limited.

    Args:
        device: where to train: `auto`, `cpu`, `cuda` or `cuda:N`.
    """
    if "torch" in sys.modules or (device != "cpu" and (device != "auto" or any(path.exists() for path in GPUS))):
        return
    cores, quota = allowed_cores(), usable_cores()
    if COUNT in os.environ or quota is None or quota >= physical_cores(cores):
        return
    os.environ[COUNT] = count = str(max(1, int(quota)))
    if Ranks.started().is_first:
        note(f"this process may use {quota:g} of {len(cores)} cores: it trains with {COUNT}={count}", "fastcifar: ")


def physical_cores(cores: Collection[int]) -> int:
    """How many cores there are, if those that share their units count as one; PyTorch starts as many threads.

    Args:
        cores: the numbers of the cores.
    """
    return len({_siblings(core) for core in cores})


def _siblings(core: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(core)

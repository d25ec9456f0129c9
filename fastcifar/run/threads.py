"""How many threads PyTorch has on the CPU, and how they wait for each other: spinning, or asleep.

A thread that spins uses up its share of a core that another program wants too, and has none left when there is work.
Measured on two cores (docs/log.md): beside one busy process 198 images/s asleep and 164 spinning, without one 315 and
338.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path

from fastcifar.ranks import Ranks
from fastcifar.run.environment import allowed_cores, usable_cores
from fastcifar.ui.notes import note

COUNT, POLICY = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"
GPUS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""One of them is there where an NVIDIA driver is, on Linux and in Windows' Linux."""
_LOOK_SECONDS = 0.1  # ten ticks a core


def choose(device: str) -> None:
    """Chooses for the threads of PyTorch what its defaults do not see, and says so.

    There are no more threads than the quota of a container lets run: PyTorch would start one for each core of the
    machine. They sleep while they wait, if other programs leave them too few cores.

    OpenMP reads the choice as PyTorch is imported: afterwards this does nothing. What the user has chosen stays, and
    where a GPU trains nothing is chosen.

    Args:
        device: where to train: `auto`, `cpu`, `cuda` or `cuda:N`.
    """
    if "torch" in sys.modules or (device != "cpu" and (device != "auto" or any(path.exists() for path in GPUS))):
        return
    cores, quota = allowed_cores(), usable_cores()
    threads = physical_cores(cores)
    if COUNT in os.environ:
        threads = int(os.environ[COUNT]) if os.environ[COUNT].isdecimal() else threads
    elif quota is not None and quota < threads:
        threads = max(1, int(quota))
        os.environ[COUNT] = str(threads)
        _tell(f"this process may use {quota:g} of {len(cores)} cores: it trains with {threads} threads ({COUNT})")
    if not {POLICY, "GOMP_SPINCOUNT"}.isdisjoint(os.environ):
        return
    others = busy_cores(cores)
    if others is not None and others + threads >= len(cores) + 0.5:
        os.environ[POLICY] = "PASSIVE"
        _tell(
            f"other programs use {others:.1f} of {len(cores)} cores: threads sleep while they wait ({POLICY}=PASSIVE)"
        )


def _tell(text: str) -> None:
    if Ranks.started().is_first:
        note(text, "fastcifar: ")


def busy_cores(cores: Collection[int], seconds: float = _LOOK_SECONDS) -> float | None:
    """How many of some cores others keep busy now; None if it is not known.

    Programs that are nicer than this process do not count: they give way to it.

    Args:
        cores: the numbers of the cores.
        seconds: how long to look. This process sleeps meanwhile.
    """
    with contextlib.suppress(OSError, ValueError):
        before, start = _busy_ticks(cores), time.monotonic()
        time.sleep(seconds)
        ticks, elapsed = _busy_ticks(cores) - before, time.monotonic() - start
        return min(max(0.0, ticks / os.sysconf("SC_CLK_TCK") / elapsed), len(cores))
    return None


def _busy_ticks(cores: Collection[int]) -> int:
    return busy_ticks(Path("/proc/stat").read_text(), cores, with_nice=os.nice(0) > 0)


def busy_ticks(stat: str, cores: Collection[int], *, with_nice: bool = False) -> int:
    """The ticks since the machine's start in which some cores worked.

    Args:
        stat: the text of /proc/stat: for each core user, nice, system, idle, iowait, irq, softirq and more.
        cores: the numbers of the cores.
        with_nice: whether the work of nice programs counts.

    Raises:
        ValueError: the text has no line for any of the cores.
    """
    columns = (1, 2, 3, 6, 7) if with_nice else (1, 3, 6, 7)
    rows = [line.split() for line in stat.splitlines() if line.startswith("cpu") and line[3:4].isdecimal()]
    ticks = [sum(int(row[i]) for i in columns) for row in rows if int(row[0][3:]) in cores and len(row) > 7]
    if not ticks:
        raise ValueError("/proc/stat has none of these cores")
    return sum(ticks)


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

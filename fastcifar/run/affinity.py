"""Keeps PyTorch's threads on cores of their own while other programs use these cores too.

Left to itself, Linux puts the threads of a step on one core and the other program on another: two threads that share a
core take turns, and each op waits for both. docs/log.md has the measurement.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch

from fastcifar.run.clock import times_in
from fastcifar.run.environment import allowed_cores

VARIABLES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Who sets one of them has chosen where threads run."""
STAT, TASKS = Path("/proc/stat"), Path("/proc/self/task")
_LOOK_SECONDS = 1.0
_LEAST_OTHERS = 0.5
"""How many cores other programs must use."""
_LEAST_SHARE = 0.15
"""Of the busiest thread's work, for a thread that takes part in steps: beside five busy programs it has a third."""


def are_chosen() -> bool:
    """Whether the user has chosen where threads run."""
    return not set(VARIABLES).isdisjoint(os.environ)


@contextlib.contextmanager
def kept_apart(note: Callable[[str], None]) -> Iterator[None]:
    """A context in which each thread that computes stays on one core, as long as other programs use the cores too.

    That is for a process with as many threads as it may use cores, on Linux. With fewer threads it is better to let the
    system choose among the cores; and where the user has set one of `VARIABLES`, threads stay where that puts them.

    Args:
        note: is told the first time that threads are kept apart. Another thread calls it.
    """
    cores, threads, over = sorted(allowed_cores()), torch.get_num_threads(), threading.Event()
    if are_chosen() or threads < 2 or threads != len(cores) or seconds_of_others_on(cores) is None:
        yield
        return
    watch = threading.Thread(target=_watch, args=(cores, note, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(cores: list[int], note: Callable[[str], None], over: threading.Event) -> None:
    """Places the busiest threads anew at each look, until `over` is set."""
    places: dict[int, int] = {}
    noted = False
    start, used_before, own_before = time.monotonic(), seconds_of_others_on(cores), seconds_of_threads()
    while not over.wait(_LOOK_SECONDS):
        end, used, own = time.monotonic(), seconds_of_others_on(cores), seconds_of_threads()
        if used is None or used_before is None:
            break
        others = max(0.0, (used - used_before) / (end - start))
        busiest = busiest_threads(own_before, own, _LEAST_SHARE)[: len(cores)]
        start, used_before, own_before = end, used, own
        before, places = places, {}
        if others >= _LEAST_OTHERS and len(busiest) == len(cores):
            places = dict(zip(sorted(busiest), cores, strict=True))
        for thread in sorted(before | places):  # each time: a thread that was moved meanwhile may be anywhere
            _place(thread, [places[thread]] if thread in places else cores)
        if places and not noted:
            note(f"other programs use {others:.1f} of {len(cores)} cores: each thread stays on a core of its own")
            noted = True
    for thread in places:
        _place(thread, cores)


def _place(thread: int, cores: Collection[int]) -> None:
    with contextlib.suppress(OSError):  # it has ended
        os.sched_setaffinity(thread, cores)


def busiest_threads(before: dict[int, float], now: dict[int, float], share: float) -> list[int]:
    """The threads that have worked, and at least for this share of the busiest thread's time; the busiest first.

    Args:
        before: by thread the seconds that it had worked before; a thread that is not there had not begun.
        now: the same now.
        share: between 0 and 1.
    """
    worked = {thread: seconds - before.get(thread, 0.0) for thread, seconds in now.items()}
    least = share * max(worked.values(), default=0.0)
    return sorted((t for t in worked if worked[t] > 0 and worked[t] >= least), key=lambda t: -worked[t])


def seconds_of_threads() -> dict[int, float]:
    """By the number of each of this process's threads, the seconds that it has worked (Linux)."""
    return {thread: ticks / os.sysconf("SC_CLK_TCK") for thread, (_, ticks) in times_in(TASKS).items()}


def seconds_of_others_on(cores: Collection[int]) -> float | None:
    """The seconds, since an unknown start, for which other programs have used some cores; None if it is not known.

    Programs that are nicer than this process do not count: they give way to it.

    Args:
        cores: the numbers of the cores.
    """
    with contextlib.suppress(OSError, ValueError):
        ticks = busy_ticks(STAT.read_text(), cores, with_nice=os.nice(0) > 0)
        return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()
    return None


def busy_ticks(stat: str, cores: Collection[int], *, with_nice: bool = False, with_stolen: bool = False) -> int:
    """The ticks since the machine's start in which some cores worked.

    Args:
        stat: the text of /proc/stat: for each core user, nice, system, idle, iowait, irq, softirq, steal and more.
        cores: the numbers of the cores.
        with_nice: whether the work of nice programs counts.
        with_stolen: whether the work of other virtual machines counts.

    Raises:
        ValueError: the text has no line for any of the cores.
    """
    columns = (1, 3, 6, 7) + (2,) * with_nice + (8,) * with_stolen
    rows = [line.split() for line in stat.splitlines() if line.startswith("cpu") and line[3:4].isdecimal()]
    ticks = [sum(int(row[i]) for i in columns) for row in rows if int(row[0][3:]) in cores and len(row) > 8]
    if not ticks:
        raise ValueError("/proc/stat has none of these cores")
    return sum(ticks)

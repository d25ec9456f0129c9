"""Timing CUDA kernels: many launches in one graph, between events, with a warm L2 or with a cold L2.

A clock of the host cannot time a 3 us kernel, and launches outside a graph measure the host. A graph holds many calls
in a row; two events around its replay give the time of all calls. With a warm L2, a call finds there what the call
before it left. With a cold L2, a kernel reads twice the L2's size before each call. A second graph holds only these
reads; the two graphs are replayed in turns, and the difference of their times is the time of the calls.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """The time of a call over several replays.

    Attributes:
        median_us: the median microseconds of a call.
        spread_us: the distance between the quartiles, in microseconds.
        launches: the number of calls in the graph.
        replays: the number of replays.
    """

    median_us: float
    spread_us: float
    launches: int
    replays: int


def time_call(call: Call, *, cold: bool, replay_us: float = 1000, replays: int = 9) -> Timing:
    """Times a call.

    Args:
        call: must be safe to capture: it reads nothing back, and allocates with PyTorch's allocator only.
        cold: whether the L2 holds other data when a call begins.
        replay_us: about how many microseconds the calls of one graph take together.
        replays: the number of replays.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # makes handles and workspaces, chooses cuDNN's algorithms, compiles
            call()
    torch.cuda.current_stream().wait_stream(side)
    trial = _capture([call] * 4)
    launches = int(min(500, max(4, replay_us / max(_replay(trial) / 4, 1))))
    if cold:
        launches = min(launches, 20)
        with_call, alone = _capture([_flush, call] * launches), _capture([_flush] * launches)
        times = [_replay(with_call) - _replay(alone) for _ in range(replays + 2)]
    else:
        graph = _capture([call] * launches)
        times = [_replay(graph) for _ in range(replays + 2)]
    times = [t / launches for t in times[2:]]  # the first two warm the graph up
    quartiles = statistics.quantiles(times, n=4)
    return Timing(statistics.median(times), quartiles[2] - quartiles[0], launches, replays)


@functools.cache
def _filler() -> tuple[Tensor, Tensor]:
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.zeros(l2 // 2, device="cuda"), torch.zeros((), device="cuda")  # numbers of four bytes


def _flush() -> None:
    """Fills the L2 with other data by reading, so that the next kernel need not wait for data to be written back."""
    data, total = _filler()
    torch.sum(data, dim=(0,), out=total)


def _capture(calls: list[Call]) -> torch.cuda.CUDAGraph:
    _filler()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    torch.cuda.synchronize()
    return graph


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    """Microseconds of one replay."""
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3

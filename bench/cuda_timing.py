"""Times of CUDA kernels: batches of launches in a graph, between events, with cold and with warm L2 apart.

A host clock can't time a 3 us kernel, and eager launches measure the host. A graph holds many calls in a row; events
around a replay give the time of all of them. Warm: a call finds in the L2 what the call before it left there. Cold:
before each call a kernel reads twice the L2's size, and the time of a graph of those readings alone, replayed in turns
with the other, is taken off.
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
    """Microseconds a call: median and spread (quartiles' distance) over the replays."""

    median_us: float
    spread_us: float
    launches: int
    replays: int


def time_call(call: Call, *, cold: bool, replay_us: float = 1000, replays: int = 9) -> Timing:
    """Times `call()`, which must be safe to capture: no reads back, no allocation outside PyTorch's allocator.

    replay_us: what the calls of one graph take together, about.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # lazily made handles, workspaces, cuDNN's choice of algorithm, compilation
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
    return torch.zeros(l2 // 2, device="cuda"), torch.zeros((), device="cuda")  # four bytes a number


def _flush() -> None:
    """Leaves other data in the L2, unmodified: nothing of it has to be written back in the time of the next kernel."""
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

"""Times of CUDA kernels: batches of launches in a graph, between events, with cold and with warm L2 apart.

A host clock can't time a 3 us kernel, and eager launches measure the host. A graph holds `launches` calls in a row;
events around a replay give the time of all of them. Warm: all calls on one set of inputs. Cold: the calls go round over
so many sets that what one call touches has left the L2 before it comes again.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Call = Callable[..., Any]


@dataclass(frozen=True)
class Timing:
    """Microseconds a call: median and spread (quartiles' distance) over the replays."""

    median_us: float
    spread_us: float
    launches: int
    replays: int

    def gigabytes_per_second(self, num_bytes: int) -> float:
        return num_bytes / self.median_us / 1e3


def tensor_bytes(*values: Any) -> int:
    """Bytes of all tensors in (nested) arguments or results."""
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, (tuple, list)):
            total += tensor_bytes(*value)
    return total


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)
    return value


def argument_sets(args: Sequence[Any], *, cold: bool, touched_bytes: int = 0) -> list[tuple[Any, ...]]:
    """The arguments once (warm), or so many copies that four times the L2 is touched before the first comes again.

    `touched_bytes`: what a call touches besides its arguments (results, workspace).
    """
    if not cold:
        return [tuple(args)]
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    num_sets = min(64, 4 * l2 // max(1, tensor_bytes(*args) + touched_bytes) + 2)
    return [tuple(_copy(a) for a in args) for _ in range(num_sets)]


def time_call(call: Call, args: Sequence[Any], *, cold: bool, launches: int = 0, replays: int = 15) -> Timing:
    """Times `call(*args)`, which must be safe to capture: no reads back, no allocation outside PyTorch's allocator.

    launches: calls in the graph; 0: so many that a replay takes about 2 ms, but every set of arguments at least once.
    """
    result = call(*args)
    sets = argument_sets(args, cold=cold, touched_bytes=tensor_bytes(result))
    del result
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # lazily made handles, workspaces, cuDNN's choice of algorithm
            for arguments in sets:
                call(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    if launches == 0:
        trial = _capture(call, sets, len(sets))
        launches = max(len(sets), min(2000, int(2000 / max(_replay(trial) * 1e3 / len(sets), 0.5))))
        launches -= launches % len(sets)
    graph = _capture(call, sets, launches)
    for _ in range(3):
        _replay(graph)
    times = sorted(_replay(graph) * 1e3 / launches for _ in range(replays))
    quartiles = statistics.quantiles(times, n=4)
    return Timing(statistics.median(times), quartiles[2] - quartiles[0], launches, replays)


def time_copy(num_bytes: int, *, cold: bool) -> Timing:
    """A device copy that reads and writes `num_bytes` in all: the measure of a memory-bound kernel."""
    source = torch.empty(max(16, num_bytes // 2), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return time_call(lambda a, b: b.copy_(a), (source.random_(), target), cold=cold)


def _capture(call: Call, sets: Sequence[tuple[Any, ...]], launches: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            call(*sets[i % len(sets)])
    torch.cuda.synchronize()
    return graph


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds of one replay."""
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))

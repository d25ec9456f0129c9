"""Seconds of a call on a device, without those of the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]


def time_calls(calls: Sequence[Call], device: torch.device, seconds: float = 0.15) -> list[list[float]]:
    """Seconds of each of `calls`, at least five times, in turns, so that what disturbs one disturbs all.

    On CUDA each is captured in a graph, many times in a row, and replayed between events: no host clock can time a
    kernel, and eager launches would measure the host.
    """
    if device.type == "cuda":
        runs = [_captured(call) for call in calls]
    else:
        runs = [_timed(call) for call in calls]
    for run in runs * 2:  # caches, pages, threads
        run()
    once = sum(run() for run in runs)
    rounds = min(50, max(5, round(seconds / max(once, 1e-6))))
    turns = [[run() for run in runs] for _ in range(rounds)]
    return [list(times) for times in zip(*turns, strict=True)]


def _timed(call: Call) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def _captured(call: Call, launches: int = 20) -> Callable[[], float]:
    """Runs a graph that holds `call` so many times; returns the seconds of one. All of it is on one stream."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # handles, workspaces and choices of algorithm are made lazily
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(launches):
            call()

    def run() -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / launches

    return run

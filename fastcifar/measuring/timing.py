"""The seconds that a call takes on a device, without the time of the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]


def time_calls(calls: Sequence[Call], device: torch.device, seconds: float = 0.15) -> list[list[float]]:
    """Times calls in turns, so that a disturbance affects all of them alike.

    On CUDA each call is captured many times in one graph, which is replayed between two events. A clock of the host
    cannot time a kernel, and launching op by op would measure the host.

    Args:
        calls: what to time.
        device: the device that the calls use.
        seconds: about how long the measurement lasts.

    Returns:
        For each call its seconds, 5 to 50 times.
    """
    if device.type == "cuda":
        runs = [_captured(call) for call in calls]
    else:
        runs = [_timed(call) for call in calls]
    for run in runs * 2:  # warms up caches, pages and threads
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
    """A function that replays a graph of `launches` calls, and returns the seconds of one call."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # makes handles and workspaces, and chooses algorithms
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

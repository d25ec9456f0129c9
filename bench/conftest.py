"""Shared by all benchmarks: the option --full, races between an op and its peers, and the summary at the end."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import as_a_run  # noqa: F401
import pytest
import torch
from peers import is_generic, versions

from fastcifar import ops
from fastcifar.cpu import keep_freed_memory

Call = Callable[[], Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="all batch sizes, peers and variants, not only a few minutes' worth"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # the summary below replaces its tables
    config.option.benchmark_disable_gc = True
    torch.backends.cudnn.benchmark = True  # cuDNN takes its fastest algorithm
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _like_a_training_run() -> None:
    """Keeps freed memory, as `fastcifar train` does, and lets the clocks of the cores rise.

    Otherwise the largest outputs are mapped anew at each call, and op and peers measure page faults.
    """
    keep_freed_memory()
    matrix = torch.rand(1024, 1024)
    until = time.perf_counter() + 0.5
    while time.perf_counter() < until:
        matrix @ matrix


def time_interleaved(calls: dict[str, Call], benchmark: Any) -> dict[str, float]:
    """Times calls on the CPU. They take turns, so that a disturbance affects all of them alike.

    Other memory is read before each call. Otherwise a call finds its inputs in L2 if its peer has just read them, and
    is up to 23 % faster.

    Args:
        calls: the calls by name.
        benchmark: pytest-benchmark's fixture, which also records the times of the first call.

    Returns:
        The median seconds of each call.
    """
    (first, call), *peers = calls.items()
    times: dict[str, list[float]] = {name: [] for name, _ in peers}
    others = torch.zeros(2**21)  # 8 MiB, twice the L2 caches of two cores

    def timed(f: Call) -> float:
        others.sum()
        begin = time.perf_counter()
        f()
        return time.perf_counter() - begin

    def take_turns() -> None:
        for name, peer in peers:
            times[name].append(timed(peer))
        others.sum()

    for f in calls.values():
        f()  # allocates, and fills the library's caches
    once = sum(timed(f) for f in calls.values())
    rounds = int(min(31, max(7, 0.12 / once)))
    benchmark.pedantic(call, setup=take_turns, rounds=rounds, warmup_rounds=2)
    seconds = {name: statistics.median(t[2:]) for name, t in times.items()}
    return {first: benchmark.stats.stats.median} | seconds


def time_on_gpu(calls: dict[str, Call], benchmark: Any, *, cold: bool) -> dict[str, float]:
    """Times calls on a GPU, in replayed graphs.

    Args:
        calls: the calls by name.
        benchmark: pytest-benchmark's fixture.
        cold: whether the L2 holds other data when a call begins.

    Returns:
        The median seconds of each call.
    """
    from cuda_timing import time_call

    if not benchmark.stats:
        benchmark.pedantic(next(iter(calls.values())), rounds=1)
    return {name: time_call(call, cold=cold).median_us / 1e6 for name, call in calls.items()}


@pytest.fixture
def race(benchmark: Any) -> Callable[..., None]:
    """A function that times an op beside its peers: race(call, peers, num_bytes, device).

    `num_bytes` is the least number of bytes that the op must read and write. Copying as many bytes is the floor.
    """

    def run(call: Call, peers: dict[str, Call], num_bytes: int, device: str) -> None:
        source = torch.empty(num_bytes // 8, device=device).normal_()  # half the bytes are read, half written
        target = torch.empty_like(source)
        calls = {"fastcifar": call, **peers, "copy": lambda: target.copy_(source)}
        if device == "cpu":
            benchmark.extra_info.update(generic=[name for name, peer in peers.items() if is_generic(peer)])
            benchmark.extra_info.update(seconds=time_interleaved(calls, benchmark))
        else:
            benchmark.extra_info.update(seconds=time_on_gpu(calls, benchmark, cold=False))
            benchmark.extra_info.update(seconds_cold=time_on_gpu(calls, benchmark, cold=True))
        benchmark.extra_info.update(bytes=num_bytes)

    return run


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def quotient(a: float, b: float) -> float:
    """a / b, or NaN if one of them is not above 0. A time with a cold L2 is a difference and may be negative."""
    return a / b if a > 0 and b > 0 else math.nan


def summarised(summary: Callable[[list[float]], float], ratios: list[float]) -> str:
    """A summary as a part of a row: a dash without ratios, NaN where one of them is."""
    if not ratios:
        return f"{'-':>22} "
    return f"{math.nan if any(map(math.isnan, ratios)) else summary(ratios):20.2f}x  "


def race_table(benchmarks: list[Any], which: str = "seconds") -> Iterable[str]:
    """A row for each case: times, speed over each peer, achieved bandwidth, time over the floor's time.

    Then mean, median and worst of the speed over each peer. A star marks a case in which the peer has only a generic
    kernel; a second mean leaves these cases out.
    """
    peers = [name for name in benchmarks[0].extra_info[which] if name not in ("fastcifar", "copy")]
    yield f"{'':28}{'ms':>9}" + "".join(f"{peer:>23}" for peer in peers) + f"{'GB/s':>8}{'copy':>7}{'x floor':>9}"
    ratios: dict[str, list[float]] = {peer: [] for peer in peers}
    fair: dict[str, list[float]] = {peer: [] for peer in peers}
    for b in benchmarks:
        seconds, num_bytes = b.extra_info[which], b.extra_info["bytes"]
        ours, floor = seconds["fastcifar"], seconds["copy"]
        row = f"{str(b.params['case']):28}{ours * 1e3:9.4f}"
        for peer in peers:
            ratio = quotient(seconds.get(peer, math.nan), ours)
            ratios[peer].append(ratio)
            generic = peer in b.extra_info.get("generic", ())
            fair[peer] += [] if generic else [ratio]
            row += f"{seconds.get(peer, math.nan) * 1e3:12.4f} ({ratio:6.2f}x){'*' if generic else ' '}"
        speed, floor_speed = quotient(num_bytes, ours), quotient(num_bytes, floor)
        yield row + f"{speed / 1e9:8.1f}{floor_speed / 1e9:7.1f}{quotient(ours, floor):9.2f}"
    rows = {"geometric mean": geometric_mean, "median": statistics.median, "worst": min}
    for name, summary in rows.items():
        yield f"{name:37}" + "".join(summarised(summary, ratios[peer]) for peer in peers)
    if fair != ratios:
        yield f"{'geometric mean without *':37}" + "".join(summarised(geometric_mean, fair[peer]) for peer in peers)


def plain_table(benchmarks: list[Any]) -> Iterable[str]:
    """A row for each test: median time, images/s, speed over the group's first; for a loader also its host costs."""
    first: float | None = None
    for b in benchmarks:
        median, images = b.stats.median, b.extra_info.get("images")
        row = f"{b.name:60}{median * 1e3:12.2f} ms"
        if images:
            speed = images / median
            first = first or speed
            row += f"{speed:12.0f} images/s{speed / first:8.2f}x"
        if "share_of_quiet" in b.extra_info:
            row += f"{b.extra_info['share_of_quiet']:9.0%} of that beside one busy process"
        if "cpu_ms_per_1000" in b.extra_info:
            row += f"{b.extra_info['cpu_ms_per_1000']:9.1f} CPU ms/1,000{b.extra_info['host_mib']:7.0f} MiB"
        yield row


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    found = [b for b in session.benchmarks if b.stats.data] if session else []
    if not found:
        return
    terminalreporter.section("benchmarks")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {ops.cpu_isa() or 'no kernels'}"
    terminalreporter.line(f"{device}, {torch.get_num_threads()} threads; medians")
    terminalreporter.line(versions())
    groups: dict[str, list[Any]] = {}
    for b in found:
        groups.setdefault(b.group, []).append(b)
    for group, benchmarks in groups.items():
        # Of a race that was cut some times are missing, and the number of bytes, which comes last.
        benchmarks = [b for b in benchmarks if "bytes" in b.extra_info] or benchmarks
        info = benchmarks[0].extra_info
        tables = {"": race_table(benchmarks) if "bytes" in info else plain_table(benchmarks)}
        if "bytes" in info and "seconds_cold" in info:
            tables = {", warm L2": tables[""], ", cold L2": race_table(benchmarks, "seconds_cold")}
        for state, table in tables.items():
            terminalreporter.line(f"\n{group}{state}")
            for row in table:
                terminalreporter.line(f"  {row}")

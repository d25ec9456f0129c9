"""The training step at width 1.0: untuned PyTorch against each engine, each variant in its own process.

Compare only medians of the same run. On CUDA a step is one CUDA graph, and batches of 1024 are measured too. There the
processes start together, and take turns when all are ready. On the CPU there is one process at a time, and the step is
also measured beside one busy process. `--full` adds, on CUDA, the compiled engine in every precision and mode.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from workers import take_turns, training_step, worker, workers

from fastcifar import ops
from fastcifar.measuring.neighbour import busy_process
from fastcifar.target import fast_precisions, find_device

CUDA = torch.cuda.is_available()
ROUNDS = 7 if CUDA else 6
NUM_IMAGES = 40_960 if CUDA else 4096  # so that epochs, at whose start the draws are copied, are as rare as in training
START_SECONDS = 100  # to start all processes on CUDA takes about 15, and up to a minute more if torch.compile compiles

STOCK: dict[str, Any] = {"engine": "eager", "tuned": False}
EAGER: dict[str, Any] = {"engine": "eager"}
COMPILED: dict[str, Any] = {"engine": "compiled"}
FUSED: dict[str, Any] = {"engine": "fused"}


def variants(full: bool) -> dict[str, dict[str, Any]]:
    """Name -> settings. The first variant is the one that all others are compared with."""
    fast = fast_precisions(find_device("auto"))
    if not CUDA:
        found = {f"stock eager {p}": STOCK | {"precision": p} for p in fast}
        found |= {f"eager {p}": EAGER | {"precision": p} for p in fast}
        found |= {f"compiled {p}": COMPILED | {"precision": p} for p in fast}
        if ops.available("cpu"):
            found |= {f"fused {p}": FUSED | {"precision": p} for p in fast}
        return found
    found = {}
    engines = [EAGER, *([FUSED] if ops.available("cuda") else [])]
    precisions = list(dict.fromkeys([fast[-1], "fp16", "fp32"]))
    without_products = [FUSED | {"fuse_pointwise": False}] if ops.available("cuda") and fast[-1] == "bf16" else []
    for precision, batch in itertools.product(precisions, (128, 1024)):
        first = precision == precisions[0]
        for engine in (*engines, *(without_products if first else []), *([COMPILED] if first or full else [])):
            settings = engine | {"precision": precision, "batch_size": batch}
            also = ", products apart" if "fuse_pointwise" in engine else ""
            found[f"{engine['engine']} {precision}{also}, batch {batch}"] = settings
    if full:
        for mode in ("reduce-overhead", "max-autotune"):
            found[f"compiled {mode} {fast[-1]}"] = COMPILED | {"precision": fast[-1], "compile_mode": mode}
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", list(variants(metafunc.config.getoption("--full"))))


def steps_of(variant: Mapping[str, Any]) -> int:
    """The steps of a round. On CUDA they are an epoch, so that each round has one start of an epoch."""
    return NUM_IMAGES // variant.get("batch_size", 128) if CUDA else 2


@pytest.fixture(scope="module")
def rounds(request: pytest.FixtureRequest) -> dict[str, list[float] | Exception]:
    """On CUDA: the seconds of each round of every variant that is asked for, or why there are none."""
    if not CUDA:
        return {}
    full = request.config.getoption("--full")
    names = [item.callspec.params["variant"] for item in request.session.items if item.parent is request.node]
    asked = {name: variants(full)[name] for name in names}
    arguments = {name: (settings, NUM_IMAGES) for name, settings in asked.items()}
    with workers(training_step, arguments, START_SECONDS * (10 if full else 1)) as ready:
        return take_turns(ready, {name: steps_of(settings) for name, settings in asked.items()}, ROUNDS)


@pytest.mark.benchmark(group="training step, width 1.0")
def test_training_step(
    benchmark: Any, request: pytest.FixtureRequest, variant: str, rounds: Mapping[str, list[float] | Exception]
) -> None:
    settings = variants(request.config.getoption("--full"))[variant]
    steps = steps_of(settings)
    benchmark.extra_info["images"] = settings.get("batch_size", 128) * steps
    if CUDA:
        taken = rounds[variant]
        if isinstance(taken, Exception):
            raise taken
        assert taken, "interrupted before the second round"
        benchmark.pedantic(lambda: None)
        benchmark.stats.stats.data[:] = taken
        return
    with worker(training_step, settings, NUM_IMAGES) as run:
        benchmark.pedantic(run, args=(steps,), rounds=ROUNDS, warmup_rounds=1)
        with busy_process():
            beside = statistics.median(run(steps) for _ in range(ROUNDS // 2))
        benchmark.extra_info["share_of_quiet"] = benchmark.stats.stats.median / beside

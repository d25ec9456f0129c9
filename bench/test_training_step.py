"""The training step at width 1.0: untuned PyTorch against each engine, each variant in its own process.

Compare only medians of the same run. On CUDA a step is one CUDA graph, and batches of 1024 are measured too; what is
likely to be asked for first comes first. On the CPU the step is also measured beside one busy process. `--full` adds,
on CUDA, the compiled engine in every precision and mode.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import pytest
import torch
from workers import training_step, worker

from fastcifar import ops
from fastcifar.measuring.neighbour import busy_process
from fastcifar.target import fast_precisions, find_device

CUDA = torch.cuda.is_available()
STEPS = 50 if CUDA else 2
ROUNDS = 10 if CUDA else 6
NUM_IMAGES = 40_960 if CUDA else 4096  # so that epochs, at whose start the draws are copied, are as rare as in training

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
    # To compile takes up to a minute: after what comes first, before the other precisions
    rounds = [(precisions[:1], [*engines, *without_products]), (precisions[: None if full else 1], [COMPILED])]
    rounds.append((precisions[1:], engines))
    for some, of in rounds:
        for precision, batch, engine in itertools.product(some, (128, 1024), of):
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


@pytest.mark.benchmark(group="training step, width 1.0")
def test_training_step(benchmark: Any, request: pytest.FixtureRequest, variant: str) -> None:
    settings = variants(request.config.getoption("--full"))[variant]
    with worker(training_step, settings, NUM_IMAGES) as run:
        benchmark.extra_info["images"] = settings.get("batch_size", 128) * STEPS
        benchmark.pedantic(run, args=(STEPS,), rounds=ROUNDS, warmup_rounds=1)
        if not CUDA:
            with busy_process():
                beside = statistics.median(run(STEPS) for _ in range(ROUNDS // 2))
            benchmark.extra_info["share_of_quiet"] = benchmark.stats.stats.median / beside

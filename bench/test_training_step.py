"""The training step at batch 128, width 1.0: untuned PyTorch against each engine, each variant in its own process.

Compare only medians of the same run. `--full` adds torch.compile's other modes on CUDA.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from workers import Run, training_step, worker

from fastcifar import ops
from fastcifar.target import fast_precisions, find_device

CUDA = torch.cuda.is_available()
STEPS = 50 if CUDA else 2
ROUNDS = 10 if CUDA else 6

STOCK: dict[str, Any] = {"engine": "eager", "tuned": False}
EAGER: dict[str, Any] = {"engine": "eager"}
COMPILED: dict[str, Any] = {"engine": "compiled"}
FUSED: dict[str, Any] = {"engine": "fused"}


def variants(full: bool) -> dict[str, dict[str, Any]]:
    """Name -> settings. The first variant is the one that all others are compared with."""
    precisions = fast_precisions(find_device("auto"))
    found = {f"stock eager {p}": STOCK | {"precision": p} for p in precisions}
    if not CUDA:
        found |= {f"eager {p}": EAGER | {"precision": p} for p in precisions}
    found |= {f"compiled {p}": COMPILED | {"precision": p} for p in precisions}
    if ops.available("cuda" if CUDA else "cpu"):
        found |= {f"fused {p}": FUSED | {"precision": p} for p in precisions}
    if full and CUDA:
        for mode in ("reduce-overhead", "max-autotune"):
            found[f"compiled {mode} bf16"] = COMPILED | {"precision": "bf16", "compile_mode": mode}
    return found


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Run]]:
    with contextlib.ExitStack() as stack:
        chosen = variants(request.config.getoption("--full"))
        yield {name: stack.enter_context(worker(training_step, s)) for name, s in chosen.items()}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", list(variants(metafunc.config.getoption("--full"))))


@pytest.mark.benchmark(group="training step, batch 128, width 1.0")
def test_training_step(benchmark: Any, runs: dict[str, Run], variant: str) -> None:
    run = runs[variant]
    benchmark.extra_info["images"] = 128 * STEPS
    benchmark.pedantic(run, args=(STEPS,), rounds=ROUNDS, warmup_rounds=1)

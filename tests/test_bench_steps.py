"""The training step's benchmark as on a GPU: processes that start together and take turns. Here they use the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from test_bench_tables import BENCH, bench_modules

TINY = {"engine": "eager", "precision": "fp32", "device": "cpu", "width_mult": 0.125, "batch_size": 16}
BROKEN = TINY | {"device": "cuda:99"}


@pytest.fixture
def workers() -> Iterator[ModuleType]:
    with bench_modules():
        import workers

        yield workers


def test_processes_start_together_and_one_that_cannot_fails_alone(
    workers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier, started_in = threading.Barrier(2), workers._started_in

    def wait_for_the_other(*arguments: Any) -> Any:
        barrier.wait(30)
        return started_in(*arguments)

    monkeypatch.setattr(workers, "_started_in", wait_for_the_other)
    given = {"sound": (TINY, 64), "broken": (BROKEN, 64)}
    with workers.workers(workers.training_step, given, 60) as ready:
        assert ready["sound"](2) > 0
        assert isinstance(ready["broken"], RuntimeError) and "cuda:99" in str(ready["broken"])


def test_a_process_that_is_late_is_ended(workers: ModuleType) -> None:
    with workers.workers(workers.training_step, {"late": (TINY, 64)}, 0.01) as ready:
        assert "not ready after 0.01 s" in str(ready["late"])


def test_all_take_turns_and_the_first_round_does_not_count(workers: ModuleType) -> None:
    asked: list[tuple[str, int]] = []

    def run(name: str) -> Any:
        return workers.Worker(0, lambda count: asked.append((name, count)) or float(len(asked)))

    found = workers.take_turns({"a": run("a"), "b": run("b")}, {"a": 5, "b": 6}, 3)
    assert asked == [("a", 5), ("b", 6)] * 4
    assert found == {"a": [3.0, 5.0, 7.0], "b": [4.0, 6.0, 8.0]}


def test_a_process_that_dies_takes_no_more_turns(workers: ModuleType) -> None:
    asked = []

    def die(count: int) -> float:
        asked.append(count)
        raise RuntimeError("ended by SIGSEGV")

    late = TimeoutError("not ready")
    ready = {"dies": workers.Worker(0, die), "late": late, "sound": workers.Worker(0, lambda count: 1.0)}
    found = workers.take_turns(ready, dict.fromkeys(ready, 1), 3)
    assert len(asked) == 1 and "SIGSEGV" in str(found["dies"]) and found["late"] is late
    assert found["sound"] == [1.0] * 3


def test_an_interruption_leaves_what_was_measured(workers: ModuleType) -> None:
    left = [3.0, 2.0, 1.0]

    def run(count: int) -> float:
        if not left:
            raise KeyboardInterrupt
        return left.pop()

    assert workers.take_turns({"a": workers.Worker(0, run)}, {"a": 1}, 7) == {"a": [2.0, 3.0]}


def test_checkouts_take_turns(tmp_path: Any) -> None:
    def turns(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(BENCH / "turns.py"), *arguments], capture_output=True, text=True)

    root, out = str(BENCH.parent), tmp_path / "turns.jsonl"
    tiny = f"{root}:" + ",".join(f"{key}={value}" for key, value in TINY.items())
    variants = [tiny, tiny, tiny.replace("batch_size=16", "batch_size=32") + ",OMP_NUM_THREADS=1", f"{tiny},epochs=no"]
    done = turns("--rounds", "3", "--steps", "2", "--out", str(out), *variants)
    assert done.returncode == 1, done.stderr
    head, first, again, wide, broken = done.stdout.splitlines()
    assert "images/s" in head and "1.000 (1.000 - 1.000)" in first and again.startswith(f"{tiny} (2) ")
    assert "not measured" not in wide and "not measured: " in broken and "epochs" in broken
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["batch_size"] for row in rows] == [16, 16, 32] and all(len(row["us"]) == 3 for row in rows)

    for wrong, message in ((str(tmp_path), "is no checkout: it has no bench/workers.py"), (f"{root}:a", "KEY=VALUE")):
        done = turns(wrong)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


PLUGIN = f"""
import test_training_step as bench
bench.CUDA, bench.ROUNDS, bench.NUM_IMAGES = True, 3, 64
bench.variants = lambda full: {{"sound": {TINY}, "broken": {BROKEN}, "left out": {BROKEN}}}
"""


def test_each_variant_is_a_benchmark_of_its_own(tmp_path: Any) -> None:
    (tmp_path / "as_on_a_gpu.py").write_text(PLUGIN)
    results = tmp_path / "steps.json"
    options = ["-q", "-p", "no:cacheprovider", "-p", "as_on_a_gpu", "--benchmark-only", f"--benchmark-json={results}"]
    command = [sys.executable, "-m", "pytest", *options, "-k", "not left", str(BENCH / "test_training_step.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}:{BENCH}", prepend=":")
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)  # with it there are no benchmarks
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "1 failed, 1 passed, 1 deselected" in done.stdout, done.stdout + done.stderr
    assert "cuda:99" in done.stdout and " images/s" in done.stdout
    [one] = json.loads(results.read_text())["benchmarks"]
    assert one["params"] == {"variant": "sound"} and one["extra_info"]["images"] == 64
    assert one["stats"]["rounds"] == 3 and 0 < one["stats"]["min"] < one["stats"]["max"]

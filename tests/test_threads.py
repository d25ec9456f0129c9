"""PyTorch's threads: no more than a container's quota lets run; asleep while they wait, where others are busy."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcifar.measuring.neighbour import busy_process
from fastcifar.run import threads
from fastcifar.run.environment import allowed_cores

ROOT = Path(__file__).parents[1]
STAT = """\
cpu  100 200 30 4000 50 6 7 8 0 0
cpu0 60 150 10 2000 30 4 3 8 0 0
cpu1 40 50 20 2000 20 2 4 0 0 0
cpu10 1 1 1 1 1 1 1 1 0 0
intr 12345
"""


def test_nice_and_stolen_time_and_other_cores_do_not_count() -> None:
    assert threads.busy_ticks(STAT, {0}) == 60 + 10 + 4 + 3
    assert threads.busy_ticks(STAT, {0, 1}) == 77 + 40 + 20 + 2 + 4
    assert threads.busy_ticks(STAT, {0}, with_nice=True) == 77 + 150, "to a nice process nice programs are equals"
    with pytest.raises(ValueError, match="none of these cores"):
        threads.busy_ticks(STAT, {7})
    assert threads.busy_cores(set()) is None


@pytest.mark.parametrize(
    "others, usable, variables, device, sleeps",
    [
        (1.0, 2, {}, "cpu", True),
        (1.0, 2, {}, "auto", True),
        (0.3, 2, {}, "cpu", False),
        (1.0, 2, {"OMP_NUM_THREADS": "1"}, "cpu", False),
        (1.8, 2, {"OMP_NUM_THREADS": "1"}, "cpu", True),
        (1.0, 2, {"OMP_NUM_THREADS": "1,2"}, "cpu", True),  # read by OpenMP alone
        (1.0, 2, {"OMP_WAIT_POLICY": "ACTIVE"}, "cpu", False),
        (1.0, 2, {"GOMP_SPINCOUNT": "10"}, "cpu", False),
        (1.0, 2, {}, "cuda", False),
        (1.0, 1.5, {}, "cpu", False),  # a container's quota: one thread
        (1.9, 0.5, {}, "cpu", True),
        (1.0, None, {}, "cpu", True),
        (None, 2, {}, "cpu", False),  # no /proc/stat
    ],
)
def test_threads_sleep_where_others_leave_too_few_cores(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    others: float | None,
    usable: float | None,
    variables: dict[str, str],
    device: str,
    sleeps: bool,
) -> None:
    unset(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(threads, "busy_cores", lambda cores: others)
    monkeypatch.setattr(threads, "allowed_cores", lambda: {0, 1})
    monkeypatch.setattr(threads, "physical_cores", len)
    monkeypatch.setattr(threads, "usable_cores", lambda: usable)
    monkeypatch.setattr(threads, "GPUS", ())
    before = dict(os.environ)
    threads.choose(device)
    assert os.environ.get(threads.POLICY) == ("PASSIVE" if sleeps else before.get(threads.POLICY))
    said = capsys.readouterr().err
    assert (f"use {others} of 2 cores: threads sleep" in said) == sleeps
    limited = usable is not None and usable < 2
    assert os.environ.get(threads.COUNT) == ("1" if limited else before.get(threads.COUNT))
    assert (f"may use {usable} of 2 cores: it trains with 1 threads (OMP_NUM_THREADS)" in said) == limited


def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no variable was set; they are set back after the test, whatever `choose` sets."""
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_nothing_is_set_once_torch_is_imported_or_where_a_gpu_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unset(monkeypatch)
    monkeypatch.setattr(threads, "busy_cores", lambda cores: 100.0)
    monkeypatch.setattr(threads, "usable_cores", lambda: 0.5)
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch", os))
    threads.choose("cpu")
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "GPUS", (tmp_path,))
    threads.choose("auto")
    assert threads.POLICY not in os.environ and threads.COUNT not in os.environ


def test_threads_of_one_core_count_as_one() -> None:
    cores = allowed_cores()
    assert 1 <= threads.physical_cores(cores) <= max(1, len(cores))
    assert threads.physical_cores({100_001, 100_002}) == 2, "of cores that the system does not describe each is one"


@pytest.mark.skipif(threads.busy_cores(allowed_cores()) is None, reason="this system does not tell what its cores do")
def test_a_run_beside_busy_programs_is_told(tmp_path: Path) -> None:
    """Beside a busy program a core. The note comes before torch is imported, and so before the error."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "fastcifar", "train", "quick", "--device", "cpu", "--data", str(tmp_path / "none")]
    with contextlib.ExitStack() as programs:
        for _ in allowed_cores():
            programs.enter_context(busy_process())
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path
        )
    assert done.returncode == 3, done.stderr
    assert "cores: threads sleep while they wait (OMP_WAIT_POLICY=PASSIVE)" in done.stderr

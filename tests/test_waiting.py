"""PyTorch's threads sleep while they wait, where other programs use their cores."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcifar.measuring.neighbour import busy_process
from fastcifar.run import waiting
from fastcifar.run.environment import usable_cores

ROOT = Path(__file__).parents[1]
STAT = """\
cpu  100 200 30 4000 50 6 7 8 0 0
cpu0 60 150 10 2000 30 4 3 8 0 0
cpu1 40 50 20 2000 20 2 4 0 0 0
cpu10 1 1 1 1 1 1 1 1 0 0
intr 12345
"""


def test_nice_and_stolen_time_and_other_cores_do_not_count() -> None:
    assert waiting.busy_ticks(STAT, {0}) == 60 + 10 + 4 + 3
    assert waiting.busy_ticks(STAT, {0, 1}) == 77 + 40 + 20 + 2 + 4
    with pytest.raises(ValueError, match="none of these cores"):
        waiting.busy_ticks(STAT, {7})


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
        (None, 2, {}, "cpu", False),  # no /proc/stat
    ],
)
def test_threads_sleep_where_others_leave_too_few_cores(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    others: float | None,
    usable: float,
    variables: dict[str, str],
    device: str,
    sleeps: bool,
) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is set back afterwards, whatever `choose` sets
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(waiting, "busy_cores", lambda cores: others)
    monkeypatch.setattr(waiting, "allowed_cores", lambda: {0, 1})
    monkeypatch.setattr(waiting, "usable_cores", lambda: usable)
    monkeypatch.setattr(waiting, "GPU", Path("/does/not/exist"))
    before = os.environ.get(waiting.POLICY)
    waiting.choose(device)
    assert os.environ.get(waiting.POLICY) == ("PASSIVE" if sleeps else before)
    assert (f"use {others} of 2 cores: threads sleep" in capsys.readouterr().err) == sleeps


def test_nothing_is_set_once_torch_is_imported_or_where_a_gpu_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setattr(waiting, "busy_cores", lambda cores: 100.0)
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch", os))
    waiting.choose("cpu")
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(waiting, "GPU", tmp_path)
    waiting.choose("auto")
    assert waiting.POLICY not in os.environ


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system does not tell what its cores do")
def test_a_run_beside_busy_programs_is_told(tmp_path: Path) -> None:
    """Beside a busy program a core. The note comes before torch is imported, and so before the error."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "fastcifar", "train", "quick", "--device", "cpu", "--data", str(tmp_path / "none")]
    with contextlib.ExitStack() as programs:
        for _ in range(int(usable_cores() or 1)):
            programs.enter_context(busy_process())
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path
        )
    assert done.returncode == 3, done.stderr
    assert "cores: threads sleep while they wait (OMP_WAIT_POLICY=PASSIVE)" in done.stderr

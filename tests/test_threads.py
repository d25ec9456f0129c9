"""PyTorch's threads on the CPU: no more than a container's quota lets run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastcifar as fc
from fastcifar.run import threads
from fastcifar.run.environment import allowed_cores

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "usable, variables, device, count",
    [
        (2, {}, "cpu", None),
        (None, {}, "cpu", None),  # the system does not tell
        (1.5, {}, "cpu", "1"),
        (1.5, {}, "auto", "1"),
        (0.5, {}, "cpu", "1"),
        (0.5, {}, "cuda", None),
        (1.5, {"OMP_NUM_THREADS": "2"}, "cpu", "2"),
        (1.5, {"OMP_NUM_THREADS": "2,1"}, "cpu", "2,1"),  # read by OpenMP alone
    ],
)
def test_a_quota_limits_the_threads(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    usable: float | None,
    variables: dict[str, str],
    device: str,
    count: str | None,
) -> None:
    unset(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(threads, "allowed_cores", lambda: {0, 1})
    monkeypatch.setattr(threads, "physical_cores", len)
    monkeypatch.setattr(threads, "usable_cores", lambda: usable)
    monkeypatch.setattr(threads, "GPUS", ())
    threads.limit(device)
    assert os.environ.get(threads.COUNT) == count
    said = capsys.readouterr().err
    limited = count is not None and not variables
    assert (f"may use {usable} of 2 cores: it trains with OMP_NUM_THREADS=1" in said) == limited, said


def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the variable was not set; it is set back after the test, whatever `limit` sets."""
    monkeypatch.setenv(threads.COUNT, "")
    monkeypatch.delenv(threads.COUNT)


def test_nothing_is_set_once_torch_is_imported_or_where_a_gpu_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unset(monkeypatch)
    monkeypatch.setattr(threads, "usable_cores", lambda: 0.5)
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch", os))
    threads.limit("cpu")
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "GPUS", (tmp_path,))
    threads.limit("auto")
    assert threads.COUNT not in os.environ


_AT_TORCH = """
import os, sys
from fastcifar.run import threads

class AtTorch:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get(threads.COUNT), flush=True)
            os._exit(0)

threads.usable_cores, threads.GPUS = lambda: 0.5, ()
sys.meta_path.insert(0, AtTorch())
from fastcifar.cli.main import main
"""


@pytest.mark.parametrize(
    "program",
    [
        "main(['train', 'quick'])",
        "main(['train', 'quick', '--dry-run'])",
        "main(['ablate'])",
        "main(['ablate', '--device', 'cpu'])",
        "main(['profile'])",
        "import conftest",
        "import workers",
        "import turns",
    ],
)
def test_all_that_trains_or_measures_knows_the_quota_before_torch(program: str, tmp_path: Path) -> None:
    """The bug: `ablate`, `profile` and the benchmarks started a thread for each core, unlike the runs they measure."""
    variables = {key: value for key, value in os.environ.items() if key != threads.COUNT}
    variables["PYTHONPATH"] = f"{ROOT}:{ROOT / 'bench'}"
    command = [sys.executable, "-c", _AT_TORCH + program]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path)
    assert done.stdout == "1\n", done.stdout + done.stderr


def test_runs_together_are_limited_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    monkeypatch.setattr(threads, "limit", devices.append)
    monkeypatch.setitem(sys.modules, "fastcifar.together", None)  # its import, and torch's with it, fails
    with pytest.raises(ImportError):
        fc.train_together([fc.preset("quick", device="cpu")])
    assert devices == ["cpu"]


def test_threads_of_one_core_count_as_one() -> None:
    cores = allowed_cores()
    assert 1 <= threads.physical_cores(cores) <= max(1, len(cores))
    assert threads.physical_cores({100_001, 100_002}) == 2, "of cores that the system does not describe each is one"

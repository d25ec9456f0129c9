"""A measurement: what counts and what does not, the process it runs in, and the ways it can end."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_config, tiny_split

from fastcifar import session
from fastcifar.errors import DeviceMemoryError, NonFiniteError, UsageError
from fastcifar.loaders import build as build_module
from fastcifar.measuring import cell as module
from fastcifar.measuring.cell import Cell, Failure, Measurement, Method, answer, measure, measure_here, random_images
from fastcifar.measuring.neighbour import busy_process
from fastcifar.measuring.process import seconds_of, seconds_of_others
from fastcifar.session import Session
from fastcifar.target import Target

TINY = Method(num_windows=2, window_seconds=0.05, num_images=100)


def test_a_process_of_its_own_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    found = measure(Cell(tiny_config(engine="fused")), TINY, environment={"OMP_NUM_THREADS": "1"})
    assert isinstance(found, Measurement), found
    assert len(found.images_per_second) == 2 and min(found.images_per_second) > 10
    assert 0.5 < found.start_seconds < 300 and 0 < found.warm_up_seconds < 300
    assert 0.1 < found.host_memory_gib < 4 and found.device_memory_gib is None
    assert found.others is None or all(0 <= share <= 1 for share in found.others)
    assert 0 < found.loss < 20


@pytest.mark.parametrize(
    ("settings", "beside"),
    [
        ({"engine": "eager", "precision": "bf16"}, {}),
        ({"engine": "eager", "tuned": False, "memory_format": "contiguous"}, {}),
        ({"engine": "fused"}, {"augmentation": "eager"}),
        ({"engine": "fused", "mixup_alpha": 0.2}, {"launched": True}),
    ],
)
def test_any_cell_is_measured(settings: dict[str, Any], beside: dict[str, Any]) -> None:
    found = measure_here(Cell(tiny_config(**settings), **beside), TINY)
    assert min(found.images_per_second) > 0 and found.loss > 0


def test_an_augmentation_of_choice_takes_the_place_of_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    loader = build_module.ResidentLoader

    def build(*args: Any, **kwargs: Any) -> Any:
        built.append(kwargs["augmentation"])
        return loader(*args, **kwargs)

    monkeypatch.setattr(build_module, "ResidentLoader", build)
    measure_here(Cell(tiny_config(engine="fused")), TINY)
    assert built == ["fused"]
    measure_here(Cell(tiny_config(engine="fused"), "eager"), TINY)
    assert built == ["fused", "eager"]


class SlowSteps:
    """Steps of 7 images and 10 ms, after a warm-up of 50 ms."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.taken = 0

    def warm_up(self) -> float:
        time.sleep(0.05)
        return 0.05

    def begin(self, epoch: int, first_step: int = 0) -> None:
        self.begun.append(epoch)

    def take(self, step: int) -> int:
        time.sleep(0.01)
        self.taken += 1
        return 7


def test_images_over_time_and_warm_up_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = SlowSteps()
    monkeypatch.setattr(session, "build_steps", lambda *args, **how: steps)
    found = measure_here(Cell(tiny_config()), Method(num_windows=3, window_seconds=0.1, num_images=100))
    assert found.warm_up_seconds == 0.05
    assert 5 <= found.steps_per_window <= 10, "a window lasts what was asked"
    assert steps.taken == 4 + -(-found.steps_per_window // 2) + 3 * found.steps_per_window
    assert 350 < max(found.images_per_second) <= 700
    assert found.loss == 0


def test_training_goes_on_after_the_last_epoch() -> None:
    with Session(Target.of(tiny_config(epochs=2)), 10) as training:
        training.feed(tiny_split(32), print)
        training.steps = steps = SlowSteps()
        assert list(islice(training.train(), 7)) == [7] * 7
    assert steps.begun == [1, 2, 1, 2]


def test_a_loss_that_is_not_finite_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "lr_table", lambda config, num_batches: np.full(config.epochs * num_batches, np.nan))
    with pytest.raises(NonFiniteError, match="not finite"):
        measure_here(Cell(tiny_config()), TINY)


def test_random_images_are_many_and_the_same_each_time() -> None:
    split = random_images(300)
    assert split.images.shape == (300, 32, 32, 3) and (split.images == random_images(300).images).all()
    assert set(split.labels) <= set(range(100)) and len(set(split.labels)) > 80


def test_other_programs_are_those_that_are_not_ours(tmp_path: Path) -> None:
    """Of 1000 ticks in user, nice, system, irq, softirq and steal of cores 0 and 2, ours and our family's are 120.

    The bug: core 1, which this process may not use, counted too.
    """

    def process(number: int, parent: int, user: int, system: int) -> None:
        (tmp_path / str(number)).mkdir()
        between = " ".join("0" * 9)
        (tmp_path / str(number) / "stat").write_text(f"{number} (a) b) R {parent} {between} {user} {system} 0 0 0\n")

    cores = ["400 90 150 9999 9999 30 40 90 7 7", "5000 1 1 1 1 1 1 1 1 1", "100 10 50 9999 9999 20 10 10 7 7"]
    (tmp_path / "stat").write_text("cpu 1 1\n" + "".join(f"cpu{i} {core}\n" for i, core in enumerate(cores)))
    (tmp_path / "uptime").write_text("")
    own = os.getpid()
    for number, parent, user, system in [
        (own, 1, 50, 30),
        (own + 1, own, 20, 10),
        (own + 2, own + 1, 10, 0),
        (1, 0, 99, 0),
    ]:
        process(number, parent, user, system)
    (tmp_path / str(own + 3)).mkdir()  # it ends as we look
    assert seconds_of_others({0, 2}, tmp_path) * os.sysconf("SC_CLK_TCK") == pytest.approx(880)
    assert math.isnan(seconds_of_others({0, 2}, tmp_path / "none")) and math.isnan(seconds_of_others(set(), tmp_path))


def test_shares_of_the_cores() -> None:
    windows = [module._Window(1, 2.0, others) for others in (2.0, -0.1, 9.0)]
    assert module._shares(windows, 4) == [0.25, 0.0, 1.0]
    assert module._shares([*windows, module._Window(1, 2.0, math.nan)], 0) is None


def test_a_neighbour_counts_by_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: the share was of all cores of the machine, so that one of two cores, fully used, was one of 64."""
    asked = list[set[int]]()
    monkeypatch.setattr(module, "allowed_cores", lambda: {3, 5})
    monkeypatch.setattr(module, "seconds_of_others", lambda cores: asked.append(cores) or 0.0)
    monkeypatch.setattr(module, "_shares", lambda windows, num_cores: [1 / num_cores])
    assert measure_here(Cell(tiny_config()), TINY).others == [0.5] and all(cores == {3, 5} for cores in asked)


# ---- how it can end ----


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DeviceMemoryError("out of memory on cuda:0"), "DeviceMemoryError", "out of memory on cuda:0"),
        (UsageError("no DALI"), "UsageError", "no DALI"),
        (ZeroDivisionError("first\nsecond"), "ZeroDivisionError", "ZeroDivisionError: first"),
        (KeyError(), "KeyError", "KeyError: KeyError"),
    ],
)
def test_an_error_is_an_answer(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, message: str) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(module, "measure_here", fail)
    cell = {"settings": tiny_config().model_dump(mode="json"), "augmentation": None, "launched": False}
    failure = Failure(**answer(cell | asdict(TINY))["failure"])
    assert (failure.kind, failure.message) == (kind, message)
    assert failure.cannot_run == (kind == "UsageError")
    assert failure.traceback.startswith("Traceback")


def interpreter(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `script` run wherever Python would be started."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("kill -9 $$", "SIGKILL", "ended by SIGKILL (the system ends a process so when memory runs out)"),
        ("echo bad luck >&2; kill -11 $$", "SIGSEGV", "ended by SIGSEGV: bad luck"),
        ("echo one >&2; echo two >&2; echo >&2; exit 3", "exit", "ended with exit code 3: two"),
        ("cat >/dev/null; echo not json", "exit", "ended with exit code 0"),
    ],
)
def test_a_process_that_dies_is_a_failure(
    script: str, kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter(tmp_path / "python", script, monkeypatch)
    found = measure(Cell(tiny_config()), TINY)
    assert isinstance(found, Failure) and found.kind == kind and found.message.endswith(message)


def test_an_interrupted_measurement_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter(tmp_path / "python", f"echo $$ > {tmp_path}/pid; exec sleep 60", monkeypatch)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            measure(Cell(tiny_config()), TINY)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_busy_process_ends_with_its_context_and_with_its_parent() -> None:
    with busy_process() as pid:
        assert seconds_until(lambda: seconds_of(pid) > 0.05) < 20
    assert ended(pid)
    script = (
        "from fastcifar.measuring.neighbour import busy_process\n"
        "with busy_process() as pid: print(pid, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    assert seconds_until(lambda: ended(pid)) < 20


def ended(pid: int) -> bool:
    """Whether a process has ended, also if nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def seconds_until(holds: Callable[[], bool], most: float = 20) -> float:
    start = time.perf_counter()
    while not holds() and time.perf_counter() < start + most:
        time.sleep(0.02)
    return time.perf_counter() - start

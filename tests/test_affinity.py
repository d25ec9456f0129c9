"""PyTorch's threads stay on cores of their own while other programs use these cores too."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastcifar.measuring.neighbour import busy_process
from fastcifar.run import affinity
from fastcifar.run.environment import allowed_cores

ROOT = Path(__file__).parents[1]
STAT_TEXT = """\
cpu  100 200 30 4000 50 6 7 8 0 0
cpu0 60 150 10 2000 30 4 3 8 0 0
cpu1 40 50 20 2000 20 2 4 0 0 0
cpu10 1 1 1 1 1 1 1 1 0 0
intr 12345
"""
is_known = pytest.mark.skipif(
    affinity.seconds_of_others_on(allowed_cores()) is None, reason="this system does not tell what its cores do"
)


def test_nice_and_stolen_time_and_other_cores_do_not_count() -> None:
    assert affinity.busy_ticks(STAT_TEXT, {0}) == 60 + 10 + 4 + 3
    assert affinity.busy_ticks(STAT_TEXT, {0, 1}) == 77 + 40 + 20 + 2 + 4
    assert affinity.busy_ticks(STAT_TEXT, {0}, with_nice=True) == 77 + 150, "to a nice process nice programs are equals"
    assert affinity.busy_ticks(STAT_TEXT, {0}, with_stolen=True) == 77 + 8
    with pytest.raises(ValueError, match="none of these cores"):
        affinity.busy_ticks(STAT_TEXT, {7})
    assert affinity.seconds_of_others_on(set()) is None


def test_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stat").write_text(STAT_TEXT)
    monkeypatch.setattr(affinity, "STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "nice", lambda by: 0)
    monkeypatch.setattr(time, "process_time", lambda: 0.25)
    assert affinity.seconds_of_others_on({0}) == 77 / os.sysconf("SC_CLK_TCK") - 0.25


def test_the_busiest_threads_come_first() -> None:
    before, now = {1: 10.0, 2: 5.0, 3: 0.0}, {1: 10.5, 2: 6.0, 3: 0.1, 4: 0.7}
    assert affinity.busiest_threads(before, now, 0.2) == [2, 4, 1]
    assert affinity.busiest_threads({}, {1: 0.02, 2: 0.05, 3: 0.0}, 0.2) == [2, 1], "beside many programs all are slow"
    assert affinity.busiest_threads(now, now, 0.2) == []


@is_known
def test_a_thread_s_work_is_its_own() -> None:
    def work() -> None:
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass
        worked.set()
        over.wait()

    worked, over = threading.Event(), threading.Event()
    before = affinity.seconds_of_threads()
    thread = threading.Thread(target=work)
    thread.start()
    worked.wait()
    assert affinity.busiest_threads(before, affinity.seconds_of_threads(), 0.05)[0] == thread.native_id
    over.set()
    thread.join()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float], list[set[int]]], list[object]]:
    """Runs the watch on two cores, once a second, on what others used and which threads worked in each second."""

    def run(others: list[float], workers: list[set[int]]) -> list[object]:
        events: list[object] = []
        over = threading.Event()
        used = iter([sum(others[:i]) for i in range(len(others) + 1)])
        work = iter([{t: float(sum(t in w for w in workers[:i])) for t in (7, 8, 9)} for i in range(len(others) + 1)])
        clock = iter(range(100))
        monkeypatch.setattr(affinity, "_LOOK_SECONDS", 0.0)
        monkeypatch.setattr(affinity, "seconds_of_others_on", lambda cores: next(used, None))
        monkeypatch.setattr(affinity, "seconds_of_threads", lambda: next(work, {}))
        monkeypatch.setattr(affinity, "_place", lambda thread, cores: events.append((thread, list(cores))))
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        affinity._watch([0, 1], events.append, over)
        return events

    return run


SAID = "other programs use 1.0 of 2 cores: each thread stays on a core of its own"


def test_threads_are_placed_and_freed_as_others_come_and_go(
    watch: Callable[[list[float], list[set[int]]], list[object]],
) -> None:
    seconds = [0.1, 1.0, 0.2, 0.9]
    apart: list[object] = [(7, [0]), (8, [1])]
    free: list[object] = [(7, [0, 1]), (8, [0, 1])]
    assert watch(seconds, [{7, 8}] * 4) == [*apart, SAID, *free, *apart, *free], "said once, and free in the end"


def test_only_as_many_busy_threads_as_cores_are_placed(
    watch: Callable[[list[float], list[set[int]]], list[object]],
) -> None:
    assert watch([1.0, 1.0], [{7}, {7}]) == [], "one thread: the system finds the better core"
    moved = watch([1.0, 1.0], [{7, 8}, {8, 9}])
    assert sorted(map(str, moved[3:6])) == sorted(map(str, [(7, [0, 1]), (8, [0]), (9, [1])]))


@is_known
@pytest.mark.parametrize("variable", affinity.VARIABLES)
def test_what_the_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in affinity.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(affinity, "allowed_cores", lambda: {0, 1})
    monkeypatch.setattr(affinity, "seconds_of_others_on", lambda cores: 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    before = threading.active_count()
    with affinity.kept_apart(print):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with affinity.kept_apart(print):
        assert threading.active_count() == before, "fewer threads than cores"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv(variable, "true")
    with affinity.kept_apart(print):
        assert threading.active_count() == before


_STEPS = """
import os
import sys

os.sched_setaffinity(0, map(int, sys.argv[1:]))

from fastcifar.config import Config
from fastcifar.measuring.cell import random_images
from fastcifar.run import affinity
from fastcifar.session import Session
from fastcifar.target import Target

def tell(thread, cores):
    place(thread, cores)
    print("placed", sorted(os.sched_getaffinity(thread)))

place, affinity._place, affinity._LOOK_SECONDS = affinity._place, tell, 0.3
notes = []
with Session(Target.of(Config(device="cpu", width_mult=0.25, batch_size=64)), 100) as session:
    session.feed(random_images(640), notes.append)
    for step, _ in enumerate(session.train()):
        if notes or step == 500:
            break
print("noted", *notes)
print("left", sorted(os.sched_getaffinity(0)))
"""


@is_known
@pytest.mark.skipif(len(allowed_cores()) < 2, reason="one core")
@pytest.mark.parametrize("count", [2, 5])
def test_steps_beside_busy_programs_are_taken_by_threads_apart(count: int) -> None:
    """On two cores, with so many busy programs there."""
    cores = sorted(allowed_cores())[:2]
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    variables |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    with contextlib.ExitStack() as programs:
        for _ in range(count):
            os.sched_setaffinity(programs.enter_context(busy_process()), cores)
        command = [sys.executable, "-c", _STEPS, *map(str, cores)]
        done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "of 2 cores: each thread stays on a core of its own" in done.stdout, done.stdout
    for core in cores:
        assert f"placed [{core}]" in said
    assert said[-1] == f"left {cores}", "the process has all cores again"

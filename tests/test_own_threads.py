"""The extension's own threads: the team under ThreadSanitizer, and where a training step uses it."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_session

from fastcifar import ops
from fastcifar.engines.steps import _computes_in_own_threads
from fastcifar.ops import own_threads
from fastcifar.run import affinity

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-fsanitize=thread", "-pthread"]

compiled = pytest.mark.skipif(not ops.available(), reason=f"no compiled ops: {ops.why_unavailable()}")
on_linux = pytest.mark.skipif(
    not shutil.which("g++") or sys.platform != "linux", reason="g++'s ThreadSanitizer, on Linux"
)


@pytest.fixture
def threads() -> int:
    """Two threads of PyTorch, and the number that it had afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def team(folder: Path, old: str = "", new: str = "") -> Path:
    """The program of tests/team.cpp, compiled with a text of csrc/cpu/team.cpp replaced."""
    text = (ROOT / "csrc/cpu/team.cpp").read_text()
    assert old in text, f"team.cpp no longer has the text to break: {old}"
    (folder / "team.cpp").write_text(text.replace(old, new) if old else text)
    program = folder / "team"
    sources = [str(ROOT / "tests/team.cpp"), str(folder / "team.cpp")]
    subprocess.run(["g++", *FLAGS, f"-I{ROOT / 'csrc'}", *sources, "-o", str(program)], check=True)
    return program


def run(program: Path) -> subprocess.CompletedProcess[str]:
    # Without a fixed place for the program, ThreadSanitizer does not start on some kernels.
    command = ["setarch", "-R", str(program)] if shutil.which("setarch") else [str(program)]
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@on_linux
def test_shares_are_complete_and_a_thread_without_a_core_is_brought_to_one(tmp_path: Path) -> None:
    done = run(team(tmp_path))
    assert done.returncode == 0 and done.stdout == "right\n", done.stdout + done.stderr


@on_linux
@pytest.mark.sanitized
@pytest.mark.parametrize(
    "old, new",
    [
        ("while (!spin(kPatience, done)) {", "while (false && !spin(kPatience, done)) {"),
        ("while (number(state) == call && (state & kOpen)) {", "while (number(state) == call) {"),
        ("state_.fetch_sub(1)", "state_.fetch_sub(1, std::memory_order_relaxed)"),
        ("if (!error_) error_ = std::current_exception();", ""),
        ("error = std::current_exception();\n    }\n    close();", "throw;\n    }\n    close();"),
        ("sched_setaffinity(0, sizeof cores_, &cores_);", ""),
        ("place_.load() == kInside ? worked() : -1", "-1"),
        ("pause();  // the caller", "while (place_.load() != kBrought) pause();  // the caller"),
        ("if (threads < 2 || busy_.exchange(true))", "if (threads < 2)"),
    ],
)
def test_planted_bugs_are_found(tmp_path: Path, old: str, new: str) -> None:
    """In one of five runs: beside other programs the threads may not meet where one of them does wrong."""
    program = team(tmp_path, old, new)
    for _ in range(5):
        try:
            if run(program).returncode != 0:
                return
        except subprocess.TimeoutExpired:
            return
    pytest.fail("five runs saw nothing")


@compiled
def test_pytorch_has_one_thread_meanwhile(threads: int) -> None:
    with own_threads():
        assert torch.get_num_threads() == 1
        with own_threads():
            assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads and torch.ops.fastcifar._set_own_threads(0) == 0
    with pytest.raises(KeyError), own_threads():
        raise KeyError
    assert torch.get_num_threads() == threads and torch.ops.fastcifar._set_own_threads(0) == 0


@compiled
def test_several_of_pythons_threads(threads: int) -> None:
    """Whoever leaves first takes the team from nobody; a thread that is new to PyTorch is not left with one."""
    entered, leaves, seen = threading.Event(), threading.Event(), list[int]()

    def other() -> None:
        with own_threads():
            entered.set()
            leaves.wait(10)
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    with own_threads():
        thread.start()
        assert entered.wait(10)
    assert torch.get_num_threads() == threads and torch.ops.fastcifar._set_own_threads(threads) == threads
    leaves.set()
    thread.join()
    assert seen == [threads] and torch.ops.fastcifar._set_own_threads(0) == 0


@compiled
def test_one_thread_is_no_team(threads: int) -> None:
    torch.set_num_threads(1)
    with own_threads():
        assert torch.ops.fastcifar._set_own_threads(0) == 0


_FORKED = """
import os
import torch
from fastcifar.ops import batch_norm_relu_pool, own_threads

torch.set_num_threads(2)
u = torch.randn(64, 256, 8, 8).contiguous(memory_format=torch.channels_last)

def pooled():
    with own_threads():
        return batch_norm_relu_pool(u, torch.ones(256), torch.zeros(256), 1e-5)[0]

first = pooled()
child = os.fork()
same = torch.equal(first, pooled())
if child == 0:
    os._exit(0 if same else 1)
assert same and os.waitpid(child, 0)[1] == 0
"""


@compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_a_team_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", _FORKED], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@compiled
@pytest.mark.parametrize(
    "engine, variable, count", [("fused", None, 1), ("eager", None, 2), ("fused", affinity.VARIABLES[0], 2)]
)
def test_a_step_of_the_fused_engine_uses_them(
    monkeypatch: pytest.MonkeyPatch, threads: int, engine: str, variable: str | None, count: int
) -> None:
    for name in affinity.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "true")
    monkeypatch.setattr("fastcifar.engines.steps.allowed_cores", lambda: {0, 1})
    session, seen = tiny_session(tiny_config(engine=engine, device="cpu"), 40), list[int]()
    step = session.engine.train_step

    def seeing(*args: object) -> None:
        seen.append(torch.get_num_threads())
        step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(session.engine, "train_step", seeing)
    session.steps.warm_up()
    session.steps.begin(1)
    session.steps.take(0)
    assert seen == [count] and torch.get_num_threads() == threads


@compiled
def test_more_threads_than_cores_are_pytorch_s(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    target = tiny_session(tiny_config(engine="fused", device="cpu"), 40).target
    for name in affinity.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for cores, own in ((threads, True), (threads - 1, False)):
        monkeypatch.setattr("fastcifar.engines.steps.allowed_cores", lambda cores=cores: set(range(cores)))
        assert _computes_in_own_threads(target) is own

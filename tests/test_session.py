"""A session: what it holds, what it closes, and that no other code assembles a run."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import NUM_CLASSES, tiny_config, tiny_session, tiny_split

from fastcifar import session as module
from fastcifar.errors import DeviceMemoryError
from fastcifar.session import Session
from fastcifar.target import Target

pytestmark = pytest.mark.machine

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"build_engine", "build_loader", "build_steps", "lr_table"}


def test_a_fed_session_trains_and_evaluates() -> None:
    with Session(Target(tiny_config(epochs=2)), NUM_CLASSES) as session:
        session.feed(tiny_split(100), print)
        assert session.lrs.shape == (2 * session.loader.num_batches,)
        before = session.evaluate(tiny_split(40))
        training = session.train()
        assert [next(training) for _ in range(8)] == [16] * 6 + [4] + [16]
        assert session.evaluate(tiny_split(40)) != before


def test_one_that_is_not_fed_evaluates_what_a_fed_one_does() -> None:
    with Session(Target(tiny_config()), NUM_CLASSES) as session:
        means = session.evaluate(tiny_split(40))
        assert means == tiny_session(tiny_config()).evaluate(tiny_split(40))


def test_the_end_of_the_context_is_the_end_of_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    with pytest.raises(ZeroDivisionError), Session(Target(tiny_config()), NUM_CLASSES) as session:
        session.feed(tiny_split(32), print)
        monkeypatch.setattr(session.loader, "close", lambda: closed.append("never: bound before"))
        raise ZeroDivisionError
    assert closed == []
    ended = []

    class Loader:
        num_batches = 1

        def close(self) -> None:
            ended.append(True)

    monkeypatch.setattr(module, "build_loader", lambda *args, **how: Loader())
    monkeypatch.setattr(module, "build_steps", lambda *args, **how: 1 / 0)
    with pytest.raises(ZeroDivisionError), Session(Target(tiny_config()), NUM_CLASSES) as session:
        session.feed(tiny_split(32), print)
    assert ended == [True], "a half-fed session ends what it began"


@pytest.mark.parametrize("part", ["build_model", "build_loader"])
def test_running_out_of_memory_is_explained_wherever_it_happens(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, part, full)
    with pytest.raises(DeviceMemoryError, match="batch_size = 16"), Session(Target(tiny_config()), 4) as session:
        session.feed(tiny_split(32), print)


def test_a_run_is_assembled_in_one_place() -> None:
    """The bug: a benchmark built its own steps, and timed launched steps where training replays a graph."""
    places: dict[str, set[str]] = {}
    for folder in ("fastcifar", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in PARTS:
                    places.setdefault(node.func.id, set()).add(path.relative_to(ROOT).as_posix())
    assert places.pop("build_loader") == {"fastcifar/session.py", "bench/workers.py"}  # a loader alone is timed there
    assert set.union(*places.values()) == {"fastcifar/session.py"}

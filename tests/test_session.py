"""A session: what it holds, what it closes, and that no other code assembles a run."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import NUM_CLASSES, tiny_config, tiny_session, tiny_split

from fastcifar import session as module
from fastcifar.batch import Batch
from fastcifar.data.images import scaled
from fastcifar.errors import DeviceMemoryError
from fastcifar.loaders import EvalBatches
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


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_the_first_epochs_train_on_small_images(engine: str) -> None:
    sizes: dict[str, Any] = {"crop_padding": 4, "cutout": 16, "low_res_epochs": 2, "low_res": 24, "engine": engine}
    with Session(Target(tiny_config(**sizes)), NUM_CLASSES) as session:
        session.feed(tiny_split(100), print)
        assert session.steps.warm_up() > 0
        seen = []
        session.engine.train_step = lambda batch, lr: seen.append((batch, float(lr)))  # type: ignore[method-assign]
        for epoch in (1, 2, 3, 2):
            session.steps.begin(epoch)
            assert session.steps.take(0) == 16
        assert [batch.images.shape[2:] for batch, _ in seen] == [(24, 24), (24, 24), (32, 32), (24, 24)]
        assert [lr for _, lr in seen] == [session.lrs[i * session.loader.num_batches] for i in (0, 1, 2, 1)]
        assert torch.equal(seen[1][0].images, seen[3][0].images)
        zeros = [int((batch.images == 0).all(1).sum((1, 2)).max()) for batch, _ in seen[:3]]
        assert zeros == [12 * 12, 12 * 12, 16 * 16], "crop and cutout shrink with the images"
        next(training := session.train())
        assert seen[-1][0].images.shape[2:] == (32, 32), "what is measured is a step on whole images"
        training.close()


def test_small_images_are_the_images() -> None:
    split = tiny_split(8)
    images = scaled(split.images, 24)
    assert images.shape == (8, 24, 24, 3) and images.dtype == np.uint8
    assert np.allclose(images.mean((1, 2)), split.images.mean((1, 2)), atol=3)
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[:, None, None], (32, 32, 3))
    small = scaled(ramp[None], 16)[0]
    assert (np.diff(small[:, 0, 0].astype(int)) > 0).all() and (small == small[:, :1, :1]).all(), "rows stay rows"


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_the_average_is_evaluated_with_statistics_of_its_own(engine: str) -> None:
    """They are the mean and variance over the training images of what the average's layers put out."""
    split = tiny_split(100)
    config = tiny_config(average_epochs=2, engine=engine, eval_batch_size=100, mixup_alpha=0.5)
    with Session(Target(config), NUM_CLASSES) as session:
        session.feed(split, print)
        kept = []
        for epoch in (1, 2, 3):
            session.steps.begin(epoch)
            for step in range(session.loader.num_batches):
                session.steps.take(step)
            kept.append({name: p.detach().clone() for name, p in session.engine.model.named_parameters()})
            session.average(epoch, split)
        model = session.engine.model
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), (kept[1][name] + kept[2][name]) / 2)
        (batch,) = EvalBatches(split, session.target)
        stem = model.get_submodule("stem")(batch.images)
        norm = model.get_submodule("norm")
        torch.testing.assert_close(norm.running_mean, stem.mean((0, 2, 3)).detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.running_var, stem.var((0, 2, 3)).detach(), rtol=1e-4, atol=1e-4)
        assert norm.momentum == 0.1
        last = model.get_submodule("blocks.12.norm2")
        before = last.running_mean.clone()
        one = Batch(torch.zeros(1, 3, 16, 16), batch.labels[:1])  # one number a channel at last: left out
        session.engine.estimate_statistics([batch.first(60), Batch(batch.images[60:], batch.labels[60:]), one])
        assert not torch.equal(last.running_mean, before)
        torch.testing.assert_close(norm.running_mean, stem.mean((0, 2, 3)).detach(), rtol=1e-4, atol=1e-4)


def test_one_that_is_not_fed_evaluates_what_a_fed_one_does() -> None:
    with Session(Target(tiny_config()), NUM_CLASSES) as session:
        means = session.evaluate(tiny_split(40))
        assert means == tiny_session(tiny_config()).evaluate(tiny_split(40))


def test_deterministic_is_switched_on_inside_the_context_alone() -> None:
    with Session(Target(tiny_config(deterministic=True)), NUM_CLASSES):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


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

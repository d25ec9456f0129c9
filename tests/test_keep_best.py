"""`keep_best`: the weights of the best validation epoch, beside the last ones, through interruptions too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config, weights, write_tiny

import fastcifar.trainer
from fastcifar.checkpoint import load_model
from fastcifar.config import Config
from fastcifar.errors import UsageError
from fastcifar.evaluation import evaluate_run
from fastcifar.run.folder import RunFolder
from fastcifar.trainer import train

pytestmark = pytest.mark.usefixtures("no_curves")

LR = 0.5  # so high that the best epoch is not the last one


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("best") / "tiny.npz")


def trained(data: Path, out: Path, accuracies: list[float], monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Path:
    """Trains with validation accuracies that are set here."""
    wanted = iter(accuracies)
    evaluate = fastcifar.trainer.Session.evaluate

    def evaluated(session: Any, split: Any, see: Any = None) -> Any:
        means = evaluate(session, split, see)
        return means if see is not None else type(means)(means.loss, next(wanted))

    monkeypatch.setattr(fastcifar.trainer.Session, "evaluate", evaluated)
    config = tiny_config(data, epochs=len(accuracies), keep_best=True, **settings)
    path = train(config, out, [], progress=False)
    monkeypatch.undo()
    return path


@pytest.mark.parametrize("ema", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_the_best_epochs_weights_are_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    """Epoch 2 is the best one, and epoch 4 is as good: the weights are those of a run that ends with epoch 2."""
    run = trained(data, tmp_path / "run", [0.1, 0.6, 0.3, 0.6], monkeypatch, ema_decay=ema)
    short = train(tiny_config(data, epochs=2, ema_decay=ema), tmp_path / "short", [], progress=False)
    best, last = (load_model(RunFolder.open(run), which).state_dict() for which in ("best", "last"))  # type: ignore[arg-type]
    for name, tensor in load_model(RunFolder.open(short)).state_dict().items():
        assert torch.equal(best[name], tensor), name
    assert not torch.equal(best["head.weight"], last["head.weight"])
    summary = RunFolder.open(run).summary()
    assert summary is not None and (summary["best_epoch"], summary["best_val_accuracy"]) == (2, 0.6)


def test_the_last_weights_are_what_they_were(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(data, tmp_path / "run", [0.6, 0.1], monkeypatch)
    plain = train(tiny_config(data, epochs=2), tmp_path / "plain", [], progress=False)
    with_best = weights(run)
    for name, tensor in weights(plain).items():
        assert torch.equal(with_best[name], tensor), name
    found = [RunFolder.open(path).summary() for path in (run, plain)]
    assert found[0] and found[1] and found[0]["test_accuracy"] == found[1]["test_accuracy"]


def test_evaluate_measures_the_best_weights(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, epochs=3, keep_best=True, lr=LR)
    run = train(config, tmp_path / "run", [], progress=False)
    summary = RunFolder.open(run).summary()
    assert summary is not None
    best = evaluate_run(run, "val", weights="best")
    assert best["accuracy"] == best["recorded_accuracy"] == summary["best_val_accuracy"]
    assert best["epoch"] == summary["best_epoch"]
    assert evaluate_run(run, "test", weights="best")["recorded_accuracy"] is None
    assert evaluate_run(run, "test")["recorded_accuracy"] == summary["test_accuracy"]


def test_without_it_there_are_no_best_weights(data: Path, tmp_path: Path) -> None:
    run = train(tiny_config(data, epochs=1), tmp_path / "run", [], progress=False)
    with pytest.raises(UsageError, match="trained without --keep-best; allowed: --weights last"):
        load_model(RunFolder.open(run), "best")
    with pytest.raises(ValueError, match="keep_best = true needs validation images"):
        Config(keep_best=True, val_size=0)

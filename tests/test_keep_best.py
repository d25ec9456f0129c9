"""`keep_best`: the weights of the best validation epoch, beside the last ones, through interruptions too."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_config, tiny_split, weights, write_tiny

import fastcifar as fc
import fastcifar.trainer
from fastcifar.checkpoint import load_model
from fastcifar.cli import main as cli
from fastcifar.config import Config
from fastcifar.errors import InterruptedRunError, UsageError
from fastcifar.evaluation import evaluate_run
from fastcifar.run.folder import RunFolder
from fastcifar.trainer import resume, train
from fastcifar.ui.display import Display

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("best") / "tiny.npz")


@contextmanager
def validated(*accuracies: float) -> Iterator[None]:
    """Gives the validations these accuracies, one after another. Their losses stay the measured ones."""
    wanted = iter(accuracies)
    evaluate = fastcifar.trainer.Session.evaluate

    def evaluated(session: Any, split: Any, see: Any = None) -> Any:
        means = evaluate(session, split, see)
        return means if see is not None else type(means)(means.loss, next(wanted))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastcifar.trainer.Session, "evaluate", evaluated)
        yield


def trained(data: Path, out: Path, accuracies: list[float], **settings: Any) -> Path:
    """Trains with validation accuracies that are set here."""
    with validated(*accuracies):
        return train(tiny_config(data, epochs=len(accuracies), keep_best=True, **settings), out, [], progress=False)


@pytest.mark.parametrize("ema", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_the_best_epochs_weights_are_kept(data: Path, tmp_path: Path, ema: float) -> None:
    """Epoch 2 is the best one, and epoch 4 is as good: the weights are those of a run that ends with epoch 2."""
    run = trained(data, tmp_path / "run", [0.1, 0.6, 0.3, 0.6], ema_decay=ema)
    short = train(tiny_config(data, epochs=2, ema_decay=ema), tmp_path / "short", [], progress=False)
    best, last = (load_model(RunFolder.open(run), which).state_dict() for which in ("best", "last"))  # type: ignore[arg-type]
    for name, tensor in load_model(RunFolder.open(short)).state_dict().items():
        assert torch.equal(best[name], tensor), name
    assert not torch.equal(best["head.weight"], last["head.weight"])
    summary = RunFolder.open(run).summary()
    assert summary is not None and (summary["best_epoch"], summary["best_val_accuracy"]) == (2, 0.6)


def test_the_last_weights_are_what_they_were(data: Path, tmp_path: Path) -> None:
    run = trained(data, tmp_path / "run", [0.6, 0.1])
    plain = train(tiny_config(data, epochs=2), tmp_path / "plain", [], progress=False)
    with_best = weights(run)
    for name, tensor in weights(plain).items():
        assert torch.equal(with_best[name], tensor), name
    found = [RunFolder.open(path).summary() for path in (run, plain)]
    assert found[0] and found[1] and found[0]["test_accuracy"] == found[1]["test_accuracy"]


def test_every_command_uses_the_weights_that_are_asked_for(data: Path, tmp_path: Path, capsys: Any) -> None:
    run = fc.load(trained(data, tmp_path / "run", [0.6, 0.1, 0.3]))
    Image.fromarray(tiny_split(1).images[0]).save(tmp_path / "picture.png")

    def told(which: str, command: str, *words: str) -> Any:
        assert cli.main([command, str(run.path), *words, "--weights", which, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    seen = {}
    for which, epoch, accuracy in (("best", 1, 0.6), ("last", 3, 0.3)):
        found = fc.evaluate(run, "val", weights=which)  # type: ignore[arg-type]
        assert (found.epoch, found.recorded_accuracy) == (epoch, accuracy)
        assert found.loss == told(which, "evaluate", "--split", "val")["loss"] == run.records[epoch - 1]["val_loss"]
        model, tensors = run.model(which), load_model(RunFolder.open(run.path), which).state_dict()  # type: ignore[arg-type]
        file = told(which, "export", "--format", "safetensors", "--out", str(tmp_path / which))["file"]
        exported = load_file(file)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, tensors[name]) and torch.equal(tensor, exported[name]), name
        (picture,) = told(which, "predict", str(tmp_path / "picture.png"))
        with torch.no_grad():
            probabilities = model(run.normalize(tiny_split(1).images))[0].softmax(0).sort(descending=True).values
        assert [guess["probability"] for guess in picture["top"]] == pytest.approx(probabilities.tolist(), abs=1e-5)
        seen[which] = probabilities, tensors["head.weight"], found.loss
    (best, best_head, best_loss), (last, last_head, last_loss) = seen["best"], seen["last"]
    assert (best - last).abs().max() > 1e-3 and not torch.equal(best_head, last_head) and best_loss != last_loss
    assert evaluate_run(run.path, "test", weights="best")["recorded_accuracy"] is None
    assert evaluate_run(run.path, "test")["recorded_accuracy"] == run.summary["test_accuracy"]


def test_a_resumed_run_keeps_them(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(data, tmp_path / "whole", [0.1, 0.6, 0.3])
    taken = 0

    def interrupt(display: Display, count: int) -> None:
        nonlocal taken
        taken += 1
        if taken == 2 * 7 + 3:  # the third step of the third epoch
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(Display, "images", interrupt)
        trained(data, tmp_path / "cut", [0.1, 0.6, 0.3])
    with validated(0.3):
        resumed = weights(resume(tmp_path / "cut", {}, [], progress=False))
    for name, tensor in weights(whole).items():
        assert torch.equal(resumed[name], tensor), name


def test_without_it_there_are_no_best_weights(data: Path, tmp_path: Path) -> None:
    run = train(tiny_config(data, epochs=1), tmp_path / "run", [], progress=False)
    with pytest.raises(UsageError, match="trained without --keep-best; allowed: --weights last"):
        load_model(RunFolder.open(run), "best")
    with pytest.raises(ValueError, match="keep_best = true needs validation images"):
        Config(keep_best=True, val_size=0)

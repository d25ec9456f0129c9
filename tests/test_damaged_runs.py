"""Real runs whose folder was damaged or could not be made: the messages, what still works, and what is left."""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config, weights, write_tiny

from fastcifar import evaluation, trainer
from fastcifar.errors import CheckpointError, InterruptedRunError, UsageError
from fastcifar.run.folder import RunFolder

pytestmark = pytest.mark.usefixtures("no_curves")

CHANGING = (".lock", "failure.json")
"""Files that may change when a resume is refused."""


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of three epochs, and the same run interrupted after its second epoch."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny_config(write_tiny(folder / "tiny.npz"))
    whole = trainer.train(config, folder / "whole", [])

    class Stopped(Exception):
        pass

    def stop(run: RunFolder, *args: Any) -> None:
        save(run, *args)
        if len(run.records) == 2:
            raise Stopped

    save = trainer.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "save", stop)
        with pytest.raises(Stopped):
            trainer.train(config, folder / "cut", [])
    return whole, folder / "cut"


@pytest.fixture
def runs(cut: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies of both runs, which a test may damage."""
    return tuple(Path(shutil.copytree(run, tmp_path / run.name)) for run in cut)  # type: ignore[return-value]


def damage_line(run: Path, number: int) -> None:
    """Damages a key in a line, counted from 1, of the metrics."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[number - 1] = lines[number - 1].replace("train_seconds", "train_secondz")
    path.write_text("\n".join([*lines, ""]))


@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_line_of_the_metrics_does_not_stop_a_resume(
    runs: tuple[Path, Path], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bug: KeyError. The rates of the other epochs stay the same, and the model stays the same bit for bit."""
    whole, run = runs
    damage_line(run, number)
    trainer.resume(run, {}, [])
    assert "metrics.jsonl is damaged: line" in capsys.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(whole).values(), strict=True))
    again = RunFolder.open(run)
    assert [record["epoch"] for record in again.records] == [epoch for epoch in (1, 2, 3) if epoch != number]
    assert again.summary() is not None
    before = 0.0
    last = 0
    for record in again.records:
        seconds = record["train_seconds"] - before
        images = 100 * (record["epoch"] - last)
        if record["epoch"] == 3:  # of all epochs since the line before
            assert record["images_per_second"] == pytest.approx(images / seconds)
        before, last = record["train_seconds"], record["epoch"]


def test_what_a_kill_left_beside_the_last_checkpoint_goes(runs: tuple[Path, Path]) -> None:
    """The bug: a run killed after its last save and before its result kept the checkpoint before it for ever."""
    whole, _ = runs
    (whole / "summary.json").unlink()
    (whole / "checkpoint-2").mkdir()
    (whole / "checkpoint-mine").mkdir()
    trainer.resume(whole, {}, [])
    assert sorted(path.name for path in whole.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-mine"]


def test_a_run_that_lost_its_last_line_makes_up_no_result(runs: tuple[Path, Path]) -> None:
    """The run was killed between its last checkpoint and its summary, and was damaged later."""
    whole, _ = runs
    (whole / "summary.json").unlink()
    expected = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    trainer.resume(whole, {}, [])
    summary = RunFolder.open(whole).summary() or {}
    assert summary["val_accuracy"] == expected["val_accuracy"]
    (whole / "summary.json").unlink()
    damage_line(whole, 3)
    trainer.resume(whole, {}, [])
    summary = RunFolder.open(whole).summary() or {}
    assert summary["val_accuracy"] is None and summary["train_loss"] is None and summary["test_accuracy"] is not None


def change_state(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edits the training state of a checkpoint, and its digest with it."""
    pointer = json.loads((run / "checkpoint.json").read_text())
    path = run / pointer["folder"] / "state.json"
    content = json.loads(path.read_text())
    change(content["state"])
    path.write_text(json.dumps(content))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    pointer["files"]["state.json"] = {"bytes": path.stat().st_size, "sha256": digest}
    (run / "checkpoint.json").write_text(json.dumps(pointer))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(epoch=0),
        lambda state: state.update(epoch=99),
        lambda state: state.update(step=1000),
        lambda state: state.update(step="1"),
        lambda state: state.update(clocks=None),
        lambda state: state.update(scaler={"scale": 1.0}) or state.update(epoch=-1),
        lambda state: state.pop("clocks"),
        lambda state: state.pop("epoch"),
        lambda state: state.clear(),
    ],
    ids=["epoch 0", "epoch 99", "step 1000", "text", "no clocks", "negative", "no key", "no epoch", "nothing"],
)
def test_a_state_of_no_run_is_refused_and_nothing_is_changed(
    runs: tuple[Path, Path], change: Callable[[dict[str, Any]], object]
) -> None:
    _, run = runs
    change_state(run, change)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name not in CHANGING}
    with pytest.raises(CheckpointError, match="the training state in .* is damaged"):
        trainer.resume(run, {}, [])
    assert {path: path.read_bytes() for path in before} == before


def test_a_state_of_no_run_is_not_evaluated_either(runs: tuple[Path, Path]) -> None:
    _, run = runs
    change_state(run, lambda state: state.update(epoch=99))
    with pytest.raises(CheckpointError, match="it goes on at epoch 99, and the run has 3"):
        evaluation.evaluate_run(run)


@pytest.mark.parametrize("loader", ["dali", "torchvision"])
def test_a_missing_loader_leaves_no_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str) -> None:
    """The bug: a folder that can't be resumed, because its run never began."""
    for name in ("nvidia.dali", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    config = tiny_config(write_tiny(tmp_path / "tiny.npz"), loader=loader)
    with pytest.raises(UsageError, match="pip install"):
        trainer.train(config, tmp_path / "run", [])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGUSR1, 75)], ids=["SIGHUP", "SIGUSR1"])
def test_a_run_is_saved_when_its_terminal_or_its_time_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """A batch system sends SIGUSR1 before the time is over; exit code 75 tells its script to queue the run again."""
    images, steps = trainer.Display.images, 0

    def close(self: Any, count: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            os.kill(os.getpid(), number)
        images(self, count)

    before = signal.signal(number, signal.SIG_DFL)  # pytest itself may run under nohup
    try:
        monkeypatch.setattr(trainer.Display, "images", close)
        with pytest.raises(InterruptedRunError, match=f"stopped by {number.name}: saved at epoch 1, step 3") as caught:
            trainer.train(tiny_config(write_tiny(tmp_path / "tiny.npz")), tmp_path / "run", [])
    finally:
        signal.signal(number, before)
    assert caught.value.exit_code == code
    assert RunFolder.open(tmp_path / "run").load_checkpoint()[1]["step"] == 3

"""Stands in for `python -m fastcifar` in the tests of the study: real arguments, folders and locks, no training.

An epoch takes 20 ms, and a checkpoint follows it. $FAKE_DO (JSON: run name -> action) makes a run misbehave:
  diverge   ends in epoch 2 with exit code 5
  crash     raises an unforeseen error in epoch 2
  die       kills itself in epoch 2, every time; `die once` does so only the first time
  stop once is stopped by SIGUSR1 in epoch 2, and saved
  hold      waits in epoch 2 until the current folder holds a file `go`
  meet      waits in epoch 2 until all runs that meet have trained epoch 1, for a minute at most
  refuse    is refused before it has a run folder
  no validation    has no validation images
  note and die silently    prints a note as the last line, and ends with exit code 9
$FAKE_ALL = "by lr" makes all accuracies higher the nearer the learning rate is to 0.1; `slow` gives an epoch 150 ms.
Each trained epoch adds a line `NAME EPOCH` to trained.txt in the current folder.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastcifar
from fastcifar.cli import main as cli
from fastcifar.config import Config
from fastcifar.data import sources
from fastcifar.errors import InterruptedRunError, NonFiniteError, UsageError
from fastcifar.run import folder as run
from fastcifar.run.folder import RunFolder

DIGEST = "d" * 64
SEEN = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "FASTCIFAR_STUDY_JOBS")


def train(config: Config, out: Path, command: Sequence[str], **others: Any) -> Path:
    if asked(out.name) == "refuse":
        raise UsageError("device = 'cuda': there is no GPU\ngive --device cpu")
    places = {
        "data": sources.absolute(config.data),
        "init_from": config.init_from and os.path.abspath(config.init_from),
    }
    folder = RunFolder.create(config.model_copy(update=places), out, command, DIGEST)
    with folder.locked():
        return _fit(folder, config, 0)


def resume(path: Path, overrides: dict[str, object], command: Sequence[str]) -> Path:
    folder = RunFolder.open(path)
    with folder.locked():
        saved = path / "fake-checkpoint"
        done = int(saved.read_text()) if saved.exists() else 0
        folder.truncate(done)
        return _fit(folder, folder.config.model_copy(update=overrides), done)


def actions() -> dict[str, str]:
    """The actions that the test has set, by run."""
    file = Path("fake-do.json")  # for processes that do not have the test's environment
    text = file.read_text() if file.exists() else os.environ.get("FAKE_DO", "{}")
    found: dict[str, str] = json.loads(text)
    return found


def asked(name: str) -> str:
    """The action that the test has set for the run."""
    return actions().get(name, "")


def all_have_met() -> bool:
    """Whether all runs that meet have trained epoch 1."""
    lines = Path("trained.txt").read_text().splitlines()
    return {f"{name} 1" for name, action in actions().items() if action == "meet"} <= set(lines)


def _fit(folder: RunFolder, config: Config, done: int) -> Path:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    action = asked(folder.path.name)
    started = time.time()
    for epoch in range(done + 1, config.epochs + 1):
        time.sleep(0.15 if "slow" in os.environ.get("FAKE_ALL", "") else 0.02)
        if epoch == 2 and action == "diverge":
            raise NonFiniteError("the training loss is not finite after epoch 2\nlower --lr")
        if epoch == 2 and action.startswith("note"):
            print("fastcifar: a harmless note", file=sys.stderr, flush=True)
            os._exit(9)
        if epoch == 2 and action == "crash":
            raise KeyError("lr")
        if epoch == 2 and action.startswith("die") and not (action == "die once" and Path("died").exists()):
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if epoch == 2 and action == "stop once" and not Path("stopped").exists():
            Path("stopped").touch()
            stopped.append(signal.SIGUSR1)
        while epoch == 2 and action == "hold" and not Path("go").exists() and not stopped:
            time.sleep(0.01)
        while epoch == 2 and action == "meet" and not all_have_met() and time.time() < started + 60:
            time.sleep(0.01)
        if stopped:
            raise InterruptedRunError(f"stopped by SIGTERM: saved at epoch {epoch - 1}", stopped[0])
        with open("trained.txt", "a") as file:
            file.write(f"{folder.path.name} {epoch}\n")
        accuracy = 0.5 + 0.001 * epoch + 0.01 * config.seed
        if "by lr" in os.environ.get("FAKE_ALL", ""):
            accuracy = 1 - min(abs(config.lr - 0.1), 0.9)
        values: dict[str, Any] = {
            "lr": config.lr,
            "train_loss": 1.0,
            "train_accuracy": 0.5,
            "val_loss": 1.0,
            "val_accuracy": accuracy,
        }
        if action == "no validation":
            values |= {"val_loss": None, "val_accuracy": None}
        folder.append({"epoch": epoch, **values, "images_per_second": 1000.0, "train_seconds": 2.0 * epoch})
        (folder.path / "fake-checkpoint").write_text(str(epoch))
    seen = {name: os.environ.get(name) for name in SEEN} | {"device": config.device, "times": [started, time.time()]}
    Path(f"seen-{folder.path.name}.json").write_text(json.dumps(seen))
    test = accuracy + 0.01 if config.test else None
    folder.write_summary({"val_accuracy": values["val_accuracy"], "test_accuracy": test, "process_seconds": 61.0})
    return folder.path


if __name__ == "__main__":
    stand_in: Any = SimpleNamespace(train=train, resume=resume)
    sys.modules["fastcifar.trainer"] = fastcifar.trainer = stand_in  # type: ignore[attr-defined]
    run.collect = lambda device: {}  # torch is not needed here
    with contextlib.redirect_stdout(sys.stderr):
        code = cli.main()
    sys.exit(code)

"""The loggers: what they are given, that what fails in one stops no run, and that none is there by default."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_config, write_tiny

from fastcifar.errors import UsageError
from fastcifar.run import loggers
from fastcifar.run.folder import RunFolder
from fastcifar.trainer import train

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("loggers") / "tiny.npz")


class FakeTrackio(SimpleNamespace):
    """Stands in for the package: keeps what it is given, and prints as trackio does."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []
        self._fails = fails

    def _call(self, name: str, arguments: Any) -> None:
        print(f"* trackio {name}")
        self.calls.append((name, arguments))
        if name == self._fails:
            raise OSError("disk full")

    def init(self, **arguments: Any) -> None:
        self._call("init", arguments)

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("log", (step, values)))
        if self._fails == "log":
            raise OSError("disk full")

    def finish(self) -> None:
        self._call("finish", None)


def test_trackio_is_given_every_epoch_and_the_test(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    run = RunFolder.open(train(tiny_config(data, epochs=2, logger="trackio"), tmp_path / "run", [], progress=False))
    names = [name for name, _ in fake.calls]
    assert names == ["init", "log", "log", "log", "finish"]
    assert fake.calls[0][1]["config"]["lr"] == run.config.lr and fake.calls[0][1]["project"] == "fastcifar"
    logged = [values for name, values in fake.calls if name == "log"]
    for (step, values), record in zip(logged[:2], run.records, strict=True):
        assert step == record["epoch"] and values["val_accuracy"] == record["val_accuracy"]
    summary = run.summary()
    assert summary is not None and logged[2][1]["test_accuracy"] == summary["test_accuracy"]
    assert capsys.readouterr().out == "", "results go to stdout"


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_failing_logger_stops_no_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, fails: str
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", FakeTrackio(fails))
    run = RunFolder.open(train(tiny_config(data, epochs=1, logger="trackio"), tmp_path / "run", [], progress=False))
    assert run.summary() is not None
    assert capsys.readouterr().err.count("logger = trackio ends here: OSError: disk full") == 1


def test_a_logger_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    hanging = SimpleNamespace(log=lambda epoch, values: held.wait(), close=lambda: None)
    monkeypatch.setitem(loggers.LOGGERS, "trackio", lambda *arguments: hanging)  # type: ignore[arg-type]
    monkeypatch.setattr(loggers, "SECONDS_TO_END", 0.05)
    notes: list[str] = []
    with loggers.logged(tiny_config(logger="trackio"), tmp_path, "run", 1, notes.append) as log:
        for epoch in range(1, 100):
            log.epoch(epoch, {"epoch": epoch, "train_loss": 1.0})
    held.set()
    assert notes == ["logger = trackio ends here: TimeoutError: it did not end within 0.05 s"]


def test_tensorboard_shows_the_epochs(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = train(tiny_config(data, epochs=2, logger="tensorboard"), tmp_path / "run", [], progress=False)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("val_accuracy")]
    assert shown == [(r["epoch"], pytest.approx(r["val_accuracy"])) for r in RunFolder.open(run).records]


def test_none_is_there_by_default(data: Path, tmp_path: Path) -> None:
    threads = threading.active_count()
    with loggers.logged(tiny_config(), tmp_path, "run", 1, print) as log:
        log.epoch(1, {"epoch": 1})
        assert threading.active_count() == threads and not list(tmp_path.iterdir())


def test_a_missing_package_is_named_before_a_run_is_begun(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'fastcifar\[tensorboard\]'"):
        train(tiny_config(data, logger="tensorboard"), tmp_path / "run", [], progress=False)
    assert not (tmp_path / "run").exists()

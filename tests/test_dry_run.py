"""`fastcifar train --dry-run`: what a run would take, and nothing is left behind."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config, write_tiny

from fastcifar.cli import main as cli
from fastcifar.engines import StagedSteps
from fastcifar.measuring import dry_run as module
from fastcifar.measuring.dry_run import dry_run
from fastcifar.session import Session

SETTINGS = ("--val-size", "24", "--width-mult", "0.125", "--batch-size", "16", "--epochs", "7", "--device", "cpu")


def test_it_tells_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    data = write_tiny(tmp_path / "tiny.npz")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--data", str(data), *SETTINGS, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps_an_epoch"] == 7 and found["num_images"] == 100 and found["num_classes"] == 4
    training = 7 * found["step_seconds"]
    assert found["epoch_seconds"] == pytest.approx(training + found["validation_seconds"])
    assert found["run_seconds"] == pytest.approx(found["warm_up_seconds"] + 7 * found["epoch_seconds"])
    assert 0.05 < found["host_memory_gib"] < 100 and found["config"]["engine"] != "auto"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.npz"]
    assert cli.main(["train", "--data", str(data), *SETTINGS, "--dry-run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "would", "with", "memory", "warm-up", "step", "epoch", "run",
    ]  # fmt: skip
    small = ["--epochs", "3", "--low-res-epochs", "2", "--low-res", "16"]
    assert cli.main(["train", "--data", str(data), *SETTINGS, *small, "--dry-run"]) == 0
    assert "ms on small images (2 epochs)\n" in capsys.readouterr().out
    assert cli.main(["train", "--resume", "run", "--dry-run"]) == 2


@pytest.mark.parametrize(("others", "told"), [(0.3, True), (0.01, False), (float("nan"), False)])
def test_it_tells_of_emulation_and_of_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, others: float, told: bool
) -> None:
    data = write_tiny(tmp_path / "tiny.npz")
    monkeypatch.setattr(module, "allowed_cores", lambda: {0})
    monkeypatch.setattr(module, "seconds_of_others", lambda cores: others * time.perf_counter())
    argv = [*SETTINGS, "--engine", "eager", "--precision", "fp16", "--dry-run"]
    assert cli.main(["train", "--data", str(data), *argv]) == 0
    out, err = capsys.readouterr()
    assert err.count("fp16 is emulated on cpu: expect it to be slower than fp32") == 1
    assert ("and the test; other programs used 30% of the cores meanwhile\n" in out) == told
    assert ("programs" in out) == told


def test_smaller_last_batches_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch has six steps of 16 images and one of 4, which would make a step look shorter."""
    monkeypatch.setattr(module, "_SECONDS", 1e9)
    found = dry_run(tiny_config(write_tiny(tmp_path / "tiny.npz"), eval_every=2))
    # The first step is left out; of the next 20 steps, the 7th, 14th and 21st of all are small.
    assert found.steps_timed == 17
    assert found.run_seconds == pytest.approx(
        found.warm_up_seconds + 3 * 7 * found.step_seconds + 2 * found.validation_seconds
    )


def test_epochs_on_small_images_take_their_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: all epochs counted as epochs on whole images."""

    def times(session: Session, training: Iterator[int]) -> list[float]:
        assert next(training) == 16 and isinstance(session.steps, StagedSteps)
        return [1.0 if session.steps._now is session.steps._first else 3.0]

    monkeypatch.setattr(module, "_times_of_steps", times)
    found = dry_run(tiny_config(write_tiny(tmp_path / "tiny.npz"), low_res_epochs=2, low_res=16))
    assert (found.low_res_step_seconds, found.step_seconds) == (1.0, 3.0)
    assert found.run_seconds == pytest.approx(
        found.warm_up_seconds + 7 * (2 * 1.0 + 3.0) + 3 * found.validation_seconds
    )

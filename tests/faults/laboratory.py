"""The laboratory of the tests here: a tiny training whose result is known bit for bit, and commands to break it."""

from __future__ import annotations

import functools
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from processes import Ended, Forge
from tiny import weights, write_tiny

from fastcifar.run.folder import RunFolder

TIMES = re.compile(".*(_seconds|_per_second)")
EPOCHS, STEPS = 3, 2
"""Of every run here; the images of an epoch make two batches."""


class Lab:
    """A place for runs that are killed, cut and damaged.

    Args:
        folder: a new one.
        forge: starts the commands.

    Attributes:
        folder: the argument.
        forge: the argument.
        data: the images of all runs.
    """

    def __init__(self, folder: Path, forge: Forge) -> None:
        self.folder, self.forge = folder, forge
        self.data = write_tiny(folder / "tiny.npz", 24, 8)
        self._made = 0

    def new(self, name: str = "run") -> Path:
        """A path inside a new folder of its own, in which the shim then sees every call, and where nothing is yet."""
        self._made += 1
        place = self.folder / str(self._made)
        place.mkdir()
        return place / name

    def copy(self, run: Path) -> Path:
        """A copy of a run in a folder of its own."""
        return Path(shutil.copytree(run, self.new()))

    def train(self, run: Path, *settings: str) -> list[str]:
        """The words of the command that trains a run."""
        words = f"--val-size 8 --width-mult 0.125 --batch-size 8 --epochs {EPOCHS} --eval-batch-size 8 --device cpu"
        words += " --precision fp32 --engine eager --checkpoint-seconds 0"
        return ["train", "--data", str(self.data), "--out", str(run), *words.split(), *settings]

    @functools.lru_cache  # noqa: B019 (the laboratory lives as long as the tests)
    def whole(self, *settings: str) -> Path:
        """A run with these settings that nothing happened to."""
        run = self.new("whole")
        self.forge.run(*self.train(run, *settings)).check(0)
        return run

    def cut(self, step: int, number: int, *settings: str) -> tuple[Path, Ended]:
        """A run that a signal has stopped after so many steps, and how its command ended."""
        run = self.new()
        return run, self.forge.run(*self.train(run, *settings), sabotage=("stop_at", step, number))

    def recover(self, run: Path, *settings: str, saved: int = 0) -> None:
        """Goes on with whatever is in `run`, as a user does, and compares the result with that of a whole run.

        Args:
            run: what a fault has left.
            *settings: of the run.
            saved: how many epochs a checkpoint had been put in place for before the fault.
        """
        if (run / "config.toml").is_file():
            found = RunFolder.open(run, note=lambda text: None)
            if found.has_checkpoint() or saved:
                assert found.load_checkpoint()[1]["epoch"] > saved, "a checkpoint that was saved is lost"
            ended = self.forge.run("train", "--resume", run)
            ended.check(2 if "the run is finished" in ended.err else 0)
        else:
            assert not saved, "a run with checkpoints has lost its settings"
            self.forge.run(*self.train(run, *settings)).check(0)
        self.compare(run, self.whole(*settings))

    def compare(self, run: Path, whole: Path) -> None:
        """Fails unless two runs have the same result to the last bit, and the same files."""
        mine, expected = weights(run), weights(whole)
        assert mine.keys() == expected.keys()
        assert [name for name in mine if not torch.equal(mine[name], expected[name])] == []
        a, b = RunFolder.open(run), RunFolder.open(whole)
        assert [_without_times(record) for record in a.records] == [_without_times(record) for record in b.records]
        assert _without_times(a.summary() or {}) == _without_times(b.summary() or {})
        assert (run / "metrics.csv").read_text().count("\n") == EPOCHS + 1
        says, expects = a.predictions(), b.predictions()
        assert says is not None and expects is not None
        assert all((says[name] == expects[name]).all() for name in expects)
        assert len(list(run.glob("checkpoint-*"))) == 1 and not list(run.glob("*.new"))


def _without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if not TIMES.fullmatch(key)}


def chosen(things: Sequence[Any], every: bool, count: int) -> list[Any]:
    """All of `things`, or `count` of them: always the same, from all parts of the sequence."""
    if every or len(things) <= count:
        return list(things)
    part = len(things) / count
    choose = random.Random(count)
    return [things[int(part * i + choose.random() * part)] for i in range(count)]

"""Files that were damaged: every one that a run or the cache has is refused, mended or harmless, and never believed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laboratory import Lab
from tally import Tally

from fastcifar.data import sources
from fastcifar.errors import FastcifarError, NonFiniteError
from fastcifar.run import failure
from fastcifar.run.folder import RunFolder
from fastcifar.run.schema import Record, Summary

SILENT: Callable[[str], None] = lambda text: None  # noqa: E731


def damages(content: bytes, count: int, choose: random.Random) -> Iterator[bytes]:
    """`content` with a flipped bit, and every third time with another kind of damage. It is never as it was."""
    made = 0
    while made < count:
        damaged, at = bytearray(content), choose.randrange(max(len(content), 1))
        length = choose.choice((1, 2, 8, 64, 512))
        kind = choose.choice(("cut", "gone", "zeros", "twice", "more", "byte")) if made % 3 == 2 else "bit"
        if kind == "bit" and content:
            damaged[at] ^= 1 << choose.randrange(8)
        elif kind == "byte" and content:
            damaged[at] = choose.randrange(256)
        elif kind == "cut":
            del damaged[at:]
        elif kind == "gone":
            del damaged[at : at + length]
        elif kind == "zeros":
            damaged[at : at + length] = bytes(len(damaged[at : at + length]))
        elif kind == "twice":
            damaged[at:at] = damaged[at : at + length]
        else:
            damaged[at:at] = choose.randbytes(length)
        if damaged != content:
            made += 1
            yield bytes(damaged)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    return bool(a == b)


def settings(run: Path) -> Any:
    return RunFolder.open(run, note=SILENT).config


def checkpoint(run: Path) -> Any:
    return RunFolder.open(run, note=SILENT).load_checkpoint()


def metrics(run: Path) -> Any:
    """The records; those of damaged lines are dropped, and a note says so."""
    notes: list[str] = []
    records = [known(record) for record in RunFolder.open(run, note=notes.append).records]
    return records if not notes else NOTED if all(record in RECORDS for record in records) else records


def summary(run: Path) -> Any:
    return known(RunFolder.open(run, note=SILENT).summary() or {})


def known(record: dict[str, Any]) -> dict[str, Any]:
    """A record without keys that nobody reads: the name of its checksum may be damaged too."""
    return {key: value for key, value in record.items() if key in KEYS}


def table(run: Path) -> Any:
    """metrics.csv, which whoever writes to the run makes anew."""
    with RunFolder.open(run, note=SILENT).locked():
        return (run / "metrics.csv").read_text()


def record_of_failure(run: Path) -> Any:
    return failure.read(run) or NOTED


def lock(run: Path) -> Any:
    with RunFolder.open(run, note=SILENT).locked():
        return True


NOTED = "left out"
RECORDS: list[Any] = []
KEYS = {*Record.model_fields, *Summary.model_fields}
READERS: dict[str, Callable[[Path], Any]] = {
    "config.toml": settings,
    "environment.json": checkpoint,
    "metrics.jsonl": metrics,
    "metrics.csv": table,
    "summary.json": summary,
    "predictions.npz": lambda run: RunFolder.open(run, note=SILENT).predictions(),
    "checkpoint.json": checkpoint,
    "tensors.safetensors": checkpoint,
    "state.json": checkpoint,
    "failure.json": record_of_failure,
    ".lock": lock,
}


@pytest.fixture
def finished(lab: Lab) -> Path:
    run = lab.copy(lab.whole())
    failure.write(run / failure.FAILURE, NonFiniteError("the training loss is not finite"))
    RECORDS[:] = [known(record) for record in RunFolder.open(run).records]
    return run


def only(run: Path, name: str) -> Path:
    (path,) = run.rglob(name)
    return path


@pytest.mark.parametrize("name", READERS)
def test_damage_of_a_run(finished: Path, name: str, every: bool, tally: Tally) -> None:
    path, read = only(finished, name), READERS[name]
    content, good = path.read_bytes(), read(finished)
    assert good is not NOTED
    for number, damaged in enumerate(damages(content, 600 if every else 12, random.Random(name))):
        with tally.attempt((name, number)):
            path.write_bytes(damaged)
            try:
                found = read(finished)
            except FastcifarError as problem:
                assert str(finished) in str(problem), problem
            else:
                assert found is NOTED or same(found, good), "believed"
    tally.check(at_least=500 if every else 12)


@pytest.mark.parametrize("name", ["tiny", "procedural"])
def test_damage_of_the_cache(lab: Lab, name: str, every: bool, tally: Tally, tmp_path: Path) -> None:
    if name == "procedural" and not every:
        pytest.skip("making these images anew takes a second each time")
    data = name if name in sources.NAMES else str(lab.data)
    good = sources.load(data, cache=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    content = path.read_bytes()
    count = (60 if name == "procedural" else 600) if every else 12
    for number, damaged in enumerate(damages(content, count, random.Random(name))):
        with tally.attempt((name, number)):
            path.write_bytes(damaged)
            found = sources.load(data, cache=tmp_path)
            assert found.digest == good.digest and found.class_names == good.class_names
            assert same([found.train.images, found.test.labels], [good.train.images, good.test.labels])
    tally.check(at_least=count)


def test_commands_on_damaged_runs(lab: Lab, every: bool, tally: Tally) -> None:
    """The commands themselves say what is wrong: the same damages, fewer of them, and no traceback."""
    whole = lab.whole()
    cut, _ = lab.cut(3, 15)
    for name in READERS if every else ("metrics.jsonl", "config.toml"):
        for number in range(8 if every else 1):
            run = lab.copy(cut)
            if not list(run.rglob(name)):  # a cut run has no result yet
                shutil.rmtree(run)
                shutil.copytree(whole, run)
                failure.write(run / failure.FAILURE, NonFiniteError("the training loss is not finite"))
            path = only(run, name)
            path.write_bytes(next(damages(path.read_bytes(), 1, random.Random(f"{name} {number}"))))
            with tally.attempt((name, number, "report")):
                lab.forge.run("report", run, whole, "--out", lab.new("report")).check(0, 2, 4)
            with tally.attempt((name, number, "compare")):
                lab.forge.run("compare", run, whole).check(0, 2, 4)
            with tally.attempt((name, number, "evaluate")):
                lab.forge.run("evaluate", run).check(0, 2, 4)
            with tally.attempt((name, number, "resume")):
                lab.forge.run("train", "--resume", run).check(0, 2, 4)
    tally.check()

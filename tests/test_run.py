"""The run folder: never overwritten, never half written, and every damage is named."""

import contextlib
import csv
import errno
import gc
import hashlib
import io
import itertools
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_folders import without_digests

from fastcifar import files
from fastcifar.config import Config
from fastcifar.errors import CheckpointError, FastcifarError, UsageError
from fastcifar.run.checkpoint import Checkpoint, check_training_state
from fastcifar.run.encoding import unsealed
from fastcifar.run.folder import RunFolder
from fastcifar.run.names import EPOCH_KEYS
from fastcifar.run.schema import Pointer

CONFIG = Config(preset="quick", device="cpu", seed=3)
FILES = ("checkpoint.json", "checkpoint-*/tensors.safetensors", "checkpoint-*/state.json")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder.create(CONFIG, tmp_path / "run", ["fastcifar", "train"], "digest")
    yield folder
    folder.close()


def record(epoch: int, **more: Any) -> dict[str, Any]:
    values = (epoch, 0.05, 4.0 / epoch, 0.1, None, None, 1000.0, 0.1 * epoch)
    return dict(zip(EPOCH_KEYS, values, strict=True)) | more


def saved(version: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return {"a.weight": torch.full((500,), version), "b": torch.tensor(float(version))}, {"version": version}


def loaded_version(run: RunFolder) -> int:
    """The version of the whole checkpoint, which must agree with itself."""
    tensors, state = run.load_checkpoint()
    expected, expected_state = saved(state["version"])
    assert state == expected_state
    assert list(tensors) == list(expected)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    return int(state["version"])


def only(run: RunFolder, pattern: str) -> Path:
    (path,) = run.path.glob(pattern)
    return path


# The folder


def test_a_new_run_holds_its_settings_and_environment(run: RunFolder) -> None:
    again = RunFolder.open(str(run.path))
    assert again.config == CONFIG
    assert again.records == []
    assert (again.id, again.dataset_digest) == (run.id, "digest")
    facts = json.loads((run.path / "environment.json").read_text())
    assert facts["command"] == ["fastcifar", "train"]
    assert facts["torch"] == torch.__version__
    assert again.summary() is None
    run.write_summary({"test_accuracy": 0.7})
    assert again.summary() == {"test_accuracy": 0.7}


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260102-030405")
    paths = [RunFolder.create(CONFIG, None, [], "").path for _ in range(3)]
    stem = Path("runs/quick/20260102-030405-s3")
    assert paths == [stem, Path(f"{stem}-2"), Path(f"{stem}-3")]


def test_a_preset_name_stays_inside_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder.create(CONFIG.model_copy(update={"preset": "../../x"}), None, [], "")
    assert (tmp_path / "runs").resolve() in run.path.resolve().parents


def test_a_folder_with_content_is_not_touched(run: RunFolder, tmp_path: Path) -> None:
    run.append(record(1))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=f"already holds a run.*--resume {run.path}"):
        RunFolder.create(CONFIG, run.path, [], "")
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not empty.*--resume"):
        RunFolder.create(CONFIG, tmp_path / "other", [], "")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder.create(CONFIG, tmp_path / "other" / "thesis.tex", [], "")
    with pytest.raises(UsageError, match="Not a directory"):
        RunFolder.create(CONFIG, tmp_path / "other" / "thesis.tex" / "run", [], "")
    (tmp_path / "empty").mkdir()
    RunFolder.create(CONFIG, tmp_path / "empty", [], "")


def test_a_wrong_path_names_the_nearest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no run at nowhere: it does not exist. No other run"):
        RunFolder.open("nowhere")
    first, second = Path("runs/quick/20260102-030405-s0"), Path("runs/final/20270102-030405-s0")
    for number, out in enumerate((first, second)):
        RunFolder.create(CONFIG, out, [], "").close()
        os.utime(out / "config.toml", (number, number))
    with pytest.raises(UsageError, match=f"it does not exist. The nearest run is {first}."):
        RunFolder.open("runs/quick/20260102-030405-s1")
    with pytest.raises(UsageError, match=f"runs/config.toml was looked for. The latest run under it is {second}."):
        RunFolder.open("runs")
    with pytest.raises(UsageError, match=f"it is a file. The nearest run is {first}."):
        RunFolder.open(first / "config.toml")
    Path("notes").mkdir()
    with pytest.raises(UsageError, match="there is no run in notes.*The nearest run is runs/"):
        RunFolder.open("notes")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.toml", b"\xff\xfe", "config.toml cannot be read"),
        ("config.toml", b"[settings\n", "config.toml cannot be read"),
        ("environment.json", b"{", "environment.json is damaged"),
        ("environment.json", b"[]", "an object was expected, list found"),
        ("environment.json", b"{}", 'it has no "run_id"'),
        ("environment.json", None, "environment.json is missing"),
    ],
)
def test_damaged_settings_are_named(run: RunFolder, name: str, content: bytes | None, message: str) -> None:
    (run.path / name).unlink()
    if content is not None:
        (run.path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        RunFolder.open(run.path)


def test_a_resumed_run_says_what_differs(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.note_differences("cpu")
    assert capsys.readouterr().err == ""
    run.environment["torch"] = "1.0"
    run.note_differences("cpu")
    assert f"torch: 1.0 -> {torch.__version__}" in capsys.readouterr().err


# One writer


def test_one_writer_at_a_time(run: RunFolder) -> None:
    other = RunFolder.open(run.path)
    for write in (
        other.lock,
        lambda: other.append(record(1)),
        lambda: other.truncate(0),
        lambda: other.save_checkpoint(*saved(1)),
        lambda: other.write_summary({}),
    ):
        with pytest.raises(UsageError, match=f"is in use: process {os.getpid()} on .* is writing to it"):
            write()
    run.close()
    with other.locked():
        other.append(record(1))
        with pytest.raises(UsageError, match="is in use"):
            run.lock()
    with run.locked():
        assert run.records == [record(1)]  # the line of the other process is there


def test_a_killed_writer_leaves_no_lock(run: RunFolder) -> None:
    run.close()
    code = (
        "import sys, fastcifar.run.folder as r; f = r.RunFolder.open(sys.argv[1]); f.lock(); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        with pytest.raises(UsageError, match=f"is in use: process {other.pid} "):
            run.lock()
        other.kill()
    run.lock()


# Metrics


def rows(run: RunFolder) -> list[dict[str, str]]:
    with open(run.path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_an_epoch_is_a_line_in_both_files(run: RunFolder) -> None:
    assert (run.path / "metrics.csv").read_text() == ",".join(EPOCH_KEYS) + "\n"
    run.append(record(1, train_loss=1 / 3))
    run.append(record(2, val_loss=2.5, val_accuracy=0.25))
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [unsealed(json.loads(line)) for line in lines] == run.records
    assert RunFolder.open(run.path).records == run.records
    assert [(row["epoch"], row["val_loss"]) for row in rows(run)] == [("1", ""), ("2", "2.5")]
    assert float(rows(run)[0]["train_loss"]) == 1 / 3
    run.append(record(3, energy_joules=5.0))
    assert [row["energy_joules"] for row in rows(run)] == ["", "", "5.0"]
    with pytest.raises(ValueError, match="epoch 3 cannot follow epoch 3"):
        run.append(record(3))
    with pytest.raises(ValueError, match="lacks train_seconds"):
        run.append({key: value for key, value in record(4).items() if key != "train_seconds"})
    with pytest.raises(TypeError, match="record.train_loss is a Tensor"):
        run.append(record(4, train_loss=torch.tensor(1.0)))


def test_truncate_drops_later_epochs(run: RunFolder) -> None:
    for epoch in range(1, 5):
        run.append(record(epoch))
    run.truncate(4)
    assert len(rows(run)) == 4
    run.truncate(2)
    assert [r["epoch"] for r in RunFolder.open(run.path).records] == [1, 2]
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]
    run.append(record(3))
    assert [r["epoch"] for r in RunFolder.open(run.path).records] == [1, 2, 3]


@pytest.mark.parametrize("tail", [b'{"epoch": 3, "lr": 0.', b'{"epoch": 3}garbage\n', b"\0" * 40, b"\xff\n"])
def test_a_torn_last_line_is_dropped_with_a_note(
    run: RunFolder, tail: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    run.append(record(1))
    run.append(record(2))
    run.close()
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(tail)
    (run.path / "metrics.csv").write_bytes((run.path / "metrics.csv").read_bytes()[:-5])
    again = RunFolder.open(run.path)
    assert "the last line was cut off by a crash and is dropped" in capsys.readouterr().err
    assert [r["epoch"] for r in again.records] == [1, 2]
    again.append(record(3))
    again.close()
    assert [r["epoch"] for r in RunFolder.open(run.path).records] == [1, 2, 3]
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3"]


def test_a_csv_that_lags_behind_is_written_anew(run: RunFolder) -> None:
    run.append(record(1))
    whole = (run.path / "metrics.csv").read_bytes()
    run.close()
    for content in (whole[:-5], whole.replace(b"0.05", b"0.06"), b""):
        (run.path / "metrics.csv").write_bytes(content)
        with run.locked():
            assert (run.path / "metrics.csv").read_bytes() == whole


DAMAGES = {
    "not JSON": lambda line: "#" + line,
    "a flipped key": lambda line: line.replace("train_loss", "train_lost"),
    "text for a number": lambda line: line.replace("0.05", '"0.05"'),
    "a flag for a number": lambda line: line.replace("0.05", "true"),
    "no epoch": lambda line: line.replace('"epoch": 2', '"epoch": null'),
    "epoch 0": lambda line: line.replace('"epoch": 2', '"epoch": 0'),
    "a later epoch": lambda line: line.replace('"epoch": 2', '"epoch": 6'),
    "an epoch again": lambda line: line.replace('"epoch": 2', '"epoch": 1'),
    "a huge number": lambda line: line.replace("0.05", "1" + "0" * 400),
    "a number of 5,000 digits": lambda line: line.replace("0.05", "1" * 5000),
    "an accuracy above 1": lambda line: line.replace('"train_accuracy": 0.1', '"train_accuracy": 1.1'),
    "deep nesting": lambda line: "[" * 100_000 + "]" * 100_000,
    "a list": lambda line: "[1, 2]",
    "bytes": lambda line: "\0\x1b[31m",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_line_stops_nothing(
    run: RunFolder, damage: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the curves depend on a line. It is dropped with a note, and a copy of its file is kept."""
    for epoch in range(1, 6):
        run.append(record(epoch))
    run.close()
    path = run.path / "metrics.jsonl"
    lines = [json.dumps(kept) for kept in run.records]  # as earlier versions wrote them, without a checksum
    lines[1] = damage(lines[1])
    path.write_text("\n".join([*lines, ""]))
    whole = path.read_bytes()
    again = RunFolder.open(run.path)
    assert [kept["epoch"] for kept in again.records][-3:] == [3, 4, 5]
    assert path.read_bytes() == whole  # opening changes nothing
    with again.locked():
        again.append(record(6))
    err = capsys.readouterr().err
    assert err.count("metrics.jsonl is damaged: line ") == 1 and "only the curves depend on it" in err
    assert "\x1b" not in err
    assert (run.path / "metrics.jsonl.damaged").read_bytes() == whole
    assert [kept["epoch"] for kept in RunFolder.open(run.path).records] == [1, 3, 4, 5, 6]
    assert [row["epoch"] for row in rows(run)] == ["1", "3", "4", "5", "6"]
    assert capsys.readouterr().err == ""


def test_a_flipped_digit_is_noticed(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """The bug: another loss in the curves, another accuracy in the report."""
    for epoch in range(1, 4):
        run.append(record(epoch))
    run.write_summary({"test_accuracy": 0.7})
    for name, before, after in (
        ("metrics.jsonl", b'"train_loss": 2.0', b'"train_loss": 3.0'),
        ("summary.json", b"0.7", b"0.9"),
        ("environment.json", b"logical", b"logicam"),
    ):
        content = (run.path / name).read_bytes()
        assert before in content
        (run.path / name).write_bytes(content.replace(before, after))
    with pytest.raises(CheckpointError, match="summary.json is damaged: its checksum is not that of its content"):
        run.summary()
    again = RunFolder.open(run.path)
    assert [kept["epoch"] for kept in again.records] == [1, 3]
    err = capsys.readouterr().err
    assert "metrics.jsonl is damaged: line 2 (its checksum is not" in err
    assert "environment.json is damaged, and what it says may be wrong: its checksum is not" in err


def test_many_damaged_lines_are_one_note(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.close()
    (run.path / "metrics.jsonl").write_text("x\n" * 300 + json.dumps(record(1)) + "\n")
    assert len(RunFolder.open(run.path).records) == 1
    assert capsys.readouterr().err.count("note: ") == 1


def test_a_line_that_does_not_fit_is_taken_back(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.append(record(1))
    before = (run.path / "metrics.jsonl").read_bytes(), (run.path / "metrics.csv").read_bytes()
    with only_bytes_fit(len(before[0]) + 10), pytest.raises(FastcifarError, match="no room to write .*metrics.jsonl"):
        run.append(record(2))
    assert before == ((run.path / "metrics.jsonl").read_bytes(), (run.path / "metrics.csv").read_bytes())
    run.append(record(2))
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]


# The checkpoint's content


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_values_shapes_and_dtypes_come_back_bitwise(run: RunFolder) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (64,), dtype=torch.uint8, generator=generator)
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    dtypes += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    tensors = {f"{dtype}": raw.view(dtype).reshape(2, -1) for dtype in dtypes}  # any bits: NaNs of all kinds too
    image = torch.randn(2, 3, 4, 5, generator=generator)
    tensors |= {
        "channels_last": image.to(memory_format=torch.channels_last),
        "transposed": image.transpose(1, 3),
        "shared": image,
        "shared again": image,
        "part": image[:, 1],
        "expanded": torch.randn(1, 3).expand(4, 3),
        "bool": raw > 100,
        "scalar": torch.tensor(-0.0),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "": torch.ones(1),
        'a.b..c\n"\\/é\0': torch.ones(1),
    }
    run.save_checkpoint(tensors, {})
    loaded, _ = run.load_checkpoint()
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(loaded[name]) == bits(tensor.detach()), name
    loaded["scalar"].add_(1)  # writable, like any tensor


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


names = st.text().filter(lambda name: name != "__metadata__")  # refused: safetensors keeps it for itself


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=st.dictionaries(st.text(), json_values, max_size=4), names=st.lists(names, max_size=4, unique=True))
def test_state_comes_back_exactly(run: RunFolder, state: dict[str, Any], names: list[str]) -> None:
    run.save_checkpoint({name: torch.tensor(i) for i, name in enumerate(names)}, state)
    tensors, again = run.load_checkpoint()
    assert again == state
    assert repr(again) == repr(state)  # 1, 1.0 and True are equal, but not the same
    assert [(name, int(tensor)) for name, tensor in tensors.items()] == list(zip(names, range(4), strict=False))


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, {3}, b"x", torch.tensor(1)])
def test_what_json_would_change_is_refused(run: RunFolder, value: object) -> None:
    with pytest.raises(TypeError, match=r"state\.rng\[1\] (is a|has the key)"):
        run.save_checkpoint({}, {"rng": [0, value]})
    assert not run.has_checkpoint()


def test_only_one_checkpoint_is_kept(run: RunFolder) -> None:
    for version in range(3):
        run.save_checkpoint(*saved(version))
    assert len(list(run.path.glob("checkpoint-*"))) == 1
    assert loaded_version(run) == 2


def test_a_reader_meets_a_writer(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save_checkpoint(*saved(1))
    reader, read = RunFolder.open(run.path), Checkpoint._read_checked

    def read_late(self: Checkpoint, pointer: Pointer, name: str) -> bytes:
        if pointer.folder == "checkpoint-1" and name == "state.json":
            run.save_checkpoint(*saved(2))
        return read(self, pointer, name)

    monkeypatch.setattr(Checkpoint, "_read_checked", read_late)
    assert loaded_version(reader) == 2


# Damage


def test_no_checkpoint_yet(run: RunFolder) -> None:
    assert not run.has_checkpoint()
    with pytest.raises(CheckpointError, match="has no checkpoint.*checkpoint.json was looked for.*train anew with"):
        run.load_checkpoint()


@pytest.mark.parametrize("pattern", FILES)
def test_every_damage_names_its_file_and_a_way_out(run: RunFolder, pattern: str) -> None:
    run.save_checkpoint(*saved(1))
    path = only(run, pattern)
    whole = path.read_bytes()
    choose = random.Random(0)
    damaged = [whole[:length] for length in {0, 1, len(whole) // 2, len(whole) - 1}]
    damaged += [whole + b"\0"]
    positions = range(len(whole)) if len(whole) < 1000 else choose.sample(range(len(whole)), 300)
    for position in positions:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << choose.randrange(8)
        damaged.append(bytes(flipped))
    harmless = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            assert loaded_version(run) == 1
            harmless += 1
        except CheckpointError as error:
            assert "checkpoint" in str(error) and "Restore the run folder from a copy, or train anew" in str(error)
    # Only the pointer has bytes without meaning: its date and its white space.
    assert harmless <= (60 if path.name == "checkpoint.json" else 0)
    path.unlink()
    with pytest.raises(CheckpointError, match=path.name):
        run.load_checkpoint()


@pytest.mark.parametrize("patterns", [*zip(FILES), FILES], ids=[*FILES, "all"])
def test_another_runs_files_are_refused(run: RunFolder, tmp_path: Path, patterns: tuple[str, ...]) -> None:
    other = RunFolder.create(CONFIG, tmp_path / "other", [], "digest")
    run.save_checkpoint(*saved(1))
    other.save_checkpoint(*saved(2))
    for pattern in patterns:
        only(run, pattern).write_bytes(only(other, pattern).read_bytes())
    with pytest.raises(CheckpointError, match=r"(belongs to|is damaged or of) another run"):
        run.load_checkpoint()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 3, "has format 3; this fastcifar reads formats 1 and 2"),
        ("folder", "../x", "is damaged: it names no"),
    ],
)
def test_a_pointer_is_not_trusted(run: RunFolder, key: str, value: object, message: str) -> None:
    run.save_checkpoint(*saved(1))
    path = run.path / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=message):
        run.load_checkpoint()


def test_a_run_may_move(run: RunFolder, tmp_path: Path) -> None:
    run.save_checkpoint(*saved(1))
    run.close()
    run.path.rename(tmp_path / "moved")
    assert loaded_version(RunFolder.open(tmp_path / "moved")) == 1


# Predictions


def said(num_images: int = 6, classes: int = 3) -> dict[str, Any]:
    labels = np.arange(num_images) % classes
    return {
        "labels": labels,
        "predicted": labels,
        "confidence": np.full(num_images, 0.5, np.float32),
        "label_probability": np.full(num_images, 0.5, np.float32),
    }


@pytest.mark.parametrize(
    ("largest", "dtype"), [(2, np.int16), (32767, np.int16), (32768, np.int32), (2**31, np.int64)], ids=str
)
def test_class_numbers_are_as_wide_as_they_need_to_be(run: RunFolder, largest: int, dtype: Any) -> None:
    """The bug: label 40,000 was -25,536. Files of sets with fewer classes stay as they were."""
    arrays = said()
    arrays["labels"] = np.array([0, 1, 2, 0, 1, largest])
    run.write_predictions(arrays)
    found = RunFolder.open(run.path).predictions()
    assert found is not None
    assert found["labels"].tolist() == [0, 1, 2, 0, 1, largest]
    assert (found["labels"].dtype, found["predicted"].dtype) == (dtype, dtype)


def test_class_names_and_places_stand_beside_the_predictions(run: RunFolder) -> None:
    names = ["\u732b", "a,b\n", "caf\udce9"]  # the last one is not UTF-8 on disk
    places = np.array([3, 1, 2, 0, 5, 4])
    run.write_predictions(said() | {"class_names": np.array(names), "places": places})
    found = RunFolder.open(run.path).predictions()
    assert found is not None
    assert found["class_names"].tolist() == names and found["places"].tolist() == places.tolist()
    with np.load(run.path / "predictions.npz", allow_pickle=False) as arrays:  # as users read the file
        assert arrays["class_names"][arrays["labels"][1]] == names[1]


def test_predictions_of_an_earlier_version_are_read(run: RunFolder) -> None:
    arrays = {name: array.astype("int16") if array.dtype.kind == "i" else array for name, array in said().items()}
    np.savez_compressed(run.path / "predictions.npz", **arrays)
    found = RunFolder.open(run.path).predictions()
    assert found is not None and found.keys() == arrays.keys()


def no_member(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arrays: {key: array for key, array in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_member("labels"), "it has no labels"),
        (lambda arrays: arrays | {"predicted": arrays["predicted"][1:]}, r"predicted has the shape \(5,\)"),
        (lambda arrays: arrays | {"labels": arrays["labels"].astype(float)}, "labels is of another type"),
        (lambda arrays: arrays | {"confidence": np.array(["x"] * 6)}, "confidence is of another type"),
        (lambda arrays: arrays | {"labels": arrays["labels"] - 1}, "a class number is below 0"),
        (lambda arrays: arrays | {"class_names": np.array(["a"])}, "class_names does not name class 2"),
        (lambda arrays: arrays | {"places": np.array([{}] * 6)}, "is damaged"),
    ],
    ids=["no labels", "fewer", "float labels", "text", "negative", "too few names", "pickled objects"],
)
def test_odd_predictions_are_refused(run: RunFolder, damage: Callable[[Any], Any], message: str) -> None:
    np.savez(run.path / "predictions.npz", **damage(said()))
    with pytest.raises(CheckpointError, match=f"predictions.npz is damaged: .*{message}|{message}.*Delete it"):
        RunFolder.open(run.path).predictions()


def test_an_array_that_is_hidden_is_missed(run: RunFolder) -> None:
    """The bug, found by flipped bits: a length in the archive's directory skipped the arrays behind it, in silence."""
    run.write_predictions(said() | {"places": np.arange(6)})
    path = run.path / "predictions.npz"
    content = bytearray(path.read_bytes())
    last = content.rfind(b"PK\1\2", 0, content.rfind(b"PK\1\2"))
    content[last + 33] ^= 0x80  # of the comment behind the last entry but one
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="directory is damaged behind '[a-z_]+.npy'. Delete it"):
        run.predictions()


def test_predictions_that_claim_too_much_are_refused(run: RunFolder) -> None:
    """A few bytes that would unpack to more than the memory, and a member that is not an array."""
    with zipfile.ZipFile(run.path / "predictions.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
        archive.writestr("labels.npy", header.getvalue())
    with pytest.raises(CheckpointError, match="Delete it"):
        RunFolder.open(run.path).predictions()
    with zipfile.ZipFile(run.path / "predictions.npz", "w") as archive:
        archive.writestr("labels", b"abc")
    with pytest.raises(CheckpointError, match="Delete it"):
        RunFolder.open(run.path).predictions()


# What a run's files may be, and what its folder may refuse

READERS: dict[str, Callable[[RunFolder], object]] = {
    "config.toml": lambda run: RunFolder.open(run.path),
    "environment.json": lambda run: RunFolder.open(run.path),
    "metrics.jsonl": lambda run: RunFolder.open(run.path),
    "summary.json": lambda run: run.summary(),
    "predictions.npz": lambda run: run.predictions(),
    "checkpoint.json": lambda run: run.load_checkpoint(),
    "checkpoint-1/state.json": lambda run: run.load_checkpoint(),
    "checkpoint-1/tensors.safetensors": lambda run: run.load_checkpoint(),
}


@pytest.fixture
def whole(run: RunFolder) -> RunFolder:
    run.append(record(1))
    run.save_checkpoint(*saved(1))
    run.write_summary({"test_accuracy": 0.5})
    run.write_predictions(said())
    return run


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a socket", "huge"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_and_not_waited_for(
    whole: RunFolder, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = whole.path / name
    content = path.read_bytes()
    path.unlink()
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a socket":
        monkeypatch.chdir(path.parent)  # a socket's path may have 107 bytes
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    else:
        path.write_bytes(content)
        os.truncate(path, 2**40)
    with pytest.raises((CheckpointError, UsageError), match=re.escape(str(path)) + ".*(" + kind + "|bytes|looked for)"):
        READERS[name](whole)


JSON_DAMAGES = {
    "deep nesting": b'{"run_id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of 5,000 digits": b'{"run_id": ' + b"1" * 5_000 + b"}",
    "numbers for text": b'{"run_id": 1, "dataset_digest": 2, "format": 1, "folder": 3, "parameters": "3"}',
    "text for numbers": b'{"test_accuracy": "0.5", "format": "1"}',
    "true": b"true",
    "other bytes": b"\xff\xfe\0\0",
    "nothing": b"",
}


@pytest.mark.parametrize("damage", JSON_DAMAGES.values(), ids=JSON_DAMAGES)
@pytest.mark.parametrize("name", ["environment.json", "summary.json", "checkpoint.json", "config.toml"])
def test_every_damage_is_an_error_of_ours(whole: RunFolder, name: str, damage: bytes) -> None:
    (whole.path / name).write_bytes(damage)
    with pytest.raises(FastcifarError, match=name):
        READERS[name](whole)


def test_cut_settings_are_not_made_up_from_defaults(run: RunFolder) -> None:
    path = run.path / "config.toml"
    lines = path.read_text().splitlines()
    for count in (0, 1, 2, 10, len(lines) // 2):
        path.write_text("\n".join(lines[:count]))
        with pytest.raises(CheckpointError, match="config.toml is damaged: it has no .*(seed|precision)"):
            RunFolder.open(run.path)


def test_settings_are_those_that_the_run_wrote(whole: RunFolder) -> None:
    """The bug: a flipped digit of std trained on. Every bit counts, before and after the first checkpoint."""
    path = whole.path / "config.toml"
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(bytes(flipped))
        with pytest.raises(CheckpointError, match="config.toml"):
            RunFolder.open(whole.path)
    path.write_bytes(content.replace(b"\n", b"\r\n"))
    with pytest.raises(CheckpointError, match=r"is not as the run wrote it: its SHA-256 is .*Restore it from a copy"):
        RunFolder.open(whole.path)


def test_settings_and_environment_of_another_run_are_refused(whole: RunFolder, tmp_path: Path) -> None:
    """Both files agree with each other, but not with the checkpoint. The bug: they were accepted."""
    other = RunFolder.create(CONFIG.model_copy(update={"lr": 0.5}), tmp_path / "other", [], "digest")
    facts = json.loads((other.path / "environment.json").read_text())
    (whole.path / "environment.json").write_text(json.dumps(facts | {"run_id": whole.id}))
    with pytest.raises(CheckpointError, match=r"config.toml is not as the run wrote it"):
        RunFolder.open(whole.path)
    shutil.copy(other.path / "config.toml", whole.path)
    with pytest.raises(CheckpointError, match=r"config.toml is not the file with which the checkpoint was saved"):
        RunFolder.open(whole.path).load_checkpoint()


def test_an_environment_that_was_altered_is_refused(whole: RunFolder) -> None:
    path = whole.path / "environment.json"
    path.write_text(path.read_text().replace('"digest"', '"digesu"'))
    with pytest.raises(CheckpointError, match=r"environment.json is not the file .* train anew with"):
        RunFolder.open(whole.path).load_checkpoint()


def test_a_pointer_without_digests_of_the_settings_is_damaged(whole: RunFolder) -> None:
    path = whole.path / "checkpoint.json"
    pointer = json.loads(path.read_text())
    del pointer["files"]["config.toml"]
    path.write_text(json.dumps(pointer))
    with pytest.raises(CheckpointError, match="is damaged: it names no checkpoint .*expected the digests"):
        whole.load_checkpoint()


def test_a_run_of_an_earlier_version_goes_on(whole: RunFolder) -> None:
    without_digests(whole.path)
    path = whole.path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))  # as an editor of Windows saves it
    again = RunFolder.open(whole.path)
    assert again.config == CONFIG and loaded_version(again) == 1


def test_a_summary_is_of_its_types(whole: RunFolder) -> None:
    for bad in ('"0.5"', "1.5", "true", "[1]"):
        (whole.path / "summary.json").write_text(f'{{"test_accuracy": {bad}}}')
        with pytest.raises(CheckpointError, match="test_accuracy: .*train --resume"):
            whole.summary()


def test_a_fact_that_is_damaged_is_left_out(whole: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged fact of the environment that only people read stops nothing."""
    path = whole.path / "environment.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"cpu": 7, "threads": {"torch": "2"}, "command": "train"}))
    again = RunFolder.open(whole.path)
    assert again.id == whole.id and not {"cpu", "threads", "command"} & again.environment.keys()
    assert "threads.torch: expected a valid integer" in capsys.readouterr().err


def test_a_command_that_is_not_utf8_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fastcifar", "train", "--data", os.fsdecode(b"caf\xe9")]
    RunFolder.create(CONFIG, tmp_path / "run", command, "digest").close()
    assert RunFolder.open(tmp_path / "run").environment["command"] == command
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("state", [b"{}", b'{"tensors": [1], "state": {}}', b'{"tensors": ["x"], "state": {}}', b"[]"])
def test_a_state_with_its_digest_may_still_be_wrong(whole: RunFolder, state: bytes) -> None:
    """As after somebody edited both files."""
    (whole.path / "checkpoint-1/state.json").write_bytes(state)
    pointer = json.loads((whole.path / "checkpoint.json").read_text())
    pointer["files"]["state.json"] = {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    (whole.path / "checkpoint.json").write_text(json.dumps(pointer))
    with pytest.raises(CheckpointError, match="has its digests but cannot be read.*nothing was loaded"):
        whole.load_checkpoint()


STATE = {
    "epoch": 3,
    "step": 5,
    "clocks": {"train_seconds": 1.0, "compile_seconds": 0.0, "process_seconds": 2.0},
    "scaler": {},
    "telemetry": {"joules": 0.0, "seconds": 0.0, "integrated": False},
}


def test_a_training_state_of_the_run_is_taken(tmp_path: Path) -> None:
    assert check_training_state(STATE, tmp_path, 3, 6) == (3, 5)
    assert check_training_state(STATE | {"epoch": 4, "step": 0}, tmp_path, 3, 6) == (4, 0)
    of_version_01 = {key: value for key, value in STATE.items() if key != "telemetry"}
    assert check_training_state(of_version_01, tmp_path, 3) == (3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 0}, "epoch: expected greater than or equal to 1, 0 found"),
        ({"epoch": 99}, "it goes on at epoch 99, and the run has 3"),
        ({"step": 6}, "it goes on at step 6 of epoch 3, whose last step is 5"),
        ({"epoch": 4}, "it goes on at step 5 of epoch 4, whose last step is 0"),
        ({"step": -1}, "step: "),
        ({"epoch": "3"}, "epoch: expected a valid integer"),
        ({"epoch": True}, "epoch: "),
        ({"clocks": {}}, 'it has no "clocks.train_seconds"'),
        ({"clocks": 1}, "clocks: "),
        ({"scaler": None}, "scaler: "),
        ({"telemetry": {"joules": "many"}}, "telemetry.joules: "),
    ],
    ids=str,
)
def test_a_training_state_of_no_run_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message + ".*train anew with"):
        check_training_state(STATE | change, tmp_path, 3, 6)


def test_a_training_state_needs_its_keys(tmp_path: Path) -> None:
    for name in ("epoch", "step", "clocks", "scaler"):
        with pytest.raises(CheckpointError, match=f'it has no "{name}"'):
            check_training_state({key: value for key, value in STATE.items() if key != name}, tmp_path, 3, 6)


def test_a_users_copy_of_a_checkpoint_is_not_removed(run: RunFolder) -> None:
    """The bug: every file named checkpoint-* was taken for a leftover."""
    run.save_checkpoint(*saved(1))
    shutil.copytree(run.path / "checkpoint-1", run.path / "checkpoint-1-best")
    run.save_checkpoint(*saved(2))
    assert sorted(path.name for path in run.path.glob("checkpoint-*")) == ["checkpoint-1-best", "checkpoint-2"]


@pytest.mark.parametrize("last", range(1, 8))
def test_a_run_killed_before_its_settings_were_written_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """It cannot be resumed, so that --out accepts its folder, whatever was written into it."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        count = 0

        def killed(path: Path, content: bytes) -> None:
            nonlocal count
            count += 1
            path.write_bytes(content[: len(content) // 2] if count == last else content)
            if count == last:
                raise Killed

        patch.setattr(files, "write", killed)
        if last <= 4:
            with pytest.raises(Killed):
                RunFolder.create(CONFIG, out, [], "digest")
        else:
            RunFolder.create(CONFIG, out, [], "digest").close()
            (out / "config.toml").unlink()
    gc.collect()  # a process that was killed holds no lock
    with pytest.raises(UsageError, match=f"one was begun there.*--out {out}"):
        RunFolder.open(out)
    RunFolder.check_unused(out)
    with RunFolder.create(CONFIG, out, [], "digest").locked():
        assert RunFolder.open(out).config == CONFIG


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("thesis.tex", "x"),
        ("metrics.jsonl", '{"epoch": 1}\n'),
        ("environment.json", '{"run_id": "?"}'),
        ("metrics.csv", "mine"),
    ],
)
def test_a_folder_with_something_else_in_it_is_not_one(tmp_path: Path, name: str, content: str) -> None:
    out = tmp_path / "run"
    RunFolder.create(CONFIG, out, [], "digest").close()
    (out / "config.toml").unlink()
    (out / name).write_text(content)
    for refuses in (RunFolder.check_unused, lambda path: RunFolder.create(CONFIG, path, [], "digest")):
        with pytest.raises(UsageError, match="is not empty"):
            refuses(out)
    assert (out / name).read_text() == content


def test_a_hint_can_be_pasted(tmp_path: Path) -> None:
    out = tmp_path / "my runs" / "it's one"
    RunFolder.create(CONFIG, out, [], "digest").close()
    with pytest.raises(UsageError, match="Continue it with --resume") as caught:
        RunFolder.create(CONFIG, out, [], "digest")
    assert str(out) in shlex.split(str(caught.value).split("--resume ")[1].split(", or")[0])
    with pytest.raises(CheckpointError, match="train anew") as missing:
        RunFolder.open(out).load_checkpoint()
    assert str(out / "config.toml") in shlex.split(str(missing.value).split("`")[1])


TOO_LONG = "a" * 300


@pytest.mark.parametrize("name", [TOO_LONG, f"x/{TOO_LONG}", "a\0b"], ids=["long", "below", "NUL"])
def test_an_impossible_name_is_an_error_of_ours(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for use in (
        RunFolder.open,
        RunFolder.check_unused,
        lambda out: RunFolder.create(CONFIG, out, [], "digest"),
    ):
        with pytest.raises(UsageError):
            use(path)
    assert not (tmp_path / "x" / TOO_LONG[:10]).exists()


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a run, which this user may not enter; also if this user is root, who may enter every folder."""
    folder = tmp_path / "closed"
    RunFolder.create(CONFIG, folder / "run", [], "digest").close()
    (folder / "run" / "metrics.jsonl").write_text(json.dumps(record(1)) + "\n")
    folder.chmod(0)
    if os.access(folder, os.X_OK):
        inside = str(folder) + "/"

        def refused(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any, *args: Any, **kwargs: Any) -> Any:
                if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(inside):
                    raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
                return real(path, *args, **kwargs)

            return call

        for name in ("stat", "lstat", "mkdir", "open", "scandir", "listdir"):
            monkeypatch.setattr(os, name, refused(getattr(os, name)))
        monkeypatch.setattr(os, "access", lambda path, mode: not f"{os.fspath(path)}/".startswith(inside))
    yield folder
    monkeypatch.undo()
    folder.chmod(0o700)


def test_a_folder_that_lets_nobody_in_is_named(closed: Path) -> None:
    for use in (
        RunFolder.open,
        RunFolder.check_unused,
        lambda out: RunFolder.create(CONFIG, out, [], "digest"),
        lambda out: RunFolder.check_unused(out / "deeper" / "new"),
        lambda out: RunFolder.create(CONFIG, out / "deeper" / "new", [], "digest"),
    ):
        with pytest.raises(UsageError, match=rf"Permission denied \(the folder {closed} does not let this user in\)"):
            use(closed / "run")


# Failing and dying while saving


class Killed(BaseException):
    """Looks like the end of the process to the code under test, which cannot clean up after it."""


class Steps:
    """Makes one step of a save fail, and no other: the opening, writing or syncing of a file, or a rename."""

    def __init__(self, patch: pytest.MonkeyPatch, fail_at: int, error: BaseException) -> None:
        self.fail_at, self.error, self.count = fail_at, error, 0
        patch.setattr(files, "open", self.open_file, raising=False)
        for where, name in ((os, "fsync"), (os, "replace"), (os, "open"), (Path, "mkdir")):
            patch.setattr(where, name, self.step(getattr(where, name)))

    def step(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.fail_at:
                raise self.error
            return real(*args, **kwargs)

        return counted

    def open_file(self, path: Path, mode: str) -> Any:
        file = self.step(open)(path, mode)
        real_write = file.write

        def write(content: bytes) -> None:
            real_write(content[: len(content) // 2])
            self.step(real_write)(content[len(content) // 2 :])

        proxy = contextlib.ExitStack()
        proxy.enter_context(file)
        proxy.write, proxy.flush, proxy.fileno = write, file.flush, file.fileno  # type: ignore[attr-defined]
        return proxy


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "first"), [(FULL, False), (Killed(), True), (Killed(), False)], ids=["full", "killed first", "killed"]
)
def test_a_save_that_fails_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, first: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a thousand real syncs take seconds, and change nothing here
    outcomes = []
    for fail_at in itertools.count(1):
        run = RunFolder.create(CONFIG, tmp_path / f"{fail_at}", [], "digest")
        if not first:
            run.save_checkpoint(*saved(1))
        with pytest.MonkeyPatch.context() as patch:
            steps = Steps(patch, fail_at, error)
            try:
                run.save_checkpoint(*saved(2))
            except FastcifarError as shown:
                assert isinstance(error, OSError)
                assert (
                    "no room to write" in str(shown) and str(run.path) in str(shown) and "MiB are needed" in str(shown)
                )
            except Killed:
                assert isinstance(error, Killed)
            else:
                if steps.count < fail_at:
                    break
                # Removing the old checkpoint failed, after the switch to the new one; the next save removes it.
        run.close()
        again = RunFolder.open(run.path)
        version = loaded_version(again) if again.has_checkpoint() else 0
        assert version in (0 if first else 1, 2)
        outcomes.append(version)
        if isinstance(error, OSError) and version != 2:
            assert len(list(run.path.glob("checkpoint-*"))) == (0 if first else 1)  # the room is given back
        again.save_checkpoint(*saved(3))
        assert loaded_version(again) == 3
        assert len(list(run.path.glob("checkpoint-*"))) == 1
        again.close()
    assert len(outcomes) >= 14
    assert outcomes == sorted(outcomes)  # there is one switch, from the old checkpoint to the new one
    assert outcomes[-1] == 2


@contextlib.contextmanager
def only_bytes_fit(size: int) -> Iterator[None]:
    """The kernel itself refuses to let a file grow beyond `size`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_that_never_began_cannot_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: the message about a full disk advised --resume, where there was no run yet."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(FastcifarError, match="room, then give the command again.$"):
        patch.setattr(os, "replace", full)
        RunFolder.create(CONFIG, tmp_path / "run", [], "digest")
    run = RunFolder.create(CONFIG, tmp_path / "run", [], "digest")
    with monkeypatch.context() as patch, pytest.raises(FastcifarError, match="room, then continue with --resume.$"):
        patch.setattr(os, "replace", full)
        run.write_summary({})
    run.close()


def test_what_does_not_fit_is_said_with_its_size(run: RunFolder) -> None:
    run.save_checkpoint(*saved(1))
    with (
        only_bytes_fit(2**20),
        pytest.raises(FastcifarError, match=r"no room to write .*checkpoint-2: 4\.0 MiB are needed, [\d.,]+ MiB free"),
    ):
        run.save_checkpoint({"large": torch.zeros(2**20)}, {})
    assert loaded_version(run) == 1
    assert [path.name for path in run.path.glob("checkpoint-*")] == ["checkpoint-1"]


KILLER = """
    import os, random, signal, sys, time
    from pathlib import Path
    import torch
    from fastcifar.config import Config
    from fastcifar.run.folder import RunFolder

    torch.set_num_threads(1)
    path, rounds = Path(sys.argv[1]), int(sys.argv[2])
    RunFolder.create(Config(preset="quick", device="cpu"), path, [], "digest").close()
    version, choose, leftovers = 0, random.Random(0), 0
    for round in range(rounds):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            run = RunFolder.open(path)
            for number in range(version + 1, version + 10**6):
                tensors = {f"layer.{i}": torch.full((2000,), number) for i in range(5)}
                run.save_checkpoint(tensors, {"version": number})
                os.write(writer, b".")
        os.close(writer)
        os.read(reader, 1)  # it runs
        time.sleep(choose.random() * 0.02)
        os.kill(child, 9)
        os.waitpid(child, 0)
        done = 1
        while more := os.read(reader, 4096):
            done += len(more)
        os.close(reader)
        run = RunFolder.open(path)
        tensors, state = run.load_checkpoint()
        assert len(tensors) == 5 and all(bool((t == state["version"]).all()) for t in tensors.values()), round
        assert version + done <= state["version"] <= version + done + 1, (version, done, state)
        leftovers += len(list(path.glob("checkpoint-*"))) > 1 or (path / "checkpoint.json.new").exists()
        version = state["version"]
    print(version, leftovers)
"""


def test_sigkill_inside_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    rounds = 40
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLER), tmp_path / "run", str(rounds)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    version, leftovers = map(int, done.stdout.split())
    assert version >= rounds
    assert leftovers >= rounds // 6  # some kills came during saves


def test_an_interrupt_inside_a_save_leaves_the_old(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save_checkpoint(*saved(1))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts ignoring it
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", lambda *_: signal.raise_signal(signal.SIGINT))
            run.save_checkpoint(*saved(2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert loaded_version(run) == 1


# Curves


def test_curves_are_drawn(run: RunFolder) -> None:
    run.draw_curves()
    assert not (run.path / "curves.png").exists()
    run.append(record(1))
    run.draw_curves()
    assert (run.path / "curves.png").exists() and (run.path / "curves.svg").exists()


def test_curves_that_fail_are_a_note(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.append(record(1))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run.draw_curves()
    assert "note: the curves were not drawn: " in capsys.readouterr().err

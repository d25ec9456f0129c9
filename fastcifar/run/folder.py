"""The folder that a run leaves behind: settings, environment, metrics, curves, summary and the checkpoint.

    runs/final/20261123-103200-s0/
      config.toml         the resolved settings
      environment.json    the run's id, command and data digest; versions, device, commit
      metrics.jsonl       a line an epoch; metrics.csv holds the same
      curves.svg, .png
      summary.json        the result, once there is one
      predictions.npz     what the model says of each test image
      checkpoint.json     which checkpoint counts, with the size and SHA-256 of its files
      checkpoint-7/       tensors.safetensors, state.json

`checkpoint.json` is the only switch: a checkpoint is written to a folder of its own and forced to disk, then the
pointer is replaced in one step, then the previous folder goes. Whatever kills the process, the pointer names a whole
checkpoint. The digests are there because safetensors refuses a truncated file but not one with flipped bits.
"""

import contextlib
import csv
import difflib
import errno
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from fastcifar.config import Config, to_toml
from fastcifar.errors import CheckpointError, FastcifarError, UsageError
from fastcifar.layers import from_dict
from fastcifar.run.environment import collect, differences

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

CONFIG, ENVIRONMENT, SUMMARY, POINTER, LOCK = (
    "config.toml", "environment.json", "summary.json", "checkpoint.json", ".lock",
)  # fmt: skip
METRICS_JSONL, METRICS_CSV, PREDICTIONS = "metrics.jsonl", "metrics.csv", "predictions.npz"
TENSORS, STATE = "tensors.safetensors", "state.json"
FORMAT = 1

EPOCH_KEYS = (
    "epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "images_per_second", "train_seconds",
)  # fmt: skip
"""What every line of the metrics holds, in this order. Accuracies go from 0 to 1, `train_seconds` is the training clock
since epoch 1, and `val_*` are null where the epoch was not evaluated."""


def print_note(text: str) -> None:
    """The default place for what a user should know but that stops nothing: a line on stderr."""
    print(f"note: {text}", file=sys.stderr)


class RunFolder:
    """One run on disk. Reading needs nothing; the first write takes the folder's lock and holds it until `close`."""

    path: Path
    config: Config
    environment: dict[str, Any]
    records: list[dict[str, Any]]

    def __init__(self, path: Path, config: Config, environment: dict[str, Any], note: Callable[[str], None]) -> None:
        """For `create` and `open`."""
        self.path, self.config, self.environment, self._note = path, config, environment, note
        self.records, self._torn = [], False
        # thread_local=False: whichever thread writes, it is this run's lock.
        self._lock = filelock.FileLock(path / LOCK, thread_local=False)

    @classmethod
    def create(
        cls,
        config: Config,
        out: Path | None,
        command: Sequence[str],
        dataset_digest: str,
        *,
        note: Callable[[str], None] = print_note,
    ) -> "RunFolder":
        """Makes the folder of a new run and locks it.

        Args:
            config: the resolved settings.
            out: the folder to use, new or empty; None makes `runs/<preset>/<local time>-s<seed>`, always a new one.
            command: what the user ran, for the record.
            dataset_digest: the data set's digest, for the check on resume.
            note: receives what a user should know but that stops nothing.

        Raises:
            UsageError: `out` is a file, holds something already, or cannot be made.
        """
        path = _new_folder(config) if out is None else _given_folder(out)
        facts = {
            "run_id": uuid.uuid4().hex,
            "command": list(command),
            "dataset_digest": dataset_digest,
            **collect(config.device),
        }
        run = cls(path, config, facts, note)
        run.lock()
        if (path / CONFIG).exists():  # another process was given the same --out and came first
            run.close()
            raise _not_empty(path)
        _replace(path / ENVIRONMENT, _to_json(facts))
        _replace(path / METRICS_JSONL, b"")
        _replace(path / METRICS_CSV, _to_csv([]))
        _replace(path / CONFIG, to_toml(config).encode())  # last: a folder with a config.toml is a whole run
        return run

    @classmethod
    def open(cls, path: str | Path, *, note: Callable[[str], None] = print_note) -> "RunFolder":
        """Opens the folder of an earlier run. Changes nothing in it.

        A half-written last line of the metrics, left by a crash, is dropped with a note.

        Raises:
            UsageError: there is no run at `path`; the message names the nearest one.
            CheckpointError: there is one, but its settings, environment or metrics are damaged.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            raise _no_run(path)
        try:
            settings = tomllib.loads((path / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise CheckpointError(f"{path / CONFIG} cannot be read: {problem}.") from problem
        facts = _read_json(path / ENVIRONMENT)
        for key in ("run_id", "dataset_digest"):
            if not isinstance(facts.get(key), str):
                raise CheckpointError(f'{path / ENVIRONMENT} is damaged: it has no "{key}". Restore it from a copy.')
        run = cls(path, from_dict(settings, str(path / CONFIG)), facts, note)
        run._read_metrics()
        return run

    @staticmethod
    def check_unused(out: Path) -> None:
        """Refuses what `create` would refuse to write to, without making it.

        Raises:
            UsageError: `out` is a file, or a folder that holds something.
        """
        if out.exists():
            _given_folder(out)

    @property
    def id(self) -> str:
        """A random name that stays with the run when its folder is moved or copied."""
        return str(self.environment["run_id"])

    @property
    def dataset_digest(self) -> str:
        """The digest of the data that the run was started with."""
        return str(self.environment["dataset_digest"])

    def note_differences(self, device: str) -> None:
        """Notes where this process differs from the one that started the run, so that its bits may too.

        Args:
            device: as `environment.collect` takes it.
        """
        if found := differences(self.environment, collect(device)):
            self._note(f"{self.path} was started elsewhere, so the last bits may differ: {'; '.join(found)}")

    def lock(self) -> None:
        """Keeps other processes from writing to this run until `close` or the end of the process.

        Every method that writes calls it; call it at once when resuming, so that a second process hears of it early.

        Raises:
            UsageError: another process is writing to the run.
        """
        if self._lock.is_locked:
            return
        with _explained(self.path / LOCK, 0):
            try:
                self._lock.acquire(blocking=False)
            except filelock.Timeout:
                owner = _read_bytes(self.path / LOCK).decode(errors="replace").strip() or "another process"
                raise UsageError(
                    f"{self.path} is in use: {owner} is writing to it. "
                    "Wait until it ends or stop it; a run has one writer at a time."
                ) from None
            if isinstance(self._lock, filelock.UnixFileLock):  # what it falls back to without flock writes there itself
                (self.path / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        if (self.path / CONFIG).is_file():
            self._read_metrics()  # the previous writer may have added lines since `open`
            if self._torn or _read_bytes(self.path / METRICS_CSV) != _to_csv(self.records):
                self._write_metrics()

    def close(self) -> None:
        """Gives the lock back. The object can still be read from."""
        self._lock.release()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """`lock`, and `close` at the end."""
        self.lock()
        try:
            yield
        finally:
            self.close()

    # Metrics

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one epoch's line to metrics.jsonl and metrics.csv.

        Args:
            record: the `EPOCH_KEYS`, and whatever else is worth a column; plain numbers, strings or None. A NaN or an
                infinity is written the way Python's json does.
        """
        self.lock()
        line = dict(record)
        _check_plain(line, "record")
        if missing := [key for key in EPOCH_KEYS if key not in line]:
            raise ValueError(f"an epoch's record lacks {', '.join(missing)}: {line}")
        if self.records and line["epoch"] <= self.records[-1]["epoch"]:
            raise ValueError(f"epoch {line['epoch']} cannot follow epoch {self.records[-1]['epoch']}")
        columns = _columns([*self.records, line])
        rewrite = self._torn or columns != _columns(self.records)
        self.records.append(line)
        try:
            if rewrite:
                self._write_metrics()
            else:
                _append(self.path / METRICS_JSONL, _to_jsonl([line]))
                _append(self.path / METRICS_CSV, _to_csv([line], columns, header=False))
        except FastcifarError:
            self.records.pop()
            self._torn = True  # one file may have the line
            raise

    def truncate(self, epoch: int) -> None:
        """Drops the metrics of every epoch after `epoch`: they will be trained again from an earlier checkpoint."""
        self.lock()
        kept = [record for record in self.records if record["epoch"] <= epoch]
        if len(kept) < len(self.records):
            self.records = kept
            self._write_metrics()

    def _read_metrics(self) -> None:
        self.records, self._torn = [], False
        path = self.path / METRICS_JSONL
        *lines, tail = _read_bytes(path).split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                record["epoch"] += 0
            except (ValueError, TypeError, KeyError) as problem:
                if number == len(lines) and not tail:  # a power cut may leave the right length and the wrong bytes
                    tail = line
                    break
                raise CheckpointError(
                    f"{path}, line {number}, is damaged: {_shortened(line)}. Restore the file from a copy, or delete "
                    "the line: only the curves depend on it."
                ) from problem
            self.records.append(record)
        if tail:
            self._torn = True
            self._note(f"{path}: the last line was cut off by a crash and is dropped: {_shortened(tail)}")

    def _write_metrics(self) -> None:
        _replace(self.path / METRICS_JSONL, _to_jsonl(self.records))
        _replace(self.path / METRICS_CSV, _to_csv(self.records))
        self._torn = False

    # Checkpoint

    def has_checkpoint(self) -> bool:
        """Whether a checkpoint was ever saved; whether it is sound is for `load_checkpoint` to say."""
        return (self.path / POINTER).exists()

    def save_checkpoint(self, tensors: Mapping[str, "torch.Tensor"], state: Mapping[str, Any]) -> None:
        """Replaces the checkpoint. On any failure, and if the process is killed at any point, the old one stays whole.

        Args:
            tensors: name -> tensor on any device, of any shape and of any dtype that safetensors knows. Values, shapes
                and dtypes come back bitwise; strides do not: a channels_last tensor comes back contiguous, and giving
                it its memory format again (`copy_` into the live parameter does) is the caller's business.
            state: what JSON holds exactly: str keys, str, bool, int of any size, float, None, lists, dicts. A tuple or
                another type is refused rather than changed.

        Raises:
            FastcifarError: the disk is full or cannot be written to.
        """
        self.lock()
        _check_plain(state, "state")
        contents = {
            TENSORS: _to_safetensors(tensors),
            STATE: _to_json({"tensors": list(tensors), "state": dict(state)}),
        }
        current = self._pointer()["folder"] if self.has_checkpoint() else None
        self._remove_checkpoints(but=current)  # what a killed writer left
        folder = self.path / f"checkpoint-{1 + int(current.rpartition('-')[2]) if current else 1}"
        pointer = {
            "format": FORMAT,
            "run_id": self.id,
            "saved": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "folder": folder.name,
            "files": {
                name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for name, content in contents.items()
            },
        }
        new_pointer = self.path / f"{POINTER}.new"
        with _explained(folder, sum(map(len, contents.values()))):
            # A checkpoint after epoch n promises n lines of metrics, also after a power cut.
            _sync(self.path / METRICS_JSONL)
            try:
                folder.mkdir()
                for name, content in contents.items():
                    _write(folder / name, content)
                _sync(folder)
                _sync(self.path)
                _write(new_pointer, _to_json(pointer))
                os.replace(new_pointer, self.path / POINTER)
            except OSError:
                self._remove_checkpoints(but=current)
                with contextlib.suppress(OSError):
                    new_pointer.unlink(missing_ok=True)
                raise
            _sync(self.path)
        self._remove_checkpoints(but=folder.name)

    def load_checkpoint(self) -> tuple[dict[str, "torch.Tensor"], dict[str, Any]]:
        """The last saved `tensors`, on the CPU, contiguous, in their order, and the last saved `state`.

        Raises:
            CheckpointError: there is none, or a file is missing, truncated, altered or of another run.
        """
        import safetensors
        import safetensors.torch

        while True:
            pointer = self._pointer()
            try:
                contents = {name: self._read_checked(pointer, name) for name in (TENSORS, STATE)}
                break
            except FileNotFoundError as problem:
                if self._pointer() == pointer:  # else the run's writer saved meanwhile and removed what we looked for
                    raise CheckpointError(f"{problem.filename} is missing. {self._advice}") from None
        try:
            tensors = safetensors.torch.load(contents[TENSORS])
            saved = json.loads(contents[STATE])
            return {name: tensors[name] for name in saved["tensors"]}, saved["state"]
        except (safetensors.SafetensorError, ValueError, LookupError, TypeError) as problem:
            path = self.path / pointer["folder"]
            raise CheckpointError(f"{path} has its digests but cannot be read: {problem}. {self._advice}") from problem

    @property
    def _advice(self) -> str:
        return (
            "Restore the run folder from a copy, or train anew with "
            f"`fastcifar train --config {self.path / CONFIG}`; nothing was loaded."
        )

    def _pointer(self) -> dict[str, Any]:
        path = self.path / POINTER
        if not path.exists():
            raise CheckpointError(
                f"{self.path} has no checkpoint: {path} was looked for. The run ended before its first one was saved; "
                f"train anew with `fastcifar train --config {self.path / CONFIG}`."
            )
        pointer = _read_json(path, self._advice)
        if pointer.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {pointer.get('format')!r}; this fastcifar reads format {FORMAT}. {self._advice}"
            )
        if pointer.get("run_id") != self.id:
            raise CheckpointError(
                f"{path} belongs to another run (its run_id is {pointer.get('run_id')!r}; {ENVIRONMENT} here says "
                f"{self.id!r}). {self._advice}"
            )
        files = pointer.get("files")
        if not (
            re.fullmatch(r"checkpoint-[1-9][0-9]*", str(pointer.get("folder")))
            and isinstance(files, dict)
            and all(isinstance(files.get(name), dict) for name in (TENSORS, STATE))
        ):
            raise CheckpointError(f"{path} is damaged: it names no checkpoint. {self._advice}")
        return pointer

    def _read_checked(self, pointer: dict[str, Any], name: str) -> bytes:
        path = self.path / str(pointer["folder"]) / name
        expected = pointer["files"][name]
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as problem:
            raise CheckpointError(f"{path} cannot be read: {problem.strerror}. {self._advice}") from problem
        if len(content) != expected.get("bytes"):
            raise CheckpointError(
                f"{path} is damaged: it has {len(content):,} bytes, {expected.get('bytes')} were saved. {self._advice}"
            )
        if (digest := hashlib.sha256(content).hexdigest()) != expected.get("sha256"):
            raise CheckpointError(
                f"{path} is damaged or of another run: its SHA-256 is {digest[:12]}..., not "
                f"{str(expected.get('sha256'))[:12]}... as saved. {self._advice}"
            )
        return content

    def _remove_checkpoints(self, but: str | None) -> None:
        for folder in self.path.glob("checkpoint-*"):
            if folder.name != but:
                shutil.rmtree(folder, ignore_errors=True)  # what stays now goes with the next save

    # Results

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json in one step, in place of an earlier one."""
        self.lock()
        _check_plain(summary, "summary")
        _replace(self.path / SUMMARY, _to_json(dict(summary)))

    def summary(self) -> dict[str, Any] | None:
        """What `write_summary` wrote; None while there is none.

        Raises:
            CheckpointError: summary.json is damaged.
        """
        return _read_json(self.path / SUMMARY) if (self.path / SUMMARY).exists() else None

    def write_predictions(self, predictions: Mapping[str, "NDArray[Any]"]) -> None:
        """Writes predictions.npz in one step: for every test image, in the data set's canonical order (arrays [N]),
        `labels` and `predicted` (int16 classes), `confidence` (float32, the probability of the predicted class) and
        `label_probability` (float32, that of the label).
        """
        import numpy as np

        self.lock()
        content = io.BytesIO()
        np.savez_compressed(content, **dict(predictions))  # type: ignore[arg-type]
        _replace(self.path / PREDICTIONS, content.getvalue())

    def predictions(self) -> "dict[str, NDArray[Any]] | None":
        """What `write_predictions` wrote; None while there is nothing.

        Raises:
            CheckpointError: predictions.npz is damaged.
        """
        import numpy as np

        path = self.path / PREDICTIONS
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except Exception as problem:
            raise CheckpointError(
                f"{path} is damaged: {problem}. Delete it: it is made again when needed."
            ) from problem

    def draw_curves(self) -> None:
        """Draws curves.svg and curves.png from the metrics. A failure is a note: no picture is worth a run."""
        if not self.records:
            return
        try:
            from fastcifar.run import curves

            curves.draw_curves(self.records, self.path / "curves", f"{self.config.preset}, seed {self.config.seed}")
        except Exception as problem:
            self._note(f"the curves were not drawn: {type(problem).__name__}: {problem}")


# Finding folders


def _new_folder(config: Config) -> Path:
    preset = re.sub(r"[^\w.-]", "_", config.preset)
    stem = Path("runs") / preset / f"{time.strftime('%Y%m%d-%H%M%S')}-s{config.seed}"
    for number in itertools.count(1):
        path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if not path.is_dir():
                raise UsageError(f"{stem.parent} cannot hold runs: {path} is not a folder. Give --out.") from None
        except OSError as problem:
            raise UsageError(f"{path} cannot be made: {problem.strerror}. Give a folder with --out.") from problem
    raise AssertionError("unreachable")


def _given_folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(entry.name != LOCK for entry in out.iterdir()):
            raise _not_empty(out)
    except FileExistsError:
        raise UsageError(f"--out {out} is a file; a new or empty folder is wanted.") from None
    except OSError as problem:
        raise UsageError(f"--out {out} cannot be used: {problem.strerror}.") from problem
    return out


def _not_empty(out: Path) -> UsageError:
    if (out / CONFIG).is_file():
        return UsageError(
            f"--out {out} already holds a run, and a run is never overwritten. "
            f"Continue it with --resume {out}, or give a new folder."
        )
    return UsageError(
        f"--out {out} is not empty, and nothing is ever overwritten. Give a new or empty folder "
        "(an earlier run is continued with --resume RUN)."
    )


def _no_run(path: Path) -> UsageError:
    if path.is_dir():
        text = f"there is no run in {path}: {path / CONFIG} was looked for."
    else:
        text = f"there is no run at {path}: " + ("it is a file." if path.exists() else "it does not exist.")
    start = path if path.is_dir() else next(parent for parent in path.absolute().parents if parent.is_dir())
    with contextlib.suppress(ValueError):
        start = start.relative_to(Path.cwd())
    if inside := _runs_under(start) if start == path else []:
        newest = max(inside, key=lambda run: (run / CONFIG).stat().st_mtime_ns)
        return UsageError(f"{text} The latest run under it is {newest}.")
    if not (runs := _runs_under(start) or _runs_under(start.parent) or _runs_under(Path("runs"))):
        return UsageError(f"{text} No other run was found near it.")
    name = path.absolute().as_posix()
    nearest = max(runs, key=lambda run: difflib.SequenceMatcher(None, run.absolute().as_posix(), name).ratio())
    return UsageError(f"{text} The nearest run is {nearest}.")


def _runs_under(folder: Path) -> list[Path]:
    found = itertools.chain.from_iterable(folder.glob(f"{depth}{CONFIG}") for depth in ("", "*/", "*/*/", "*/*/*/"))
    return [config.parent for config in itertools.islice(found, 1000) if (config.parent / ENVIRONMENT).is_file()]


# Bytes


def _to_safetensors(tensors: Mapping[str, "torch.Tensor"]) -> bytes:
    import safetensors.torch
    import torch

    if "__metadata__" in tensors:
        raise ValueError('a tensor cannot be called "__metadata__": safetensors keeps that name for itself')
    # A copy each, because safetensors wants them contiguous and no two of them sharing memory.
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    content: bytes = safetensors.torch.save(copies)
    return content


def _check_plain(value: object, where: str) -> None:
    """What json would change or drop in silence (tuples, keys that are not strings) is an error of the caller."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: JSON has only strings as keys")
            _check_plain(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif not (value is None or isinstance(value, (str, bool, int, float))):
        raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot give back as it was: {value!r}")


def _to_json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _to_jsonl(records: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _columns(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(itertools.chain(EPOCH_KEYS, *records)))


def _to_csv(records: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, header: bool = True) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or _columns(records), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {problem.strerror}.") from problem


def _read_json(path: Path, advice: str = "Restore it from a copy.") -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. {advice}") from None
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {problem.strerror}. {advice}") from problem
    except ValueError as problem:
        raise CheckpointError(f"{path} is damaged: {problem}. {advice}") from problem
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: an object was expected, {type(value).__name__} found. {advice}")
    return value


def _shortened(line: bytes) -> str:
    text = repr(line.decode(errors="replace"))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Forces a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes) -> None:
    """A reader, and whoever comes after a crash, sees the old content or the new."""
    new = path.with_name(f"{path.name}.new")
    with _explained(path, len(content)):
        try:
            _write(new, content)
            os.replace(new, path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def _append(path: Path, content: bytes) -> None:
    with _explained(path, len(content)):
        size = path.stat().st_size
        try:
            with open(path, "ab") as file:
                file.write(content)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, size)  # works on a full disk too
            raise


@contextlib.contextmanager
def _explained(path: Path, num_bytes: int) -> Iterator[None]:
    """Turns the system's refusal to write `num_bytes` to `path` into a message."""
    try:
        yield
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = "an unknown amount"
            with contextlib.suppress(OSError):
                free = f"{shutil.disk_usage(path.parent).free / 2**20:,.1f} MiB"
            raise FastcifarError(
                f"no room to write {path}: {num_bytes / 2**20:,.1f} MiB are needed, {free} free ({problem.strerror}). "
                "What was saved before is intact: make room, then continue with --resume."
            ) from problem
        raise FastcifarError(f"{path} cannot be written: {problem.strerror or problem}.") from problem

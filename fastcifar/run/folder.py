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
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from fastcifar import files
from fastcifar.config import Config
from fastcifar.errors import CheckpointError, UsageError
from fastcifar.layers import from_dict
from fastcifar.run import finding, schema
from fastcifar.run.checkpoint import Checkpoint
from fastcifar.run.encoding import check_plain, described, sealed, to_json
from fastcifar.run.environment import collect, differences
from fastcifar.run.metrics import Metrics
from fastcifar.run.names import ALWAYS_WRITTEN, CONFIG, ENVIRONMENT, LOCK, SUMMARY, advice
from fastcifar.run.predictions import read_predictions, write_predictions
from fastcifar.spelling import to_toml
from fastcifar.text import quoted
from fastcifar.ui import notes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


class RunFolder:
    """One run on disk. Reading needs nothing; the first write takes the folder's lock and holds it until `close`."""

    path: Path
    config: Config
    environment: dict[str, Any]

    def __init__(
        self,
        path: Path,
        config: Config,
        environment: dict[str, Any],
        note: Callable[[str], None],
        settings: Mapping[str, bytes],
    ) -> None:
        """For `create` and `open`. `settings` has what config.toml and environment.json hold, byte by byte."""
        self.path, self.config, self.environment, self._note = path, config, environment, note
        digests = {name: described(content) for name, content in settings.items()}
        self._metrics, self._checkpoint = Metrics(path, note), Checkpoint(path, self.id, digests)
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
        images: schema.Images | None = None,
        together: int = 1,
        note: Callable[[str], None] = notes.note,
    ) -> RunFolder:
        """Makes the folder of a new run and locks it.

        Args:
            config: the resolved settings.
            out: the folder to use, new or empty; None makes `runs/<preset>/<local time>-s<seed>`, always a new one.
            command: what the user ran, for the record.
            dataset_digest: the data set's digest, for the check on resume.
            images: what the data set's images and classes are.
            together: how many runs its process trains at the same time.
            note: receives what a user should know but that stops nothing.

        Raises:
            UsageError: `out` is a file, holds something already, or cannot be made.
        """
        path = finding.new_folder(config) if out is None else finding.given_folder(out)
        text = to_toml(config).encode()
        facts = {
            "run_id": uuid.uuid4().hex,
            "config_sha256": described(text)["sha256"],
            "command": list(command),
            "dataset_digest": dataset_digest,
            **({} if images is None else {"images": images.model_dump()}),
            **({} if together == 1 else {"together": together}),
            **collect(config.device),
        }
        settings = {CONFIG: text, ENVIRONMENT: to_json(sealed(facts))}
        run = cls(path, config, facts, note, settings)
        run.lock()
        if (path / CONFIG).exists():  # another process was given the same --out and came first
            run.close()
            raise finding.not_empty(path)
        files.replace(path / ENVIRONMENT, settings[ENVIRONMENT], advice(path))
        run._metrics.create()
        # Last: a folder with a config.toml is a whole run.
        files.replace(path / CONFIG, text, advice(path))
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, note: Callable[[str], None] = notes.note) -> RunFolder:
        """Opens the folder of an earlier run. Changes nothing in it.

        A damaged line of the metrics, and a last one that a crash has cut off, is dropped with a note.

        Args:
            path: the run folder.
            note: receives what a user should know but that stops nothing.

        Returns:
            The run, not locked.

        Raises:
            UsageError: there is no run at `path`, or none that this user may read; the message names the nearest one.
            CheckpointError: there is one, but its settings or its environment are damaged.
        """
        path = Path(path)
        if not finding.is_run(path):
            raise finding.no_run(path)
        settings = {name: schema.content_of(path / name) for name in (CONFIG, ENVIRONMENT)}
        facts = schema.checked(settings[ENVIRONMENT], path / ENVIRONMENT, schema.Environment, note=note)
        config = _settings(settings[CONFIG], path / CONFIG, facts.get("config_sha256"))
        run = cls(path, config, facts, note, settings)
        run._metrics.read()
        return run

    @staticmethod
    def check_unused(out: Path) -> None:
        """Refuses what `create` would refuse to write to, without making it.

        Args:
            out: the folder that a user has given for a new run.

        Raises:
            UsageError: `out` is a file, a folder that holds something, or out of this user's reach.
        """
        finding.check_given(out)

    @property
    def id(self) -> str:
        """A random name that stays with the run when its folder is moved or copied."""
        return str(self.environment["run_id"])

    @property
    def dataset_digest(self) -> str:
        """The digest of the data that the run was started with."""
        return str(self.environment["dataset_digest"])

    @property
    def images(self) -> schema.Images | None:
        """What the run's images and classes are; None in a run of an earlier version."""
        found = self.environment.get("images")
        return None if found is None else schema.check(found, schema.Images)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The epochs so far, with the keys of `EPOCH_KEYS`."""
        return self._metrics.records

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
        with files.explained(self.path / LOCK, 0, advice(self.path)):
            try:
                self._lock.acquire(blocking=False)
            except filelock.Timeout:
                owner = _owner(self.path / LOCK)
                raise UsageError(
                    f"{self.path} is in use: {owner} is writing to it. "
                    "Wait until it ends or stop it; a run has one writer at a time."
                ) from None
            if isinstance(self._lock, filelock.UnixFileLock):  # what it falls back to without flock writes there itself
                (self.path / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        if (self.path / CONFIG).is_file():
            self._metrics.read()  # the previous writer may have added lines since `open`
            self._metrics.repair()

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

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one epoch to the metrics; see `Metrics.append`."""
        self.lock()
        self._metrics.append(record)

    def truncate(self, epoch: int) -> None:
        """Drops the metrics of every epoch after `epoch`: they will be trained again from an earlier checkpoint."""
        self.lock()
        self._metrics.truncate(epoch)

    def has_checkpoint(self) -> bool:
        """Whether a checkpoint was ever saved; whether it is sound is for `load_checkpoint` to say."""
        return self._checkpoint.exists()

    def save_checkpoint(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Replaces the checkpoint; see `Checkpoint.save`."""
        self.lock()
        self._checkpoint.save(tensors, state)

    def load_checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The last saved tensors and state; see `Checkpoint.load`."""
        return self._checkpoint.load()

    def remove_leftovers(self) -> None:
        """Removes what a killed writer left; see `Checkpoint.remove_leftovers`."""
        self.lock()
        self._checkpoint.remove_leftovers()

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json in one step, in place of an earlier one."""
        self.lock()
        check_plain(summary, "summary")
        files.replace(self.path / SUMMARY, to_json(sealed(summary)), advice(self.path))

    def summary(self) -> dict[str, Any] | None:
        """What `write_summary` wrote; None while there is none.

        Raises:
            CheckpointError: summary.json is damaged.
        """
        path = self.path / SUMMARY
        try:
            if not files.holds(path):
                return None
        except OSError as problem:
            raise CheckpointError(f"{path} cannot be read: {files.refusal(path, problem)}.") from problem
        advice = f"Restore it from a copy, or remove it and make it again: fastcifar train --resume {self._quoted}"
        return schema.read(path, schema.Summary, advice)

    @property
    def _quoted(self) -> str:
        """The folder, as a shell takes it."""
        return quoted(self.path)

    def write_predictions(self, predictions: Mapping[str, NDArray[Any]]) -> None:
        """Writes predictions.npz; see `predictions.write_predictions`."""
        self.lock()
        write_predictions(self.path, predictions)

    def predictions(self) -> dict[str, NDArray[Any]] | None:
        """What `write_predictions` wrote; None while there is nothing.

        Raises:
            CheckpointError: predictions.npz is damaged.
        """
        return read_predictions(self.path)

    def draw_curves(self) -> None:
        """Draws curves.svg and curves.png from the metrics. A failure is a note: no picture is worth a run."""
        if not self.records:
            return
        try:
            from fastcifar.run import curves

            curves.draw_curves(self.records, self.path / "curves", f"{self.config.preset}, seed {self.config.seed}")
        except Exception as problem:
            self._note(f"the curves were not drawn: {type(problem).__name__}: {problem}")


def _settings(content: bytes, path: Path, digest: str | None) -> Config:
    """The settings in a run's config.toml. A name that is not UTF-8 is written there in its own bytes.

    Args:
        content: of the file.
        path: the file, for messages.
        digest: the SHA-256 of the file that the run wrote; None if it is not known.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        settings = tomllib.loads(content.decode("utf-8-sig", errors="surrogateescape"))
    except RecursionError:
        raise CheckpointError(f"{path} cannot be read: it is nested too deeply. {schema.COPY}") from None
    except ValueError as problem:
        raise CheckpointError(f"{path} cannot be read: {problem}. {schema.COPY}") from problem
    inner = settings.get("settings", settings)
    if isinstance(inner, dict) and (missing := [name for name in ALWAYS_WRITTEN if name not in inner]):
        raise CheckpointError(f"{path} is damaged: it has no {', '.join(missing)}. {schema.COPY}")
    found = described(content)["sha256"]
    if digest is not None and found != digest:
        raise CheckpointError(
            f"{path} is not as the run wrote it: its SHA-256 is {found[:12]}..., {ENVIRONMENT} says {digest[:12]}... "
            f"{schema.COPY}"
        )
    return from_dict(settings, str(path))


def _owner(lock: Path) -> str:
    """Who holds a lock, as the holder wrote it there."""
    try:
        text = files.read(lock, 1000).decode(errors="replace").strip()
    except OSError:
        text = ""
    return text if text.isprintable() and text else "another process"

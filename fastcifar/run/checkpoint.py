"""A run's checkpoint on disk, whole whatever kills the process: how it is written, checked and read.

    checkpoint.json         which checkpoint counts, with the size and SHA-256 of its files, and of the run's settings
                            and environment
    checkpoint-7/           tensors.safetensors, state.json

`checkpoint.json` is the only switch: a checkpoint is written to a folder of its own and forced to disk, then the
pointer is replaced in one step, then the previous folder goes. Whatever kills the process, the pointer names a whole
checkpoint. The digests are there because safetensors refuses a truncated file but not one with flipped bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fastcifar import files
from fastcifar.errors import CheckpointError
from fastcifar.run import schema
from fastcifar.run.encoding import check_plain, described, to_json
from fastcifar.run.names import CONFIG, ENVIRONMENT, METRICS_JSONL, POINTER, STATE, TENSORS, advice
from fastcifar.text import quoted

if TYPE_CHECKING:
    import torch


class Checkpoint:
    """The checkpoint of one run. Whoever saves holds the run's lock.

    Args:
        folder: the run folder.
        run_id: the run's own name, which the pointer must bear.
        settings: config.toml and environment.json -> what `encoding.described` says of the content that was read, or
            written, by this process.
    """

    def __init__(self, folder: Path, run_id: str, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder, self._run_id, self._settings = folder, run_id, settings

    def exists(self) -> bool:
        """Whether one was ever saved; whether it is sound is for `load` to say.

        Raises:
            CheckpointError: the system does not let us look.
        """
        path = self._folder / POINTER
        try:
            return files.holds(path)
        except OSError as problem:
            raise CheckpointError(f"{path} cannot be read: {files.refusal(path, problem)}.") from problem

    def save(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
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
        check_plain(state, "state")
        contents = {
            TENSORS: _to_safetensors(tensors),
            STATE: to_json({"tensors": list(tensors), "state": dict(state)}),
        }
        current = self._pointer().folder if self.exists() else None
        self._remove(but=current)  # what a killed writer left
        folder = self._folder / f"checkpoint-{1 + int(current.rpartition('-')[2]) if current else 1}"
        pointer = {
            "format": schema.FORMATS[-1],
            "run_id": self._run_id,
            "saved": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "folder": folder.name,
            "files": {name: described(content) for name, content in contents.items()} | dict(self._settings),
        }
        new_pointer = self._folder / f"{POINTER}.new"
        with files.explained(folder, sum(map(len, contents.values())), advice(self._folder)):
            # A checkpoint after epoch n promises n lines of metrics, also after a power cut.
            files.sync(self._folder / METRICS_JSONL)
            try:
                folder.mkdir()
                for name, content in contents.items():
                    files.write(folder / name, content)
                files.sync(folder)
                files.sync(self._folder)
                files.write(new_pointer, to_json(pointer))
                os.replace(new_pointer, self._folder / POINTER)
            except OSError:
                self._remove(but=current)
                with contextlib.suppress(OSError):
                    new_pointer.unlink(missing_ok=True)
                raise
            files.sync(self._folder)
        self._remove(but=folder.name)

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
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
        self._check_settings(pointer)
        try:
            tensors = safetensors.torch.load(contents[TENSORS])
            saved = schema.check(schema.parse(contents[STATE]), schema.State)
            return {name: tensors[name] for name in saved.tensors}, saved.state
        except (safetensors.SafetensorError, ValueError, LookupError, TypeError, MemoryError) as problem:
            path = self._folder / pointer.folder
            why = "; ".join(schema.problems(problem)[:3]) if isinstance(problem, ValidationError) else str(problem)
            raise CheckpointError(f"{path} has its digests but cannot be read: {why}. {self._advice}") from problem

    def remove_leftovers(self) -> None:
        """Removes what a killed writer left beside the checkpoint that counts. The next save would do so too."""
        self._remove(but=self._pointer().folder)

    @property
    def _config(self) -> str:
        """config.toml, as a shell takes it."""
        return quoted(self._folder / CONFIG)

    @property
    def _advice(self) -> str:
        return (
            "Restore the run folder from a copy, or train anew with "
            f"`fastcifar train --config {self._config}`; nothing was loaded."
        )

    def _pointer(self) -> schema.Pointer:
        path = self._folder / POINTER
        if not self.exists():
            raise CheckpointError(
                f"{self._folder} has no checkpoint: {path} was looked for. The run ended before its first one was "
                f"saved; train anew with `fastcifar train --config {self._config}`."
            )
        pointer = schema.object_of(schema.content_of(path, self._advice), path, self._advice)
        if pointer.get("format") not in schema.FORMATS:
            raise CheckpointError(
                f"{path} has format {pointer.get('format')!r}; this fastcifar reads formats "
                f"{' and '.join(map(str, schema.FORMATS))}. {self._advice}"
            )
        if pointer.get("run_id") != self._run_id:
            raise CheckpointError(
                f"{path} belongs to another run (its run_id is {pointer.get('run_id')!r}; {ENVIRONMENT} here says "
                f"{self._run_id!r}). {self._advice}"
            )
        try:
            return schema.check(pointer, schema.Pointer)
        except ValidationError as error:
            what = "; ".join(schema.problems(error)[:3])
            raise CheckpointError(f"{path} is damaged: it names no checkpoint ({what}). {self._advice}") from error

    def _check_settings(self, pointer: schema.Pointer) -> None:
        """Refuses settings and an environment that are not those with which the checkpoint was saved.

        Raises:
            CheckpointError: one of them was altered since.
        """
        for name, expected in ((CONFIG, pointer.files.config), (ENVIRONMENT, pointer.files.environment)):
            if expected is not None and self._settings[name]["sha256"] != expected.sha256:
                raise CheckpointError(
                    f"{self._folder / name} is not the file with which the checkpoint was saved: its SHA-256 is "
                    f"{self._settings[name]['sha256'][:12]}..., not {expected.sha256[:12]}... "
                    f"{self._advice}"
                )

    def _read_checked(self, pointer: schema.Pointer, name: str) -> bytes:
        path = self._folder / pointer.folder / name
        expected = pointer.files.tensors if name == TENSORS else pointer.files.state
        try:
            size = path.stat().st_size
            content = files.read(path, expected.bytes) if size == expected.bytes else b""
        except FileNotFoundError:
            raise
        except OSError as problem:
            reason = files.refusal(path, problem)
            raise CheckpointError(f"{path} cannot be read: {reason}. {self._advice}") from problem
        if size != expected.bytes:
            raise CheckpointError(
                f"{path} is damaged: it has {size:,} bytes, {expected.bytes} were saved. {self._advice}"
            )
        if (digest := hashlib.sha256(content).hexdigest()) != expected.sha256:
            raise CheckpointError(
                f"{path} is damaged or of another run: its SHA-256 is {digest[:12]}..., not "
                f"{expected.sha256[:12]}... as saved. {self._advice}"
            )
        return content

    def _remove(self, but: str | None) -> None:
        for folder in self._folder.glob("checkpoint-*"):
            # A folder of another name, such as a user's copy, is not ours.
            if folder.name != but and re.fullmatch(schema.FOLDER, folder.name):
                shutil.rmtree(folder, ignore_errors=True)  # what stays now goes with the next save


def check_training_state(
    state: Mapping[str, Any], folder: Path, epochs: int, num_batches: int | None = None
) -> tuple[int, int]:
    """Where a saved training state goes on, refused if it is none or lies outside the run.

    Args:
        state: what the trainer saved beside the tensors.
        folder: the run folder, for messages.
        epochs: of the whole run.
        num_batches: of an epoch; None where it is not known.

    Returns:
        The epoch, 1 to `epochs` + 1, and the step of it, 0 to `num_batches` - 1, that come next.

    Raises:
        CheckpointError: a key is missing or of another type, or the epoch or the step is not of this run.
    """
    problem = ""
    try:
        found = schema.check(dict(state), schema.TrainingState)
    except ValidationError as error:
        problem = "; ".join(schema.problems(error)[:3])
    else:
        last = (num_batches or 2**63) - 1 if found.epoch <= epochs else 0
        if found.epoch > epochs + 1:
            problem = f"it goes on at epoch {found.epoch}, and the run has {epochs}"
        elif found.step > last:
            problem = f"it goes on at step {found.step} of epoch {found.epoch}, whose last step is {last}"
    if problem:
        raise CheckpointError(
            f"the training state in {folder} is damaged: {problem}. Restore the run folder from a copy, or train anew "
            f"with `fastcifar train --config {quoted(folder / CONFIG)}`; nothing was changed."
        )
    return found.epoch, found.step


def _to_safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
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

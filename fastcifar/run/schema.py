"""What each file of a run folder must hold, stated once: whoever reads one reads it through its model here.

A model says which keys a file has and of which type. Values are strict: a number is no text, and `true` is no number.
Keys that a model does not name are kept: other versions write more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fastcifar import files
from fastcifar.errors import CheckpointError
from fastcifar.run.encoding import CHECKSUM, unsealed

FORMATS = (1, 2)
"""Of checkpoint.json: those that are read. The last one is written; the first says nothing of the settings."""

COPY = "Restore it from a copy."
"""What the message about a damaged file ends with, if there is nothing better to do."""

FOLDER = "^checkpoint-[1-9][0-9]{0,17}$"
"""The names of the folders that hold a checkpoint."""

_LARGEST = 2**26
"""Bytes of a JSON file; the command and the environment variables of a run are less."""

_Text = Annotated[str, Field(max_length=100_000)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _is_text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("expected a text")
    return value


_AnyText = Annotated[Any, AfterValidator(_is_text)]
"""Also text that is not UTF-8, such as a file's name, which pydantic's own strings refuse."""


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class Images(_Model):
    """What environment.json says of the run's images: what a saved model is to be given, and what its classes mean."""

    name: _Text
    size: Annotated[int, Field(ge=1, le=2**15)]
    class_names: list[str]
    superclass_names: list[str]
    superclass_of: list[int]

    def superclass(self, number: int) -> str:
        """The name of the superclass of a class; empty where superclasses are not known."""
        return self.superclass_names[self.superclass_of[number]] if self.superclass_of else ""


class Environment(_Model):
    """environment.json. Without its first two keys nothing can be done with a run; the others are for people."""

    run_id: _Text
    dataset_digest: _Text
    config_sha256: _Digest | None = None  # earlier versions have none
    images: Images | None = None
    command: list[_AnyText] = []
    date: str | None = None
    fastcifar: str | None = None
    source: dict[str, Any] | None = None
    python: str | None = None
    torch: str | None = None
    numpy: str | None = None
    platform: str | None = None
    device: str | None = None
    gpu: dict[str, Any] | None = None
    cpu: dict[str, Any] | None = None
    memory_gib: float | None = None
    processes: int = 1
    together: int = 1
    threads: dict[str, int] | None = None
    variables: dict[_AnyText, _AnyText] = {}


class Record(_Model):
    """A line of metrics.jsonl: one epoch."""

    epoch: Annotated[int, Field(ge=1, le=2**31)]
    lr: float
    train_loss: float | None
    train_accuracy: _Share | None
    val_loss: float | None
    val_accuracy: _Share | None
    images_per_second: Annotated[float, Field(ge=0)]
    train_seconds: _Seconds
    gpu_utilization: float | None = None
    gpu_memory_gib: float | None = None
    gpu_power_watts: float | None = None
    gpu_sm_mhz: float | None = None
    gpu_throttle: str | None = None
    energy_joules: float | None = None


class Summary(_Model):
    """summary.json. Every number may be missing: versions differ in what they measure."""

    epochs: _Count | None = None
    parameters: _Count | None = None
    train_loss: float | None = None
    train_accuracy: _Share | None = None
    val_loss: float | None = None
    val_accuracy: _Share | None = None
    test_loss: float | None = None
    test_accuracy: _Share | None = None
    train_seconds: _Seconds | None = None
    compile_seconds: _Seconds | None = None
    process_seconds: _Seconds | None = None
    energy_joules: float | None = None
    energy_seconds: float | None = None
    energy_source: str | None = None
    gpu_utilization: float | None = None
    gpu_power_watts: float | None = None
    gpu_sm_mhz: float | None = None
    gpu_throttle: str | None = None


class File(_Model):
    """What checkpoint.json says of one file."""

    bytes: _Count
    sha256: _Digest


class Files(_Model):
    """What checkpoint.json says of the files of its checkpoint, and of the run's settings and environment."""

    tensors: File = Field(alias="tensors.safetensors")
    state: File = Field(alias="state.json")
    config: File | None = Field(None, alias="config.toml")
    environment: File | None = Field(None, alias="environment.json")


class Pointer(_Model):
    """checkpoint.json."""

    format: Literal[1, 2]  # FORMATS
    run_id: _Text
    folder: Annotated[str, Field(pattern=FOLDER)]
    files: Files

    @model_validator(mode="after")
    def _has_settings(self) -> Pointer:
        if self.format > 1 and (self.files.config is None or self.files.environment is None):
            raise ValueError("expected the digests of config.toml and environment.json too")
        return self


class State(_Model):
    """state.json: the names of the tensors in their order, and what the trainer keeps beside them."""

    tensors: list[str]
    state: dict[str, Any]


class Clocks(_Model):
    """The clocks in a training state."""

    train_seconds: _Seconds
    compile_seconds: _Seconds
    process_seconds: _Seconds


class Telemetry(_Model):
    """The energy in a training state."""

    joules: _Seconds = 0.0
    seconds: _Seconds = 0.0
    integrated: bool = False


class TrainingState(_Model):
    """What the trainer keeps in a checkpoint beside the tensors: where training goes on."""

    epoch: Annotated[int, Field(ge=1)]
    step: Annotated[int, Field(ge=0)]
    clocks: Clocks
    scaler: dict[str, Any]
    telemetry: Telemetry = Telemetry()  # version 0.1 has none


M = TypeVar("M", bound=_Model)


def problems(error: ValidationError) -> list[str]:
    """A validation error in words, one for each key, such as `lr: expected a valid number, "0.1" found`."""
    lines = []
    for found in error.errors(include_url=False, include_context=False):
        place = ".".join(map(str, found["loc"]))
        if found["type"] == "missing":
            lines.append(f'it has no "{place}"')
            continue
        wanted = found["msg"]
        for pydantic, ours in _WORDS.items():
            wanted = wanted.replace(pydantic, ours)
        lines.append(f"{place + ': ' if place else ''}{wanted}, {_shown(found['input'])} found")
    return lines


_WORDS = {"Input should be": "expected", "String should": "expected a text that should", "Value error, ": ""}


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse(content: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or is nested too deeply or too large to be one of ours.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except MemoryError:
        raise ValueError("it is too large") from None


def object_in(content: bytes) -> dict[str, Any]:
    """The object of a JSON text.

    Raises:
        ValueError: as for `parse`, or the text is of something else.
    """
    value = parse(content)
    if not isinstance(value, dict):
        raise ValueError(f"an object was expected, {type(value).__name__} found")
    return value


def content_of(path: Path, advice: str = COPY) -> bytes:
    """What one of a run's files of text holds.

    Args:
        path: the file.
        advice: what messages end with.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    try:
        return files.read(path, _LARGEST)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. {advice}") from None
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {files.refusal(path, problem)}. {advice}") from problem


def object_of(content: bytes, path: Path, advice: str = COPY) -> dict[str, Any]:
    """The JSON object in one of a run's files, whatever keys it has.

    Args:
        content: of the file.
        path: the file, for messages.
        advice: what messages end with.

    Raises:
        CheckpointError: it holds something else.
    """
    try:
        return object_in(content)
    except ValueError as problem:
        raise CheckpointError(f"{path} is damaged: {problem}. {advice}") from problem


def read(path: Path, model: type[_Model], advice: str = COPY) -> dict[str, Any]:
    """`checked`, of the content of the file `path`."""
    return checked(content_of(path, advice), path, model, advice)


def checked(
    content: bytes, path: Path, model: type[_Model], advice: str = COPY, note: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """The JSON object in one of a run's files, which has the keys of its model.

    Args:
        content: of the file.
        path: the file, for messages.
        model: what it must hold.
        advice: what messages end with.
        note: told of a damaged key that the model does not require, which is then left out; None makes it an error.

    Returns:
        The object as it stands in the file.

    Raises:
        CheckpointError: it holds something else.
    """
    found = object_of(content, path, advice)
    value = {key: item for key, item in found.items() if key != CHECKSUM}
    try:
        unsealed(found)
    except ValueError as problem:
        if note is None:
            raise CheckpointError(f"{path} is damaged: {problem}. {advice}") from problem
        note(f"{path} is damaged, and what it says may be wrong: {problem}")
    try:
        check(value, model)
    except ValidationError as error:
        damaged = {str(found["loc"][0]) for found in error.errors() if found["loc"]}
        required = {name for name, field in model.model_fields.items() if field.is_required()}
        if note is None or damaged & required:
            raise CheckpointError(f"{path} is damaged: {'; '.join(problems(error)[:3])}. {advice}") from error
        note(f"{path} is damaged, and what it says there is left out: {'; '.join(problems(error)[:3])}")
        value = {key: item for key, item in value.items() if key not in damaged}
    return value


def check(value: object, model: type[M]) -> M:
    """A value as its model has it.

    Raises:
        pydantic.ValidationError: it is not of the model; `problems` says it in words.
    """
    return model.model_validate(value)

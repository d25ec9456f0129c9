"""The epochs of a run on disk: a line each in metrics.jsonl, and the same in metrics.csv."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fastcifar import files
from fastcifar.errors import CheckpointError, FastcifarError
from fastcifar.run import schema
from fastcifar.run.encoding import check_plain, columns_of, shortened, to_csv, to_jsonl, unsealed
from fastcifar.run.names import EPOCH_KEYS, METRICS_CSV, METRICS_JSONL, advice


class Metrics:
    """The records of the epochs, in memory and in both files. Whoever writes holds the run's lock.

    Args:
        folder: the run folder.
        note: receives what a user should know but that stops nothing.

    Attributes:
        records: an epoch each, with the keys of `EPOCH_KEYS`.
    """

    records: list[dict[str, Any]]

    def __init__(self, folder: Path, note: Callable[[str], None]) -> None:
        self._jsonl, self._csv, self._note = folder / METRICS_JSONL, folder / METRICS_CSV, note
        self.records, self._torn = [], False
        self._damaged: list[str] = []  # a line of metrics.jsonl each: where, why and what
        self._said = ""

    def create(self) -> None:
        """Writes both files, without an epoch."""
        self._write()

    def read(self) -> None:
        """Reads metrics.jsonl. A damaged line is dropped with a note: only the curves depend on it.

        Raises:
            CheckpointError: the file cannot be read.
        """
        self.records, self._torn, self._damaged = [], False, []
        *lines, tail = _content(self._jsonl).split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                found = schema.object_in(line)
            except ValueError as problem:
                if number == len(lines) and not tail:  # a power cut may leave the right length and the wrong bytes
                    tail = line
                else:
                    self._drop(number, line, str(problem))
                continue
            try:
                record = unsealed(found)
                schema.check(record, schema.Record)
            except ValidationError as error:
                self._drop(number, line, "; ".join(schema.problems(error)[:3]))
            except ValueError as problem:
                self._drop(number, line, str(problem))
            else:
                self._add(number, line, record)
        text = ""
        if self._damaged:
            first, more = self._damaged[0], len(self._damaged) - 1
            others = f", and {more} more line{'s' * (more > 1)}" if more else ""
            text = f"{self._jsonl} is damaged: {first}{others}. Dropped: only the curves depend on it."
        if tail:
            self._torn = True
            text = f"{self._jsonl}: the last line was cut off by a crash and is dropped: {shortened(tail)}"
        if text and text != self._said:  # a run is read when it is opened, and again when it is locked
            self._note(text)
        self._said = text

    def _add(self, number: int, line: bytes, record: dict[str, Any]) -> None:
        """Puts a record behind the others. Of two that are out of order the one is dropped that does not fit."""
        before = [kept["epoch"] for kept in self.records[-2:]]
        if not before or before[-1] < record["epoch"]:
            self.records.append(record)
        elif len(before) == 1 or before[0] < record["epoch"]:
            self._drop(number - 1, to_jsonl(self.records[-1:]), f"its epoch is not below {record['epoch']}")
            self.records[-1] = record
        else:
            self._drop(number, line, f"its epoch is not above {before[-1]}")

    def _drop(self, number: int, line: bytes, why: str) -> None:
        self._damaged.append(f"line {number} ({why}): {shortened(line.strip())}")

    def repair(self) -> None:
        """Writes both files anew where they do not hold the records. Of damaged lines a copy is kept.

        Raises:
            FastcifarError: a file cannot be written.
        """
        if self._damaged:
            names = (f"{self._jsonl.name}.damaged{'' if n == 1 else n}" for n in itertools.count(1))
            copy = next(path for name in names if not files.holds(path := self._jsonl.with_name(name)))
            files.replace(copy, _content(self._jsonl), advice(self._jsonl.parent))
            self._note(f"the file with the damaged line is kept as {copy}")
        if self._torn or self._damaged or _content(self._csv) != to_csv(self.records):
            self._write()

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one epoch's line to both files.

        Args:
            record: the `EPOCH_KEYS`, and whatever else is worth a column; plain numbers, strings or None. A NaN or an
                infinity is written the way Python's json does.

        Raises:
            FastcifarError: a file cannot be written; the epoch is in neither.
        """
        line = dict(record)
        check_plain(line, "record")
        if missing := [key for key in EPOCH_KEYS if key not in line]:
            raise ValueError(f"an epoch's record lacks {', '.join(missing)}: {line}")
        if self.records and line["epoch"] <= self.records[-1]["epoch"]:
            raise ValueError(f"epoch {line['epoch']} cannot follow epoch {self.records[-1]['epoch']}")
        columns = columns_of([*self.records, line])
        rewrite = self._torn or columns != columns_of(self.records)
        self.records.append(line)
        try:
            if rewrite:
                self._write()
            else:
                files.append(self._jsonl, to_jsonl([line]), advice(self._jsonl.parent))
                files.append(self._csv, to_csv([line], columns, header=False), advice(self._csv.parent))
        except FastcifarError:
            self.records.pop()
            self._torn = True  # one file may have the line
            raise

    def truncate(self, epoch: int) -> None:
        """Drops every epoch after `epoch`."""
        kept = [record for record in self.records if record["epoch"] <= epoch]
        if len(kept) < len(self.records):
            self.records = kept
            self._write()

    def _write(self) -> None:
        files.replace(self._jsonl, to_jsonl(self.records), advice(self._jsonl.parent))
        files.replace(self._csv, to_csv(self.records), advice(self._csv.parent))
        self._torn, self._damaged = False, []


def _content(path: Path) -> bytes:
    """A file's content; nothing where there is no file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return files.read(path)
    except FileNotFoundError:
        return b""
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {files.refusal(path, problem)}.") from problem

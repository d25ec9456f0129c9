"""The epochs of a run on disk: a line each in metrics.jsonl, and the same in metrics.csv."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastcifar import files
from fastcifar.errors import CheckpointError, FastcifarError
from fastcifar.run.encoding import check_plain, columns_of, read_bytes, shortened, to_csv, to_jsonl
from fastcifar.run.names import ADVICE, EPOCH_KEYS, METRICS_CSV, METRICS_JSONL


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

    def create(self) -> None:
        """Writes both files, without an epoch."""
        self._write()

    def read(self) -> None:
        """Reads metrics.jsonl. A last line that a crash has cut off is dropped with a note.

        Raises:
            CheckpointError: an earlier line is damaged.
        """
        self.records, self._torn = [], False
        *lines, tail = read_bytes(self._jsonl).split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                record["epoch"] += 0
            except (ValueError, TypeError, KeyError) as problem:
                if number == len(lines) and not tail:  # a power cut may leave the right length and the wrong bytes
                    tail = line
                    break
                raise CheckpointError(
                    f"{self._jsonl}, line {number}, is damaged: {shortened(line)}. Restore the file from a copy, or "
                    "delete the line: only the curves depend on it."
                ) from problem
            self.records.append(record)
        if tail:
            self._torn = True
            self._note(f"{self._jsonl}: the last line was cut off by a crash and is dropped: {shortened(tail)}")

    def repair(self) -> None:
        """Writes both files anew where they do not hold the records."""
        if self._torn or read_bytes(self._csv) != to_csv(self.records):
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
                files.append(self._jsonl, to_jsonl([line]), ADVICE)
                files.append(self._csv, to_csv([line], columns, header=False), ADVICE)
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
        files.replace(self._jsonl, to_jsonl(self.records), ADVICE)
        files.replace(self._csv, to_csv(self.records), ADVICE)
        self._torn = False

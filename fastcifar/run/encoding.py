"""JSON and CSV as the files of a run hold them."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from fastcifar.run.names import EPOCH_KEYS

CHECKSUM = "crc32"
"""The key of the checksum in the JSON objects that no digest covers."""


def check_plain(value: object, where: str) -> None:
    """Refuses what json would change or drop in silence: tuples, keys that are not strings.

    Raises:
        TypeError: `value` is or holds such a thing; an error of the caller.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: JSON has only strings as keys")
            check_plain(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]")
    elif not (value is None or isinstance(value, (str, bool, int, float))):
        raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot give back as it was: {value!r}")


def to_json(value: object) -> bytes:
    """`value` as a file of its own."""
    return (json.dumps(value, indent=1) + "\n").encode()


def described(content: bytes) -> dict[str, Any]:
    """What the pointer to a checkpoint says of a file: its size and its SHA-256."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with a checksum of its other keys as the last one: a digit that is flipped on disk is still JSON."""
    return {**value, CHECKSUM: _checksum(value)}


def unsealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """What was sealed, without the checksum. Earlier versions sealed nothing, and that is taken as it is.

    Raises:
        ValueError: it is not what was sealed.
    """
    content = {key: item for key, item in value.items() if key != CHECKSUM}
    if CHECKSUM in value and value[CHECKSUM] != _checksum(content):
        raise ValueError(f"its checksum is not that of its content, {CHECKSUM} = {_checksum(content)}")
    return content


def _checksum(value: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(value).encode()):08x}"


def to_jsonl(records: Sequence[Mapping[str, Any]]) -> bytes:
    """A sealed line for each record."""
    return "".join(json.dumps(sealed(record)) + "\n" for record in records).encode()


def columns_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The `EPOCH_KEYS`, and behind them every other key of the records, in the order of their appearance."""
    return list(dict.fromkeys(itertools.chain(EPOCH_KEYS, *records)))


def to_csv(records: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, header: bool = True) -> bytes:
    """A line for each record, in `columns` (default: those of the records), below a line with their names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or columns_of(records), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def shortened(line: bytes) -> str:
    """At most 60 characters of `line`, quoted, for a message."""
    text = repr(line.decode(errors="replace"))
    return text if len(text) <= 60 else f"{text[:57]}..."

"""The record that a failed run leaves: what ended it, for a study and for the page to read.

    failure.json      kind "NonFiniteError", message, exit_code 5, expected true, date

The trainer writes it to the run folder. Before there is a run folder, and for a study, the command line writes it to
the file that `FASTCIFAR_FAILURE_FILE` names. A log is no such record: harmless notes look like reasons there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from fastcifar import files
from fastcifar.errors import FastcifarError, InterruptedRunError
from fastcifar.run.encoding import sealed, to_json, unsealed

FAILURE = "failure.json"
VARIABLE = "FASTCIFAR_FAILURE_FILE"
"""An environment variable: the file that `recorded_where_asked` writes to."""
_LONGEST = 4000
"""Characters of a message that are kept."""


@dataclass(frozen=True)
class Failure:
    """What ended a run.

    Attributes:
        kind: the name of the exception's class.
        message: its text, lines separated by line feeds.
        exit_code: that of the command.
        expected: whether the message was written for a person. If not, the error is one that nobody foresaw.
        date: when it happened, in UTC, as ISO 8601.
    """

    kind: str
    message: str
    exit_code: int
    expected: bool
    date: str = ""

    @property
    def reason(self) -> str:
        """The failure in one line."""
        text = "; ".join(line for line in self.message.splitlines() if line.strip())
        if self.expected:
            return text or self.kind
        return f"unexpected {self.kind}: {text}; this is a fault of fastcifar: please report it"


def write(file: Path, error: BaseException) -> None:
    """Writes what `error` says to `file`, in one step. A refusal of the system is ignored: `error` is what counts.

    Args:
        file: the record, in place of an earlier one. Its folder must exist.
        error: what ended the run.
    """
    expected = isinstance(error, FastcifarError)
    code = getattr(error, "exit_code", 1)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    content = asdict(Failure(type(error).__name__, str(error)[:_LONGEST], code, expected, date))
    new = file.with_name(f"{file.name}.new")
    with contextlib.suppress(OSError, ValueError):
        try:
            new.write_bytes(to_json(sealed(content)))
            os.replace(new, file)
        except OSError:
            new.unlink(missing_ok=True)
            raise


def read(file: Path) -> Failure | None:
    """The record in `file`.

    Args:
        file: the record, or the run folder that holds it.

    Returns:
        None where there is no record, and where it cannot be read: a record of a failure must not be one itself.
    """
    try:
        found = unsealed(json.loads(files.read(file / FAILURE if file.is_dir() else file, 2**20)))
        kind, message, code = str(found["kind"]), str(found["message"]), int(found["exit_code"])
        return Failure(kind, message, code, bool(found["expected"]), str(found.get("date", "")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Records in the run folder `folder` what ends the block, if an error does; a record of before is removed.

    A signal that stopped the run, after its state was saved or by a second Ctrl-C, is no failure and leaves no record.
    """
    with _recorded_in(folder / FAILURE):
        yield


@contextlib.contextmanager
def recorded_where_asked() -> Iterator[None]:
    """As `recorded`, in the file that `FASTCIFAR_FAILURE_FILE` names; without the variable nothing is written.

    The variable is taken out of the environment: it is for this command, and not for processes that it starts.
    """
    file = os.environ.pop(VARIABLE, None)
    with _recorded_in(Path(file)) if file else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _recorded_in(file: Path) -> Iterator[None]:
    with contextlib.suppress(OSError, ValueError):
        file.unlink(missing_ok=True)
    try:
        yield
    except (InterruptedRunError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        write(file, error)
        raise

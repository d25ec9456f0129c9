"""Where a new run goes, and which run a mistyped path may have meant."""

from __future__ import annotations

import contextlib
import difflib
import errno
import itertools
import os
import re
import stat
import time
from pathlib import Path

from fastcifar import files
from fastcifar.config import Config
from fastcifar.errors import CheckpointError, UsageError
from fastcifar.run import schema
from fastcifar.run.encoding import to_csv
from fastcifar.run.names import CONFIG, ENVIRONMENT, LOCK, METRICS_CSV, METRICS_JSONL
from fastcifar.text import quoted

_BEFORE_CONFIG = (LOCK, ENVIRONMENT, METRICS_JSONL, METRICS_CSV)
"""What a new run writes before its config.toml, which makes it a run."""

_HALF_WRITTEN = tuple(f"{name}.new" for name in (*_BEFORE_CONFIG, CONFIG))


def new_folder(config: Config) -> Path:
    """Makes `runs/<preset>/<local time>-s<seed>`, or that with a number behind it where there is one already.

    Args:
        config: its preset and seed are read.

    Returns:
        The folder, new and empty.

    Raises:
        UsageError: it cannot be made.
    """
    preset = re.sub(r"[^\w.-]", "_", config.preset)
    preset = re.sub(r"^\.+$", "_", preset)  # a name, not a place
    stem = Path("runs") / preset / f"{time.strftime('%Y%m%d-%H%M%S')}-s{config.seed}"
    for number in itertools.count(1):
        path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        try:
            files.make_folder(path)
            return path
        except FileExistsError:
            if not path.is_dir():
                raise UsageError(f"{stem.parent} cannot hold runs: {path} is not a folder. Give --out.") from None
        except OSError as problem:
            reason = files.refusal(path, problem)
            raise UsageError(f"{path} cannot be made: {reason}. Give a folder with --out.") from problem
    raise AssertionError("unreachable")


def given_folder(out: Path) -> Path:
    """Makes the folder that a user has given for a new run, if it is not there yet.

    Args:
        out: new, empty, or left by a run that was killed before its settings were written.

    Returns:
        `out`.

    Raises:
        UsageError: it is a file, holds something that is not ours, or cannot be made.
    """
    try:
        files.make_folder(out, exist_ok=True)
        if not _is_unused(out):
            raise not_empty(out)
    except FileExistsError:
        raise UsageError(f"--out {out} is a file; a new or empty folder is wanted.") from None
    except (OSError, ValueError) as problem:
        raise UsageError(f"--out {out} cannot be used: {files.refusal(out, problem)}.") from problem
    return out


def check_given(out: Path) -> None:
    """Refuses what `given_folder` would refuse, and makes nothing.

    Raises:
        UsageError: as `given_folder`.
    """
    try:
        if files.holds(out):
            given_folder(out)
            return
        above = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"Not a directory ({above} is a file)", str(out))
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied", str(out))
        longest = os.pathconf(above, "PC_NAME_MAX")
        if any(len(os.fsencode(part)) > longest for part in out.parts):
            raise OSError(errno.ENAMETOOLONG, "File name too long", str(out))
    except (OSError, ValueError) as problem:
        raise UsageError(f"--out {out} cannot be used: {files.refusal(out, problem)}.") from problem


def not_empty(out: Path) -> UsageError:
    """The error for a given folder that holds something."""
    if is_run(out):
        return UsageError(
            f"--out {out} already holds a run, and a run is never overwritten. "
            f"Continue it with --resume {quoted(out)}, or give a new folder."
        )
    return UsageError(
        f"--out {out} is not empty, and nothing is ever overwritten. Give a new or empty folder "
        "(an earlier run is continued with --resume RUN)."
    )


def is_run(path: Path) -> bool:
    """Whether a run was begun in this folder.

    Raises:
        UsageError: the system does not let us look.
    """
    try:
        return stat.S_ISREG((path / CONFIG).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as problem:
        raise UsageError(f"{path} cannot be read: {files.refusal(path / CONFIG, problem)}.") from problem


def no_run(path: Path) -> UsageError:
    """The error for a path where no run is. It names the newest run below it, or the nearest one beside it.

    Args:
        path: where a run was looked for; the system lets us look there.
    """
    if path.is_dir():
        if _was_cut_at_its_start(path):
            return UsageError(
                f"there is no run in {path}: one was begun there, and was stopped before its settings were written. "
                f"Nothing of it is lost; begin it again with --out {quoted(path)}"
            )
        text = f"there is no run in {path}: {path / CONFIG} was looked for."
    else:
        text = f"there is no run at {path}: " + ("it is a file." if path.exists() else "it does not exist.")
    start = path if path.is_dir() else next(parent for parent in path.absolute().parents if parent.is_dir())
    with contextlib.suppress(ValueError, OSError):
        start = start.relative_to(Path.cwd())
    if inside := _runs_under(start) if start == path else []:
        return UsageError(f"{text} The latest run under it is {max(inside, key=_age)}.")
    if not (runs := _runs_under(start) or _runs_under(start.parent) or _runs_under(Path("runs"))):
        return UsageError(f"{text} No other run was found near it.")
    name = path.absolute().as_posix()
    nearest = max(runs, key=lambda run: difflib.SequenceMatcher(None, run.absolute().as_posix(), name).ratio())
    return UsageError(f"{text} The nearest run is {nearest}.")


def _is_unused(folder: Path) -> bool:
    return all(entry.name == LOCK for entry in folder.iterdir()) or _was_cut_at_its_start(folder)


def _was_cut_at_its_start(folder: Path) -> bool:
    """Whether all that the folder holds is what a run writes before its config.toml, without an epoch in it."""
    try:
        found = {entry.name: entry for entry in folder.iterdir()}
        if not (found.keys() - {LOCK} and found.keys() <= {*_BEFORE_CONFIG, *_HALF_WRITTEN}):
            return False
        if any(not stat.S_ISREG(entry.lstat().st_mode) for entry in found.values()):
            return False
        if ENVIRONMENT in found:
            schema.read(found[ENVIRONMENT], schema.Environment)
        for name, empty in ((METRICS_JSONL, b""), (METRICS_CSV, to_csv([]))):
            if name in found and files.read(found[name]) != empty:
                return False
    except (OSError, CheckpointError):
        return False
    return True


def _runs_under(folder: Path) -> list[Path]:
    depths = ("", "*/", "*/*/", "*/*/*/")
    found = filter(Path.is_file, itertools.chain.from_iterable(folder.glob(f"{depth}{CONFIG}") for depth in depths))
    runs = []
    with contextlib.suppress(OSError):  # a folder that vanishes, or a disk that fails: a hint is worth no error
        for config in itertools.islice(found, 1000):
            with contextlib.suppress(OSError):
                if (config.parent / ENVIRONMENT).is_file():
                    runs.append(config.parent)
    return runs


def _age(run: Path) -> int:
    try:
        return (run / CONFIG).stat().st_mtime_ns
    except OSError:
        return 0

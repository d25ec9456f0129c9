"""Where a new run goes, and which run a mistyped path may have meant."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import re
import time
from pathlib import Path

from fastcifar.config import Config
from fastcifar.errors import UsageError
from fastcifar.run.names import CONFIG, ENVIRONMENT, LOCK


def new_folder(config: Config) -> Path:
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


def given_folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(entry.name != LOCK for entry in out.iterdir()):
            raise not_empty(out)
    except FileExistsError:
        raise UsageError(f"--out {out} is a file; a new or empty folder is wanted.") from None
    except OSError as problem:
        raise UsageError(f"--out {out} cannot be used: {problem.strerror}.") from problem
    return out


def not_empty(out: Path) -> UsageError:
    if (out / CONFIG).is_file():
        return UsageError(
            f"--out {out} already holds a run, and a run is never overwritten. "
            f"Continue it with --resume {out}, or give a new folder."
        )
    return UsageError(
        f"--out {out} is not empty, and nothing is ever overwritten. Give a new or empty folder "
        "(an earlier run is continued with --resume RUN)."
    )


def no_run(path: Path) -> UsageError:
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

"""Writes the page of finished runs to a folder, with the same as Markdown, CSV and SVG."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fastcifar.errors import FastcifarError, UsageError
from fastcifar.report.as_csv import to_csv
from fastcifar.report.as_html import MARK, to_html
from fastcifar.report.as_markdown import to_markdown
from fastcifar.report.assembly import build_document
from fastcifar.report.document import FIGURES, MARKDOWN, PAGE
from fastcifar.report.drawing import THEME
from fastcifar.run.planned import PlannedRun


def write_report(
    runs: Sequence[Path], out: Path, *, planned: Sequence[PlannedRun] = (), data: str | None = None
) -> Path:
    """Writes the page of finished `runs` to the folder `out`, with the same as Markdown, CSV and SVG; returns its path.

    Args:
        runs: run folders; one without a result is named on the page, and why.
        planned: what a study wanted, for the page to say what is missing.
        data: where the images lie now, if not where the runs had them. Without them there are no pictures.

    Raises:
        UsageError: no run is finished.
        FastcifarError: `out` cannot be written to.
    """
    document = build_document(runs, planned=planned, data=data)
    files: dict[str, str] = {f"{table.name}.csv": to_csv(table) for table in document.tables()}
    for figure in document.figures():
        files |= {f"{FIGURES}/{panel.name}.svg": panel.svg for panel in figure.panels}
    files |= {MARKDOWN: to_markdown(document, FIGURES), PAGE: to_html(document, THEME)}
    if (out / PAGE).is_file() and MARK not in (out / PAGE).read_text(encoding="utf-8", errors="replace")[:2000]:
        raise UsageError(f"{out / PAGE} is not a page of fastcifar's: give another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        _remove_outdated(out, files)
        for name, content in files.items():  # the page last: one that is there has its files
            path = out / name
            path.parent.mkdir(exist_ok=True)
            new = path.with_name(f"{path.name}.new")
            new.write_text(content, encoding="utf-8")
            os.replace(new, path)
    except OSError as problem:
        raise FastcifarError(f"{out}: the report cannot be written: {problem.strerror or problem}.") from problem
    return out / PAGE


def _remove_outdated(out: Path, files: Iterable[str]) -> None:
    """Removes the drawings and tables that an earlier page names and this one has no more."""
    if not (out / PAGE).is_file() or not (out / MARKDOWN).is_file():
        return
    earlier = re.findall(rf"\]\(((?:{FIGURES}/)?[\w.-]+\.(?:csv|svg))\)", (out / MARKDOWN).read_text(encoding="utf-8"))
    for name in set(earlier) - set(files):
        (out / name).unlink(missing_ok=True)

"""Writes the page of finished runs to a folder, with the same as Markdown, CSV and SVG."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from fastcifar.errors import FastcifarError
from fastcifar.report.as_csv import to_csv
from fastcifar.report.as_html import to_html
from fastcifar.report.as_markdown import to_markdown
from fastcifar.report.assembly import build_document
from fastcifar.report.document import FIGURES, MARKDOWN, PAGE, Document
from fastcifar.report.drawing import THEME
from fastcifar.report.ownership import (
    LIST,
    Known,
    check_folder,
    digest,
    is_ours,
    known_files,
    list_of,
    refuse_what_is_not_ours,
)
from fastcifar.report.search import Searched
from fastcifar.run.planned import PlannedRun


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    planned: Sequence[PlannedRun] = (),
    data: str | None = None,
    search: Searched | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Path:
    """Writes the page of finished runs to a folder, with the same as Markdown, CSV and SVG.

    Files of an earlier page are replaced, or removed where this page has no such file. Nothing else is touched: see
    `ownership`.

    Args:
        runs: run folders. A run without a result is named on the page, with the reason.
        out: the folder, made if it does not exist.
        planned: what a study wanted, for the page to say what is missing.
        data: where the images lie now, if not where the runs had them. Without the images there are no pictures.
        search: what the study's search has come to, if it has one.
        note: receives what the page lacks, a line for each cause.

    Returns:
        The path of the page.

    Raises:
        UsageError: no run is finished, or `out` holds a file that is not ours where one of ours would go.
        FastcifarError: `out` cannot be written to.
    """
    check_folder(out)  # before the work
    known = known_files(out)
    contents = _contents(build_document(runs, planned=planned, data=data, search=search, note=note))
    refuse_what_is_not_ours(out, contents, known)
    try:
        _write_all(out, contents, known)
    except OSError as problem:
        raise FastcifarError(f"{out}: the report cannot be written: {problem.strerror or problem}.") from problem
    return out / PAGE


def _contents(document: Document) -> dict[str, bytes]:
    """The files of the page, by their names relative to the folder. The page is the last: it names all others."""
    texts = {f"{table.name}.csv": to_csv(table) for table in document.tables()}
    for figure in document.figures():
        texts |= {f"{FIGURES}/{panel.name}.svg": panel.svg for panel in figure.panels}
    texts |= {MARKDOWN: to_markdown(document, FIGURES), PAGE: to_html(document, THEME)}
    return {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}


def _write_all(out: Path, contents: Mapping[str, bytes], known: Known) -> None:
    digests = {name: digest(content) for name, content in contents.items()}
    out.mkdir(parents=True, exist_ok=True)
    _replace(out / LIST, list_of(digests, known).encode())  # whatever cuts the rest, its files are known
    _remove_outdated(out, contents, known)
    for name, content in contents.items():
        (out / name).parent.mkdir(exist_ok=True)
        _replace(out / name, content)
    _replace(out / LIST, list_of(digests).encode())


def _replace(path: Path, content: bytes) -> None:
    """Writes a file in one step. Its content first has a name that nobody else has."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(new, "xb") as file:
            file.write(content)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def _remove_outdated(out: Path, names: Iterable[str], known: Known) -> None:
    """Removes the drawings and tables of an earlier page that this one has no more."""
    for name in set(known) - set(names):
        if is_ours(out, name, known):
            (out / name).unlink(missing_ok=True)

"""The folder of the page: our own files are replaced, and no other file is touched."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastcifar.errors import FastcifarError, UsageError
from fastcifar.report import writing
from fastcifar.report.document import Document, Figure, Heading, Panel, Table
from fastcifar.report.ownership import LIST, check_folder
from fastcifar.report.writing import write_report

RUN = Path("a run")
SVG = '<?xml version="1.0"?>\n<svg viewBox="0 0 9 9"></svg>\n'


@pytest.fixture(autouse=True)
def _a_small_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of two tables and, for each run, a drawing; no run is read."""

    def small(runs: Sequence[Path], **others: Any) -> Document:
        tables = [Table(name, "**A table**", ["a"], [["1"]]) for name in ("runs", "cost")]
        panels = [Panel(f"drawing-{i}", "A drawing of nothing", SVG) for i, _ in enumerate(runs, 1)]
        return Document("A page", [Heading(1, "A page", "top"), *tables, Figure("drawings", "Drawings", panels)])

    monkeypatch.setattr(writing, "build_document", small)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["report.md", "runs.csv", "figures/drawing-1.svg", "cost.csv", "index.html"])
def test_no_file_of_somebody_else_is_replaced(name: str, tmp_path: Path) -> None:
    """The bug: only index.html was checked."""
    out = tmp_path / "report"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    with pytest.raises(UsageError, match=f"{name}.*another folder with --out"):
        write_report([RUN], out)
    assert content_of(out) == {name: b"mine"}, "and nothing is written beside it"


def test_a_page_that_was_edited_is_not_replaced(tmp_path: Path) -> None:
    write_report([RUN], tmp_path)
    (tmp_path / "report.md").write_text((tmp_path / "report.md").read_text() + "\nMy remarks.\n")
    before = content_of(tmp_path)
    with pytest.raises(UsageError, match=r"report.md \(changed since\)"):
        write_report([RUN], tmp_path)
    assert content_of(tmp_path) == before


def test_links_and_folders_in_the_way_are_not_followed(tmp_path: Path) -> None:
    out, mine = tmp_path / "report", tmp_path / "mine.csv"
    out.mkdir()
    mine.write_text("1,2\n")
    (out / "runs.csv").symlink_to(mine)
    (out / "cost.csv").symlink_to(tmp_path / "gone")
    (out / "report.md").mkdir()
    with pytest.raises(UsageError, match="report.md"):
        write_report([RUN], out)
    (out / "report.md").rmdir()
    with pytest.raises(UsageError, match=r"cost.csv, runs.csv"):
        write_report([RUN], out)
    assert mine.read_text() == "1,2\n"


def test_a_page_of_an_earlier_version_is_known(tmp_path: Path) -> None:
    """Such a page, for example docs/study, has no list of its files."""
    write_report([RUN, RUN], tmp_path / "out")
    out = tmp_path / "out"
    (out / LIST).unlink()
    (out / "notes.txt").write_text("mine")
    assert (out / "figures/drawing-2.svg").is_file()
    write_report([RUN], out)
    assert not (out / "figures/drawing-2.svg").exists() and (out / "notes.txt").exists()
    (out / LIST).unlink()
    (out / "cost.csv").write_text("mine")
    with pytest.raises(UsageError, match="cost.csv"):
        write_report([RUN], out)


def test_what_a_kill_leaves_is_known_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report([RUN], tmp_path)
    real, left = writing._replace, [4]

    def dies(path: Path, content: bytes) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(writing, "_replace", dies)
    with pytest.raises(KeyboardInterrupt):
        write_report([RUN, RUN], tmp_path)
    monkeypatch.setattr(writing, "_replace", real)
    write_report([RUN, RUN], tmp_path)
    assert not list(tmp_path.rglob("*.new"))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"files": {"a": 3}}', '{"files": {"../mine": ["0"]}}', "[" * 99999]
)
def test_a_damaged_list_makes_nothing_ours(content: str, tmp_path: Path) -> None:
    (tmp_path / LIST).write_text(content)
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(UsageError, match="report.md"):
        check_folder(tmp_path)


def test_a_list_names_nothing_outside_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_report([RUN], out)
    mine = tmp_path / "mine.csv"
    mine.write_text("1")
    listed = json.loads((out / LIST).read_text())
    listed["files"]["../mine.csv"] = [hashlib.sha256(b"1").hexdigest()]
    (out / LIST).write_text(json.dumps(listed))
    write_report([RUN], out)
    assert mine.exists()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "figures").write_text("a file")
    with pytest.raises(FastcifarError, match="out: the report cannot be written: "):
        write_report([RUN], tmp_path / "out")


def test_a_file_in_place_of_the_folder_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any, **__: Any) -> Document:
        raise AssertionError("the page was made first")

    monkeypatch.setattr(writing, "build_document", work)
    (tmp_path / "small.npz").write_text("mine")
    with pytest.raises(UsageError, match="is a file; a folder is wanted"):
        write_report([RUN], tmp_path / "small.npz")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="may not write to the folder"):
        write_report([RUN], tmp_path / "new/page")

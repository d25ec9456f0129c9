"""The page of a study of one's own: its trials and effects, without the report's columns."""

import csv
import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from run_folders import fake_cifar100, make_run

from fastcifar.data import sources
from fastcifar.errors import DataError
from fastcifar.report.assembly import build_document
from fastcifar.report.document import Document, Figure, Heading, Paragraph, Table
from fastcifar.report.provenance import shortened_word
from fastcifar.report.results import read_results
from fastcifar.report.writing import write_report
from fastcifar.run.planned import PlannedRun

LABELS = tuple(i % 100 for i in range(500))


def gone(data: str) -> Any:
    raise DataError("there is no such file")


def grid(folder: Path, values: dict[str, list[float]], **others: Any) -> tuple[list[Path], list[PlannedRun]]:
    """Runs of `final` by learning rate, a seed for each validation accuracy, and their plan."""
    paths, planned = [], []
    for lr, accuracies in values.items():
        for seed, value in enumerate(accuracies):
            path = folder / f"final-lr={lr}-s{seed}"
            summary = {"val_accuracy": value}
            make_run(path, "final", seed, lr=float(lr), epochs=3, summary=summary, **others)
            paths.append(path)
            planned.append(PlannedRun(f"final-lr={lr}", seed, path, 3, "finished", 3))
    return paths, planned


def tables(document: Document) -> dict[str, Table]:
    return {table.name: table for table in document.tables()}


def test_a_grid_has_its_trials_curves_and_paired_effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load", lambda data: fake_cifar100())
    folder = tmp_path / "study/runs"
    paths, planned = grid(folder, {"0.1": [0.5, 0.6, 0.7], "0.05": [0.51, 0.611, 0.709]}, labels=LABELS)
    document = build_document(paths, planned=planned)
    assert document.title == "A study of final-lr=0.1, final-lr=0.05", "in the study's order"
    found = tables(document)
    assert [row[:3] for row in found["trials"].rows] == [["final-lr=0.1", "0.1", "3"], ["final-lr=0.05", "0.05", "3"]]
    assert found["trials"].columns[:3] == ["trial", "`lr`", "n"]
    (row,) = found["effects-val-accuracy"].rows
    assert row[:3] == ["final-lr=0.05", "lr = 0.05 in place of 0.1", "3"] and row[-1] == "higher"
    assert row[3].replace("\N{NO-BREAK SPACE}", " ") == "+1.00 ± 0.10 points"
    assert {"runs", "cost", "classes", "calibration", "effects-test-accuracy"} <= found.keys()
    assert not any(name.startswith("table-") or name == "accuracy" for name in found), "none of the report's tables"
    for table in found.values():
        assert not {"report", "verdict", "report's difference"} & set(table.columns), table.name
    figures = {block.name for block in document.figures()}
    assert {"val-accuracy", "test-accuracy", "curves-1", "effects", "confusion"} <= figures
    headings = [block.text for block in document.walk() if isinstance(block, Heading) and block.level == 2]
    assert headings[:3] == ["The trials", "Curves", "Effects, paired over seeds"]
    words = " ".join(block.text for block in document.walk() if isinstance(block, Paragraph))
    command = shlex.join(["fastcifar", "report", shortened_word(str(tmp_path / "study"))])
    assert f"This page: `{command}`." in words, "with its plan, and not runs alone"
    assert "course report" not in words and "on CIFAR-100. The trials differ in `lr`." in words
    assert "show **final-lr=0.05** (n = 3): the highest mean validation accuracy" in words


def test_the_page_and_its_csv_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load", gone)
    paths, planned = grid(tmp_path / "runs", {"0.1": [0.5], "0.05": [0.4]})
    page = write_report(paths, tmp_path / "out", planned=planned)
    assert "final-lr=0.05" in page.read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/trials.csv").read_text())))
    values = {(row["trial"], row["lr"]): row["mean"] for row in rows if row["metric"] == "val_accuracy"}
    assert values == {("final-lr=0.1", "0.1"): "0.5", ("final-lr=0.05", "0.05"): "0.4"}


def test_a_trial_is_what_the_study_says_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with the settings of another trial are no twins of its runs, and what is missing is named."""
    monkeypatch.setattr(sources, "load", gone)
    paths, planned = grid(tmp_path, {"0.05": [0.5, 0.6]})
    paths.append(make_run(tmp_path / "final-s0", "final", epochs=3))  # its lr is 0.05, too
    planned.append(PlannedRun("final", 0, paths[-1], 3, "finished", 3))
    planned.append(PlannedRun("mine", 0, tmp_path / "mine-s0", 3))
    results = read_results(paths, planned)
    assert [(trial.label, trial.n) for trial in results.trials] == [("final-lr=0.05", 2), ("final", 1)]
    assert results.is_own
    text = str(build_document(paths, planned=planned).walk())
    assert "**No finished run** of mine." in text and "the same settings" in text and "lr-0.5" not in text


def test_many_trials_are_drawn_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load", gone)
    rates = [f"0.{i:02}" for i in range(1, 15)]
    paths, planned = grid(tmp_path, {lr: [0.5] for lr in rates}, labels=LABELS)
    document = build_document(paths, planned=planned)
    curves = [block for block in document.walk() if isinstance(block, Figure) and block.name.startswith("curves-")]
    assert len(curves) == 3 and document.title == "A study of 14 trials"
    assert len(tables(document)["classes"].columns) == 3, "class by class: the first trial and the best"


@pytest.mark.parametrize(
    ("trials", "own"),
    [
        (["final", "lr-0.05"], False),
        (["final", "best"], False),
        (["best", "speedrun"], True),
        (["final", "mine"], True),
        ([], False),
    ],
)
def test_which_page_a_study_has(trials: list[str], own: bool, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "final", epochs=1)
    planned = [PlannedRun(name, 0, path if name == trials[0] else tmp_path / name, 1) for name in trials]
    assert read_results([path], planned).is_own is own

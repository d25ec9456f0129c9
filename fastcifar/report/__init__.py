"""The page of a study: each table and figure of the course report with ours beside it, and what goes beyond it.

results      run folders -> runs, trials, means; verdicts and effects
original     what the report prints, where no preset says it
predictions  what models say of each test image, counted
figures      the drawings (matplotlib -> SVG)
chapters     the report, front to back; beyond: what it lacks
document     the page as blocks; page, markdown and tables write them as HTML, Markdown and CSV
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import fastcifar
from fastcifar.data import sources
from fastcifar.data.sources import Dataset
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.report import original
from fastcifar.report.beyond import beyond_chapters, shortened
from fastcifar.report.chapters import comparisons, report_chapters
from fastcifar.report.document import Block, Bullets, Document, Heading, Paragraph
from fastcifar.report.figures import THEME
from fastcifar.report.markdown import to_markdown
from fastcifar.report.page import MARK, to_html
from fastcifar.report.predictions import read_all
from fastcifar.report.results import Results, read_results
from fastcifar.report.tables import to_csv
from fastcifar.run.environment import commit
from fastcifar.run.names import CONFIG
from fastcifar.stats import LEAST_FOR_INTERVAL
from fastcifar.study.plan import STUDY, PlannedRun, Study

PAGE, MARKDOWN, FIGURES = "index.html", "report.md", "figures"


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


def find_runs(paths: Iterable[Path]) -> tuple[list[Path], list[PlannedRun]]:
    """The run folders that `paths` name, and the plan of those that are study folders.

    A path may be a run, a study, or a folder that holds runs. Errors: UsageError.
    """
    runs: list[Path] = []
    planned: list[PlannedRun] = []
    for path in paths:
        if (path / CONFIG).is_file():
            runs.append(path)
        elif (path / STUDY).is_file():
            wanted = Study.open(path).planned()
            planned += wanted
            runs += [plan.path for plan in wanted if plan.epochs_done or plan.state == "finished"]
        elif path.is_dir() and (inside := sorted(config.parent for config in path.glob(f"*/{CONFIG}"))):
            runs += inside
        else:
            from fastcifar.run.folder import RunFolder

            RunFolder.open(path)  # raises, and names the nearest run
    if not runs:
        raise UsageError("no run has begun yet: there is nothing to report on")
    return runs, planned


def build_document(runs: Sequence[Path], *, planned: Sequence[PlannedRun] = (), data: str | None = None) -> Document:
    """The page's content, before any of it is written."""
    results = read_results(runs, planned)
    dataset, problem = _images(results, data)
    predictions, problems = read_all(results.trials, data)
    parents = {path.parent for path in runs}
    whole = all(config.parent in runs for parent in parents for config in parent.glob(f"*/{CONFIG}"))
    named = sorted(parents) if whole else runs  # a folder stands for the runs in it
    command = shlex.join(["fastcifar", "report", *(shortened(str(path)) for path in named)])
    blocks: list[Block] = [
        *_head(results),
        *report_chapters(results, dataset, shortened(problem)),
        *comparisons(results),
        *beyond_chapters(results, dataset, predictions, problems, command),
        Paragraph(_made_by()),
    ]
    return Document(_title(results), blocks)


def _title(results: Results) -> str:
    if any(trial.is_comparable for trial in results.trials):
        return "MobileNet on CIFAR-100: the report, reproduced"
    if all(trial.digest == sources.PROCEDURAL_DIGEST for trial in results.trials):
        return "The study in small, on procedural images"
    if all(trial.is_cifar100 for trial in results.trials):
        return "MobileNet on CIFAR-100, not as in the report"
    return "MobileNet on other images than the report's"


def _head(results: Results) -> list[Block]:
    runs, trials = results.runs, results.trials
    blocks: list[Block] = [
        Heading(1, _title(results), "top"),
        Paragraph(
            f"{_counted(len(runs), 'finished run')} of {_counted(len(trials), 'trial')} beside the numbers of a course "
            "report that tunes MobileNet on CIFAR-100 (learning rate, schedule, weight decay, MixUp) and the range of "
            "seven public reproductions of the same assignment, single seeds."
        ),
        *_incomparable(results),
        *_incomplete(results),
        Paragraph(
            "**How to read it.** All numbers are those of the last epoch. `±` is the standard deviation over n seeds, "
            "and the interval is the 95 % interval of their mean (Student's t), given from "
            f"{LEAST_FOR_INTERVAL} seeds on. A verdict says whether **our mean** lies **inside**, **above** or "
            "**below** the range that the report's number and the reproductions span. The split into training and "
            "validation is the same for all seeds: the spread over seeds does not cover the variance of the split, nor "
            "that of the images drawn (a share near 50 % of 10,000 images has a standard error of 0.5 points)."
        ),
    ]
    return blocks


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")


def _incomparable(results: Results) -> list[Block]:
    """Why trials get no verdict, if any does not."""
    reasons: dict[str, list[str]] = {}
    for trial in results.trials:
        why = []
        if trial.digest == sources.PROCEDURAL_DIGEST:
            why.append("procedural images")
        elif not trial.is_cifar100:
            why.append(f"images that are not CIFAR-100 (digest {trial.digest[:12]})")
        if trial.preset is None:
            why.append("settings of no preset")
        why += [f"`{change}`" for change in trial.changes]
        if why:
            reasons.setdefault(", ".join(why), []).append(trial.label)
    if not reasons:
        return []
    told = "; ".join(f"{', '.join(labels)}: {why}" for why, labels in reasons.items())
    everywhere = not any(trial.is_comparable for trial in results.trials)
    which = "No run here compares" if everywhere else "Some runs do not compare"
    return [Paragraph(f"**{which} with the published numbers, and gets no verdict.** {told}.", "warning")]


def _incomplete(results: Results) -> list[Block]:
    missing = [name for name in original.TRIALS if results.trial(name) is None]
    counts = {trial.label: trial.n for trial in results.trials}
    items = []
    if missing:
        items.append(f"**No finished run** of {', '.join(missing)}.")
    if len(set(counts.values())) > 1:
        items.append("**Seeds differ by trial**: " + ", ".join(f"{name} {n}" for name, n in counts.items()) + ".")
    items += [
        f"**{shortened(a.name)}** ({a.state}): {shortened(a.reason)}." for a in results.absences if a.state != "missing"
    ]
    if not_begun := [a.name for a in results.absences if a.state == "missing"]:
        items.append(f"**Not begun**: {'; '.join(not_begun)}.")
    if not items:
        return []
    finished = f"{len(results.runs)} of {len(results.planned)} planned runs are finished." if results.planned else ""
    return [Paragraph(f"**These results are incomplete.** {finished}".rstrip(), "warning"), Bullets(items)]


def _images(results: Results, data: str | None) -> tuple[Dataset | None, str]:
    """The images of the first trial, wherever a run says they lie, or why not."""
    digest = results.trials[0].digest
    places = [data] if data else list(dict.fromkeys(run.config.data for run in results.runs if run.digest == digest))
    problems = []
    for place in places:
        try:
            dataset = sources.load(place)
        except FastcifarError as error:
            problems.append(str(error).replace("\n", " "))
            continue
        if dataset.digest == digest:
            return dataset, ""
        problems.append(f"{place} holds other images than the runs were trained on")
    return None, "; ".join(problems)


def _made_by() -> str:
    source = commit(Path(fastcifar.__file__).resolve().parent.parent)
    at = f", commit {source['commit'][:12]}" if source and source.get("commit") else ""
    return f"Made by fastcifar {fastcifar.__version__}{at}. The same as Markdown: `{MARKDOWN}`; its tables: `*.csv`."


def _remove_outdated(out: Path, files: Iterable[str]) -> None:
    """Removes the drawings and tables that an earlier page names and this one has no more."""
    if not (out / PAGE).is_file() or not (out / MARKDOWN).is_file():
        return
    earlier = re.findall(rf"\]\(((?:{FIGURES}/)?[\w.-]+\.(?:csv|svg))\)", (out / MARKDOWN).read_text(encoding="utf-8"))
    for name in set(earlier) - set(files):
        (out / name).unlink(missing_ok=True)

"""The page's content, put together from its chapters."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import fastcifar
from fastcifar.data import procedural, sources
from fastcifar.data.dataset import Dataset
from fastcifar.errors import FastcifarError
from fastcifar.presets import TRIALS
from fastcifar.report.calibration import calibration_blocks
from fastcifar.report.cost import cost_blocks
from fastcifar.report.curves import curves_figure
from fastcifar.report.document import MARKDOWN, Block, Bullets, Document, Heading, Paragraph
from fastcifar.report.effects import comparisons
from fastcifar.report.findings import accuracy_blocks, error_blocks
from fastcifar.report.markup import code, plain
from fastcifar.report.own import own_chapters, own_head, own_title, shown_models
from fastcifar.report.predictions import Predictions, read_all
from fastcifar.report.provenance import reproduce_blocks, shortened, shortened_word
from fastcifar.report.reproduction import report_chapters
from fastcifar.report.results import Results, Trial, read_results
from fastcifar.report.search import Searched
from fastcifar.run.environment import commit
from fastcifar.run.names import CONFIG
from fastcifar.run.planned import PlannedRun
from fastcifar.stats import LEAST_FOR_INTERVAL


def build_document(
    runs: Sequence[Path],
    *,
    planned: Sequence[PlannedRun] = (),
    data: str | None = None,
    search: Searched | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Document:
    """The page's content, before any of it is written.

    Args:
        runs: run folders. A run that cannot be used is named on the page, with the reason.
        planned: what a study wanted, for the page to say what is missing.
        data: where the images lie now, if not where the runs had them. Without the images there are no pictures.
        search: what the study's search has come to, if it has one.
        note: receives what the page lacks, a line for each cause.

    Raises:
        UsageError: no run is finished.
    """
    results = read_results(runs, planned)
    dataset, problem = _images(results, data)
    tested = [trial for trial in results.trials if trial.config.test]
    predictions, problems = read_all(tested, data, dataset)
    for text in results.notes:
        note(text)
    for absence in results.absences:
        if absence.state == "unreadable":
            note(f"{absence.path} is left out of the page: {absence.reason}")
    if dataset is None:
        note(f"the page has no pictures of the images, which were not at hand: {problem}")
    for run, why in problems.items():
        note(f"{run}: the page does not say what the model gets wrong: {why}")
    command = shlex.join(["fastcifar", "report", *(shortened_word(str(path)) for path in _named(runs, planned))])
    if results.is_own:
        title = own_title(results)
        blocks = [*own_head(results), *_incomplete(results), *own_chapters(results, search)]
        if tested:
            shown = shown_models(results, predictions)
            blocks += _model_chapters(shown, dataset, predictions, problems, shown[-1] if shown else None)
    else:
        title = _title(results)
        blocks = [
            *_head(results),
            *report_chapters(results, dataset, plain(shortened(problem))),
            *comparisons(results),
            *beyond_chapters(results, dataset, predictions, problems),
        ]
    blocks += [Heading(2, "Time, speed and energy", "cost"), *cost_blocks(results)]
    blocks += [Heading(2, "How to reproduce each number", "reproduce"), *reproduce_blocks(results, command)]
    return Document(title, [*blocks, Paragraph(_made_by())])


def _named(runs: Sequence[Path], planned: Sequence[PlannedRun]) -> Sequence[Path]:
    """What to name for the same page: the study, if one planned all runs, or the folders that hold just these runs."""
    parents = {path.parent for path in runs}
    if planned and {plan.path.parent for plan in planned} == parents and len(parents) == 1:
        return [parent.parent for parent in parents]
    whole = all(config.parent in runs for parent in parents for config in parent.glob(f"*/{CONFIG}"))
    return sorted(parents) if whole else runs


def _title(results: Results) -> str:
    if any(trial.is_comparable for trial in results.trials):
        there = len({trial.name for trial in results.trials if trial.is_comparable} & set(TRIALS))
        part = "" if there == len(TRIALS) else f" in part ({there} of {len(TRIALS)} trials)"
        return f"MobileNet on CIFAR-100: the report, reproduced{part}"
    if all(trial.digest == procedural.DIGEST for trial in results.trials):
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
            f"{LEAST_FOR_INTERVAL} seeds on. An interval of an accuracy is cut at 0 and 100 %, one of a loss at 0: "
            "Student's t knows no limits. A verdict says whether **our mean** lies **inside**, **above** or "
            "**below** the range that the report's number and the reproductions span. Each of their numbers is one "
            "run; where n is 1, so is ours, and the verdict compares two single numbers. The split into training and "
            "validation is the same for all seeds: the spread over seeds does not cover the variance of the split, nor "
            "that of the images drawn (a share near 50 % of 10,000 images has a standard error of 0.5 points)."
        ),
    ]
    return blocks


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")


def _incomparable(results: Results) -> list[Block]:
    """Names the trials that get no verdict, and why."""
    reasons: dict[str, list[str]] = {}
    for trial in results.trials:
        why = []
        if trial.digest == procedural.DIGEST:
            why.append("procedural images")
        elif not trial.is_cifar100:
            why.append(f"images that are not CIFAR-100 (digest {trial.digest[:12]})")
        if trial.preset is None:
            why.append("settings of no preset")
        why += [code(change) for change in trial.changes]
        if why:
            reasons.setdefault(", ".join(why), []).append(plain(trial.label))
    if not reasons:
        return []
    told = "; ".join(f"{', '.join(labels)}: {why}" for why, labels in reasons.items())
    everywhere = not any(trial.is_comparable for trial in results.trials)
    which = "No run here compares" if everywhere else "Some runs do not compare"
    return [Paragraph(f"**{which} with the published numbers, and gets no verdict.** {told}.", "warning")]


def _incomplete(results: Results) -> list[Block]:
    asked: Sequence[str] = TRIALS
    if results.is_own:
        asked = tuple(dict.fromkeys(plan.trial for plan in results.planned if plan.state != "pruned"))
    missing = [name for name in asked if results.trial(name) is None]
    counts = {trial.label: trial.n for trial in results.trials}
    items = []
    if missing:
        items.append(f"**No finished run** of {', '.join(map(plain, missing))}.")
    if len(set(counts.values())) > 1:
        items.append(
            "**Seeds differ by trial**: " + ", ".join(f"{plain(name)} {n}" for name, n in counts.items()) + "."
        )
    items += [
        f"**{plain(shortened(a.name))}** ({a.state}): {plain(shortened(a.reason))}."
        for a in results.absences
        if a.state not in ("missing", "pruned")
    ]
    if not_begun := [plain(a.name) for a in results.absences if a.state == "missing"]:
        items.append(f"**Not begun**: {'; '.join(not_begun)}.")
    items += [f"**Note**: {plain(shortened(text))}." for text in results.notes]
    if not items:
        return []
    finished = f"{len(results.runs)} of {len(results.planned)} planned runs are finished." if results.planned else ""
    return [Paragraph(f"**These results are incomplete.** {finished}".rstrip(), "warning"), Bullets(items)]


def beyond_chapters(
    results: Results,
    dataset: Dataset | None,
    predictions: Mapping[str, list[Predictions]],
    problems: Mapping[str, str],
) -> list[Block]:
    """What the report does not have: what the models get wrong, and the trials that are not the report's.

    Args:
        results: the runs.
        dataset: the images of the first trial, if they are at hand.
        predictions: by a trial's label, those of its runs.
        problems: by run, why it has no predictions.
    """
    blocks: list[Block] = [Heading(2, "Test accuracy of every trial", "test-accuracy"), *accuracy_blocks(results)]
    # One data set a page: another's classes are not comparable.
    digest = results.trials[0].digest
    trials = [trial for trial in results.trials if trial.label in predictions and trial.digest == digest]
    blocks += _model_chapters(trials, dataset, predictions, problems)
    others = [trial for trial in results.trials if trial.label not in TRIALS]
    if others:
        blocks.append(Heading(2, "Trials that are not the report's", "other-trials"))
        for i, trial in enumerate(others, 1):
            changes = f" ({', '.join(trial.changes)})" if trial.changes and trial.label == trial.name else ""
            caption = f"{plain(trial.label + changes)}: loss and accuracy"
            blocks.append(curves_figure(None, f"other-{i}", caption, [trial]))
    return blocks


def _model_chapters(
    trials: Sequence[Trial],
    dataset: Dataset | None,
    predictions: Mapping[str, list[Predictions]],
    problems: Mapping[str, str],
    focus: Trial | None = None,
) -> list[Block]:
    """What the models of `trials` get wrong, and how sure they are; the figures show `focus`, if one is named."""
    blocks: list[Block] = [Heading(2, "What the models get wrong", "errors")]
    if problems:
        told = "; ".join(f"{plain(run)}: {plain(shortened(problem))}" for run, problem in problems.items())
        blocks.append(Paragraph(f"Without predictions of single images, and not in this chapter: {told}.", "warning"))
    if not trials:
        return [*blocks, Paragraph("No run of this page has predictions of single images.")]
    blocks += error_blocks(trials, dataset, predictions, focus)
    return [*blocks, Heading(2, "Calibration", "calibration"), *calibration_blocks(trials, predictions)]


def _images(results: Results, data: str | None) -> tuple[Dataset | None, str]:
    """The images of the first trial, wherever a run says they lie; or None, and why."""
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

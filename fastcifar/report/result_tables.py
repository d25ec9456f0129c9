"""Tables of settings and results: ours, with the report's numbers beside them."""

from __future__ import annotations

from fastcifar.presets import TRIALS, Metric, find_preset
from fastcifar.report.course import ResultTable, SettingsTable
from fastcifar.report.document import NOTHING, Table
from fastcifar.report.markup import plain
from fastcifar.report.results import Results, Trial, published_span, verdict
from fastcifar.report.wording import METRIC_NAMES, mean_and_sd, number, span
from fastcifar.stats import Sample

RESULT_COLUMNS = ("quantity", "n", "ours, mean ± sd", "95 % interval", "report", "reproductions", "verdict")


def settings_table(table: SettingsTable, results: Results) -> Table:
    """A row for each trial: our settings, and the report's where they differ."""
    rows, data = [], []
    for name, stated in table.rows.items():
        trial = results.trial(name)
        cells, verdicts = [], []
        for setting, theirs in stated.items():
            ours = None if trial is None else getattr(trial.config, setting)
            verdicts.append("no run" if trial is None else "same" if ours == theirs else "differs")
            shown = NOTHING if trial is None else _plain(ours)
            cells.append(shown if verdicts[-1] == "same" else f"{shown} (report: {_plain(theirs)})")
            data.append({"trial": name, "setting": setting, "ours": ours, "report": theirs, "verdict": verdicts[-1]})
        rows.append([name, *cells, "same as the report's" if set(verdicts) == {"same"} else max(verdicts)])
    columns = ["trial", *(f"`{setting}`" for setting in next(iter(table.rows.values()))), "verdict"]
    return Table(f"table-{table.number:02}", f"**Table {table.number}.** {table.caption}", columns, rows, data)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def result_table(table: ResultTable, results: Results) -> Table:
    """A row for each metric of each trial: ours, the report's, the reproductions', and the verdict."""
    rows, data = [], []
    for metric in table.metrics:
        for name in table.trials:
            row, record = _result_row(name, results.trial(name), metric, results)
            rows.append([f"{METRIC_NAMES[metric]}, {name}", *row])
            data.append(record)
    caption = f"**Table {table.number}.** {table.caption}"
    return Table(f"table-{table.number:02}", caption, RESULT_COLUMNS, rows, data)


def overview_table(results: Results) -> Table:
    """Validation and test accuracy of every trial. A trial of the report that has no run has its row too."""
    rows, data = [], []
    names = [*TRIALS, *(trial.name for trial in results.trials)]
    labelled: list[tuple[str, str, Trial | None]] = []
    for name in dict.fromkeys(names):
        found: list[Trial | None] = [trial for trial in results.trials if trial.name == name]
        labelled += [(name, trial.label if trial else name, trial) for trial in found or [None]]
    for metric in ("val_accuracy", "test_accuracy"):
        for name, label, trial in labelled:
            row, record = _result_row(name, trial, metric, results, label)
            rows.append([f"{METRIC_NAMES[metric]}, {plain(label)}", *row])
            data.append(record)
    caption = "Accuracy of every trial after its last epoch. The test images were looked at once a run, at its end"
    return Table("accuracy", f"**All trials.** {caption}", RESULT_COLUMNS, rows, data)


def _result_row(
    name: str, trial: Trial | None, metric: Metric, results: Results, label: str = ""
) -> tuple[list[str], dict[str, object]]:
    """The cells after the first, and the same for the CSV.

    Args:
        name: the preset.
        trial: its runs; None where none has finished.
        metric: of the last epoch.
        results: say which runs failed.
        label: what the page calls the trial, if not by the preset.
    """
    sample = trial.sample(metric) if trial else None
    if trial is not None and trial.preset is None:
        report, reproductions = None, None
    else:
        report, reproductions = published(name, metric)
    told = judged = "no run" if trial is None else verdict(trial, metric)
    if trial is None and (failed := results.failures(name)):
        judged += f": {len(failed)} [failed](#top)"
    elif trial is not None and sample is not None and judged in ("inside", "above", "below"):
        limits = published_span(trial, metric)
        assert limits is not None
        single = limits[0] == limits[1]
        judged += f" the report's {number(limits[0], metric)}" if single else f" {span(limits, metric)}"
        if sample.n == 1:
            judged += ": one run against one" if single else ": one run"
    cells = [
        str(sample.n) if sample else "0",
        mean_and_sd(sample, metric),
        span(sample.interval, metric) if sample else NOTHING,
        number(report, metric),
        span(reproductions, metric),
        judged,
    ]
    low, high = reproductions or (None, None)
    record = {"trial": label or name, "metric": metric, **sample_data(sample, trial, metric), "report": report}
    record |= {"reproductions_low": low, "reproductions_high": high, "verdict": told}
    return cells, record


def sample_data(sample: Sample | None, trial: Trial | None, metric: str) -> dict[str, object]:
    """The columns of the CSV that tell a sample."""
    low, high = (sample.interval if sample else None) or (None, None)
    seeds = "" if trial is None else " ".join(map(str, trial.by_seed(metric)))
    return {
        "n": sample.n if sample else 0,
        "mean": sample.mean if sample else None,
        "sd": sample.sd if sample else None,
        "ci95_low": low,
        "ci95_high": high,
        "seeds": seeds,
        "values": " ".join(map(repr, sample.values)) if sample else "",
    }


def published(name: str, metric: Metric) -> tuple[float | None, tuple[float, float] | None]:
    """The report's number and the range of the reproductions."""
    about = find_preset(name).about
    return about.report.get(metric), about.reproductions.get(metric)

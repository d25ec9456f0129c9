"""`fastcifar compare`: runs side by side in the terminal, each against the first; seeds of one setting as one column.

A cell is `47.01 ± 0.37 (+0.64)`: the mean over the runs of a column, their standard deviation (n - 1), and what lies
between it and the first column: a difference for accuracies and losses, a ratio for times and speeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.config import RESUMABLE, Config
from fastcifar.errors import CheckpointError, UsageError
from fastcifar.run import facts as run_facts
from fastcifar.run.folder import RunFolder
from fastcifar.spelling import format_value
from fastcifar.stats import describe
from fastcifar.studies.finding import find_runs
from fastcifar.ui.notes import note as print_note

_Value = Callable[[RunFolder], "float | None"]


@dataclass(frozen=True)
class Column:
    """Runs that differ in the seed alone, no seed twice.

    Attributes:
        title: a letter and the preset.
        runs: one or more.
    """

    title: str
    runs: list[RunFolder]

    @property
    def seeds(self) -> str:
        """`0, 2-4`."""
        seeds = sorted(run.config.seed for run in self.runs)
        starts = [i for i, seed in enumerate(seeds) if i == 0 or seed != seeds[i - 1] + 1]
        spans = [seeds[a:b] for a, b in zip(starts, [*starts[1:], len(seeds)], strict=True)]
        return ", ".join(f"{span[0]}" if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


@dataclass(frozen=True)
class _Row:
    title: str
    value: _Value
    format: str
    ratio: bool = False

    def cell(self, values: Sequence[float], first: Sequence[float]) -> str:
        """`values`, and how they compare with those of the first column, if given."""
        if not values:
            return "-"
        text = mean_sd(values, self.format)
        if not first:
            return text
        mean, base = describe(values).mean, describe(first).mean
        if self.ratio:
            return f"{text} ({mean / base:.2f}x)" if base else text
        return f"{text} ({mean - base:+{self.format}})"


def load(paths: Sequence[Path], note: Callable[[str], None] = print_note) -> list[RunFolder]:
    """The runs at `paths`: run folders, studies, and folders that hold runs (see `finding.find_runs`).

    Args:
        paths: as typed.
        note: receives which damaged runs of a study or of a folder are left out.

    Raises:
        UsageError: there is no run at a path, or there are fewer than two in all.
        CheckpointError: the records of a run that is itself among `paths` are damaged.
    """
    folders, _ = find_runs(paths)
    found: list[RunFolder] = []
    for folder in folders:
        try:
            run = RunFolder.open(folder, note=note)
            run.summary()  # a damaged one is told here
            found.append(run)
        except CheckpointError as problem:
            if folder in paths:
                raise
            note(f"{folder} is left out: {problem}")
    if len(found) < 2:
        raise UsageError(f"compare: two runs are needed, or a study with two; found {len(found)}")
    return found


def columns(runs: Sequence[RunFolder], each: bool = False) -> list[Column]:
    """The columns of the table, in the order of their first runs.

    Args:
        runs: what is compared.
        each: a column for every run. Without it, all seeds of the same settings share a column.

    Returns:
        Where all runs would share one column, a column for each run and one for all of them.
    """
    groups: list[list[RunFolder]] = []
    for run in runs:
        fitting = (g for g in groups if _same_but_for_seed(run, g[0]) and run.config.seed not in _seeds(g))
        group = None if each else next(fitting, None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    if len(groups) == 1:
        groups = [*([run] for run in runs), list(runs)]
    return [Column(f"{_letter(i)} {group[0].config.preset}", group) for i, group in enumerate(groups)]


def _same_but_for_seed(a: RunFolder, b: RunFolder) -> bool:
    free = {"seed", *RESUMABLE}
    return (a.dataset_digest, a.config.model_dump(exclude=free)) == (
        b.dataset_digest,
        b.config.model_dump(exclude=free),
    )


def _seeds(runs: Sequence[RunFolder]) -> set[int]:
    return {run.config.seed for run in runs}


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"{_letter(index // 26 - 1)}{_letter(index % 26)}"


def legend(cols: Sequence[Column]) -> list[str]:
    """A line a column: what it is, its seeds and where its runs lie."""
    heads = [f"{col.title}, seed{'s' * (len(col.runs) > 1)} {col.seeds}" for col in cols]
    width = max(map(len, heads))
    places = []
    for col in cols:
        first, *others = col.runs
        places.append(str(first.path) + "".join(f", {run.path.name}" for run in others))
    return [f"{head:<{width}}  {place}" for head, place in zip(heads, places, strict=True)]


def table(cols: Sequence[Column]) -> list[list[str]]:
    """Rows under the columns' titles: what differs in settings, images and machine, then the results."""
    return [*_differing(cols), *_results(cols)]


def blocks(titles: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[tuple[list[str], list[list[str]]]]:
    """The table in parts that fit a terminal; each part has the names and the first column.

    Args:
        titles: of the columns.
        rows: a name and a cell for each column.
        width: of the terminal, in characters.

    Returns:
        Header and rows of each part.
    """
    header = ["", *titles]
    widths = [max(map(len, column)) + 2 for column in zip(header, *rows, strict=True)]
    room = width - widths[0] - widths[1]
    parts: list[list[int]] = [[]]
    for i in range(2, len(header)):
        if parts[-1] and sum(widths[j] for j in [*parts[-1], i]) > room:
            parts.append([])
        parts[-1].append(i)
    return [([header[i] for i in (0, 1, *part)], [[row[i] for i in (0, 1, *part)] for row in rows]) for part in parts]


def _differing(cols: Sequence[Column]) -> list[list[str]]:
    names = [name for name in Config.model_fields if name not in ("preset", "seed", *RESUMABLE)]
    facts = {name: [format_value(getattr(run.config, name)).strip('"') for run in _all(cols)] for name in names}
    if len({run.dataset_digest for run in _all(cols)}) > 1:
        facts["images"] = [f"{run.config.data} ({run.dataset_digest[:8]})" for run in _all(cols)]
    for name, path in {
        "GPU": ("gpu", "name"),
        "CPU": ("cpu", "model"),
        "threads": ("threads", "torch"),
        "side by side": ("variables", "FASTCIFAR_STUDY_JOBS"),
        "torch": ("torch",),
        "commit": ("source", "commit"),
    }.items():
        facts[name] = [_fact(run, path)[: 10 if name == "commit" else 40] for run in _all(cols)]
    found = []
    for name, values in facts.items():
        each = iter(values)
        cells = [_joined(next(each) for _ in col.runs) for col in cols]
        if len(set(cells)) > 1:
            found.append([name, *cells])
    return found


def _joined(values: Iterable[str]) -> str:
    """`a`, `a / b`, `a / b / ...`."""
    different = list(dict.fromkeys(values))
    return " / ".join([*different[:2], *["..."] * (len(different) > 2)])


def _all(cols: Sequence[Column]) -> list[RunFolder]:
    return [run for col in cols for run in col.runs]


def _fact(run: RunFolder, path: Sequence[str]) -> str:
    value: Any = run.environment
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return "-" if value is None else str(value)


def _results(cols: Sequence[Column]) -> list[list[str]]:
    summaries = {run.path: run.summary() for run in _all(cols)}

    def of_summary(key: str, scale: float = 1.0) -> _Value:
        def value(run: RunFolder) -> float | None:
            found = (summaries[run.path] or {}).get(key)
            return scale * found if isinstance(found, (int, float)) else None

        return value

    quantities = [_Row(f"{x} accuracy %", of_summary(f"{x}_accuracy", 100), ".2f") for x in ("val", "test", "train")]
    quantities += [_Row(f"{split} loss", of_summary(f"{split}_loss"), ".4f") for split in ("val", "test", "train")]
    quantities += [
        _Row("training s", of_summary("train_seconds"), ",.1f", ratio=True),
        _Row("whole process s", of_summary("process_seconds"), ",.1f", ratio=True),
        _Row("images/s", images_per_second, ",.0f", ratio=True),
        _Row("energy kJ", of_summary("energy_joules", 1e-3), ",.1f", ratio=True),
    ]
    rows = []
    if not all(summaries.values()):
        rows.append(["epochs done", *(_epochs(col, summaries) for col in cols)])
    for row in quantities:
        values = [[value for run in col.runs if (value := row.value(run)) is not None] for col in cols]
        if any(values):
            rows.append([row.title, *(row.cell(own, values[0] if i else []) for i, own in enumerate(values))])
    return rows


def _epochs(col: Column, summaries: Mapping[Path, Any]) -> str:
    """`15`, or for runs that are not finished `3 of 15`; these have no result yet."""
    counts = [str(run.config.epochs) if summaries[run.path] else _unfinished(run) for run in col.runs]
    return ", ".join(dict.fromkeys(counts))


def _unfinished(run: RunFolder) -> str:
    return f"{run.records[-1]['epoch'] if run.records else 0} of {run.config.epochs}"


def images_per_second(run: RunFolder) -> float | None:
    """Training images a second over all of the run's epochs, on the training clock."""
    return run_facts.images_per_second(run.records)


def mean_sd(values: Sequence[float], form: str) -> str:
    """`47.01 ± 0.37`, or the one value there is; `form` is that of a number."""
    sample = describe(values)
    return f"{sample.mean:{form}}" + ("" if sample.sd is None else f" ± {sample.sd:{form}}")

"""The report's comparisons of one trial with another, paired over seeds."""

from __future__ import annotations

from fastcifar.presets import Metric
from fastcifar.report import course, figures
from fastcifar.report.course import Comparison
from fastcifar.report.document import NOTHING, Block, Details, Figure, Heading, Paragraph, Table
from fastcifar.report.drawing import colour_of
from fastcifar.report.result_tables import published, sample_data
from fastcifar.report.results import Results, effect
from fastcifar.report.wording import METRIC_NAMES, PERCENT, mean_and_sd, number, span
from fastcifar.stats import LEAST_FOR_INTERVAL, Sample


def comparisons(results: Results) -> list[Block]:
    """The report's own steps, paired over seeds."""
    blocks: list[Block] = [
        Heading(2, "The report's comparisons, paired over seeds", "comparisons"),
        Paragraph(
            "Runs of one seed start from the same weights and see the same images in the same order with the same "
            "crops and flips, so trials are compared seed by seed. An effect is the mean of the differences; its 95 % "
            f"interval (Student's t, not corrected for looking at {len(course.COMPARISONS)} effects) is given from "
            f"{LEAST_FOR_INTERVAL} seeds on. The split into training and validation is the same for all seeds."
        ),
    ]
    effects = [
        (step, effect(results.trial(step.before), results.trial(step.after), "val_accuracy"))
        for step in course.COMPARISONS
    ]
    rows = [
        figures.Row(f"{step.after} − {step.before}", colour_of(step.after), found, _own_effect(step, results))
        for step, found in effects
        if isinstance(found, Sample)
    ]
    if rows:
        words = "; ".join(f"{row.label}: {mean_and_sd(row.sample, 'val_accuracy', '+')}" for row in rows)
        drawing = figures.draw_dots(
            "effects",
            rows,
            "effect on validation accuracy, points",
            f"Effects on validation accuracy. {words}",
            zero=True,
        )
        shown = " Grey: the report's own difference, of one run each." if any(row.published for row in rows) else ""
        caption = f"**Effects on validation accuracy.** A dot a seed, a diamond the mean, a line its interval.{shown}"
        blocks.append(Figure("effects", caption, [drawing]))
    blocks.append(_effect_table("val_accuracy", results))
    rest: list[Metric] = ["test_accuracy", "val_loss", "train_loss", "train_accuracy"]
    blocks.append(Details("The same for test accuracy and losses", [_effect_table(metric, results) for metric in rest]))
    return blocks


def _own_effect(step: Comparison, results: Results) -> tuple[float, float] | None:
    trial = results.trial(step.after)
    difference = _report_difference(step, "val_accuracy")
    return None if difference is None or trial is None or not trial.is_comparable else (difference, difference)


def _report_difference(step: Comparison, metric: Metric) -> float | None:
    before, after = (published(name, metric)[0] for name in (step.before, step.after))
    return None if before is None or after is None else after - before


def _effect_table(metric: Metric, results: Results) -> Table:
    rows, data = [], []
    for step in course.COMPARISONS:
        found = effect(results.trial(step.before), results.trial(step.after), metric)
        sample = found if isinstance(found, Sample) else None
        theirs = _report_difference(step, metric)
        told = reading(found)
        rows.append(
            [
                f"{step.after} − {step.before}: {step.change}",
                str(sample.n) if sample else "0",
                points(mean_and_sd(sample, metric, "+")),
                points(span(sample.interval, metric, "+")) if sample else NOTHING,
                points(number(theirs, metric, "+")),
                told,
            ]
        )
        record = {"before": step.before, "after": step.after, "metric": metric, **sample_data(sample, None, metric)}
        del record["seeds"]
        data.append(record | {"report_difference": theirs, "reading": told})
    columns = ["step", "n", "effect, mean ± sd", "95 % interval", "report's difference", "reading"]
    caption = f"**Effects on {METRIC_NAMES[metric]}** of the report's steps"
    return Table(f"effects-{metric.replace('_', '-')}", caption, columns, rows, data)


def points(text: str) -> str:
    """A difference of accuracies in points, where an accuracy is in per cent."""
    return text.removesuffix(PERCENT) + "\N{NO-BREAK SPACE}points" if text.endswith(PERCENT) else text


def reading(found: Sample | str) -> str:
    """What an effect's interval says, or why there is none."""
    if isinstance(found, str):
        return found
    if found.interval is None:
        return f"n = {found.n}: too few seeds for an interval"
    low, high = found.interval
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart from no effect"

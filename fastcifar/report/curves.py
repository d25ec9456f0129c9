"""Loss and accuracy over the epochs, one figure for several trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastcifar.presets import Metric
from fastcifar.report import figures
from fastcifar.report.document import Figure, Paragraph
from fastcifar.report.drawing import colour_of
from fastcifar.report.markup import plain
from fastcifar.report.results import CURVES, Trial
from fastcifar.report.wording import METRIC_NAMES, number


def curves_figure(
    number: int | None,
    name: str,
    caption: str,
    trials: Sequence[Trial | None],
    colours: Mapping[str, str] | None = None,
) -> Figure | Paragraph:
    """Loss and accuracy of training and validation over the epochs.

    Args:
        number: that of the report's figure; None for a figure that the report does not have.
        name: of the figure on the page.
        caption: in the marks of the document.
        trials: a line each; None for a trial without a finished run.
        colours: by a trial's name; None for those that it has on every page.

    Returns:
        The figure, or a sentence where no trial has a finished run.
    """
    present = [trial for trial in trials if trial is not None]
    title = f"**Figure {number}.** {caption}" if number else f"**{caption}**"
    if not present:
        return Paragraph(f"{title}: no finished run.")
    panels = []
    for what in ("loss", "accuracy"):
        curves, ends = [], []
        for trial in present:
            for key in (key for key in CURVES if key.endswith(what)):
                metric: Metric = key  # type: ignore[assignment]
                shown = trial.preset.about.report.get(metric) if trial.is_comparable and trial.preset else None
                is_train, colour = key.startswith("train"), (colours or {}).get(trial.name) or colour_of(trial.name)
                points = trial.curve(key)
                curves.append(figures.Curve(trial.label, colour, points, is_train, shown))
                if points:
                    ends.append(f"{trial.label} {METRIC_NAMES[key]} {_between(points, metric)}")
        alt = f"{what.capitalize()} over the epochs, from the first to the last: {'; '.join(ends)}"
        panels.append(figures.draw_curves(f"{name}-{what}", what, curves, alt))
    seeds = ", ".join(f"{plain(trial.label)} n = {trial.n}" for trial in present)
    missing = len(trials) - len(present)
    note = f" {missing} of the {len(trials)} trials have no finished run." if missing else ""
    band = " Lines are means over the seeds, bands reach from the lowest to the highest." if any(
        trial.n > 1 for trial in present
    ) else ""  # fmt: skip
    if without := [plain(trial.label) for trial in present if not trial.config.val_size]:
        note += f" Trained without validation images: {', '.join(without)}."
    return Figure(name, f"{title} ({seeds}).{band}{note}", panels)


def _between(points: Sequence[tuple[int, float, float, float]], metric: Metric) -> str:
    return f"{number(points[0][1], metric)} to {number(points[-1][1], metric)}"

"""fastcifar presets: the list, and one preset in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastcifar.cli.arguments import Parser, preset_name
from fastcifar.ui.tables import print_table

if TYPE_CHECKING:
    from fastcifar.presets import Metric, Preset

SUMMARY = "list the presets with their settings and the accuracy to expect, or show one"


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.add_argument("name", nargs="?", metavar="NAME", type=preset_name, help="show this one in full")
    parser.add_argument("--json", action="store_true", help="print JSON: a list, or an object for NAME")
    args = parser.parse(argv)

    from fastcifar.presets import find_preset, list_presets

    if args.json:
        import json

        found = list_presets() if args.name is None else [find_preset(args.name)]
        objects = [_as_object(preset) for preset in found]
        print(json.dumps(objects if args.name is None else objects[0]))
        return 0
    if args.name is not None:
        return _show_preset(find_preset(args.name))
    header = ["preset", "settings", "val accuracy %", "test accuracy %"]
    print_table(
        header,
        [
            [
                p.name,
                _changes(p),
                expected_accuracy(p, "val_accuracy") or "-",
                expected_accuracy(p, "test_accuracy") or "-",
            ]
            for p in list_presets()
        ],
    )
    print(
        "\nAccuracy after the last epoch: report / public, or > goal. `report` is the"
        "\ncourse report that the trials reproduce (tables 4-12), `public` the range of"
        "\nseven public reproductions, single seeds. More: fastcifar presets NAME, and"
        "\nfastcifar train --preset NAME --print-config"
    )
    return 0


def _as_object(preset: Preset) -> dict[str, object]:
    about, settings = preset.about.model_dump(mode="json"), preset.config.model_dump(mode="json")
    return {"name": preset.name, "base": preset.base, "about": about, "settings": settings}


def _changes(preset: Preset) -> str:
    from fastcifar.spelling import format_value

    own = " ".join(f"{key}={format_value(value)}" for key, value in preset.own_settings.items())
    return f"{preset.base or 'the defaults'}{' + ' + own if own else ''}"


def expected_accuracy(preset: Preset, metric: Metric) -> str:
    """In percent: `67.30 / 69.6-70.3`, the report's number and the range of the reproductions, or a goal `> 90`."""
    about = preset.about
    if metric in about.goal:
        return f"> {100 * about.goal[metric]:g}"
    parts = []
    if metric in about.report:
        parts.append(f"{100 * about.report[metric]:.2f}")
    if metric in about.reproductions:
        low, high = about.reproductions[metric]
        parts.append(f"{100 * low:.1f}-{100 * high:.1f}" if parts else f"- / {100 * low:.1f}-{100 * high:.1f}")
    return " / ".join(parts)


def _show_preset(preset: Preset) -> int:
    from fastcifar.config import Config
    from fastcifar.layers import presets_folder
    from fastcifar.spelling import format_value

    about = preset.about
    print(f"{preset.name}: {about.summary}\n")
    differing = [
        f"{name}={format_value(getattr(preset.config, name))}"
        for name, field in Config.model_fields.items()
        if name != "preset" and getattr(preset.config, name) != field.default
    ]
    rows = {
        "file": str(presets_folder() / f"{preset.name}.toml"),
        "derives from": _changes(preset),
        "not at default": " ".join(differing) or "nothing",
        "command": about.command,
        "time": about.time,
        "source": about.source,
    }
    for title, value in rows.items():
        print(f"{title:<16}{value}")
    if expected := _expectations(preset):
        print("\nto expect after the last epoch:")
        print_table(["", "report", "public reproductions", "goal"], expected)
    return 0


def _expectations(preset: Preset) -> list[list[str]]:
    about = preset.about
    rows = []
    for metric in ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "test_accuracy"):
        scale, digits, unit = (100, 2, " %") if metric.endswith("accuracy") else (1, 4, "")
        cells = ["-", "-", "-"]
        if metric in about.report:
            cells[0] = f"{scale * about.report[metric]:.{digits}f}"
        if metric in about.reproductions:
            cells[1] = " - ".join(f"{scale * value:.{digits}f}" for value in about.reproductions[metric])
        if metric in about.goal:
            cells[2] = f"above {scale * about.goal[metric]:g}"
        if set(cells) != {"-"}:
            rows.append([metric.replace("_", " ") + unit, *cells])
    return rows

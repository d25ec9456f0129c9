"""fastcifar train: its arguments, its help with every setting, and the result of a run."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shlex
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar.cli.arguments import Given, Parser, Start, add_start, path, read_settings, start_of, why_no_start
from fastcifar.cli.presets import expected_accuracy
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.ranks import Ranks
from fastcifar.run import threads
from fastcifar.text import one_line, quoted
from fastcifar.ui.notes import note

if TYPE_CHECKING:
    from fastcifar.config import Config
    from fastcifar.presets import Metric

SUMMARY = "train a model, or go on with a run that was cut"


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    from fastcifar.config import RESUMABLE

    parser.forms(
        "[PRESET | FILE.toml] [--out DIR | --print-config | --dry-run] [--KEY VALUE ...] [--json]",
        "[--preset NAME | --config FILE] [--out DIR | --print-config | --dry-run] [--KEY VALUE ...] [--json]",
        "--resume RUN [--KEY VALUE ...] [--json]",
    )
    add_start(
        parser,
        "start from the settings of a preset (see: fastcifar presets)",
        "start from the settings in your own TOML file",
    )
    parser.add_argument("--out", metavar="DIR", type=path, help="the run folder; default: runs/PRESET/TIME-sSEED")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        type=path,
        help="go on with the run in this folder; of the settings only "
        f"{', '.join(map(_option, RESUMABLE))} may change. To train longer, start a new run from its "
        "weights: --init-from RUN",
    )
    parser.add_argument("--print-config", action="store_true", help="print the settings that would be used, and stop")
    parser.add_argument(
        "--dry-run", action="store_true", help="take a few steps, print the memory and time a run would take, and stop"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, also that of --dry-run")
    if "-h" in argv or "--help" in argv:
        print(parser.format_help() + "\n" + describe_settings(), end="")
        return 0
    args, rest = parser.parse_known_args(argv)
    command = ["fastcifar", "train", *argv]
    given = read_settings(rest, why_no_start)
    if args.resume is not None:
        return _resume(parser, args, given, command)

    from fastcifar.layers import resolve_layers
    from fastcifar.spelling import to_toml

    for option, others in {"print_config": ("out", "json", "dry_run"), "dry_run": ("out",)}.items():
        given.problems.extend(
            f"command line: {_option(other)}: not together with {_option(option)}, which makes no run"
            for other in others
            if getattr(args, option) and getattr(args, other)
        )
    start = start_of(args, given)
    try:
        resolved = resolve_layers(start.preset, start.file, given.settings, parser.options())
    except UsageError as error:
        given.problems.append(str(error))
    if given.problems:
        raise UsageError("\n".join(given.problems))
    if args.print_config:
        print(f"# {one_line(shlex.join(command))}")
        print(f"# layers, the later ones win: {', '.join(('defaults', *resolved.layers))}")
        print(to_toml(resolved.config, resolved.origins), end="")
        return 0

    if args.dry_run:
        return _dry_run(resolved.config, as_json=args.json)

    if Ranks.started().is_first:
        _announce(resolved.config, named=start != Start(None, None), out=args.out)
    threads.limit(resolved.config.device)

    from fastcifar import trainer

    return _print_result(trainer.train(resolved.config, args.out, command), as_json=args.json)


def _dry_run(config: Config, *, as_json: bool) -> int:
    """Says what a run of `config` would take."""
    from fastcifar.data.sources import announce_download

    announce_download(config.data, config.mirror)
    threads.limit(config.device)

    from fastcifar.measuring.dry_run import dry_run
    from fastcifar.measuring.grid import QUIET
    from fastcifar.ui.display import format_seconds

    done = dry_run(config)
    config = done.config
    if as_json:
        print(json.dumps({**dataclasses.asdict(done), "config": config.model_dump(mode="json")}))
        return 0
    memory = f"{done.host_memory_gib:.2f} GiB of this machine's"
    if done.device_memory_gib is not None:
        memory += f", {done.device_memory_gib:.2f} GiB of the {done.device_memory_free_gib:.2f} GiB free on the GPU"
    rows = {
        "would train": f"{config.epochs} epochs of {done.num_images:,} images in {done.num_classes} classes",
        "with": f"engine {config.engine}, {config.precision}, on {config.device}, {done.parameters:,} parameters",
        "memory": memory,
        "warm-up": f"{done.warm_up_seconds:.1f} s",
        "step": f"{done.step_seconds * 1e3:.1f} ms, {config.batch_size / done.step_seconds:,.0f} images/s "
        f"(median of {done.steps_timed})",
        "epoch": f"{format_seconds(done.epoch_seconds)}, {done.validation_seconds:.1f} s of it validation",
        "run": f"{format_seconds(done.run_seconds)} (computed), without checkpoints and the test",
    }
    if done.low_res_step_seconds is not None:
        rows["step"] += f"; {done.low_res_step_seconds * 1e3:.1f} ms on small images ({config.low_res_epochs} epochs)"
        rows["epoch"] += ", on whole images"
    if done.others is not None and done.others > QUIET:
        rows["run"] += f"; other programs used {done.others:.0%} of the cores meanwhile"
    for title, value in rows.items():
        print(f"{title:<16}{value}")
    return 0


def _announce(config: Config, *, named: bool, out: Path | None) -> None:
    """Says on stderr what a run will do that nobody may have meant: the long training of the defaults, and a download.

    Args:
        config: the settings of the run.
        named: whether a preset or a file was named. Where one was, only a download is told.
        out: the run folder that was asked for.
    """
    from fastcifar.data.sources import announce_download

    if not named:
        where = quoted(out) if out is not None else f"a new folder in runs/{config.preset}"
        note(
            f"no preset is named, so the defaults are trained: {config.epochs} epochs on {one_line(config.data)}, "
            f"batch_size {config.batch_size}, lr {config.lr:g} {config.lr_schedule}; the run goes to {where}",
            "fastcifar: ",
        )
    announce_download(config.data, config.mirror)
    if not named:
        note("`fastcifar train quick` is a small first run, with nothing to download", "fastcifar: ")


def _resume(parser: Parser, args: argparse.Namespace, given: Given, command: list[str]) -> int:
    from fastcifar.config import RESUMABLE
    from fastcifar.layers import parse_overrides

    problems = given.problems
    for word in given.names:
        problems.append(f"command line: {one_line(word)}: not together with --resume, which continues a run as it is")
    for name in ("preset", "config", "out", "print_config", "dry_run"):
        if getattr(args, name):
            problems.append(
                f"command line: {_option(name)}: not together with --resume, which continues a run as it is"
            )
    overrides = {}
    try:
        overrides = parse_overrides(given.settings, RESUMABLE, parser.options())
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    threads.limit(str(overrides.get("device") or _device_of(args.resume)))

    from fastcifar import trainer

    return _print_result(trainer.resume(args.resume, overrides, command), as_json=args.json)


def _option(name: str) -> str:
    """The option that is called `name` among the arguments."""
    return "--" + name.replace("_", "-")


def _device_of(run: Path) -> str:
    """Where a run was told to train; `auto` where there is no run, of which its resumption tells."""
    from fastcifar.run.folder import RunFolder

    with contextlib.suppress(FastcifarError):
        return RunFolder.open(run, note=lambda text: None).config.device
    return "auto"


def describe_settings() -> str:
    """All settings by group: option, meaning, what is allowed and the default."""
    from fastcifar.config import Config, groups
    from fastcifar.spelling import allowed

    indent = 25
    width = min(shutil.get_terminal_size().columns - 1, 110)
    lines = ["settings [what is allowed; default, where no preset or file states another]:"]
    lines += ["--KEY alone sets a setting that is true or false to true, --no-KEY to false"]
    for group, names in groups().items():
        lines += ["", f"{group}:"]
        for name in names:
            field = Config.model_fields[name]
            text = f"{field.description} [{allowed(name)}; default {_written(field.default)}]"
            first, *more = textwrap.wrap(text, max(width - indent, 30), break_on_hyphens=False)
            lines.append(f"  --{name.replace('_', '-'):<{indent - 4}}{first}")
            lines += [" " * indent + part for part in more]
    return "\n".join(lines) + "\n"


def _written(value: object) -> str:
    """`value` as one would write it on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or "nothing"


def _print_result(path: Path, *, as_json: bool) -> int:
    """The run's result, with its two clocks, and where it lies; as JSON the path of the run and its summary.

    Of several processes the first one prints it.
    """
    from fastcifar.run.folder import RunFolder

    if not Ranks.started().is_first:
        return 0
    run = RunFolder.open(path)
    summary = run.summary() or {}
    if as_json:
        print(json.dumps({"run": str(path), **summary}))
        return 0
    rows = [["run folder", str(path)]]
    metrics: tuple[Metric, ...] = ("test_accuracy", "val_accuracy")
    for metric in metrics:
        if (accuracy := summary.get(metric)) is not None:
            rows.append([metric.replace("_", " "), f"{accuracy:.2%}{_expected(run.config, metric)}"])
    if "best_epoch" in summary:
        best = f"{summary['best_val_accuracy']:.2%} after epoch {summary['best_epoch']}"
        rows.append(["best val", f"{best} (its weights: --weights best)"])
    clocks = {"train_seconds": "training", "compile_seconds": "warm-up", "process_seconds": "whole process"}
    rows += [[title, f"{summary[key]:.1f} s"] for key, title in clocks.items() if key in summary]
    if summary:
        others = run.environment.get("processes", 1) > 1 and summary.get("energy_joules") is not None
        rows.append(["energy", _energy(summary, run.config.device) + " (of the first process's device alone)" * others])
    for title, value in rows:
        print(f"{title:<16}{value}")
    return 0


def _energy(summary: Mapping[str, Any], device: str) -> str:
    """`12.3 kJ in training, 412 W`, and what part of the training it covers where that is not all; or why not."""
    if summary.get("energy_joules") is None:
        return "not measured" + (" (there is no GPU in this run)" if device == "cpu" else "")
    joules, seconds, covered = summary["energy_joules"], summary["train_seconds"], summary["energy_seconds"]
    text = f"{joules / 1e3:.1f} kJ in training, {joules / covered:.0f} W"
    return text if covered > 0.99 * seconds else f"{text} (measured in {covered / seconds:.0%} of it)"


def _expected(config: Config, metric: Metric) -> str:
    """What the run's preset lets expect, unless the run was made with settings that change the result."""
    from fastcifar.config import differing_settings
    from fastcifar.presets import find_preset

    try:
        preset = find_preset(config.preset)
    except UsageError:
        return ""
    other_images = preset.config.data == "procedural" and config.data != "procedural"
    expected = expected_accuracy(preset, metric)
    same = not (other_images or differing_settings(config, preset.config))
    return f"   ({config.preset}: {expected})" if same and expected else ""

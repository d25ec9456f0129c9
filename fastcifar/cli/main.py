"""The commands. Each is one function, which describes, reads and obeys its arguments, and one entry in COMMANDS.

Nothing heavy is imported before a command runs: `fastcifar --help` needs neither torch nor pydantic.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import fastcifar
from fastcifar.errors import FastcifarError, InterruptedRunError, UsageError

if TYPE_CHECKING:
    from fastcifar.config import Config, Preset
    from fastcifar.study.conduct import Result

HELP = """\
usage: fastcifar COMMAND [OPTION ...]
       fastcifar COMMAND --help | --help | --version

Trains MobileNetV1 on 32x32 images (CIFAR-100), as fast as one device allows.

commands:
{commands}

examples:
  fastcifar train --preset quick                    a first run, nothing to download
  fastcifar train --preset final --data PATH        the real thing, on the published CIFAR-100
  fastcifar train --preset final --print-config     what would run, and where each setting comes from
  fastcifar study quick                             the whole study in small, with its report

exit codes:
  0 done              3 data missing or wrong       6 out of device memory
  1 other error       4 checkpoint unusable         130 interrupted (Ctrl-C)
  2 wrong usage       5 loss not finite             143 terminated (SIGTERM)

environment:
  FASTCIFAR_DATA=DIR  where data sets are kept       FASTCIFAR_DEBUG=1  shows the traceback of any error
"""


class Parser(argparse.ArgumentParser):
    """argparse with errors of our kind: all unknown arguments at once, each with the nearest that exists."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=f"fastcifar {name}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def options(self) -> list[str]:
        """The names of the long options, without dashes before them."""
        names = [option for action in self._actions for option in action.option_strings]
        return [name.removeprefix("--") for name in names if name.startswith("--")]

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        args, unknown = self.parse_known_args(argv)
        problems = []
        for before, word in zip(["", *unknown], unknown, strict=False):
            if word.startswith("-"):
                name = word.partition("=")[0]
                hint = _did_you_mean(name.strip("-"), self.options(), "--") or f" (see {self.prog} --help)"
                problems.append(f"{name}: there is no such option{hint}")
            elif not before.startswith("-"):
                problems.append(f"{word}: unexpected argument (see {self.prog} --help)")
        if problems:
            raise UsageError("\n".join(problems))
        return args


def _did_you_mean(word: str, words: Iterable[str], dashes: str = "") -> str:
    import difflib

    matches = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean {dashes}{matches[0]}?" if matches else ""


def _one_of(*choices: str) -> Callable[[str], str]:
    """The `type` of an argument with a few values."""

    def check(text: str) -> str:
        if text not in choices:
            hint = _did_you_mean(text, choices)
            raise argparse.ArgumentTypeError(f"{text!r}: expected {' or '.join(choices)}{hint}")
        return text

    return check


# ---- train ----


def train(parser: Parser, argv: list[str]) -> int:
    """train a model, or go on with a run that was cut"""
    parser.usage = "fastcifar train [--preset NAME | --config FILE] [--out DIR] [--print-config] [--KEY VALUE ...]\n"
    parser.usage += "       fastcifar train --resume RUN [--KEY VALUE ...]"
    parser.add_argument("--preset", metavar="NAME", help="start from the settings of a preset (see: fastcifar presets)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="start from the settings in your own TOML file")
    parser.add_argument("--out", metavar="DIR", type=Path, help="the run folder; default: runs/PRESET/TIME-sSEED")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with the run in this folder")
    parser.add_argument("--print-config", action="store_true", help="print the settings that would be used, and stop")
    if "-h" in argv or "--help" in argv:
        print(parser.format_help() + "\n" + describe_settings(), end="")
        return 0
    args, rest = parser.parse_known_args(argv)
    command = ["fastcifar", "train", *argv]
    settings, problems = split_settings(rest)
    if args.resume is not None:
        return _resume(parser, args, settings, problems, command)

    import shlex

    from fastcifar.config import one_line, to_toml, trace

    try:
        resolved = trace(args.preset, args.config, settings, parser.options())
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    if args.print_config:
        print(f"# {one_line(shlex.join(command))}")
        print(f"# layers, the later ones win: {', '.join(('defaults', *resolved.layers))}")
        print(to_toml(resolved.config, resolved.origins), end="")
        return 0

    from fastcifar import trainer

    return _print_result(trainer.train(resolved.config, args.out, command))


def _resume(
    parser: Parser,
    args: argparse.Namespace,
    settings: list[tuple[str, str]],
    problems: list[str],
    command: list[str],
) -> int:
    from fastcifar.config import RESUMABLE, parse_overrides

    for name in ("preset", "config", "out", "print_config"):
        if getattr(args, name):
            option = "--" + name.replace("_", "-")
            problems.append(f"command line: {option}: not together with --resume, which continues a run as it is")
    overrides = {}
    try:
        overrides = parse_overrides(settings, RESUMABLE, parser.options())
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))

    from fastcifar import trainer

    return _print_result(trainer.resume(args.resume, overrides, command))


def split_settings(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """`--key value`, `--key=value` and, for a setting that is true or false, a bare `--key`, as pairs; and problems."""
    from fastcifar.config import Config, allowed, one_line

    pairs: list[tuple[str, str]] = []
    problems: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        field = Config.model_fields.get(key.replace("-", "_"))
        if not word.startswith("--") or not key:
            problems.append(f"command line: {one_line(word)}: unexpected argument; settings are given as --KEY VALUE")
        elif equals:
            pairs.append((key, value))
        elif rest and not rest[0].startswith("--"):
            pairs.append((key, rest.pop(0)))
        elif field is not None and field.annotation is bool:
            pairs.append((key, "true"))
        elif field is not None:
            problems.append(f"command line: --{key}: the value is missing; expected {allowed(key.replace('-', '_'))}")
        else:
            pairs.append((key, ""))
    return pairs, problems


def describe_settings() -> str:
    """All settings by group: option, meaning, what is allowed and the default."""
    import shutil
    import textwrap

    from fastcifar.config import Config, allowed, groups

    indent = 25
    width = min(shutil.get_terminal_size().columns, 110)
    lines = ["settings [what is allowed; the default, where no preset or file states another]:"]
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


def _print_result(path: Path) -> int:
    """The run's result, with its two clocks, and where it lies."""
    from fastcifar.run.folder import RunFolder

    run = RunFolder.open(path)
    summary = run.summary() or {}
    rows = [["run folder", str(path)]]
    for split in ("test", "val"):
        if (accuracy := summary.get(f"{split}_accuracy")) is not None:
            rows.append([f"{split} accuracy", f"{accuracy:.2%}{_expected(run.config, f'{split}_accuracy')}"])
    before = "compilation" if run.config.engine == "compiled" else "warm-up"
    clocks = {"train_seconds": "training", "compile_seconds": before, "process_seconds": "whole process"}
    rows += [[title, f"{summary[key]:.1f} s"] for key, title in clocks.items() if key in summary]
    if summary:
        rows.append(["energy", _energy(summary, run.config.device)])
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


def _expected(config: Config, metric: str) -> str:
    """What the run's preset lets expect, unless the run was made with settings that change the result."""
    from fastcifar.config import differing_settings, find_preset

    try:
        preset = find_preset(config.preset)
    except UsageError:
        return ""
    other_images = preset.config.data == "procedural" and config.data != "procedural"
    expected = _accuracy(preset, metric)
    same = not (other_images or differing_settings(config, preset.config))
    return f"   ({config.preset}: {expected})" if same and expected else ""


# ---- report ----


def report(parser: Parser, argv: list[str]) -> int:
    """write the page of finished runs or of a study: tables, figures and verdicts beside the report's"""
    parser.usage = "fastcifar report RUN ... [--out DIR] [--data PATH]\n"
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run, a study, or a folder that holds runs")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the page goes [report, or STUDY/report]")
    parser.add_argument("--data", metavar="PATH", help="where the same images lie now [where the runs had them]")
    args = parser.parse(argv)

    if args.data is not None:
        from fastcifar.config import parse_overrides

        parse_overrides([("data", args.data)], ["data"])

    from fastcifar.report.writing import write_report
    from fastcifar.study.finding import find_runs
    from fastcifar.study.folder import REPORT, STUDY

    runs, planned = find_runs(args.runs)
    own = len(args.runs) == 1 and (args.runs[0] / STUDY).is_file()
    out = args.out or (args.runs[0] / REPORT if own else Path(REPORT))
    print(f"report  {write_report(runs, out, planned=planned, data=args.data)}")
    return 0


# ---- evaluate, doctor ----


def evaluate(parser: Parser, argv: list[str]) -> int:
    """measure the accuracy of a finished run again"""
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("--split", type=_one_of("val", "test"), default="test", metavar="val|test", help="[test]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [the run's own, if present]")
    parser.add_argument("--data", metavar="PATH", help="where the same images lie now [where the run had them]")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    args = parser.parse(argv)

    from fastcifar.config import parse_overrides

    given = [(name, getattr(args, name)) for name in ("device", "data") if getattr(args, name) is not None]
    parse_overrides(given, [name for name, _ in given])

    from fastcifar import evaluation

    result = evaluation.evaluate_run(args.run, args.split, args.device, args.data)
    if args.json:
        import json

        print(json.dumps(result))
        return 0
    line = f"{args.split} accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f}"
    when = f"after epoch {result['epoch']}" + (f" and {result['step']} steps" if result["step"] else "")
    line += f" ({result['num_images']:,} images, {when}, on {result['device']})"
    recorded = result["recorded_accuracy"]
    print(line + (f"; recorded {recorded:.2%}" if recorded is not None else "; none recorded"))
    return 0


def doctor(parser: Parser, argv: list[str]) -> int:
    """say what this machine has, what is missing and what to do about it"""
    parser.parse(argv)

    from fastcifar.cli.doctor import report

    return report()


# ---- study, compare ----


def study(parser: Parser, argv: list[str]) -> int:
    """train all trials of the report with several seeds, and write the report"""
    parser.usage = "fastcifar study [quick] [TRIAL ...] [--seeds N] [--out DIR] [--epochs-scale X] [--jobs N]\n"
    parser.usage += "                       [--KEY VALUE ...]"
    parser.epilog = (
        "TRIAL is a preset; default: the eight trials of the report. `quick` trains them small, on procedural images "
        "and the CPU, in two to three minutes. --KEY VALUE sets anything that `fastcifar train --help` lists, in every "
        "run, such as --data PATH. The same command again goes on with a study that was cut, and more trials or seeds "
        "extend it; without any, `fastcifar study --out DIR` goes on with what was asked for before."
    )
    counts, scale = "a number of seeds, or seeds such as 3,4,5", "a number above 0"
    parser.add_argument(
        "--seeds", metavar="N", type=_parsed(_seeds, counts), help="seeds 0 to N-1, or those named: 3,4,5 [3]"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="the study's folder [runs/study, runs/study-quick]")
    parser.add_argument(
        "--epochs-scale", metavar="X", type=_parsed(_positive, scale), help="shrinks every run: 0.1 is a tenth [1]"
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=_parsed(_count, "a number from 1"),
        help="runs side by side, spread over the GPUs; on a CPU they share the cores [one a GPU; 1 on a CPU, but with "
        "quick one a core, at most 4]",
    )
    args, rest = parser.parse_known_args(argv)
    names, words = _split_names(rest)
    settings, problems = split_settings(words)
    if problems:
        raise UsageError("\n".join(problems))

    from fastcifar.study.conduct import conduct
    from fastcifar.study.plan import Request

    quick = "quick" in names
    trials = tuple(name for name in names if name != "quick")
    request = Request(trials, quick, args.seeds, args.epochs_scale, settings, [*parser.options(), "quick"])
    return _print_study(conduct(args.out or Path("runs/study-quick" if quick else "runs/study"), request, args.jobs))


def _split_names(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that stand alone, and the options with their values."""
    names: list[str] = []
    options: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        value = before.startswith("--") and "=" not in before and not word.startswith("--")
        (options if value or word.startswith("--") else names).append(word)
    return names, options


def _parsed(parse: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """The `type` of an argument that `parse` reads, or refuses with a ValueError."""

    def check(text: str) -> Any:
        try:
            return parse(text)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}") from None

    return check


def _count(text: str) -> int:
    if not 1 <= int(text) <= 10_000:
        raise ValueError
    return int(text)


def _positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def _seeds(text: str) -> tuple[int, ...]:
    if "," not in text:
        return tuple(range(_count(text)))
    seeds = sorted({int(part) for part in text.split(",")})
    if not 0 <= seeds[0] <= seeds[-1] < 2**32:
        raise ValueError
    return tuple(seeds)


def _print_study(result: Result) -> int:
    """A line a trial and where the page lies; what failed is the error of the command."""
    from fastcifar.run.folder import RunFolder
    from fastcifar.study.compare import mean_sd

    rows = []
    for trial in result.study.trials:
        runs = [run for run in result.runs if run.trial == trial]
        summaries = [RunFolder.open(run.path).summary() or {} for run in runs if run.state == "finished"]
        cells = [f"{len(summaries)} of {len(runs)}"]
        for key in ("val_accuracy", "test_accuracy"):
            cells.append(mean_sd([100 * summary[key] for summary in summaries], ".2f") if summaries else "-")
        rows.append([trial, *cells])
    print_table(["trial", "runs", "val accuracy %", "test accuracy %"], rows)
    print(f"\nstudy   {result.study.path}")
    if result.page is not None:
        print(f"report  {result.page}")
    if result.failed:
        lines = [f"{len(result.failed)} of {len(result.runs)} runs failed; the same command tries them again:"]
        lines += [f"  {run.name}: {run.reason} ({result.study.log(run)})" for run in result.failed]
        raise FastcifarError("\n".join(lines))
    return 0


def compare(parser: Parser, argv: list[str]) -> int:
    """show runs side by side, each against the first"""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run folder, or a study for all its runs")
    parser.add_argument("--each", action="store_true", help="a column for every run, not for all seeds together")
    args = parser.parse(argv)

    import shutil

    from fastcifar.study.compare import blocks, columns, legend, load, table

    cols = columns(load(args.runs), args.each)
    print("\n".join(legend(cols)))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for header, rows in blocks([col.title for col in cols], table(cols), width):
        print()
        print_table(header, rows)
    if any(len(col.runs) > 1 for col in cols):
        print("\n± is the standard deviation over seeds")
    return 0


# ---- ablate ----


def ablate(parser: Parser, argv: list[str]) -> int:
    """measure what each engine, precision, loader, ... is worth in images/s on this machine"""
    parser.usage = "fastcifar ablate [--AXIS VALUE,VALUE,...] [--KEY VALUE ...] [--repeats N] [--seconds S] [--out DIR]"
    parser.usage += "\n                        [--no-attribution]"
    parser.epilog = (
        "AXIS is engine, precision, loader, memory-format, batch-size, tuned or compile-mode; default: every engine "
        "with every precision that pays here. --KEY VALUE sets anything that `fastcifar train --help` lists, in all "
        "cells. Each cell is a short run on random images, in a process of its own each time, in another order each "
        "round; then the fastest is measured with one factor removed at a time. Exit code 1 if a cell failed."
    )
    parser.add_argument(
        "--repeats", metavar="N", type=_parsed(_count, "a number from 1"), default=3, help="processes of each cell [3]"
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=_parsed(_positive, "a number above 0"),
        default=1.0,
        help="length of each of the three windows of a process [1]",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="the folder for the results [runs/ablate/TIME]")
    parser.add_argument("--no-attribution", action="store_true", help="the grid only")
    args, rest = parser.parse_known_args(argv)
    settings, problems = split_settings(rest)
    if problems:
        raise UsageError("\n".join(problems))

    from fastcifar.measuring import ablation as ablate

    result = ablate.ablate(
        settings,
        repeats=args.repeats,
        window_seconds=args.seconds,
        out=args.out,
        attribution=not args.no_attribution,
        command=["fastcifar", "ablate", *argv],
        options=parser.options(),
    )
    print(ablate.text(result))
    print(f"\nresults  {result.path}")
    if result.signal_number:
        raise InterruptedRunError(ablate.stopped(result), result.signal_number)
    return 1 if result.failed else 0


# ---- profile ----


def profile(parser: Parser, argv: list[str]) -> int:
    """show where the time of a training step goes, and how near each layer is to this device's floor"""
    parser.usage = "fastcifar profile [--preset NAME] [--KEY VALUE ...] [--steps N] [--out DIR]"
    parser.epilog = (
        "The steps are those of a training run, on images of random bytes: no data is needed. --KEY VALUE sets what "
        "`fastcifar train --help` lists, such as --engine eager or --batch-size 512. DIR gets the tables, two "
        "pictures, and a trace for https://ui.perfetto.dev or chrome://tracing."
    )
    parser.add_argument("--preset", metavar="NAME", default="final", help="whose settings to start from [final]")
    parser.add_argument(
        "--steps", metavar="N", type=_parsed(_count, "a number from 1"), default=10, help="steps to profile [10]"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="the folder for the results [runs/profile/TIME-...]")
    args, rest = parser.parse_known_args(argv)
    settings, problems = split_settings(rest)

    from fastcifar.config import trace

    try:
        config = trace(args.preset, None, settings, parser.options()).config
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))

    from fastcifar.measuring import profile

    result = profile.profile(config, args.out, args.steps)
    print("\n".join(profile.headline(result)))
    for table in profile.tables(result):
        print()
        print_table(*table)
    print(f"\nresults  {result.path}: {', '.join(sorted(file.name for file in result.path.iterdir()))}")
    return 0


# ---- data ----


def data(parser: Parser, argv: list[str]) -> int:
    """look at images (data info), or download a published set (data get)"""
    parser.usage = "fastcifar data info [NAME|PATH] [--mirror URL]\n       fastcifar data get NAME [--mirror URL]"
    parser.add_argument("action", type=_one_of("info", "get"), metavar="info|get", help="what to do")
    parser.add_argument("source", nargs="?", metavar="NAME|PATH", help="cifar100, cifar10, procedural or a path")
    parser.add_argument("--mirror", default="", metavar="URL", help="download from here, not from the official address")
    args = parser.parse(argv)
    if args.source is None and args.action == "get":
        raise UsageError("data get: the name is missing: cifar100 or cifar10")

    from fastcifar.config import Config, parse_overrides

    source = args.source if args.source is not None else Config.model_fields["data"].default
    parse_overrides([("data", source), ("mirror", args.mirror)], ["data", "mirror"])

    from fastcifar.data import sources, store

    if args.action == "get" and source not in sources.PUBLISHED:
        names = tuple(sources.PUBLISHED)
        raise UsageError(f"data get {source}: expected {' or '.join(names)}{_did_you_mean(source, names)}")
    dataset = sources.load(source, mirror=args.mirror)
    superclasses = f" in {len(dataset.superclass_names)} superclasses" if dataset.superclass_names else ""
    print(f"{dataset.name}: {dataset.num_classes} classes{superclasses}")
    print(f"digest {dataset.digest}")
    if args.action == "get":
        print(f"{len(dataset.train):,} training and {len(dataset.test):,} test images in {store.default_folder()}")
        return 0
    splits = sources.info(dataset)
    rows = [
        ["images", *(f"{s.count:,}" for s in splits.values())],
        ["images a class", *(_spread(s.class_min, s.class_max) for s in splits.values())],
        ["mean (R G B)", *(_channels(s.mean) for s in splits.values())],
        ["std", *(_channels(s.std) for s in splits.values())],
        ["std of an image", *(_channels(s.image_std) for s in splits.values())],
    ]
    print()
    print_table(["", *splits], rows)
    return 0


def _spread(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _channels(values: Iterable[float]) -> str:
    return " ".join(f"{value:.6f}" for value in values)


# ---- presets ----


def presets(parser: Parser, argv: list[str]) -> int:
    """list the presets with their settings and the accuracy to expect, or show one"""
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this one in full")
    args = parser.parse(argv)

    from fastcifar.config import find_preset, list_presets

    if args.name is not None:
        return _show_preset(find_preset(args.name))
    header = ["preset", "settings", "val accuracy %", "test accuracy %"]
    print_table(
        header,
        [
            [p.name, _changes(p), _accuracy(p, "val_accuracy") or "-", _accuracy(p, "test_accuracy") or "-"]
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


def _changes(preset: Preset) -> str:
    from fastcifar.config import format_value

    own = " ".join(f"{key}={format_value(value)}" for key, value in preset.own_settings.items())
    return f"{preset.base or 'the defaults'}{' + ' + own if own else ''}"


def _accuracy(preset: Preset, metric: Any) -> str:
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
    from fastcifar.config import Config, format_value, presets_folder

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


# ---- tables ----


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table fitted to the terminal; elsewhere aligned columns that are never cut or wrapped."""
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (header, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in header:
        table.add_column(title, no_wrap=title != "settings", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


# ---- from the words typed to the exit code ----

COMMANDS: Mapping[str, Callable[[Parser, list[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "study": study,
    "report": report,
    "compare": compare,
    "ablate": ablate,
    "profile": profile,
    "presets": presets,
    "data": data,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` (default: the process's arguments) names, and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        if sys.stdout is not None:  # None where a service closed it
            sys.stdout.flush()
        return code
    except FastcifarError as error:
        _show_traceback_if_debugging()
        print("fastcifar: " + str(error).replace("\n", "\nfastcifar: "), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        _show_traceback_if_debugging()
        print("fastcifar: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return 141
        return _report(error, words)


def _run(words: list[str]) -> int:
    if not words:
        raise UsageError(f"a command is missing: {', '.join(COMMANDS)} (see fastcifar --help)")
    name, *rest = words
    if name in ("-h", "--help"):
        summaries = "\n".join(f"  {key:<10}{command.__doc__}" for key, command in COMMANDS.items())
        print(HELP.format(commands=summaries), end="")
        return 0
    if name == "--version":
        print(f"fastcifar {fastcifar.__version__}")
        return 0
    if name not in COMMANDS:
        known = [*COMMANDS, "--help", "--version"]
        raise UsageError(f"{name}: expected a command: {', '.join(COMMANDS)}{_did_you_mean(name, known)}")
    command = COMMANDS[name]
    try:
        return command(Parser(name, str(command.__doc__)), rest)
    except SystemExit as end:  # argparse, having printed the help
        return end.code if isinstance(end.code, int) else 0


def _reader_has_left() -> bool:
    """Whether the broken pipe is stdout (as after `| head`) and not another one."""
    import select

    try:
        stdout = sys.stdout.fileno()
        poll = select.poll()
        poll.register(stdout, 0)
        if not poll.poll(0):  # an event nobody asked for: POLLERR, there is no reader
            return False
    except (OSError, ValueError, AttributeError):  # not a file
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)  # or the interpreter complains about unsent output at its end
    return True


def _show_traceback_if_debugging() -> None:
    if os.environ.get("FASTCIFAR_DEBUG") == "1":
        import traceback

        traceback.print_exc()


def _report(error: Exception, words: Sequence[str]) -> int:
    """An error that nobody foresaw: its kind in a line, and the traceback in a file or, failing that, here."""
    import tempfile
    import traceback

    print(f"fastcifar: unexpected {type(error).__name__}: {error}", file=sys.stderr)
    text = f"fastcifar {fastcifar.__version__}\ncommand: {list(words)}\n\n{traceback.format_exc()}"
    where = "above"
    try:
        if os.environ.get("FASTCIFAR_DEBUG") == "1":
            raise OSError
        with tempfile.NamedTemporaryFile("w", prefix="fastcifar-error-", suffix=".txt", delete=False) as file:
            file.write(text)
        where = f"in {file.name}"
    except OSError:
        print(text, file=sys.stderr)
    # The system's refusals (a full disk, no permission) name their cause; most are not ours to mend.
    blame = "if that is no help" if isinstance(error, OSError) else "this is a fault of fastcifar"
    print(
        f"fastcifar: {blame}, please report it, with the traceback {where} and what `fastcifar doctor` prints",
        file=sys.stderr,
    )
    return 1

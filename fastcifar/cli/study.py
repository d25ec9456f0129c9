"""fastcifar study: its arguments and its last lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastcifar.cli.arguments import Parser, count, parsed, path, positive, read_settings, seeds
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.ui.tables import print_table

if TYPE_CHECKING:
    from fastcifar.studies.conduct import Result

SUMMARY = "train trials with several seeds: the report's, your own, a grid or a search; and write a page"


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.forms(
        "[quick] [TRIAL ...] [--seeds N] [--out DIR] [--epochs-scale X] [--jobs N] [--KEY VALUE[,VALUE ...] ...]",
        "TRIAL --search SPACE [--trials N] [--out DIR] [--jobs N] [--KEY VALUE ...]",
    )
    parser.epilog = (
        "TRIAL is a preset or your own settings file (FILE.toml); default: the trials that the study has already, or "
        "in a new one the eight of the report. `quick` trains these small, on procedural images and the CPU, in two to "
        "three minutes; it is not the preset quick, which a file with the line base = 'quick' stands for. --KEY VALUE "
        "sets anything that `fastcifar train --help` lists, in every run, such as --data PATH; several values make a "
        "grid, with a trial for each combination: --lr 0.05,0.1 --weight-decay 1e-4,5e-4. The same command again goes "
        "on with a study that was cut, and more trials or seeds extend it; without any, `fastcifar study --out DIR` "
        "goes on with what was asked for before."
    )
    counts, scale = "a number of seeds, or seeds such as 3,4,5", "a number above 0"
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=parsed(seeds, counts),
        help="seeds 0 to N-1, or those named: 3,4,5 [3; a search takes one seed only, 0 if none is named]",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=path,
        help="the study's folder [runs/study or, by the names "
        "of its trials and of the settings with several values, such as runs/study-final-lr]",
    )
    parser.add_argument(
        "--epochs-scale", metavar="X", type=parsed(positive, scale), help="shrinks every run: 0.1 is a tenth [1]"
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=parsed(count, "a number from 1"),
        help="runs side by side, spread over the GPUs; on a CPU they share the cores [one a GPU; 1 on a CPU, but with "
        "quick one a core, at most 4]",
    )
    parser.add_argument(
        "--search",
        metavar="SPACE",
        help="let Optuna choose settings by validation accuracy: lr=log:0.01..1,mixup_alpha=0..0.5,batch_size=64|128",
    )
    parser.add_argument(
        "--trials", metavar="N", type=parsed(count, "a number from 1"), help="how many trials a search has [40]"
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="train on the nodes of a Ray cluster: auto (the one that this machine belongs to), HOST:PORT, or local",
    )
    parser.add_argument("--json", action="store_true", help="print the runs with their results as JSON")
    args, rest = parser.parse_known_args(argv)
    given = read_settings(rest, lambda word: "")  # the study checks the trials' names
    if given.problems:
        raise UsageError("\n".join(given.problems))

    from fastcifar.studies.conduct import conduct
    from fastcifar.studies.plan import Request, default_folder

    quick = "quick" in given.names
    trials = tuple(name for name in given.names if name != "quick")
    options = [*parser.options(), "quick"]
    request = Request(
        trials, quick, args.seeds, args.epochs_scale, given.settings, options, args.search or "", args.trials
    )
    result = conduct(args.out or default_folder(request), request, args.jobs, args.ray or "")
    readable, damaged = result.read()
    summaries = {name: folder.summary() or {} for name, folder in readable.items()}
    _print_json(result, summaries, damaged) if args.json else _print_study(result, summaries)
    lines = []
    if result.failed:
        lines += [f"{len(result.failed)} of {len(result.runs)} runs failed; the same command tries them again:"]
        lines += [f"  {run.name}: {run.reason} ({result.study.log(run)})" for run in result.failed]
    if damaged:
        lines += [f"{len(damaged)} of {len(result.runs)} runs cannot be read, and are left out:"]
        lines += [f"  {name}: {reason}" for name, reason in damaged.items()]
    if lines:
        raise FastcifarError("\n".join(lines))
    return 0


def _print_json(result: Result, summaries: Mapping[str, Any], damaged: Mapping[str, str]) -> None:
    """The folder, the page, and every planned run with its summary; None for a run that has none."""
    runs = []
    for run in result.runs:
        state = "unreadable" if run.name in damaged else run.state
        facts = {"trial": run.trial, "seed": run.seed, "state": state, "reason": damaged.get(run.name, run.reason)}
        runs.append({"run": str(run.path), **facts, "summary": summaries.get(run.name)})
    page = result.page and str(result.page)
    print(json.dumps({"study": str(result.study.path), "report": page, "runs": runs}))


def _print_study(result: Result, summaries: Mapping[str, Any]) -> None:
    """A line a trial and where the page lies."""
    from fastcifar.studies.compare import mean_sd

    rows = []
    for trial in result.study.trials:
        runs = [run for run in result.runs if run.trial == trial]
        found = [summaries[run.name] for run in runs if run.name in summaries]
        cells = [f"{len(found)} of {len(runs)}"]
        for key in ("val_accuracy", "test_accuracy"):
            values = [100 * summary[key] for summary in found if summary.get(key) is not None]
            cells.append(mean_sd(values, ".2f") if values else "-")
        rows.append([trial, *cells])
    print_table(["trial", "runs", "val accuracy %", "test accuracy %"], rows)
    print(f"\nstudy   {result.study.path}")
    if result.page is not None:
        print(f"report  {result.page}")

"""fastcifar ablate."""

from __future__ import annotations

import json

from fastcifar.cli.arguments import Parser, count, parsed, path, positive, read_settings
from fastcifar.errors import InterruptedRunError, UsageError
from fastcifar.run import threads

SUMMARY = "measure what each engine, precision, loader, ... is worth in images/s on this machine"


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.forms(
        "[--AXIS VALUE,VALUE,...] [--KEY VALUE ...] [--repeats N] [--seconds S] [--out DIR] [--no-attribution] "
        "[--neighbour] [--json]"
    )
    parser.epilog = (
        "AXIS is engine, precision, loader, memory-format, batch-size, tuned or compile-mode; default: every engine "
        "with every precision that pays here. --KEY VALUE sets anything that `fastcifar train --help` lists, in all "
        "cells. Each cell is a short run on random images, in a process of its own each time, in another order each "
        "round; then the fastest is measured with one factor removed at a time. Exit code 1 if a cell failed."
    )
    parser.add_argument(
        "--repeats", metavar="N", type=parsed(count, "a number from 1"), default=3, help="processes of each cell [3]"
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=parsed(positive, "a number above 0"),
        default=1.0,
        help="length of each of the three windows of a process [1]",
    )
    parser.add_argument("--out", metavar="DIR", type=path, help="the folder for the results [runs/ablate/TIME]")
    parser.add_argument("--no-attribution", action="store_true", help="the grid only")
    parser.add_argument(
        "--neighbour", action="store_true", help="measure the grid beside one busy process too, as on a shared machine"
    )
    parser.add_argument("--json", action="store_true", help="print the cells and factors as JSON")
    args, rest = parser.parse_known_args(argv)
    given = read_settings(rest)
    for name, _ in given.settings:
        if name in ("preset", "config"):
            given.problems.append(
                f"command line: --{name}: nothing to choose here: ablate varies the settings that change the speed; "
                "set others with --KEY VALUE, such as --width-mult 0.5"
            )
    if given.problems:
        raise UsageError("\n".join(given.problems))
    threads.limit(dict(given.settings).get("device", "auto"))

    from fastcifar.measuring import ablation, ablation_text
    from fastcifar.measuring.ablation_results import as_dict

    result = ablation.ablate(
        given.settings,
        repeats=args.repeats,
        window_seconds=args.seconds,
        out=args.out,
        attribution=not args.no_attribution,
        neighbour=args.neighbour,
        command=["fastcifar", "ablate", *argv],
        options=parser.options(),
    )
    if args.json:
        print(json.dumps({"results": str(result.path), **as_dict(result)}))
    else:
        print(ablation_text.text(result))
        print(f"\nresults  {result.path}")
    if result.signal_number:
        raise InterruptedRunError(ablation_text.stopped(result), result.signal_number)
    return 1 if result.failed else 0

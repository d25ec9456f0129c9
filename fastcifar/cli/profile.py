"""fastcifar profile."""

from __future__ import annotations

import json

from fastcifar.cli.arguments import (
    Parser,
    Start,
    add_start,
    count,
    parsed,
    path,
    read_settings,
    start_of,
    why_no_start,
)
from fastcifar.errors import UsageError
from fastcifar.run import threads
from fastcifar.ui.tables import print_table

SUMMARY = "show where the time of a training step goes, and how near each layer is to this device's floor"


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.forms("[PRESET | FILE.toml] [--KEY VALUE ...] [--steps N] [--out DIR] [--json]")
    parser.epilog = (
        "The steps are those of a training run, on images of random bytes: no data is needed. --KEY VALUE sets what "
        "`fastcifar train --help` lists, such as --engine eager or --batch-size 512. DIR gets the tables, two "
        "pictures, and a trace for https://ui.perfetto.dev or chrome://tracing."
    )
    add_start(parser, "whose settings to start from [final]", "start from the settings in your own TOML file")
    parser.add_argument(
        "--steps", metavar="N", type=parsed(count, "a number from 1"), default=10, help="steps to profile [10]"
    )
    parser.add_argument("--out", metavar="DIR", type=path, help="the folder for the results [runs/profile/TIME-...]")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON")
    args, rest = parser.parse_known_args(argv)
    given = read_settings(rest, why_no_start)
    start = start_of(args, given)

    from fastcifar.layers import resolve_layers

    try:
        preset = "final" if start == Start(None, None) else start.preset
        config = resolve_layers(preset, start.file, given.settings, parser.options()).config
    except UsageError as error:
        given.problems.append(str(error))
    if given.problems:
        raise UsageError("\n".join(given.problems))
    threads.limit(config.device)

    from fastcifar.measuring import profile, profile_text
    from fastcifar.measuring.profile_result import as_dict

    result = profile.profile(config, args.out, args.steps)
    if args.json:
        print(json.dumps({"results": str(result.path), **as_dict(result)}))
        return 0
    print("\n".join(profile_text.headline(result)))
    for table in profile_text.tables(result):
        print()
        print_table(*table)
    if lines := profile_text.footnote(result.rows):
        print("\n".join(["", *lines]))
    print(f"\nresults  {result.path}: {', '.join(sorted(file.name for file in result.path.iterdir()))}")
    return 0

"""fastcifar profile."""

from __future__ import annotations

from pathlib import Path

from fastcifar.cli.arguments import Parser, count, parsed, split_settings
from fastcifar.errors import UsageError
from fastcifar.ui.tables import print_table

SUMMARY = "show where the time of a training step goes, and how near each layer is to this device's floor"


def run(parser: Parser, argv: list[str]) -> int:
    parser.usage = "fastcifar profile [--preset NAME] [--KEY VALUE ...] [--steps N] [--out DIR]"
    parser.epilog = (
        "The steps are those of a training run, on images of random bytes: no data is needed. --KEY VALUE sets what "
        "`fastcifar train --help` lists, such as --engine eager or --batch-size 512. DIR gets the tables, two "
        "pictures, and a trace for https://ui.perfetto.dev or chrome://tracing."
    )
    parser.add_argument("--preset", metavar="NAME", default="final", help="whose settings to start from [final]")
    parser.add_argument(
        "--steps", metavar="N", type=parsed(count, "a number from 1"), default=10, help="steps to profile [10]"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="the folder for the results [runs/profile/TIME-...]")
    args, rest = parser.parse_known_args(argv)
    settings, problems = split_settings(rest)

    from fastcifar.layers import resolve_layers

    try:
        config = resolve_layers(args.preset, None, settings, parser.options()).config
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))

    from fastcifar.measuring import profile, profile_text

    result = profile.profile(config, args.out, args.steps)
    print("\n".join(profile_text.headline(result)))
    for table in profile_text.tables(result):
        print()
        print_table(*table)
    print(f"\nresults  {result.path}: {', '.join(sorted(file.name for file in result.path.iterdir()))}")
    return 0

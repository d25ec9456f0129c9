"""fastcifar compare."""

from __future__ import annotations

import shutil
import sys

from fastcifar.cli.arguments import Parser, path
from fastcifar.ui.tables import print_table

SUMMARY = "show runs side by side, each against the first"


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.add_argument("runs", metavar="RUN", type=path, nargs="+", help="a run folder, or a study for all its runs")
    parser.add_argument("--each", action="store_true", help="a column for every run, not for all seeds together")
    args = parser.parse(argv)

    from fastcifar.studies.compare import blocks, columns, legend, load, table

    cols = columns(load(args.runs), args.each)
    print("\n".join(legend(cols)))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for header, rows in blocks([col.title for col in cols], table(cols), width):
        print()
        print_table(header, rows)
    if any(len(col.runs) > 1 for col in cols):
        print("\n± is the standard deviation over seeds")
    return 0

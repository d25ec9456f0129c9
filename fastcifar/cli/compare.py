"""fastcifar compare."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from fastcifar.cli.arguments import Parser, path
from fastcifar.ui.tables import print_table

if TYPE_CHECKING:
    from fastcifar.run.folder import RunFolder

SUMMARY = "show runs side by side, each against the first"


def _as_object(run: RunFolder) -> dict[str, object]:
    settings = run.config.model_dump(mode="json")
    return {"run": str(run.path), "epochs_done": len(run.records), "settings": settings, "summary": run.summary()}


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.add_argument("runs", metavar="RUN", type=path, nargs="+", help="a run folder, or a study for all its runs")
    parser.add_argument("--each", action="store_true", help="a column for every run, not for all seeds together")
    parser.add_argument("--json", action="store_true", help="print a JSON list, an object for each column")
    args = parser.parse(argv)

    from fastcifar.studies.compare import blocks, columns, legend, load, table

    cols = columns(load(args.runs), args.each)
    if args.json:
        import json

        found = [{"column": col.title, "runs": [_as_object(one) for one in col.runs]} for col in cols]
        print(json.dumps(found))
        return 0
    print("\n".join(legend(cols)))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for header, rows in blocks([col.title for col in cols], table(cols), width):
        print()
        print_table(header, rows)
    if any(len(col.runs) > 1 for col in cols):
        print("\n± is the standard deviation over seeds")
    return 0

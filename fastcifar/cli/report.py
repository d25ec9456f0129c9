"""fastcifar report."""

from __future__ import annotations

import json
from pathlib import Path

from fastcifar.cli.arguments import Parser, path

SUMMARY = "write the page of finished runs or of a study: tables, figures and verdicts beside the report's"


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.forms("RUN ... [--out DIR] [--data PATH] [--json]")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=path, help="a run, a study, or a folder that holds runs")
    parser.add_argument("--out", metavar="DIR", type=path, help="where the page goes [report, or STUDY/report]")
    parser.add_argument("--data", metavar="PATH", help="where the same images lie now [where the runs had them]")
    parser.add_argument("--json", action="store_true", help="print the paths of page and runs as JSON")
    args = parser.parse(argv)

    if args.data is not None:
        from fastcifar.layers import parse_overrides

        parse_overrides([("data", args.data)], ["data"])

    from fastcifar.report.writing import write_report
    from fastcifar.studies.finding import find_runs
    from fastcifar.studies.folder import REPORT, STUDY, Study
    from fastcifar.studies.search import Search
    from fastcifar.ui.notes import note

    runs, planned = find_runs(args.runs)
    own = len(args.runs) == 1 and (args.runs[0] / STUDY).is_file()
    out = args.out or (args.runs[0] / REPORT if own else Path(REPORT))
    study = Study.open(args.runs[0]) if own else None
    search = Search(study).told() if study is not None and study.search is not None else None
    page = write_report(runs, out, planned=planned, data=args.data, search=search, note=note)
    print(json.dumps({"report": str(page), "runs": list(map(str, runs))}) if args.json else f"report  {page}")
    return 0

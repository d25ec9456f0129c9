"""fastcifar predict."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING

from fastcifar.cli.arguments import Parser, add_weights, count, one_of, parsed, path
from fastcifar.errors import UsageError
from fastcifar.text import printable
from fastcifar.ui.notes import note
from fastcifar.ui.tables import print_table

if TYPE_CHECKING:
    from fastcifar.prediction import Prediction

SUMMARY = "say what pictures show, with a run's model"


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.add_argument("run", metavar="RUN", type=path, help="the run folder")
    parser.add_argument(
        "pictures", metavar="IMAGE|FOLDER", type=path, nargs="+", help="pictures of any size, or folders of them"
    )
    classes = parsed(count, "a number of classes from 1")
    parser.add_argument("--top", type=classes, default=5, metavar="N", help="how many classes a picture is given [5]")
    parser.add_argument(
        "--resize",
        type=one_of("crop", "stretch"),
        default="crop",
        metavar="crop|stretch",
        help="what is scaled to the size of the run's images: the centre square, or the whole picture [crop]",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, an object for each picture")
    parser.add_argument("--csv", action="store_true", help="print CSV, a line for each picture and class")
    parser.add_argument(
        "--data", metavar="PATH", help="where the run's images lie now, for a run that names no classes"
    )
    add_weights(parser)
    args = parser.parse(argv)
    if args.json and args.csv:
        raise UsageError("--json and --csv: give one of the two")
    if args.data is not None:
        from fastcifar.layers import parse_overrides

        parse_overrides([("data", args.data)], ["data"])

    from fastcifar.prediction import predict
    from fastcifar.run.folder import RunFolder

    found = predict(
        RunFolder.open(args.run), args.pictures, top=args.top, fit=args.resize, data=args.data, weights=args.weights
    )
    if args.json:
        print(json.dumps([_as_object(prediction) for prediction in found]))
    elif args.csv:
        _print_csv(found)
    else:
        _print_table(found)
    resized = [prediction for prediction in found if prediction.resized]
    if resized and not args.json:
        other = "" if args.resize == "stretch" else "; --resize stretch takes whole pictures"
        which = "the picture" if len(found) == 1 else f"{len(resized)} of {len(found)} pictures"
        scaled = "were scaled, such as" if len(resized) > 1 else "was scaled:"
        note(f"{which} {scaled} {resized[0].resized}{other}")
    return 0


def _as_object(prediction: Prediction) -> dict[str, object]:
    return {
        "file": printable(str(prediction.file)),
        "width": prediction.width,
        "height": prediction.height,
        "resized": prediction.resized,
        "top": [
            {"class": guess.class_name, "superclass": guess.superclass or None, "probability": guess.probability}
            for guess in prediction.guesses
        ],
    }


def _print_csv(found: list[Prediction]) -> None:
    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow(["file", "rank", "class", "superclass", "probability"])
    for prediction in found:
        for rank, guess in enumerate(prediction.guesses, 1):
            name = printable(str(prediction.file))
            lines.writerow([name, rank, guess.class_name, guess.superclass, f"{guess.probability:.6f}"])


def _print_table(found: list[Prediction]) -> None:
    rows = []
    for prediction in found:
        for rank, guess in enumerate(prediction.guesses, 1):
            name = printable(str(prediction.file)) if rank == 1 else ""
            rows.append([name, f"{guess.probability:.2%}", guess.class_name, guess.superclass])
    has_superclasses = any(row[3] for row in rows)
    header = ["picture", "probability", "class", "superclass"]
    width = len(header) if has_superclasses else len(header) - 1
    print_table(header[:width], [row[:width] for row in rows], wrapped="picture", inside_words=True)

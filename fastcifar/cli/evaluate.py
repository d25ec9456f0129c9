"""fastcifar evaluate."""

from __future__ import annotations

from fastcifar.cli.arguments import Parser, add_weights, one_of, path

SUMMARY = "measure the accuracy of a finished run again"


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.add_argument("run", metavar="RUN", type=path, help="the run folder")
    parser.add_argument(
        "--split",
        type=one_of("val", "test"),
        default="test",
        metavar="val|test",
        help="measure on the validation or on the test images [test]",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [the run's own, if present]")
    parser.add_argument("--data", metavar="PATH", help="where the same images lie now [where the run had them]")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_weights(parser)
    args = parser.parse(argv)

    from fastcifar.layers import parse_overrides

    given = [(name, getattr(args, name)) for name in ("device", "data") if getattr(args, name) is not None]
    parse_overrides(given, [name for name, _ in given])

    from fastcifar import evaluation

    result = evaluation.evaluate_run(args.run, args.split, args.device, args.data, args.weights)
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

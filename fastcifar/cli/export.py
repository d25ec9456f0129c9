"""fastcifar export."""

from __future__ import annotations

from fastcifar.cli.arguments import Parser, add_weights, one_of, path

SUMMARY = "write a run's model as ONNX, pt2 or safetensors, checked against the model"


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.add_argument("run", metavar="RUN", type=path, help="the run folder")
    parser.add_argument(
        "--format",
        type=one_of("onnx", "pt2", "safetensors"),
        required=True,
        metavar="onnx|pt2|safetensors",
        help="onnx needs pip install 'fastcifar[onnx]'",
    )
    parser.add_argument("--out", metavar="DIR", type=path, help="a new or empty folder [RUN/export/FORMAT]")
    parser.add_argument("--data", metavar="PATH", help="where the run's images lie now [where the run had them]")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_weights(parser)
    args = parser.parse(argv)
    if args.data is not None:
        from fastcifar.layers import parse_overrides

        parse_overrides([("data", args.data)], ["data"])

    from fastcifar.exporting.writing import export
    from fastcifar.run.folder import RunFolder

    done = export(RunFolder.open(args.run), args.format, args.out, args.data, args.weights)
    if args.json:
        import json

        print(json.dumps({"file": str(done.file), "num_images": done.num_images, "difference": done.difference}))
        return 0
    print(f"model       {done.file}")
    print(f"model card  {done.path / 'README.md'}")
    logits = f"no logit differs by more than {done.difference:.1g}" if done.difference else "all logits are equal"
    print(f"checked     on {done.num_images} images: {logits}")
    return 0

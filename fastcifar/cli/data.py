"""fastcifar data info and fastcifar data get."""

from __future__ import annotations

from collections.abc import Iterable

from fastcifar.cli.arguments import Parser, one_of
from fastcifar.errors import UsageError
from fastcifar.text import did_you_mean, nearest, one_line, quoted
from fastcifar.ui.tables import print_table

SUMMARY = "look at images (data info), or download a published set (data get)"


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.usage = "fastcifar data info [NAME|PATH] [--mirror URL]\n       fastcifar data get NAME [--mirror URL]"
    parser.add_argument("action", type=one_of("info", "get"), metavar="info|get", help="what to do")
    parser.add_argument("source", nargs="?", metavar="NAME|PATH", help="cifar100, cifar10, procedural or a path")
    parser.add_argument("--mirror", default="", metavar="URL", help="download from here, not from the official address")
    args = parser.parse(_with_action(argv))
    if args.source is None and args.action == "get":
        raise UsageError("data get: the name is missing: cifar100 or cifar10")

    from fastcifar.config import Config
    from fastcifar.layers import parse_overrides

    source = args.source if args.source is not None else Config.model_fields["data"].default
    parse_overrides([("data", source), ("mirror", args.mirror)], ["data", "mirror"])

    from fastcifar.data import sources
    from fastcifar.data.cache import default_folder
    from fastcifar.data.dataset import info
    from fastcifar.data.published import PUBLISHED

    if args.action == "get" and source not in PUBLISHED:
        names = tuple(PUBLISHED)
        raise UsageError(f"data get {source}: expected {' or '.join(names)}{did_you_mean(nearest(source, names))}")
    dataset = sources.load(source, mirror=args.mirror)
    superclasses = f" in {len(dataset.superclass_names)} superclasses" if dataset.superclass_names else ""
    print(f"{dataset.name}: {dataset.num_classes} classes{superclasses}")
    print(f"digest {dataset.digest}")
    if args.action == "get":
        print(f"{len(dataset.train):,} training and {len(dataset.test):,} test images in {default_folder()}")
        return 0
    splits = info(dataset)
    rows = [
        ["images", *(f"{s.count:,}" for s in splits.values())],
        ["images a class", *(_spread(s.class_min, s.class_max) for s in splits.values())],
        ["mean (R G B)", *(_channels(s.mean) for s in splits.values())],
        ["std", *(_channels(s.std) for s in splits.values())],
        ["std of an image", *(_channels(s.image_std) for s in splits.values())],
    ]
    print()
    print_table(["", *splits], rows)
    return 0


def _with_action(argv: list[str]) -> list[str]:
    """`argv`; refused, with the action that is meant, where it begins with what `data info` looks at."""
    first = argv[0] if argv else ""
    if first and not first.startswith("-") and not nearest(first, ("info", "get")):
        name = nearest(first, ("cifar100", "cifar10", "procedural"), 0.8) or first
        raise UsageError(
            f"data {one_line(first)}: expected info or get{did_you_mean(quoted(name), 'data info ')} "
            "(see fastcifar data --help)"
        )
    return argv


def _spread(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _channels(values: Iterable[float]) -> str:
    return " ".join(f"{value:.6f}" for value in values)

"""fastcifar data info, fastcifar data get and fastcifar data convert."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastcifar.cli.arguments import Parser, one_of, parsed, path
from fastcifar.errors import UsageError
from fastcifar.text import did_you_mean, nearest, one_line, quoted
from fastcifar.ui.tables import print_table

SUMMARY = "look at images (data info), download a published set (data get), or scale images (data convert)"


_ACTIONS = ("info", "get", "convert")
SMALLEST, LARGEST = 8, 96  # as in data.decoded, which imports NumPy


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.forms("info [NAME|PATH] [--mirror URL] [--json]", "get NAME [--mirror URL]", "convert PATH OUT.npz --size S")
    parser.epilog = (
        "info looks at cifar100 where nothing is named, and like get it downloads a published set that is not there "
        "yet. convert takes the centre square of each image, scaled to S x S pixels if it has another size. Nothing "
        "is overwritten."
    )
    parser.add_argument("action", type=one_of(*_ACTIONS), metavar="info|get|convert", help="what to do")
    parser.add_argument("source", nargs="?", metavar="NAME|PATH", help="cifar100, cifar10, procedural or a path")
    parser.add_argument("out", nargs="?", metavar="OUT.npz", type=path, help="where convert writes")
    sides = parsed(_side, f"a number of pixels from {SMALLEST} to {LARGEST}")
    pixels = f"{SMALLEST} to {LARGEST} pixels"
    parser.add_argument("--size", type=sides, metavar="S", help=f"side of the images that convert writes, {pixels}")
    parser.add_argument("--mirror", default="", metavar="URL", help="download from here, not from the known mirrors")
    parser.add_argument("--json", action="store_true", help="print what info finds as JSON")
    args = parser.parse(_with_action(argv))
    if args.source is None and args.action == "get":
        raise UsageError("data get: the name is missing: cifar100 or cifar10")

    if args.json and args.action != "info":
        raise UsageError(f"data {args.action}: --json: only data info takes it")
    if args.mirror and args.action == "convert":
        raise UsageError("data convert: --mirror: only data info and data get take it")
    if args.action == "convert":
        return _convert(args.source, args.out, args.size)
    for name in ("out", "size"):
        if (value := getattr(args, name)) is not None:
            raise UsageError(f"data {args.action}: {value}: only data convert takes it")

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
    if not args.json:
        superclasses = f" in {len(dataset.superclass_names)} superclasses" if dataset.superclass_names else ""
        print(f"{dataset.name}: {dataset.num_classes} classes{superclasses}")
        print(f"digest {dataset.digest}")
    if args.action == "get":
        print(f"{len(dataset.train):,} training and {len(dataset.test):,} test images in {default_folder()}")
        return 0
    splits = info(dataset)
    if args.json:
        import dataclasses
        import json

        facts = {
            "name": dataset.name,
            "digest": dataset.digest,
            "image_size": dataset.train.images.shape[1],
            "is_grey": dataset.train.is_grey() and dataset.test.is_grey(),
            "class_names": dataset.class_names,
            "superclass_names": dataset.superclass_names,
            "superclass_of": dataset.superclass_of,
            "splits": {name: dataclasses.asdict(split) for name, split in splits.items()},
        }
        print(json.dumps(facts))
        return 0
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


def _convert(source: str | None, out: Path | None, size: int | None) -> int:
    if source is None or out is None or size is None:
        raise UsageError("data convert: expected PATH OUT.npz --size S (see fastcifar data --help)")

    from fastcifar.data.convert import convert
    from fastcifar.data.paths import user_path

    counts = convert(user_path(source), out, size)
    print(f"{counts['train']:,} training and {counts['test']:,} test images of {size}x{size} pixels in {out}")
    print("each is the centre square of its image, scaled if it had another size")
    return 0


def _side(text: str) -> int:
    if not SMALLEST <= int(text) <= LARGEST:
        raise ValueError
    return int(text)


def _with_action(argv: list[str]) -> list[str]:
    """`argv`; refused, with the action that is meant, where it begins with what `data info` looks at."""
    first = argv[0] if argv else ""
    if first and not first.startswith("-") and not nearest(first, _ACTIONS):
        name = nearest(first, ("cifar100", "cifar10", "procedural"), 0.8) or first
        raise UsageError(
            f"data {one_line(first)}: expected {' or '.join(_ACTIONS)}{did_you_mean(quoted(name), 'data info ')} "
            "(see fastcifar data --help)"
        )
    return argv


def _spread(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _channels(values: Iterable[float]) -> str:
    return " ".join(f"{value:.6f}" for value in values)

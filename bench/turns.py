"""The training step of several checkouts or settings in turns: what a change is worth on this machine.

    python bench/turns.py [--rounds 9] [--steps N] [--out FILE.jsonl] VARIANT [VARIANT ...]

A VARIANT is FOLDER or FOLDER:KEY=VALUE,...: a checkout whose extension is built, and the settings of a run that differ
from the fused engine's defaults; a KEY in capitals is an environment variable. Each variant is a process of its own
with random images. All start together, and take turns when all are ready, so that what else the machine does meets all
alike:

    python bench/turns.py . ../before .:precision=fp32 .:engine=eager .:OMP_NUM_THREADS=1

The table has the microseconds of a step, images/s, and each variant's images/s over those of the first one:
the median over the rounds, and the middle half of them. A round's steps are about 0.2 seconds' on a GPU, and four on
the CPU, unless --steps says otherwise. Each variant is a line of FILE as well, to which it is added.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers import Worker, take_turns, training_step, workers

from fastcifar.measuring.process import Process
from fastcifar.target import find_device

NUM_IMAGES = 40_960
START_SECONDS = 300


def _parsed(text: str) -> Any:
    """A number or true or false as what it is, anything else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class Variant:
    """What a process runs.

    Attributes:
        text: as it was asked for.
        folder: the checkout.
        settings: those of the run.
        environment: variables that are set for the process.
    """

    text: str
    folder: Path
    settings: dict[str, Any]
    environment: dict[str, str]

    @classmethod
    def of(cls, text: str) -> Variant:
        """The variant of a command line.

        Raises:
            argparse.ArgumentTypeError: it is not of that form, or its folder is no checkout with this benchmark.
        """
        name, _, pairs = text.partition(":")
        folder = Path(name).resolve()
        if not (folder / "bench" / "workers.py").is_file():
            raise argparse.ArgumentTypeError(f"{text}: {folder} is no checkout: it has no bench/workers.py")
        settings: dict[str, Any] = {"engine": "fused"}
        environment = {"PYTHONPATH": str(folder)}
        for pair in filter(None, pairs.split(",")):
            if not (match := re.fullmatch(r"(\w+)=(.*)", pair)):
                raise argparse.ArgumentTypeError(f"{text}: {pair!r} is not KEY=VALUE")
            key, value = match.groups()
            if key.isupper():
                environment[key] = value
            else:
                settings[key] = _parsed(value)
        return cls(text, folder, settings, environment)

    def process(self) -> Process:
        """A process that runs the checkout's own code."""
        return Process([sys.executable, str(self.folder / "bench" / "workers.py")], self.environment)

    @property
    def batch_size(self) -> int:
        return int(self.settings.get("batch_size", 128))


def measure(variants: dict[str, Variant], rounds: int, steps: int | None) -> dict[str, list[float] | Exception]:
    """The microseconds of a step in each round of each variant, or why there are none."""
    on_gpu = find_device("auto").type == "cuda"
    counts = {name: steps or (max(20, 300 * 128 // v.batch_size) if on_gpu else 4) for name, v in variants.items()}
    arguments = {name: (variant.settings, NUM_IMAGES if on_gpu else 4096) for name, variant in variants.items()}
    with workers(training_step, arguments, START_SECONDS, lambda name: variants[name].process()) as ready:
        for name, run in ready.items():
            if isinstance(run, Worker):
                print(f"{name} is ready", file=sys.stderr)
        taken = take_turns(ready, counts, rounds)
    return {
        name: seconds if isinstance(seconds, Exception) else [s / counts[name] * 1e6 for s in seconds]
        for name, seconds in taken.items()
    }


def measured(found: dict[str, list[float] | Exception]) -> dict[str, list[float]]:
    """Those of which there are microseconds."""
    return {name: us for name, us in found.items() if isinstance(us, list) and us}


def table(variants: dict[str, Variant], found: dict[str, list[float] | Exception]) -> str:
    """A line for each variant."""
    times = measured(found)
    rates = {name: [variants[name].batch_size / value * 1e6 for value in us] for name, us in times.items()}
    first = next(iter(rates.values()), [])
    width = max(map(len, found))
    lines = [f"{'':{width}}  {'us a step':>10}  {'from - to':>19}  {'images/s':>9}  over the first"]
    for name in found:
        if name not in times:
            lines.append(f"{name:{width}}  not measured: {' '.join(str(found[name] or 'interrupted').split())}")
            continue
        us = times[name]
        ratios = [own / other for own, other in zip(rates[name], first, strict=False)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        lines.append(
            f"{name:{width}}  {statistics.median(us):>10,.1f}  {f'{min(us):,.1f} - {max(us):,.1f}':>19}  "
            f"{statistics.median(rates[name]):>9,.0f}  {statistics.median(ratios):.3f} ({low:.3f} - {high:.3f})"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Prints the table for the variants of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", type=Variant.of, metavar="VARIANT")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    variants: dict[str, Variant] = {}
    for variant in given.variants:  # the same one twice says how much two processes differ
        again = sum(v.text == variant.text for v in variants.values())
        variants[variant.text + (f" ({again + 1})" if again else "")] = variant
    found = measure(variants, given.rounds, given.steps)
    print(table(variants, found))
    if given.out:
        with given.out.open("a", encoding="utf-8") as file:
            for name, us in measured(found).items():
                row = {"variant": name, **variants[name].settings, "us": [round(value, 1) for value in us]}
                print(json.dumps(row), file=file)
    return int(any(isinstance(us, Exception) for us in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

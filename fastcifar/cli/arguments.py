"""How the words of a command line become arguments: the parser, the types of its arguments, and settings as options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fastcifar.errors import UsageError
from fastcifar.text import did_you_mean, nearest


class Parser(argparse.ArgumentParser):
    """argparse with errors of our kind: all unknown arguments at once, each with the nearest that exists."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=f"fastcifar {name}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def options(self) -> list[str]:
        """The names of the long options, without dashes before them."""
        names = [option for action in self._actions for option in action.option_strings]
        return [name.removeprefix("--") for name in names if name.startswith("--")]

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        args, unknown = self.parse_known_args(argv)
        problems = []
        for before, word in zip(["", *unknown], unknown, strict=False):
            if word.startswith("-"):
                name = word.partition("=")[0]
                hint = did_you_mean(nearest(name.strip("-"), self.options(), 0.6), "--") or f" (see {self.prog} --help)"
                problems.append(f"{name}: there is no such option{hint}")
            elif not before.startswith("-"):
                problems.append(f"{word}: unexpected argument (see {self.prog} --help)")
        if problems:
            raise UsageError("\n".join(problems))
        return args


def one_of(*choices: str) -> Callable[[str], str]:
    """The `type` of an argument with a few values."""

    def check(text: str) -> str:
        if text not in choices:
            hint = did_you_mean(nearest(text, choices, 0.6))
            raise argparse.ArgumentTypeError(f"{text!r}: expected {' or '.join(choices)}{hint}")
        return text

    return check


def parsed(parse: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """The `type` of an argument that `parse` reads, or refuses with a ValueError."""

    def check(text: str) -> Any:
        try:
            return parse(text)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}") from None

    return check


def count(text: str) -> int:
    if not 1 <= int(text) <= 10_000:
        raise ValueError
    return int(text)


def positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def seeds(text: str) -> tuple[int, ...]:
    if "," not in text:
        return tuple(range(count(text)))
    seeds = sorted({int(part) for part in text.split(",")})
    if not 0 <= seeds[0] <= seeds[-1] < 2**32:
        raise ValueError
    return tuple(seeds)


def split_settings(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """`--key value`, `--key=value` and, for a setting that is true or false, a bare `--key`, as pairs; and problems."""
    from fastcifar.config import Config, allowed
    from fastcifar.text import one_line

    pairs: list[tuple[str, str]] = []
    problems: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        field = Config.model_fields.get(key.replace("-", "_"))
        if not word.startswith("--") or not key:
            problems.append(f"command line: {one_line(word)}: unexpected argument; settings are given as --KEY VALUE")
        elif equals:
            pairs.append((key, value))
        elif rest and not rest[0].startswith("--"):
            pairs.append((key, rest.pop(0)))
        elif field is not None and field.annotation is bool:
            pairs.append((key, "true"))
        elif field is not None:
            problems.append(f"command line: --{key}: the value is missing; expected {allowed(key.replace('-', '_'))}")
        else:
            pairs.append((key, ""))
    return pairs, problems


def split_names(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that stand alone, and the options with their values."""
    names: list[str] = []
    options: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        value = before.startswith("--") and "=" not in before and not word.startswith("--")
        (options if value or word.startswith("--") else names).append(word)
    return names, options

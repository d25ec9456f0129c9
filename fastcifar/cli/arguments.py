"""How the words of a command line become arguments: the parser, the types of arguments, and settings as options."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fastcifar import paths
from fastcifar.errors import UsageError
from fastcifar.text import did_you_mean, nearest, one_line, quoted

WIDTH = 79
"""The longest line of a help, in characters."""

_TRUTHS = ("true", "false", "yes", "no", "on", "off", "0", "1")


class Parser(argparse.ArgumentParser):
    """argparse with errors of our kind: all unknown arguments at once, each with the nearest that exists."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=f"fastcifar {name}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def forms(self, *forms: str) -> None:
        """Sets the usage: each of `forms` is what may follow the command, and is wrapped outside brackets only."""
        begin = f"usage: {self.prog} "
        lines: list[str] = []
        for form in forms:
            whole = re.sub(r"\[(?:[^][]|\[[^][]*\])*\]", lambda part: part[0].replace(" ", "\xa0"), form)
            head = begin if not lines else f"{'':7}{self.prog} "
            lines += textwrap.wrap(
                whole, WIDTH, initial_indent=head, subsequent_indent=" " * len(begin), break_on_hyphens=False
            )
        self.usage = "\n".join(lines).replace("\xa0", " ").removeprefix("usage: ")

    def options(self) -> list[str]:
        """The names of the long options, without dashes before them."""
        names = [option for action in self._actions for option in action.option_strings]
        return [name.removeprefix("--") for name in names if name.startswith("--")]

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments of a command that takes no settings.

        Raises:
            UsageError: for all arguments that the command does not know, a line each.
        """
        args, unknown = self.parse_known_args(argv)
        problems = []
        for option, value in _pieces(unknown):
            if option:
                hint = did_you_mean(nearest(option.strip("-"), self.options()), "--") or f" (see {self.prog} --help)"
                problems.append(f"{one_line(option)}: there is no such option{hint}")
            else:
                problems.append(f"{one_line(value or '')}: unexpected argument (see {self.prog} --help)")
        if problems:
            raise UsageError("\n".join(problems))
        return args


@dataclass(frozen=True)
class Command:
    """A command: what it does, in a line of the help, and the function that reads its arguments and obeys them."""

    summary: str
    run: Callable[[Parser, list[str]], int]


# ---- the types of arguments ----


class one_of:  # noqa: N801 (a function to who calls it)
    """The `type` of an argument with a few values.

    Attributes:
        choices: the values.
    """

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __call__(self, text: str) -> str:
        if text not in self.choices:
            hint = did_you_mean(nearest(text, self.choices))
            raise argparse.ArgumentTypeError(f"{text!r}: expected {' or '.join(self.choices)}{hint}")
        return text


def parsed(parse: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """The `type` of an argument that `parse` reads, or refuses with a ValueError."""

    def check(text: str) -> Any:
        try:
            return parse(text)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}") from None

    return check


def path(text: str) -> Path:
    """The `type` of every argument that is a path, by the rule of `paths.given`."""
    try:
        return paths.given(text)
    except FileNotFoundError as error:
        raise argparse.ArgumentTypeError(f"{one_line(text) or repr(text)}: {error.strerror}") from None


def preset_name(text: str) -> str:
    """The `type` of every argument that is the name of a preset, for completion; whether there is one is told later."""
    return text


def count(text: str) -> int:
    """A whole number from 1 to 10,000, for `parsed`."""
    if not 1 <= int(text) <= 10_000:
        raise ValueError
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0, for `parsed`."""
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def seeds(text: str) -> tuple[int, ...]:
    """The seeds 0 to N-1 of `N`, or those named as in `3,4,5`; for `parsed`."""
    if "," not in text:
        return tuple(range(count(text)))
    named = sorted({int(part) for part in text.split(",")})
    if not 0 <= named[0] <= named[-1] < 2**32:
        raise ValueError
    return tuple(named)


# ---- settings ----


@dataclass(frozen=True)
class Given:
    """What the words say that a parser does not know.

    Attributes:
        names: the words that stand alone and mean something.
        settings: pairs of a setting's name, as typed, and its value.
        problems: what is wrong, a line each.
    """

    names: list[str]
    settings: list[tuple[str, str]]
    problems: list[str]


def read_settings(words: Sequence[str], why_not: Callable[[str], str] | None = None) -> Given:
    """Reads `--key value`, `--key=value` and, for a setting that is true or false, `--key` and `--no-key`.

    Args:
        words: those that the parser does not know.
        why_not: says of a word that stands alone why it means nothing here; empty where it means something. Without it,
            no word may stand alone.
    """
    from fastcifar.config import Config
    from fastcifar.spelling import allowed

    names: list[str] = []
    pairs: list[tuple[str, str]] = []
    problems: list[str] = []
    for option, value in _pieces(words):
        key = option.removeprefix("--")
        field = Config.model_fields.get(key.replace("-", "_"))
        switched_off = _switched_off(key)
        if not option.startswith("--") or not key:
            word = option or value or ""
            unexpected = f"unexpected argument; settings are given as --KEY VALUE{_with_two_dashes(option, value)}"
            reason = why_not(word) if why_not and not option else unexpected
            if reason:
                problems.append(f"command line: {one_line(word)}: {reason}")
            else:
                names.append(word)
        elif switched_off and value is not None:
            problems.append(
                f"command line: {option} {one_line(value)}: --no-... takes no value; "
                f"give {option} or --{switched_off} {value}"
            )
        elif switched_off:
            pairs.append((switched_off, "false"))
        elif value is not None:
            pairs.append((key, value))
        elif field is not None and field.annotation is bool:
            pairs.append((key, "true"))
        elif field is not None:
            problems.append(f"command line: --{key}: the value is missing; expected {allowed(key.replace('-', '_'))}")
        else:
            pairs.append((key, ""))
    return Given(names, pairs, problems)


def _with_two_dashes(option: str, value: str | None) -> str:
    """The end of a message on a setting that was given with one dash; empty where none was."""
    from fastcifar.config import Config

    key = option.lstrip("-")
    if not option or key.replace("-", "_") not in Config.model_fields:
        return ""
    return did_you_mean(f"--{key}" + (f" {one_line(value)}" if value is not None else ""))


def _pieces(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each option with its value, None where it has none; a word that stands alone has an empty option."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if not word.startswith("-"):
            yield "", word
        elif equals:
            yield option, value
        elif rest and not rest[0].startswith("--") and _is_value(rest[0], word):
            yield word, rest.pop(0)
        else:
            yield word, None


def _is_value(word: str, option: str) -> bool:
    """Whether `word` after `option` is its value. After a switch, the name of a preset or of a file stands alone."""
    from fastcifar.config import Config

    key = option.removeprefix("--")
    field = Config.model_fields.get(key.replace("-", "_"))
    if _switched_off(key):
        return word.lower() in _TRUTHS
    if field is not None and field.annotation is bool and word.lower() not in _TRUTHS:
        return not _is_start(word)
    return True


def _switched_off(key: str) -> str:
    """The setting, as typed, that `--no-KEY` sets to false; empty where the key is another one."""
    from fastcifar.config import Config

    name = key.replace("_", "-").removeprefix("no-")
    field = Config.model_fields.get(name.replace("-", "_"))
    return name if name != key.replace("_", "-") and field is not None and field.annotation is bool else ""


# ---- a finished run ----


def add_weights(parser: Parser) -> None:
    """Gives `parser` the option --weights, for a command that uses a saved model."""
    parser.add_argument(
        "--weights",
        type=one_of("last", "best"),
        default="last",
        metavar="last|best",
        help="best: of the epoch with the best validation accuracy, which --keep-best kept [last]",
    )


# ---- where the settings start: a preset, and one's own file ----


@dataclass(frozen=True)
class Start:
    """The preset and the file that the settings start from; None where none is named."""

    preset: str | None
    file: Path | None


def add_start(parser: Parser, preset: str, config: str) -> None:
    """Gives `parser` the options --preset and --config with these lines of help."""
    parser.add_argument("--preset", metavar="NAME", type=preset_name, help=preset)
    parser.add_argument("--config", metavar="FILE", type=path, help=config)


def why_no_start(word: str) -> str:
    """For `read_settings`: why a word that stands alone is neither a preset nor a settings file; empty if it is one."""
    from fastcifar.layers import preset_names

    if _is_start(word):
        return ""
    if not word.strip():
        return "an empty word names no preset and no file"
    if match := nearest(word, preset_names()):
        return f"there is no such preset{did_you_mean(match)}"
    if word.casefold().replace("-", "") in ("cifar100", "cifar10", "procedural"):
        data = word.casefold().replace("-", "")
        return f"there is no such preset; settings are given as --KEY VALUE{did_you_mean(data, '--data ')}"
    try:
        there = paths.given(word)
    except (OSError, ValueError) as error:
        return _reason(error)
    if (there / "config.toml").is_file():
        return f"unexpected argument; settings are given as --KEY VALUE{did_you_mean(quoted(word), '--resume ')}"
    if there.exists():
        return f"unexpected argument; settings are given as --KEY VALUE{did_you_mean(quoted(word), '--data ')}"
    return "unexpected argument; settings are given as --KEY VALUE"


def start_of(args: argparse.Namespace, given: Given) -> Start:
    """The preset and the file, named by option or by a word that stands alone.

    Args:
        args: what a parser after `add_start` read.
        given: the other words; a second preset or file is added to its problems.
    """
    presets: list[str] = []
    files: list[str] = []
    for name in given.names:
        (files if name.lower().endswith(".toml") else presets).append(name)
    for what, words, option in (("preset", presets, args.preset), ("settings file", files, args.config)):
        named = [*words, *([f"--{'preset' if what == 'preset' else 'config'} {option}"] if option is not None else [])]
        if len(named) > 1:
            several = "; `fastcifar study` trains several" if what == "preset" else ""
            shown = " and ".join(map(one_line, map(str, named)))
            given.problems.append(f"command line: {shown}: give one {what}{several}")
    preset = args.preset if args.preset is not None else next(iter(presets), None)
    file = args.config
    if files and file is None:
        try:
            file = paths.given(files[0])
        except (OSError, ValueError) as error:
            given.problems.append(f"command line: {one_line(files[0])}: {_reason(error)}")
    return Start(preset, file)


def _reason(error: OSError | ValueError) -> str:
    """Why `paths.given` refuses a word."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _is_start(word: str) -> bool:
    from fastcifar.layers import preset_names

    return word.lower().endswith(".toml") or word in preset_names()

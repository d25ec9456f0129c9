"""fastcifar completion: a script that completes commands, options, settings, presets and paths in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from fastcifar.cli.arguments import Command, Parser, one_of, path, preset_name
from fastcifar.errors import UsageError

SUMMARY = "print the script with which a shell completes fastcifar's commands"

_TAKE_SETTINGS = {"train": "?", "study": "*", "profile": "?", "ablate": ""}
"""The commands that take `--KEY VALUE` for settings, and how many names of presets (`nargs`) may stand alone."""


def run(parser: Parser, argv: list[str], commands: Mapping[str, Command]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = """\
bash:
  fastcifar completion bash \\
    > ~/.local/share/bash-completion/completions/fastcifar
zsh, with one of the folders in $fpath for DIR:
  fastcifar completion zsh > DIR/_fastcifar"""
    parser.add_argument("shell", type=one_of("bash", "zsh", "tcsh"), metavar="bash|zsh|tcsh", help="the shell")
    args = parser.parse(argv)
    try:
        import shtab
    except ImportError as error:
        raise UsageError(
            f"completion needs a package that is not installed, shtab: pip install 'fastcifar[completion]' ({error})"
        ) from error
    print(shtab.complete(_whole(commands, shtab.FILE), shell=args.shell))
    return 0


class _AskedError(Exception):
    """A command has said all of its arguments."""


class _Asking(Parser):
    """A parser that is told a command's arguments, and then ends the command before it does anything."""

    def __init__(self, prog: str, description: str, **others: Any) -> None:
        super().__init__(prog.rpartition(" ")[2], description)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        raise _AskedError


def _whole(commands: Mapping[str, Command], file: Mapping[str, Any]) -> argparse.ArgumentParser:
    """A parser of the whole command line. No command obeys it: it is only looked at.

    Args:
        commands: by name.
        file: what shtab wants of an argument that is a path.
    """
    from fastcifar.layers import preset_names

    whole = argparse.ArgumentParser("fastcifar")
    whole.add_argument("--version", action="store_true", help="print the version")
    inner = whole.add_subparsers(parser_class=_Asking)
    for name, command in commands.items():
        parser = inner.add_parser(name, description=command.summary, help=command.summary)
        try:
            command.run(parser, [])
        except _AskedError:
            pass
        for action in parser._actions:
            if action.type is path:
                action.complete = file  # type: ignore[attr-defined]
            elif isinstance(action.type, one_of):
                action.choices = action.type.choices
            elif action.type is preset_name:
                action.choices = preset_names()
        if name in _TAKE_SETTINGS:
            _add_settings(parser, _TAKE_SETTINGS[name], file)
    return whole


def _add_settings(parser: Parser, presets: str, file: Mapping[str, Any]) -> None:
    """Gives a parser an option for each setting, and the names of the presets."""
    from fastcifar.config import Config
    from fastcifar.layers import preset_names
    from fastcifar.spelling import choices

    have = set(parser.options())
    for name, field in Config.model_fields.items():
        option = name.replace("_", "-")
        if option in have:
            continue
        words: Sequence[str] = ("true", "false") if field.annotation is bool else choices(name)
        added = parser.add_argument(f"--{option}", choices=words or None, help=(field.description or "").split(";")[0])
        if name in ("data", "init_from"):
            added.complete = file  # type: ignore[attr-defined]
    if presets:
        parser.add_argument("start", nargs=presets, choices=preset_names())

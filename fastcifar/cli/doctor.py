"""fastcifar doctor: the findings about this machine, in words."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from fastcifar.cli.arguments import Parser

if TYPE_CHECKING:
    from fastcifar.cli.probes import Finding

SUMMARY = "say what this machine has, what is missing and what to do about it"

_COLOURS = {"ok": "32", "note": "33", "problem": "31"}


def run(parser: Parser, argv: list[str]) -> int:
    """Reads the arguments of the command and obeys them; returns the exit code."""
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")
    if parser.parse(argv).json:
        return _print_json()
    return report()


def _print_json() -> int:
    import dataclasses
    import json

    from fastcifar.cli.probes import examine

    findings = list(examine())
    print(json.dumps([{**dataclasses.asdict(finding), "fatal": finding.fatal} for finding in findings]))
    return 1 if any(finding.fatal for finding in findings) else 0


def report(file: TextIO | None = None) -> int:
    """Prints the findings to `file` (stdout if not given); returns 0 if a run can be trained here, else 1."""
    from fastcifar.cli.probes import examine

    file = file or sys.stdout
    fatal: list[str] = []
    devices: list[str] = []
    for finding in examine():
        print(_shown(finding, file), file=file, flush=True)  # at once: importing torch takes seconds
        if finding.fatal:
            fatal.append(finding.name)
        if finding.device:
            devices.append(finding.device)
    print(file=file)
    if fatal:
        print(f"Training is not possible yet: see {', '.join(fatal)} above.", file=file)
        return 1
    print(f"Training is possible, on {_where(devices)}.", file=file)
    return 0


def _where(gpus: Sequence[str]) -> str:
    """Where a run trains, with the option that it needs where `device = auto` would take a GPU that cannot train.

    Args:
        gpus: those that can.
    """
    import torch

    device = gpus[0] if gpus else "cpu"
    auto = "cuda:0" if torch.cuda.is_available() else "cpu"
    return ("the CPU" if device == "cpu" else device) + f", with --device {device}" * (device != auto)


def _shown(finding: Finding, file: TextIO) -> str:
    """Status, name and text in columns; wrapped and coloured on a terminal only, so that a pipe gets whole lines."""
    head, indent = f"{finding.status:<8} {finding.name:<12} ", " " * 22
    terminal = file.isatty()
    wrap = textwrap.TextWrapper(
        max(shutil.get_terminal_size().columns, 50) if terminal else 10_000,
        initial_indent=head,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    lines = wrap.wrap(finding.text)
    if finding.advice:
        wrap.initial_indent, wrap.subsequent_indent = f"{indent}-> ", f"{indent}   "
        lines += wrap.wrap(finding.advice)
    text = "\n".join(lines)
    if terminal and not os.environ.get("NO_COLOR"):
        text = f"\033[{_COLOURS[finding.status]}m{finding.status:<8}\033[0m{text[8:]}"
    return text

"""Tables for the terminal and for files."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence

_BETWEEN = 2  # columns between two cells
_LEAST = 12  # columns in which a cell whose words are broken can still be read


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], wrapped: str = "settings", *, inside_words: bool = False
) -> None:
    """Prints a table: fitted to a terminal; elsewhere in aligned columns that are never cut or wrapped.

    On a terminal that is too narrow for the columns, each row is printed as a block with a line for each cell.

    Args:
        header: the title of each column.
        rows: the cells of each row, one for each title.
        wrapped: the title of the column whose cells may be wrapped on a terminal.
        inside_words: whether they may be broken inside words too, as paths must be.
    """
    if not sys.stdout.isatty():
        for line in aligned(header, rows):
            print(line)
        return
    columns = shutil.get_terminal_size().columns
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    least = list(widths)
    if wrapped in header:
        place = header.index(wrapped)
        words = [word for row in (header, *rows) for word in row[place].split()]
        least[place] = min(widths[place], _LEAST) if inside_words else max(map(len, words))
    if sum(least) + _BETWEEN * (len(least) - 1) > columns:
        for line in _blocks(header, rows, columns):
            print(line)
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Between two columns: the padding, and a space of the box.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _BETWEEN - 1, 0, 0))
    for title in header:
        table.add_column(title, no_wrap=title != wrapped, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """The lines of a table in columns as wide as their widest cells; those numbered in `right` end together."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    title, lines = justified(header, rows, right)
    return [
        (" " * _BETWEEN).join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (title, *lines)
    ]


def justified(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int]
) -> tuple[list[str], list[list[str]]]:
    """A table whose cells in the columns numbered in `right` have spaces before them, so that numbers end together."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        [cell.rjust(width) if i in right else cell for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in (header, *rows)
    ]
    return lines[0], lines[1:]


def _blocks(header: Sequence[str], rows: Sequence[Sequence[str]], columns: int) -> list[str]:
    """The lines of a table with a block for each row: its first cell, then the title and text of each other cell."""
    indent = _BETWEEN + max(map(len, header[1:]), default=0) + _BETWEEN
    lines: list[str] = []
    for row in rows:
        lines += ["", *textwrap.wrap(row[0], columns, break_on_hyphens=False)]
        for title, cell in zip(header[1:], row[1:], strict=True):
            begin = f"{'':{_BETWEEN}}{title}".ljust(indent)
            if columns - indent < len(title):  # hardly any room beside the titles: the text goes below
                lines.append(begin.rstrip())
                begin = " " * 2 * _BETWEEN
            after = " " * len(begin)
            lines += textwrap.wrap(
                cell, columns, initial_indent=begin, subsequent_indent=after, break_on_hyphens=False
            ) or [begin.rstrip()]
    return lines[1:]

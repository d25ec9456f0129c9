"""A table of the document as CSV."""

from __future__ import annotations

import csv
import io

from fastcifar.report.document import Table
from fastcifar.report.markup import without_marks

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula, and computes."""


def to_csv(table: Table) -> str:
    """The table as CSV (RFC 4180, line feeds), in full precision where the table has its numbers, else as printed.

    A value that is missing is an empty cell. A text that a spreadsheet would compute, such as a class that is named
    `=1+1`, gets an apostrophe in front, as OWASP advises. Numbers, lists of numbers and all other texts stand as they
    are.

    Args:
        table: a table of the document.

    Returns:
        The text of the file.
    """
    text = io.StringIO()
    if table.data is None:
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(table.columns)
        rows.writerows([_cell(without_marks(cell)) for cell in row] for row in table.rows)
    else:
        columns = list(dict.fromkeys(key for row in table.data for key in row))
        records = csv.DictWriter(text, columns, lineterminator="\n")
        records.writeheader()
        records.writerows({key: _cell(value) for key, value in row.items()} for row in table.data)
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    encodable = value.encode("utf-8", "backslashreplace").decode()  # halves of characters, of names that are not UTF-8
    return f"'{encodable}" if encodable.startswith(_FORMULA) and not _is_number(encodable) else encodable


def _is_number(text: str) -> bool:
    """Whether it is a number, or several with spaces between them."""
    try:
        for part in text.split():
            float(part)
    except ValueError:
        return False
    return True

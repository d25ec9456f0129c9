"""A table of the document as CSV."""

from __future__ import annotations

import csv
import io

from fastcifar.report.document import Table


def to_csv(table: Table) -> str:
    """In full precision where the table has its numbers, else as printed, without marks."""
    text = io.StringIO()
    if table.data is None:
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(table.columns)
        rows.writerows([cell.replace("**", "").replace("`", "") for cell in row] for row in table.rows)
    else:
        columns = list(dict.fromkeys(key for row in table.data for key in row))
        records = csv.DictWriter(text, columns, lineterminator="\n")
        records.writeheader()
        records.writerows(table.data)
    return text.getvalue()

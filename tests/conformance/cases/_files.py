"""Rows as the text of a CSV file, for the cases of places that hold files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from tests.conformance.case import Row

#: What a file without rows has in its header.
HEADER = ("id", "name", "amount", "at", "flag", "nothing")
TYPES = {
    "id": "bigint",
    "name": "text",
    "amount": "numeric",
    "at": "timestamp with time zone",
    "flag": "boolean",
    "nothing": "text",
}


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV: texts in quotes, NULL as nothing between two delimiters."""

    def cell(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        return '"' + value.replace('"', '""') + '"' if isinstance(value, str) else str(value)

    head = list(rows[0] if rows else HEADER)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(head)
    out.writelines(",".join(cell(row[name]) for name in head) + "\n" for row in rows)
    return out.getvalue()


def writer(write: Callable[[str, bytes], Any]) -> Callable[[str, Sequence[Row]], str]:
    """A `put` for a place of files: one more file in a folder of the resource's name."""
    written: dict[str, int] = {}

    def put(name: str, rows: Sequence[Row]) -> str:
        written[name] = written.get(name, 0) + 1
        write(f"{name}/{written[name]:03}.csv", csv_text(rows).encode())
        return f"{name}/*.csv"

    return put

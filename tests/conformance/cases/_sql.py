"""Rows into a table by SQL, for the cases of databases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from tests.conformance.case import Row

#: The columns of a table that is made without rows.
COLUMNS: Row = {
    "id": 1,
    "name": "x",
    "amount": Decimal(1),
    "at": datetime(2024, 1, 1),
    "flag": True,
    "nothing": None,
}
#: What each column holds, whatever its first value is.
KINDS = {"id": int, "amount": Decimal, "at": datetime, "flag": bool}


def writer(
    execute: Callable[[str], Any],
    insert: Callable[[str, Sequence[Sequence[Any]]], Any],
    types: Mapping[type, str],
    quote: str = '"',
    mark: str = "%s",
    suffix: str = "",
) -> Callable[[str, Sequence[Row]], str]:
    """A `put` for a database: CREATE TABLE where it is missing, then INSERT.

    types: the column type for int, str, Decimal, datetime and bool. mark: the place of a parameter.
    suffix: what stands behind the columns of a new table.
    """

    def spelled(name: str) -> str:
        return quote + name.replace(quote, quote * 2) + quote

    made: set[str] = set()

    def put(name: str, rows: Sequence[Row]) -> str:
        columns = list(rows[0] if rows else COLUMNS)
        if name not in made:
            listed = (f"{spelled(column)} {types[KINDS.get(column, str)]}" for column in columns)
            execute(f"CREATE TABLE {spelled(name)} ({', '.join(listed)}){suffix}")
            made.add(name)
        if rows:
            text = f"INSERT INTO {spelled(name)} VALUES ({', '.join([mark] * len(columns))})"
            insert(text, [[row[column] for column in columns] for row in rows])
        return spelled(name)

    return put

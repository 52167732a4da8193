"""SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.conformance.case import Case, Place
from tests.conformance.cases._sql import writer

TYPES = {int: "INTEGER", str: "TEXT", Decimal: "DECIMAL(12,2)", datetime: "DATETIME", bool: "BOOLEAN"}
NO_SERVER = "a file on this machine has no server"


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    path = folder / "case.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as session:

        def insert(text: str, rows: Sequence[Sequence[Any]]) -> None:
            session.execute("BEGIN")
            session.executemany(text, [[plain(value) for value in row] for row in rows])
            session.execute("COMMIT")

        yield Place({"database_path": str(path)}, writer(session.execute, insert, TYPES, mark="?"))


def plain(value: Any) -> Any:
    """What the module has no adapter for, as SQLite's own functions write it."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return value


CASE = Case(
    place,
    types={
        "id": "bigint",
        "name": "text",
        "amount": "numeric",
        "at": "timestamp with time zone",
        "flag": "boolean",
        "nothing": "text",
    },
    absent={
        "resume_after_a_cut_connection": NO_SERVER,
        "wrong_password": NO_SERVER,
        "unreachable_host": NO_SERVER,
    },
)

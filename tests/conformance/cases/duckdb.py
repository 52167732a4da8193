"""DuckDB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from tests.conformance.case import Case, Place
from tests.conformance.cases._sql import writer

TYPES = {int: "BIGINT", str: "VARCHAR", Decimal: "DECIMAL(12,2)", datetime: "TIMESTAMPTZ", bool: "BOOLEAN"}
NO_SERVER = "a file on this machine has no server"


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    path = folder / "case.duckdb"

    # DuckDB lets in one writer alone, so the file is closed after each statement
    def execute(text: str) -> None:
        with duckdb.connect(str(path)) as session:
            session.execute(text)

    def insert(text: str, rows: Sequence[Sequence[Any]]) -> None:
        table = text.partition(" VALUES ")[0]
        listed = [
            [str(row[i]) if isinstance(row[i], Decimal) else row[i] for row in rows]
            for i in range(len(rows[0]))
        ]
        frame = pl.DataFrame({str(i): values for i, values in enumerate(listed)})
        with duckdb.connect(str(path)) as session:
            session.register("given", frame.to_arrow())
            session.execute(f"{table} SELECT * FROM given")

    yield Place({"database_path": str(path)}, writer(execute, insert, TYPES))


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

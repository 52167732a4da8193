"""ClickHouse, on its own engine behind HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.conformance.case import SERVERS, Case, Place
from tests.conformance.cases._sql import writer
from tests.connectors.chdb_server import Server, serve
from tests.connectors.servers_documents import needed

TYPES = {
    int: "Int64",
    str: "Nullable(String)",
    Decimal: "Nullable(Decimal(12, 2))",
    datetime: "DateTime64(6, 'UTC')",
    bool: "Nullable(Bool)",
}


@cache
def server() -> Server:
    needed(pytest.importorskip("chdb", exc_type=ImportError), "chdb")
    SERVERS.callback(server.cache_clear)
    return SERVERS.enter_context(serve(Path(SERVERS.enter_context(TemporaryDirectory()))))


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    engine, name = server(), f"dw_case_{secrets.token_hex(4)}"
    engine.run(f"CREATE DATABASE {name}")

    def execute(text: str) -> None:
        engine.run(text.replace("CREATE TABLE ", f"CREATE TABLE {name}."))

    def insert(text: str, rows: Sequence[Sequence[Any]]) -> None:
        table = text.partition(" VALUES ")[0].removeprefix("INSERT INTO ")
        values = ", ".join(f"({', '.join(map(literal, row))})" for row in rows)
        engine.run(f"INSERT INTO {name}.{table} VALUES {values}")

    host, port = engine.server_address
    config = {"host": host, "port": port, "database": name, "username": "reader", "password": "right"}
    try:
        yield Place(
            config, writer(execute, insert, TYPES, "`", suffix=" ENGINE = MergeTree ORDER BY tuple()")
        )
    finally:
        engine.run(f"DROP DATABASE {name}")


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, datetime):
        return f"'{value:%Y-%m-%d %H:%M:%S.%f}'"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)


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
    wrong_password={"password": "secret-word"},
)

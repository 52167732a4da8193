"""Oracle, at the border of its driver: there is no server, so what only one can do is absent."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import oracledb

from tests.conformance.case import Case, Place, Row
from tests.conformance.cases._sql import COLUMNS, KINDS
from tests.connectors.oracle_driver import Database, column

NUMBER, TEXT, TIME = oracledb.DB_TYPE_NUMBER, oracledb.DB_TYPE_VARCHAR, oracledb.DB_TYPE_DATE
#: Python type → the driver's type, precision, scale; and the same as ALL_TAB_COLUMNS has it
TYPES: dict[type, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    int: ((NUMBER, 18, 0), ("NUMBER", 22, 18, 0, "Y")),
    Decimal: ((NUMBER, 12, 2), ("NUMBER", 22, 12, 2, "Y")),
    str: ((TEXT, None, None), ("VARCHAR2", 4000, None, None, "Y")),
    datetime: ((TIME, None, None), ("DATE", 7, None, None, "Y")),
    bool: ((NUMBER, 1, 0), ("NUMBER", 22, 1, 0, "Y")),
}


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    database = Database()

    def put(name: str, rows: Sequence[Row]) -> str:
        names = list(rows[0] if rows else COLUMNS)
        kinds = [TYPES[KINDS.get(one, str)] for one in names]
        held = [tuple(stored(row[one]) for one in names) for row in rows]
        heads = [column(one, *driver) for one, (driver, _) in zip(names, kinds, strict=True)]
        listed = [(one, *facts) for one, (_, facts) in zip(names, kinds, strict=True)]
        database.add(name, heads, held, listed)
        return f'"{name}"'

    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        patch("oracledb.connect", database.connect),
    ):
        config = {"host": "127.0.0.1", "port": listening.getsockname()[1], "service_name": "S"}
        yield Place({**config, "username": "shop", "password": "secret-word"}, put)


def stored(value: Any) -> Any:
    """A value as the server holds it."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    return str(value) if isinstance(value, Decimal) else value


NO_SERVER = "there is no server to try it on"

CASE = Case(
    place,
    types={"id": "bigint", "name": "text", "amount": "numeric", "at": "timestamp with time zone"},
    strange_name="größe 日本",
    strange_column="naïve ☃",
    columns={"flag": "(flag::int)::boolean"},
    inside=True,
    absent={
        "incremental_with_ties": NO_SERVER,
        "resume_after_a_cut_connection": NO_SERVER,
        "wrong_password": NO_SERVER,
        "unreachable_host": NO_SERVER,
    },
)

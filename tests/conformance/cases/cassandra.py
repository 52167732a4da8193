"""Cassandra, on a server of the tests that speaks CQL's binary protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.conformance.case import Case, Place, Row
from tests.conformance.cases._sql import COLUMNS, KINDS
from tests.connectors.cassandra_server import Server, Table

TYPES = {int: "bigint", str: "text", Decimal: "decimal", datetime: "timestamp", bool: "boolean"}


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    tables: dict[str, Table] = {}
    with Server({"ks": tables}, {}, password="s3cret") as server:

        def put(name: str, rows: Sequence[Row]) -> str:
            names = list(rows[0] if rows else COLUMNS)
            if name not in tables:
                kinds = {column: TYPES[KINDS.get(column, str)] for column in names}
                tables[name] = Table(kinds, [], ("id",))
            tables[name].rows.extend([stored(row[column]) for column in names] for row in rows)
            quoted = name.replace('"', '""')
            return f'"{quoted}"'

        config = {"hosts": ["127.0.0.1"], "port": server.port, "keyspace": "ks"}
        yield Place({**config, "username": "reader", "password": "s3cret"}, put)


def stored(value: Any) -> Any:
    """A value as the driver writes it: times without a zone are UTC."""
    return value.replace(tzinfo=None) if isinstance(value, datetime) else value


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
    strange_name="größe 日本",
    address=lambda config: ("127.0.0.1", config["port"]),
    through=lambda config, port: {**config, "port": port},
    wrong_password={"password": "secret-word"},
)

"""Neo4j, on a server that speaks Bolt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import neo4j

from tests.conformance.case import Case, Place, Row
from tests.connectors.servers_documents import bolt_server


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    with (
        bolt_server(folder) as port,
        neo4j.GraphDatabase.driver(f"bolt://127.0.0.1:{port}") as driver,
        # the server takes a session's access mode for the name of a graph
        driver.session(default_access_mode="READ") as session,
    ):

        def put(label: str, rows: Sequence[Row]) -> str:
            spelled = f"`{label}`"
            if not rows:  # a label is there once a node has had it
                session.run(f"CREATE (n:{spelled}) DELETE n").consume()
            for row in rows:
                pairs = ", ".join(f"`{name}`: {literal(value)}" for name, value in row.items())
                session.run(f"CREATE (:{spelled} {{{pairs}}})").consume()
            return label

        yield Place({"uri": f"bolt://127.0.0.1:{port}", "username": ""}, put)


def literal(value: Any) -> str:
    """A value in Cypher: the server has no decimals and no date-times, and breaks at quotes in parameters."""
    if isinstance(value, Decimal):
        return str(float(value))
    if isinstance(value, datetime):
        value = value.isoformat()
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    return "null" if value is None else str(value).lower()


CASE = Case(
    place,
    types={"id": "bigint", "name": "text", "amount": "double precision", "at": "text", "flag": "boolean"},
    strange_name="größe 日本",
    strange_column="naïve ☃",
    address=lambda config: ("127.0.0.1", int(config["uri"].rpartition(":")[2])),
    through=lambda config, port: {**config, "uri": f"bolt://127.0.0.1:{port}"},
    absent={"wrong_password": "the server asks for no login"},
)

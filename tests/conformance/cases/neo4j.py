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
                names = list(row)
                given = {f"p{number}": stored(row[name]) for number, name in enumerate(names)}
                pairs = ", ".join(f"`{name}`: $p{number}" for number, name in enumerate(names))
                session.run(f"CREATE (:{spelled} {{{pairs}}})", given).consume()
            return label

        yield Place({"uri": f"bolt://127.0.0.1:{port}", "username": ""}, put)


def stored(value: Any) -> Any:
    """A value as the server can hold it: it has neither decimals nor date-times."""
    if isinstance(value, Decimal):
        return float(value)
    return value.isoformat() if isinstance(value, datetime) else value


CASE = Case(
    place,
    types={"id": "bigint", "name": "text", "amount": "double precision", "at": "text", "flag": "boolean"},
    strange_name="größe 日本",
    strange_column="naïve ☃",
    address=lambda config: ("127.0.0.1", int(config["uri"].rpartition(":")[2])),
    through=lambda config, port: {**config, "uri": f"bolt://127.0.0.1:{port}"},
    absent={"wrong_password": "the server asks for no login"},
)

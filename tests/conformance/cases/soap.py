"""SOAP: one operation whose answer holds the orders since a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from tests.conformance.case import Case, Place, Row
from tests.connectors._soap_service import ORDER, SCHEMA, serving

KINDS = {"id": "long", "name": "string", "amount": "decimal", "at": "dateTime", "flag": "boolean"}
NAMES = (*KINDS, "nothing", "größe")
FIELDS = "".join(
    f'<xs:element name="{name}" type="xs:{KINDS.get(name, "string")}" minOccurs="0"/>' for name in NAMES
)


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    held: list[Row] = []
    with serving() as service:
        service.schema = SCHEMA.replace(ORDER, FIELDS)
        service.user = ("reader", "s3cret")

        def body() -> Iterator[str]:
            since = re.search(r"since>([^<]+)<", service.asked[-1])
            start = datetime.fromisoformat(since[1]) if since else None
            yield "<GetOrdersResponse><orders>"
            for row in held:
                if start is None or row["at"] >= start:
                    yield "<order>" + "".join(element(n, row[n]) for n in NAMES if row.get(n) is not None)
                    yield "</order>"
            yield "</orders></GetOrdersResponse>"

        service.body = body

        def put(name: str, rows: Sequence[Row]) -> str:
            held.extend(rows)
            return "GetOrders(since={cursor})"

        config = {"wsdl_url": f"{service.url}/shop?wsdl", "username": "reader", "password": "s3cret"}
        yield Place(config, put)


def element(name: str, value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"<{name}>{escape(value.isoformat() if isinstance(value, datetime) else text)}</{name}>"


CASE = Case(
    place,
    types={
        "id": "bigint",
        "name": "text",
        "amount": "numeric",
        "at": "timestamp with time zone",
        "flag": "boolean",
    },
    strange_column="größe",
    missing="NoSuchThing",
    wrong_password={"password": "secret-word"},
    address=lambda config: ("127.0.0.1", urlsplit(config["wsdl_url"]).port or 80),
    through=lambda config, port: {**config, "wsdl_url": f"http://127.0.0.1:{port}/shop?wsdl"},
    absent={
        "resume_after_a_cut_connection": "the WSDL names the service's own address, past any proxy;"
        " tests/connectors/test_soap.py cuts the answer"
    },
)

"""PostgreSQL."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from tests.conformance.case import Case, Place
from tests.conformance.cases._sql import writer
from tests.services import POSTGRES_URL, required

TYPES = {int: "bigint", str: "text", Decimal: "numeric(12,2)", datetime: "timestamptz", bool: "boolean"}
URL = urlsplit(POSTGRES_URL)


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    name = f"dw_case_{secrets.token_hex(4)}"
    with psycopg.connect(required("PostgreSQL", POSTGRES_URL), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        try:
            with psycopg.connect(URL._replace(path=f"/{name}").geturl(), autocommit=True) as session:
                yield Place(
                    {
                        "host": URL.hostname,
                        "port": URL.port or 5432,
                        "database": name,
                        "username": URL.username,
                        "password": URL.password,
                    },
                    writer(
                        lambda text: session.execute(text.encode()),
                        lambda text, rows: session.cursor().executemany(text.encode(), rows),
                        TYPES,
                    ),
                )
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


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
    # a server that trusts every password refuses a role that it does not have
    wrong_password={"username": "no_such_role", "password": "secret-word"},
)

"""MySQL and MariaDB."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pymysql

from tests.conformance.case import Case, Place
from tests.conformance.cases._sql import writer
from tests.services import MARIADB_URL, required

TYPES = {
    int: "BIGINT",
    str: "TEXT CHARACTER SET utf8mb4",
    Decimal: "DECIMAL(12,2)",
    datetime: "DATETIME(6)",
    bool: "BOOLEAN",
}
URL = urlsplit(MARIADB_URL)


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    required("MariaDB", MARIADB_URL)
    login = {"host": URL.hostname, "port": URL.port or 3306, "password": unquote(URL.password or "")}
    name = f"dw_case_{secrets.token_hex(4)}"
    session = pymysql.connect(**login, user=URL.username, charset="utf8mb4", autocommit=True)
    with session, session.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        cursor.execute(f"USE {name}")
        try:
            config = {**login, "username": URL.username, "database": name, "tinyint1_is_bool": True}
            yield Place(config, writer(cursor.execute, cursor.executemany, TYPES, quote="`"))
        finally:
            cursor.execute(f"DROP DATABASE {name}")


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

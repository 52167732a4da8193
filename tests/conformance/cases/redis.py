"""Redis streams."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import redis

from tests.conformance.case import Case, Place, Row
from tests.services import required

URL = urlsplit(os.environ.get("DW_TEST_REDIS", "redis://127.0.0.1:6379"))


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    required("Redis", URL.geturl())
    login = {"host": URL.hostname, "port": URL.port or 6379, "password": unquote(URL.password or "")}
    prefix, made = f"dw_case_{secrets.token_hex(4)}", set()
    with redis.Redis(**login, protocol=2) as client:

        def put(name: str, rows: Sequence[Row]) -> str:
            key = f"{prefix}:{name}"
            made.add(key)
            if not rows:
                client.xgroup_create(key, "none", mkstream=True)
            pipe = client.pipeline(transaction=False)
            for row in rows:
                pipe.xadd(key, {field: said(value) for field, value in row.items() if value is not None})
            pipe.execute()
            return key

        try:
            yield Place(login, put)
        finally:
            if made:
                client.delete(*made)


def said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


CASE = Case(
    place,
    # Redis keeps texts; `columns:` makes other types of them
    types={"entry_id": "text", "event_time": "timestamp with time zone", "payload": "jsonb", "id": "text"},
    cursor=None,
    wrong_password={"username": "no_such_user", "password": "secret-word"},
)

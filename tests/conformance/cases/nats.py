"""NATS JetStream."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats

from tests.conformance.case import Case, Place, Row
from tests.conformance.cases._json import TYPES, json_text
from tests.services import required

URL = os.environ.get("DW_TEST_NATS", "nats://127.0.0.1:4222")


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    loop = asyncio.new_event_loop()
    do = loop.run_until_complete
    client = do(nats.connect(required("NATS", URL)))
    stream, made = client.jetstream(), []

    def put(name: str, rows: Sequence[Row]) -> str:
        if name not in made:
            do(stream.add_stream(name=name, subjects=[f"{name}.>"], storage="memory"))
            made.append(name)

        async def publish() -> None:
            for row in rows:
                await stream.publish(f"{name}.new", json_text(row))

        do(publish())
        return name

    prefix = f"dw_case_{secrets.token_hex(4)}_"
    try:
        yield Place({"servers": URL}, lambda name, rows: put(prefix + name, rows))
    finally:
        for name in made:
            do(stream.delete_stream(name))
        do(client.close())
        loop.close()


def address(config: Any) -> tuple[str, int]:
    parts = urlsplit(URL)
    return parts.hostname or "127.0.0.1", parts.port or 4222


CASE = Case(
    place,
    types={
        **TYPES,
        "stream_sequence": "bigint",
        "payload": "jsonb",
        "event_time": "timestamp with time zone",
    },
    cursor=None,
    strange_name="größe_日本",
    address=address,
    through=lambda config, port: {**config, "servers": f"nats://127.0.0.1:{port}"},
    absent={
        "wrong_password": "the server asks for no login; tests/connectors/test_nats.py has one that does"
    },
)

"""RabbitMQ."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pika

from tests.conformance.case import Case, Place, Row
from tests.conformance.cases._json import TYPES, json_text
from tests.services import required

URL = urlsplit(os.environ.get("DW_TEST_AMQP", "amqp://guest:guest@127.0.0.1:5672"))


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    required("RabbitMQ", URL.geturl())
    prefix, made = f"dw_case_{secrets.token_hex(4)}", set()
    with pika.BlockingConnection(pika.URLParameters(URL._replace(path="/%2F").geturl())) as connection:
        channel = connection.channel()

        def put(name: str, rows: Sequence[Row]) -> str:
            queue = f"{prefix}.{name}"
            if queue not in made:
                channel.queue_declare(queue)
                made.add(queue)
            for row in rows:
                channel.basic_publish("", queue, json_text(row))
            channel.queue_declare(queue, passive=True)  # the broker has all of them when it answers
            return queue

        config = {
            "host": URL.hostname,
            "port": URL.port or 5672,
            "username": unquote(URL.username or "guest"),
            "password": unquote(URL.password or "guest"),
            "queue": "unused",
        }
        try:
            yield Place(config, put)
        finally:
            for queue in made:
                channel.queue_delete(queue)


CASE = Case(
    place,
    types={**TYPES, "payload": "jsonb", "message_key": "text"},
    cursor=None,
    wrong_password={"password": "secret-word"},
)

# pika, consume
from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pika
from _copy import load


def rows(channel: Any, left: int) -> Iterator[tuple[object, ...]]:
    for _, _, body in channel.consume(os.environ["AMQP_QUEUE"]):
        row = json.loads(body)
        yield tuple(row[name] for name in ("id", "name", "total", "at", "note"))
        left -= 1
        if not left:
            return


with pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])) as connection:
    channel = connection.channel()
    waiting = channel.queue_declare(os.environ["AMQP_QUEUE"], passive=True).method.message_count
    load(rows(channel, waiting))
    channel.basic_ack(0, multiple=True)

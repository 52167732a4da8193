"""Kafka, on the mock cluster that comes with librdkafka."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from confluent_kafka import Producer

from tests.conformance.case import SERVERS, Case, Place, Row
from tests.conformance.cases._json import TYPES, json_text


@cache
def cluster() -> tuple[Producer, str]:
    """A cluster that lives as long as its producer, and its address."""
    producer = Producer({"test.mock.num.brokers": 1, "linger.ms": 0, "log_level": 0})
    brokers = producer.list_topics(timeout=10).brokers.values()
    SERVERS.callback(cluster.cache_clear)
    return producer, ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    producer, address = cluster()
    prefix = f"dw_case_{secrets.token_hex(4)}"

    def put(name: str, rows: Sequence[Row]) -> str:
        topic = f"{prefix}.{name}"
        producer.list_topics(topic, timeout=10)  # makes it
        for row in rows:
            producer.produce(topic, json_text(row), key=str(row["id"]))
        assert producer.flush(30) == 0
        return topic

    yield Place({"bootstrap_servers": address, "topic": "unused"}, put)


CASE = Case(
    place,
    types={**TYPES, "offset": "bigint", "payload": "jsonb", "event_time": "timestamp with time zone"},
    cursor=None,
    strange_name="All.the-letters_a_topic.may-have",
    through=lambda config, port: {**config, "bootstrap_servers": f"127.0.0.1:{port}"},
    absent={
        "wrong_password": "the mock cluster asks for no login",
        "resume_after_a_cut_connection": "the mock brokers tell their own addresses, past any proxy",
    },
)

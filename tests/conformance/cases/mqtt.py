"""MQTT, on Mosquitto."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from dwcli.connectors import create_connector
from dwcli.connectors.mqtt import Config, session_name
from tests.conformance.case import Case, Place, Row
from tests.conformance.cases._json import TYPES, json_text
from tests.connectors.test_mqtt import Publisher, forget
from tests.services import required

URL = urlsplit(os.environ.get("DW_TEST_MQTT", "mqtt://127.0.0.1:1883"))


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    required("Mosquitto", URL.geturl())
    own = secrets.token_hex(4)
    config = {
        "host": URL.hostname,
        "port": URL.port or 1883,
        "topic": f"dw_case/{own}/#",
        "client_id": f"dw-case-{own}",
        "poll_timeout_seconds": 0.5,
    }
    broker, made = Publisher(config["host"], config["port"]), set()

    def put(name: str, rows: Sequence[Row]) -> str:
        topic = f"dw_case/{own}/{name}"
        if topic not in made:  # messages are kept from the first run on
            made.add(topic)
            connector = create_connector({"protocol": "mqtt", **config})
            connector.connect()
            list(connector.fetch_data(topic).items)
            connector.close()
        sent = [broker.client.publish(topic, json_text(row), qos=1) for row in rows]
        for message in sent:
            message.wait_for_publish(20)
        return topic

    try:
        yield Place(config, put)
    finally:
        broker.close()
        for topic in made:
            forget(config["host"], config["port"], session_name(Config(**config), topic))


FEW = (
    "Mosquitto keeps 1,000 messages for a session, as it is set up; tests/connectors/test_mqtt.py has its own"
)

CASE = Case(
    place,
    types={**TYPES, "message_key": "text", "payload": "jsonb"},
    cursor=None,
    absent={
        "wrong_password": "the broker asks for no login; tests/connectors/test_mqtt.py has one that does",
        "missing_resource": "a topic is there as soon as somebody listens",
        "resume_after_a_cut_connection": FEW,
        "memory_bound": FEW,
    },
)

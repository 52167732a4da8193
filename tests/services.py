"""The servers that tests talk to: where they are, and what happens when one is not there."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

import pytest

POSTGRES_URL = os.environ.get("DW_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
MARIADB_URL = os.environ.get("DW_TEST_MARIADB", "mysql://root@127.0.0.1:3306/test")
DEFAULT_PORTS = {
    "postgresql": 5432,
    "mysql": 3306,
    "redis": 6379,
    "nats": 4222,
    "amqp": 5672,
    "mqtt": 1883,
}


def required(name: str, url: str) -> str:
    """The URL, if something answers there. Else the test is skipped, or fails where CI is set."""
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORTS.get(parts.scheme, 0))
    try:
        with socket.create_connection(address, timeout=5):
            return url
    except OSError as error:
        reason = f"{name} does not answer at {address[0]}:{address[1]} ({error.strerror or error})"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)

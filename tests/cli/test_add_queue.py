"""dw add-source of a queue by flags: its key is what senders give, or do not."""

from __future__ import annotations

import os
import secrets
import subprocess
from urllib.parse import urlsplit

import pika
import pytest

from dwcli.documents import read_document
from tests.cli.conftest import DW
from tests.services import required

URL = urlsplit(os.environ.get("DW_TEST_AMQP", "amqp://guest:guest@127.0.0.1:5672"))


@pytest.fixture
def queue():
    """(name, what publishes a body to it)."""
    required("RabbitMQ", URL.geturl())
    name = f"dw_add_{secrets.token_hex(4)}"
    with pika.BlockingConnection(pika.URLParameters(URL._replace(path="/%2F").geturl())) as connection:
        channel = connection.channel()
        channel.queue_declare(name)

        def put(body, **properties):
            channel.basic_publish("", name, body, pika.BasicProperties(**properties))
            channel.queue_declare(name, passive=True)

        yield name, put
        channel.queue_delete(name)


def add(project, name, *more):
    done = subprocess.run(
        [
            *(*DW, "-C", project, "add-source", "amqp", "shop", "--no-input"),
            *("--host", URL.hostname, "--port", str(URL.port or 5672), "--queue", name),
            *("--pipeline", name, *more),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (entry,) = read_document(project / "sources" / "shop.yaml").data["pipelines"].values()
    return entry, " ".join(done.stderr.split())


def test_messages_that_have_ids_are_merged_by_them(project, queue):
    name, put = queue
    put(b'{"a": 1}', message_id="m1")
    entry, _ = add(project, name)
    assert (entry["write"], entry["key"]) == ("merge", ["stream", "message_id"])


def test_messages_without_ids_are_appended_and_it_says_so(project, queue):
    name, put = queue
    put(b'{"a": 1}', message_id="m1")
    put(b'{"a": 2}')
    entry, said = add(project, name)
    assert entry["write"] == "append" and "key" not in entry
    assert "messages have no message_id, so rows are appended, without a key" in said


def test_a_queue_that_is_empty_promises_no_key(project, queue):
    entry, said = add(project, queue[0])
    assert entry["write"] == "append" and "key" not in entry
    assert "no message waits that shows whether message_id is set" in said


def test_a_key_that_is_given_is_taken(project, queue):
    entry, said = add(project, queue[0], "--key", "message_id")
    assert (entry["write"], entry["key"]) == ("merge", ["message_id"])
    assert "appended" not in said

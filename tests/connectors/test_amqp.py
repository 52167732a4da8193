"""The AMQP connector, on a real RabbitMQ."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import unquote, urlsplit

import pika
import psutil
import pyarrow as pa
import pytest

from dwcli.connectors import amqp, create_connector
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, KeyRefused, QueryFailed, ResourceMissing, UsageError
from dwcli.events import ignore
from dwcli.pipeline.record import Job, RunOptions
from dwcli.pipeline.runner import attempt
from dwcli.warehouse.engine import make_engine
from tests.services import required

URL = os.environ.get("DW_TEST_AMQP", "amqp://guest:guest@127.0.0.1:5672")
#: the least that a batch may have
BATCH_BYTES = 64 * 1024


@pytest.fixture
def broker():
    with pika.BlockingConnection(pika.URLParameters(required("RabbitMQ", URL) + "/%2F")) as connection:
        yield connection.channel()


@pytest.fixture
def queue(broker):
    """A queue of the test's own, deleted afterwards."""
    name = f"dw_test_{secrets.token_hex(4)}"
    broker.queue_declare(name)
    yield name
    broker.queue_delete(name)


def config(queue, **more):
    parts = urlsplit(URL)
    return {
        "protocol": "amqp",
        "host": parts.hostname,
        "port": parts.port or 5672,
        "username": unquote(parts.username or "guest"),
        "password": unquote(parts.password or "guest"),
        "queue": queue,
    } | more


@pytest.fixture
def source(queue):
    opened = []

    def connect(**more):
        connector = create_connector(config(queue, **more))
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def send(broker, queue, first, last, pad=0, ids=True):
    """Messages {"n": first} … with ids m1 …; the broker has them all when this returns.

    In a transaction, since a count may overtake messages that are on their way to the queue.
    """
    with broker.connection.channel() as channel:
        channel.tx_select()
        for n in range(first, last + 1):
            body = f'{{"n": {n}, "pad": "{"x" * pad}"}}'
            properties = pika.BasicProperties(message_id=f"m{n}" if ids else None)
            channel.basic_publish("", queue, body.encode(), properties)
        channel.tx_commit()


def waiting(broker, queue):
    return broker.queue_declare(queue, passive=True).method.message_count


def still(broker, queue):
    """How many messages wait once no more are taken."""
    before, now = -1, waiting(broker, queue)
    while before != now:
        time.sleep(0.5)
        before, now = now, waiting(broker, queue)
    return now


def await_messages(broker, queue, number):
    deadline = time.monotonic() + 10
    while (there := waiting(broker, queue)) != number:
        assert time.monotonic() < deadline, there
        time.sleep(0.05)


def read(connector, query="", position=None):
    """The numbers that came, the last position, and the items."""
    items = list(connector.fetch_data(query, Cursor(position=position)).items)
    frames = [item.payload for item in items if item.payload is not None and item.payload.height]
    return [n for frame in frames for n in frame.to_dict().get("n", ())], items[-1].position, items


def count(first, last):
    return list(range(first, last + 1))


def test_messages_become_rows(broker, queue, source):
    body = '{"id": 7, "name": "naïve 🦆", "price": 0.10, "stream": "mine"}'.encode()
    headers = {"a": 1, "b": b"\xff", "c": [True, None], "d": {"e": Decimal("1.5")}, "f": datetime(2024, 1, 2)}
    properties = pika.BasicProperties(
        message_id="m1", timestamp=1700000000, content_type="application/json", headers=headers
    )
    broker.basic_publish("", queue, body, properties)
    broker.basic_publish("", queue, b"not json \xff")
    broker.basic_publish("", queue, b"")
    _, position, (item,) = read(source(), queue)
    first, second, third = item.payload.rows(named=True)
    assert (first["protocol"], first["stream"], first["message_id"]) == ("amqp", queue, "m1")
    assert first["message_key"] == queue and first["name"] == "naïve 🦆" and first["id"] == 7
    assert first["payload"] == body.decode() and first["payload_stream"] == "mine"
    assert first["event_time"] == datetime.fromtimestamp(1700000000, UTC)
    assert first["metadata"] == (
        '{"content_type":"application/json","headers":{"a":1,"b":{"base64":"/w=="},"c":[true,null],'
        '"d":{"e":"1.5"},"f":"2024-01-02T00:00:00+00:00"}}'
    )
    assert second["payload"] is None and second["payload_raw"] == b"not json \xff"
    assert second["message_id"] is second["event_time"] is second["metadata"] is third["payload"] is None
    assert position["tag"] == 3


def test_an_empty_queue_still_tells_its_columns(source):
    _, position, (item,) = read(source())
    assert item.payload.height == 0 and position is None
    assert item.payload.columns[:3] == ["protocol", "stream", "message_id"]


def test_messages_are_gone_once_they_are_acknowledged(broker, queue, source):
    send(broker, queue, 1, 10)
    connector = source(max_messages=4)
    came, position, _ = read(connector)
    assert came == count(1, 4)
    connector.acknowledge(position)
    connector.close()
    assert waiting(broker, queue) == 6
    assert read(source())[0] == count(5, 10)


def test_what_was_not_acknowledged_goes_back_to_the_queue(broker, queue, source):
    send(broker, queue, 1, 10)
    connector = source()
    came, position, _ = read(connector)
    assert came == count(1, 10) and waiting(broker, queue) == 0
    connector.close()
    deadline = time.monotonic() + 10
    while waiting(broker, queue) < 10:
        assert time.monotonic() < deadline
    came, _, items = read(source(), position=position)
    assert came == count(1, 10)
    assert set(items[0].payload["metadata"]) == {'{"redelivered":true}'}


def test_a_position_means_nothing_to_another_connection(broker, queue, source):
    send(broker, queue, 1, 5)
    connector = source()
    _, position, _ = read(connector)
    connector.close()
    other = source()
    read(other)
    other.acknowledge(position)
    other.close()
    deadline = time.monotonic() + 10
    while waiting(broker, queue) < 5:
        assert time.monotonic() < deadline


def test_messages_that_come_while_reading_are_left_to_the_next_run(broker, queue, source):
    send(broker, queue, 1, 300, pad=1000)
    items = source(batch_bytes=64 * 1024).fetch_data(queue).items
    came = list(next(items).payload["n"])
    send(broker, queue, 301, 305)
    came += [n for item in items for n in item.payload["n"]]
    assert came == count(1, 300) and waiting(broker, queue) == 5


def test_a_queue_that_others_empty_is_read_to_its_end(broker, queue, source):
    send(broker, queue, 1, 300, pad=1000)
    items = source(batch_bytes=64 * 1024).fetch_data(queue).items
    came = list(next(items).payload["n"])
    broker.queue_purge(queue)
    came += [n for item in items for n in item.payload["n"]]
    assert came == count(1, len(came)) and len(came) < 300


def test_messages_are_fetched_ahead_and_a_position_is_that_of_what_was_given(broker, queue, source):
    """What nobody was given goes back in its order, and is read by the next run."""
    send(broker, queue, 1, 3000)
    connector = source(batch_bytes=BATCH_BYTES)
    items = connector.fetch_data(queue).items
    item = next(items)
    given = item.payload.height
    held = 3000 - still(broker, queue)
    window = BATCH_BYTES // 3 // amqp.MESSAGE_BYTES
    assert given < held <= given + 2 * window
    assert item.position["tag"] == given and list(item.payload["n"]) == count(1, given)
    connector.acknowledge(item.position)
    connector.close()
    await_messages(broker, queue, 3000 - given)
    came, position, _ = read(source(batch_bytes=BATCH_BYTES))
    assert came == count(given + 1, 3000) and position["tag"] == 3000 - given


def test_a_limit_takes_no_message_out_of_the_queue_that_it_leaves_there(broker, queue, source):
    send(broker, queue, 1, 3000)
    connector = source(max_messages=700)
    assert read(connector)[0] == count(1, 700)
    assert still(broker, queue) == 2300
    connector.close()
    await_messages(broker, queue, 3000)
    came, _, items = read(source())
    again = [told is not None for item in items for told in item.payload["metadata"]]
    assert came == count(1, 3000) and again == [True] * 700 + [False] * 2300


def test_a_read_that_was_given_up_is_sent_no_more_by_its_acknowledgement(broker, queue, source):
    """Its window stays open, because the messages in it are wider than those before them."""
    send(broker, queue, 1, 200)
    send(broker, queue, 201, 500, pad=20_000)
    connector = source(batch_bytes=BATCH_BYTES)
    items = connector.fetch_data(queue).items
    last = 0
    while last <= 200:
        item = next(items)
        last = item.payload["n"][-1]
    client = connector.client
    assert amqp._ask(client, lambda: client.channel.consumer_tags)
    items.close()
    assert amqp._ask(client, lambda: client.channel.consumer_tags) == []
    connector.acknowledge(item.position)
    connector.close()
    await_messages(broker, queue, 500 - last)
    assert read(source())[0] == count(last + 1, 500)


def test_messages_that_turn_out_wide_wait_with_the_broker(broker, queue, source):
    """A window of 1,000 is open when they come. The connection lives on, though nothing is taken."""
    send(broker, queue, 1, 1)
    connector = source(batch_bytes=1_000_000, heartbeat_seconds=1)
    connector.acknowledge(read(connector)[1])  # what is loaded with the first batch is no message
    send(broker, queue, 1, 1100)
    send(broker, queue, 1101, 1600, pad=100_000)
    items = connector.fetch_data(queue).items
    came = []
    pa.array([1])  # at its first value pyarrow imports pandas, where a test server has brought it
    tracemalloc.start()
    try:
        while not came or came[-1] < 1016:
            came += list(next(items).payload["n"])
        time.sleep(4)
        came += [n for item in items for n in item.payload["n"]]
        assert came == count(1, 1600) and tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_read_that_is_kept_waiting_ends_when_the_connector_is_closed(broker, source):
    """Another consumer has the queue to itself, so that nothing comes though messages wait."""
    name = f"dw_test_{secrets.token_hex(4)}"
    broker.queue_declare(name, arguments={"x-single-active-consumer": True})
    try:
        broker.basic_qos(prefetch_count=1)
        broker.basic_consume(name, lambda *told: None)
        send(broker, name, 1, 10)
        connector, caught = source(), []

        def go_on():
            try:
                read(connector, name)
            except ConnectionFailed as error:
                caught.append(error)

        reader = threading.Thread(target=go_on)
        reader.start()
        time.sleep(1.0)
        assert reader.is_alive()
        began = time.monotonic()
        connector.module.close(connector.client)
        reader.join(10)
        assert time.monotonic() - began < 3 and [error.layer for error in caught] == ["lost"]
    finally:
        broker.queue_delete(name)


def test_a_channel_that_the_broker_closes_is_an_error_with_its_words(broker, queue, source):
    send(broker, queue, 1, 3000, pad=1000)
    connector = source(batch_bytes=BATCH_BYTES)
    items = connector.fetch_data(queue).items
    next(items)
    client = connector.client
    amqp._ask(client, lambda: client.channel.basic_ack(1_000_000))
    with pytest.raises(QueryFailed) as caught:
        list(items)
    assert "unknown delivery tag" in caught.value.why


def test_heartbeats_are_answered_while_a_load_takes_long(broker, queue, source):
    send(broker, queue, 1, 10)
    connector = source(heartbeat_seconds=1)
    _, position, _ = read(connector)
    time.sleep(4)  # the broker hangs up after two heartbeats without an answer
    connector.acknowledge(position)
    connector.close()
    assert waiting(broker, queue) == 0


def test_an_acknowledgement_that_fails_is_no_error(broker, queue, source, caplog):
    send(broker, queue, 1, 10)
    connector = source()
    _, position, _ = read(connector)
    cut(connector)
    connector.acknowledge(position)
    assert "come again" in caplog.text
    deadline = time.monotonic() + 10
    while waiting(broker, queue) < 10:
        assert time.monotonic() < deadline


def cut(connector):
    """Break the connection as a network does: no word from either side comes through."""
    connector.client.connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)


def test_a_cut_connection_is_said_to_be_lost(broker, queue, source):
    send(broker, queue, 1, 300, pad=1000)
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data(queue).items
    next(items)
    cut(connector)
    with pytest.raises(ConnectionFailed) as caught:
        list(items)
    assert caught.value.layer == "lost"


def test_a_queue_that_is_deleted_while_it_is_read_is_an_error(broker, queue, source):
    send(broker, queue, 1, 300, pad=1000)
    items = source(batch_bytes=64 * 1024).fetch_data(queue).items
    next(items)
    broker.queue_delete(queue)
    with pytest.raises(ResourceMissing):
        list(items)


def test_closing_the_connector_ends_a_read(broker, queue, source):
    send(broker, queue, 1, 300, pad=1000)
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data(queue).items
    next(items)
    client, before = connector.client, threading.active_count()
    connector.close()
    connector.module.close(client)
    assert threading.active_count() < before
    with pytest.raises(ConnectionFailed):
        list(items)


def test_batches_and_memory_are_bounded(broker, queue, source):
    """40 MB wait, and none is acknowledged before all have been read."""
    send(broker, queue, 1, 1)
    connector = source()
    connector.acknowledge(read(connector)[1])  # what is loaded with the first batch is no message
    send(broker, queue, 1, 400, pad=100_000)
    connector = source(batch_bytes=1_000_000)
    before = psutil.Process().memory_info().rss
    sizes, peak, came = [], 0, []
    for item in connector.fetch_data(queue).items:
        sizes.append(item.payload.estimated_size())
        came += list(item.payload["n"])
        peak = max(peak, psutil.Process().memory_info().rss - before)
    assert came == count(1, 400)
    # The first fetch comes before it is known how wide the messages are.
    assert max(sizes[1:]) <= 1_000_000 and peak < 20_000_000


def test_missing_queues_and_hosts_are_told_by_layer(broker, queue, source):
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]

    def layer(**more):
        with pytest.raises(ConnectionFailed) as caught:
            source(**more)
        assert caught.value.hint and "secret-word" not in f"{caught.value} {caught.value.why}"
        return caught.value.layer

    assert layer(host="no-such-host.invalid") == "name"
    assert layer(port=closed) == "port"
    assert layer(password="secret-word") == "login"
    assert layer(username="nobody", password="secret-word") == "login"
    assert layer(virtual_host="nowhere") == "database"
    assert layer(tls=True) == "tls"
    with pytest.raises(ResourceMissing, match="no queue 'nowhere'"):
        read(source(), "nowhere")


def test_a_queue_that_only_its_owner_may_read_is_refused(broker, source):
    name = f"dw_test_{secrets.token_hex(4)}"
    broker.queue_declare(name, exclusive=True)
    with pytest.raises(QueryFailed) as caught:
        read(source(), name)
    assert "exclusive" in caught.value.why


def test_discover_tells_the_queue(broker, queue, source):
    send(broker, queue, 1, 3)
    (resource,) = source().discover()
    assert (resource.name, resource.kind, resource.row_estimate) == (queue, "queue", 3)
    assert resource.primary_key == ("stream", "message_id")


def run(warehouse_url, lake, queue, write="append", key=(), options=None, **more):
    """One run of a pipeline that reads the queue; more: config of the connector."""
    job = Job(
        pipeline="s.p",
        source="s",
        lake_name="s.p",
        connector=lambda: create_connector(config(queue, **more)),
        query=queue,
        schema="public",
        table="t",
        lake=lake,
        write=write,
        key=key,
    )
    engine = make_engine(warehouse_url)
    try:
        result, error = attempt(job, engine, options or RunOptions(), ignore)
    finally:
        engine.dispose()
    if error is not None:
        raise error
    return result


def test_runs_load_what_waits(broker, queue, warehouse_url, warehouse, tmp_path):
    send(broker, queue, 1, 3000)
    assert run(warehouse_url, tmp_path, queue, max_messages=2000)["rows_loaded"] == 2000
    assert waiting(broker, queue) == 1000
    assert run(warehouse_url, tmp_path, queue)["rows_loaded"] == 1000
    assert run(warehouse_url, tmp_path, queue)["rows_loaded"] == 0
    (row,) = warehouse.execute("select count(*), count(distinct message_id), max(n) from t")
    assert row == (3000, 3000, 3000)
    with pytest.raises(UsageError):
        run(warehouse_url, tmp_path, queue, options=RunOptions(full_refresh=True))


def test_a_message_that_comes_again_is_merged_by_its_id(
    broker, queue, warehouse_url, warehouse, tmp_path, monkeypatch
):
    send(broker, queue, 1, 100)
    merge = {"write": "merge", "key": ("stream", "message_id")}
    with monkeypatch.context() as patched:
        patched.setattr("dwcli.connectors.amqp.acknowledge", lambda client, position: None)
        run(warehouse_url, tmp_path, queue, **merge)
    send(broker, queue, 101, 110)
    result = run(warehouse_url, tmp_path, queue, **merge)
    assert (result["rows_read"], result["rows_inserted"]) == (110, 10)
    (row,) = warehouse.execute("select count(*), count(distinct n) from t")
    assert row == (110, 110) and waiting(broker, queue) == 0


def test_a_merge_of_messages_without_ids_is_refused_and_loses_none(
    broker, queue, warehouse_url, warehouse, tmp_path
):
    send(broker, queue, 1, 5, ids=False)
    with pytest.raises(KeyRefused):
        run(warehouse_url, tmp_path, queue, write="merge", key=("stream", "message_id"))
    deadline = time.monotonic() + 10
    while waiting(broker, queue) < 5:
        assert time.monotonic() < deadline
    assert run(warehouse_url, tmp_path, queue)["rows_loaded"] == 5

"""The Kafka connector, on the mock cluster that comes with librdkafka."""

from __future__ import annotations

import base64
import datetime
import gc
import io
import json
import math
import os
import secrets
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import UUID

import fastavro
import polars as pl
import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from dwcli.connectors import Connector, _messages, create_connector, kafka
from dwcli.contract import Cursor
from dwcli.errors import ConfigError, ConnectionFailed, ResourceMissing, SourceData
from dwcli.pipeline import run_pipeline
from dwcli.warehouse.engine import make_engine

PARTITIONS = 4


def mock_cluster() -> tuple[Producer, str]:
    """A cluster that lives as long as the producer, and its address."""
    producer = Producer({"test.mock.num.brokers": 1, "linger.ms": 0, "log_level": 0})
    brokers = producer.list_topics(timeout=10).brokers.values()
    return producer, ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Producer, str]]:
    producer, address = mock_cluster()
    yield producer, address
    producer.flush(10)


@pytest.fixture
def topic() -> str:
    return f"dw_test_{secrets.token_hex(4)}"


@pytest.fixture
def produce(cluster: tuple[Producer, str], topic: str) -> Callable[..., None]:
    """Puts messages into the test's topic and waits until they are there."""
    producer, _ = cluster

    def send(*values: bytes | str | None, **more: Any) -> None:
        for value in values:
            while True:
                try:
                    producer.produce(topic, value, **{"partition": 0} | more)
                    break
                except BufferError:
                    producer.poll(0.1)
        assert producer.flush(30) == 0

    return send


@pytest.fixture
def source(cluster: tuple[Producer, str], topic: str) -> Iterator[Callable[..., Connector]]:
    opened: list[Connector] = []

    def connect(**more: Any) -> Connector:
        config = {"protocol": "kafka", "bootstrap_servers": cluster[1], "topic": topic} | more
        connector = create_connector(config)
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def read(connector: Connector, position: Any = None) -> tuple[pl.DataFrame, Any, list[Any]]:
    """All rows, the place reached, and the items."""
    items = list(connector.fetch_data("", Cursor(position=position)).items)
    frames = [item.payload for item in items if item.payload is not None]
    frame = pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()
    return frame, items[-1].position, items


def test_messages_arrive_with_all_that_kafka_knows_of_them(produce, source):
    produce(
        '{"id": 7, "total": 12345678901234567890.10, "name": "Zoë 🦆", "lines": [1], "none": null}',
        key="k1",
        timestamp=1_700_000_000_123,
        headers=[("trace", b"a"), ("trace", b"\xff"), ("one", None)],
        partition=2,
    )
    frame, position, items = read(source())
    row = frame.row(0, named=True)
    assert (row["protocol"], row["partition"], row["offset"]) == ("kafka", 2, 0)
    assert row["event_time"] == datetime.datetime(2023, 11, 14, 22, 13, 20, 123000, datetime.UTC)
    assert row["message_key"] == "k1" and row["id"] == 7 and row["name"] == "Zoë 🦆"
    assert row["total"] == Decimal("12345678901234567890.10") and row["lines"] == "[1]"
    assert row["metadata"] == '{"headers":{"trace":["a",{"base64":"/w=="}],"one":null}}'
    assert items[0].types["lines"] == items[0].types["payload"] == "jsonb"
    assert position["offsets"] == {"0": 0, "1": 0, "2": 1, "3": 0}


def test_tombstones_and_poison_messages_are_kept(produce, source):
    produce(b'{"a": 1}', None, b"\x80 not json", key="k")
    frame, _, items = read(source())
    assert frame["payload"].to_list() == ['{"a": 1}', None, None]
    assert frame["payload_raw"].to_list() == [None, None, b"\x80 not json"]
    assert items[0].metadata["changed"] == {"payload: not JSON → payload_raw": 1}


def test_json_behind_a_schema_number_is_json(produce, source):
    produce(b"\x00\x00\x00\x00\x2a" + b'{"a": 1}', b"\x00\x00\x00\x00\x2a!")
    frame, _, _ = read(source())
    assert frame["payload"].to_list() == ['{"a": 1}', None] and frame["a"].to_list() == [1, None]
    assert frame["metadata"].to_list() == ['{"schema_id":42}', None]


def test_text_and_bytes(produce, source):
    produce("grün", b"\xff")
    assert read(source(value_format="bytes"))[0]["payload"].to_list() == ["grün".encode(), b"\xff"]
    frame = read(source(value_format="text"))[0]
    assert frame["payload"].to_list() == ["grün", None] and frame["payload_raw"].to_list() == [None, b"\xff"]


def test_a_run_goes_on_where_the_last_one_ended(produce, source):
    for partition in range(PARTITIONS):
        produce(*[b'{"n": %d}' % n for n in range(100)], partition=partition)
    first, position, _ = read(source())
    assert first.height == 400 and set(position["offsets"].values()) == {100}

    again, same, items = read(source(), position)
    assert again.height == 0 and same == position and items[0].payload is None

    produce(b'{"n": 100}', partition=3)
    more, _, _ = read(source(), position)
    assert more.select("partition", "offset", "n").rows() == [(3, 100, 100)]


def test_a_new_partition_is_read_from_its_beginning(produce, source, topic):
    produce(b"1", b"2", partition=0)
    produce(b"3", partition=1)
    frame, _, _ = read(source(), {"topic": topic, "offsets": {"0": 1}})
    assert sorted(frame.select("partition", "offset").rows()) == [(0, 1), (1, 0)]


def test_max_messages_ends_a_run_and_the_next_goes_on(produce, source):
    for partition in range(PARTITIONS):
        produce(*[b"%d" % n for n in range(50)], partition=partition)
    seen: list[tuple[int, int]] = []
    position = None
    for expected in (70, 70, 60):
        frame, position, _ = read(source(max_messages=70), position)
        assert frame.height == expected
        seen += frame.select("partition", "offset").rows()
    assert sorted(seen) == [(p, n) for p in range(PARTITIONS) for n in range(50)]


def test_what_comes_during_a_run_is_for_the_next(produce, source):
    """A topic that is written to all the time would otherwise never be read to its end."""
    produce(*[b"%d" % n for n in range(3000)])
    connector = source(batch_bytes=64 * 1024)
    items = iter(connector.fetch_data("").items)
    first = next(items)
    produce(*[b"%d" % n for n in range(100)])
    rest = list(items)
    assert sum(item.payload.height for item in [first, *rest]) == 3000
    assert rest[-1].position["offsets"]["0"] == 3000


def test_an_empty_topic_gives_its_columns(produce, source, topic):
    produce(b"1", partition=0)
    frame, position, _ = read(source(), {"topic": "another", "offsets": {"0": 99}})
    assert frame.height == 1 and position["topic"] == topic
    empty = source(topic=f"{topic}_none")
    with pytest.raises(ResourceMissing):
        read(empty)


def test_batches_stay_near_their_bound(produce, source):
    for partition in range(PARTITIONS):
        produce(*[b'{"text": "%s"}' % (b"x" * 500) for _ in range(2500)], partition=partition)
    frame, _, items = read(source(batch_bytes=512 * 1024))
    assert frame.height == 10_000 and len(items) > 10
    assert max(item.payload.estimated_size() for item in items) < 2 * 512 * 1024


# -- places that the topic does not hold -----------------------------------------------------------------


def overflow(produce: Callable[..., None], source: Callable[..., Connector]) -> int:
    """Write until the cluster, which keeps some megabytes, drops the oldest. Gives the first offset kept."""
    produce(*[b'"%s"' % (b"x" * 20_000) for _ in range(400)])
    frame, _, _ = read(source())
    low = frame["offset"].min()
    assert isinstance(low, int) and low > 1
    return low


def test_messages_that_retention_removed_stop_the_run(produce, source, topic):
    produce(b"1", b"2")
    _, position, _ = read(source(max_messages=1))
    low = overflow(produce, source)
    with pytest.raises(SourceData) as caught:
        read(source(), position)
    assert f"offsets 1 to {low - 1:,}" in caught.value.why
    assert "on_gap: continue" in caught.value.hint

    frame, _, items = read(source(on_gap="continue"), position)
    assert frame["offset"].min() == low
    assert items[0].metadata["changed"] == {"partition 0: deleted by the topic before it was read": low - 1}


def test_a_place_beyond_the_end_is_an_error(produce, source, topic):
    produce(b"1")
    with pytest.raises(SourceData, match="does not hold the place") as caught:
        read(source(), {"topic": topic, "offsets": {"0": 5}})
    assert "ends at 1" in caught.value.why and "dw run --full-refresh" in caught.value.hint
    with pytest.raises(SourceData) as caught:
        read(source(), {"topic": topic, "offsets": {"9": 5}})
    assert "partition 9 is gone" in caught.value.why


# -- ends without a message ------------------------------------------------------------------------------


def fake_message(name: str, partition: int, offset: int) -> SimpleNamespace:
    error = SimpleNamespace(name=lambda: name, str=lambda: name)
    return SimpleNamespace(error=lambda: error, partition=lambda: partition, offset=lambda: offset)


@pytest.mark.parametrize(
    ("at", "reached"),
    [
        (10, 10),  # the last messages were compacted away, or are markers of transactions
        (7, 7),  # an open transaction holds messages back: they are the next run's
        (12, 10),  # behind the end there are newer ones
    ],
)
def test_the_end_of_a_partition_needs_no_message(at, reached):
    places = {0: kafka._Place(0, 5, 10)}
    message = fake_message("_PARTITION_EOF", 0, at)
    kafka._note(message.error(), message, "t", places)
    assert places[0].done and places[0].next == reached


def test_markers_of_transactions_take_offsets_but_are_no_messages(cluster, topic, source):
    settings = {"bootstrap.servers": cluster[1], "transactional.id": topic, "log_level": 0}
    writer = Producer(settings)
    writer.init_transactions(10)
    for value in (b"1", b"2"):
        writer.begin_transaction()
        writer.produce(topic, value, partition=0)
        writer.commit_transaction(10)
    connector = source()
    frame, position, _ = read(connector)
    assert frame.select("offset", "payload").rows() == [(0, "1"), (2, "2")]
    assert position["offsets"]["0"] == 4
    assert read(connector, position)[0].height == 0


# -- what can go wrong -----------------------------------------------------------------------------------


def test_a_missing_topic_is_named_with_its_neighbour(produce, source, topic):
    produce(b"1")
    with pytest.raises(ResourceMissing, match=topic):
        list(source(topic=f"{topic}x").discover())
    with pytest.raises(ResourceMissing):
        source().describe(f"{topic}x")


def test_a_cursor_column_is_refused(source, produce):
    produce(b"1")
    with pytest.raises(ConfigError):
        list(source().fetch_data("", Cursor("offset")).items)


@pytest.mark.parametrize(
    ("servers", "layer"),
    [("no-such-host.invalid:9092", "name"), ("127.0.0.1:1", "port"), ("a b:9", "name")],
)
def test_a_server_that_cannot_be_reached(servers, layer):
    connector = create_connector({"protocol": "kafka", "bootstrap_servers": servers, "topic": "t"})
    with pytest.raises(ConnectionFailed) as caught:
        connector.connect()
    assert caught.value.layer == layer


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that treats each connection so, and its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                answer(connection)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def refuse_login(connection: socket.socket) -> None:
    """What a broker says to a wrong password (kafka.apache.org/protocol: ApiVersions, SaslHandshake,
    SaslAuthenticate)."""
    stream = connection.makefile("rb")
    while head := stream.read(4):
        request = stream.read(int.from_bytes(head))
        api, version, number = struct.unpack(">hhi", request[:8])
        if api == 18:
            known = [(3, 0, 1), (17, 0, 1), (36, 0, 0), (18, 0, 0)]
            body = struct.pack(">hi", 35 if version else 0, len(known))
            body += b"".join(struct.pack(">hhh", *one) for one in known)
        elif api == 17:
            body = struct.pack(">hih", 0, 1, 5) + b"PLAIN"
        else:
            body = struct.pack(">hh", 58, 5) + b"wrong" + struct.pack(">i", -1)
        connection.sendall(struct.pack(">ii", len(body) + 4, number) + body)


def failing_layer(**config: Any) -> ConnectionFailed:
    connector = create_connector({"protocol": "kafka", "topic": "t"} | config)
    with pytest.raises(ConnectionFailed) as caught:
        connector.connect()
    return caught.value


def test_a_wrong_password():
    with serving(refuse_login) as address:
        error = failing_layer(
            bootstrap_servers=address,
            security_protocol="SASL_PLAINTEXT",
            sasl_username="reader",
            sasl_password="s3cret-word",
        )
    assert error.layer == "login" and error.why.endswith("wrong")
    assert "s3cret-word" not in f"{error} {error.why} {error.hint}"


def test_a_certificate_of_an_unknown_authority():
    trustme = pytest.importorskip("trustme")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    def shake_hands(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True):
            pass

    with serving(shake_hands) as address:
        assert failing_layer(bootstrap_servers=address, security_protocol="ssl").layer == "tls"


def test_tls_where_there_is_none_and_none_where_it_is_wanted(cluster, monkeypatch):
    assert failing_layer(bootstrap_servers=cluster[1], security_protocol="ssl").layer == "tls"
    monkeypatch.setattr(kafka, "PATIENCE_SECONDS", 1.0)
    with serving(lambda connection: None) as address:
        error = failing_layer(bootstrap_servers=address)
    assert error.layer == "tls" and "security_protocol" in error.hint


def test_a_certificate_file_that_is_not_there(cluster):
    error = failing_layer(bootstrap_servers=cluster[1], security_protocol="ssl", ssl_ca="/no/such.pem")
    assert error.layer == "tls" and "ssl_ca" in error.hint


def test_one_of_several_servers_is_enough(source, cluster, produce):
    produce(b"1")
    assert read(source(bootstrap_servers=f"127.0.0.1:1,{cluster[1]}"))[0].height == 1


def test_a_cluster_that_dies_ends_the_read_with_an_error(monkeypatch):
    monkeypatch.setattr(_messages, "STALLED_SECONDS", 2.0)
    producer, address = mock_cluster()
    for n in range(20_000):
        producer.produce("t", b'{"n": %d, "text": "%s"}' % (n, b"x" * 100), partition=0)
        if not n % 1000:
            producer.poll(0)
    producer.flush(30)
    connector = create_connector(
        {
            "protocol": "kafka",
            "bootstrap_servers": address,
            "topic": "t",
            "batch_bytes": 65536,
            "poll_timeout_seconds": 1,
        }
    )
    connector.connect()
    items = iter(connector.fetch_data("").items)
    next(items)
    del producer
    gc.collect()
    with pytest.raises(ConnectionFailed) as caught:
        list(items)
    assert caught.value.layer == "lost"
    connector.close()


def test_closing_ends_a_read(source, produce):
    produce(*[b"%d" % n for n in range(3000)])
    connector = source(batch_bytes=64 * 1024)
    items = iter(connector.fetch_data("").items)
    next(items)
    closer = threading.Thread(target=connector.close)
    closer.start()
    with pytest.raises(ConnectionFailed):
        list(items)
    closer.join(5)
    assert not closer.is_alive()
    connector.close()


# -- discover --------------------------------------------------------------------------------------------


def test_discover_gives_the_topic_first_then_the_others(source, produce, topic, cluster):
    produce(b"1", b"2")
    produce(b"3", partition=3)
    other = f"a_{topic}"
    cluster[0].produce(other, b"1")
    cluster[0].flush(10)
    found = list(source().discover())
    assert found[0].name == topic and found[0].row_estimate == 3 and found[0].kind == "topic"
    assert found[0].primary_key == ("stream", "partition", "offset")
    assert other in [resource.name for resource in found[1:]]


# -- Avro and a schema registry --------------------------------------------------------------------------


class Registry(BaseHTTPRequestHandler):
    """The two questions that a reader asks a schema registry, for the login user:secret."""

    schemas: ClassVar[dict[str, dict[str, Any]]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        login = f"Basic {base64.b64encode(b'user:secret').decode()}"
        if self.headers.get("Authorization") != login:
            status, answer = 401, {"error_code": 40101}
        else:
            answer = {} if self.path == "/" else self.schemas.get(self.path, {})
            status = 200 if answer or self.path == "/" else 404
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[dict[str, Any]]:
    """Config fields of a schema registry with `Registry.schemas`."""
    Registry.schemas, Registry.asked = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield {
        "schema_registry_url": f"http://127.0.0.1:{server.server_port}",
        "schema_registry_username": "user",
        "schema_registry_password": "secret",
    }
    server.shutdown()
    thread.join()
    server.server_close()


def avro(number: int, schema: Any, value: Any) -> bytes:
    """A message as a serializer with a schema registry writes it; the registry knows its schema then."""
    Registry.schemas[f"/schemas/ids/{number}"] = {"schema": json.dumps(schema)}
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return b"\0" + number.to_bytes(4) + out.getvalue()


ORDER = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "total", "type": {"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 10}},
        {"name": "huge", "type": {"type": "bytes", "logicalType": "decimal", "precision": 50, "scale": 2}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "clock", "type": {"type": "int", "logicalType": "time-millis"}},
        {"name": "u", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "x", "type": "double"},
        {"name": "ok", "type": ["null", "boolean"]},
        {"name": "state", "type": {"type": "enum", "name": "S", "symbols": ["NEW", "OLD"]}},
        {"name": "blob", "type": "bytes"},
        {"name": "tags", "type": {"type": "map", "values": "double"}},
        {"name": "mixed", "type": ["null", "int", "string"]},
        {"name": "stream", "type": "string"},
    ],
}


def test_avro_values_arrive_exactly(produce, source, registry):
    day, at = datetime.date(2024, 2, 29), datetime.datetime(2024, 1, 1, 0, 0, 0, 1, datetime.UTC)
    value = {
        "id": 2**62,
        "total": Decimal("12345678901234567890.0123456789"),
        "huge": Decimal("-123456789012345678901234567890123456789012345678.05"),
        "day": day,
        "at": at,
        "clock": datetime.time(1, 2, 3, 4000),
        "u": UUID(int=7),
        "x": float("nan"),
        "ok": None,
        "state": "OLD",
        "blob": b"\0\xff",
        "tags": {"a": 0.1, "b": float("inf")},
        "mixed": 5,
        "stream": "é",
    }
    produce(avro(1, ORDER, value), avro(1, ORDER, value | {"mixed": "five", "ok": True}), key="k")
    frame, _, items = read(source(value_format="avro", **registry))
    row, types = frame.row(0, named=True), items[0].types
    assert row["id"] == 2**62 and row["day"] == day and row["at"] == at and row["blob"] == b"\0\xff"
    assert row["total"] == value["total"] and types["total"] == "numeric(30,10)"
    assert row["huge"] == str(value["huge"]) and types["huge"] == "numeric(50,2)"
    assert row["clock"] == "01:02:03.004000" and types["clock"] == "time"
    assert row["u"] == str(UUID(int=7)) and types["u"] == "uuid"
    assert math.isnan(row["x"]) and types["x"] == "double precision" and row["state"] == "OLD"
    assert frame["ok"].to_list() == [None, True] and frame["mixed"].to_list() == ["5", "five"]
    assert row["tags"] == '{"a":0.1,"b":"Infinity"}' and types["tags"] == "jsonb"
    assert row["stream"] != "é" and row["payload_stream"] == "é"
    payload = json.loads(row["payload"], parse_float=Decimal)
    assert payload["total"] == value["total"] and payload["huge"] == value["huge"] and payload["x"] == "NaN"
    assert Registry.asked == ["/", "/schemas/ids/1"]


def test_a_schema_that_grows_widens_its_columns(produce, source, registry):
    def version(kind: Any, *more: dict[str, Any]) -> dict[str, Any]:
        return {"type": "record", "name": "R", "fields": [{"name": "n", "type": kind}, *more]}

    money = {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 3}
    produce(
        avro(1, version("int"), {"n": 1}),
        avro(2, version(money, {"name": "new", "type": "string"}), {"n": Decimal("1.125"), "new": "x"}),
    )
    frame, _, items = read(source(value_format="avro", **registry))
    assert items[0].types["n"] == "numeric" and frame["n"].cast(pl.Decimal(38, 3)).to_list() == [
        Decimal("1.000"),
        Decimal("1.125"),
    ]
    assert frame["new"].to_list() == [None, "x"]


def test_schemas_that_refer_to_others(produce, source, registry):
    address = {"type": "record", "name": "Address", "fields": [{"name": "zip", "type": "string"}]}
    whole = {"type": "record", "name": "P", "fields": [{"name": "home", "type": address}]}
    message = avro(7, whole, {"home": {"zip": "1"}})
    apart = {"type": "record", "name": "P", "fields": [{"name": "home", "type": "Address"}]}
    Registry.schemas["/schemas/ids/7"] = {
        "schema": json.dumps(apart),
        "references": [{"name": "Address", "subject": "a/b", "version": 3}],
    }
    Registry.schemas["/subjects/a%2Fb/versions/3"] = {"schema": json.dumps(address)}
    produce(message)
    frame, _, items = read(source(value_format="avro", **registry))
    assert frame["home"].to_list() == ['{"zip":"1"}'] and items[0].types["home"] == "jsonb"


def test_what_is_no_avro_is_kept(produce, source, registry):
    good = avro(1, ORDER["fields"][0] | {"type": "record", "name": "R", "fields": []}, {})
    plain = avro(2, "string", "just text")
    bad = [b'{"a": 1}', b"", b"\0\0\0\0\x63abc", plain[:-1], plain + b"x", b"\0\0"]
    produce(good, plain, None, *bad)
    frame, _, items = read(source(value_format="avro", **registry))
    assert frame["payload"].to_list() == ["{}", '"just text"', None] + [None] * len(bad)
    assert frame["payload_raw"].to_list() == [None, None, None, *bad]
    assert items[0].metadata["changed"] == {"payload: not Avro of the registry → payload_raw": len(bad)}


def test_avro_keys(produce, source, registry):
    produce("1", key=avro(1, "string", "k"))
    produce("2", key=avro(2, "long", 5))
    produce("3", key=b"plain")
    frame, _, _ = read(source(key_format="avro", **registry))
    assert frame["message_key"].to_list() == ["k", "5", "plain"]


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        ({"schema_registry_password": "wrong"}, "login"),
        ({"schema_registry_url": "http://127.0.0.1:1"}, "port"),
        ({"schema_registry_url": "http://no-such-host.invalid"}, "name"),
        ({"schema_registry_url": "ftp://x"}, "name"),
    ],
)
def test_a_registry_that_cannot_be_asked(source, produce, registry, change, layer):
    produce(b"1")
    with pytest.raises(ConnectionFailed) as caught:
        source(value_format="avro", **registry | change)
    assert caught.value.layer == layer
    assert "secret" not in str(caught.value) + caught.value.why


def test_avro_without_a_registry_is_a_config_error(source):
    with pytest.raises(ConfigError, match="schema_registry_url"):
        source(value_format="avro")


# -- end to end ------------------------------------------------------------------------------------------


def load(config: dict[str, Any], url: str, lake: Path, topic: str) -> dict[str, Any]:
    engine = make_engine(url)
    try:
        return run_pipeline(config, topic, "events", "events", str(lake), engine)
    finally:
        engine.dispose()


def test_into_postgresql_and_on(
    cluster, produce, topic, warehouse_url: str, warehouse: psycopg.Connection, tmp_path: Path
):
    config = {
        "protocol": "kafka",
        "bootstrap_servers": cluster[1],
        "topic": topic,
        "group_id": f"g_{topic}",
    }
    for partition in range(PARTITIONS):
        produce(*[b'{"n": %d, "v": 0.1}' % n for n in range(500)], partition=partition)
    assert load(config, warehouse_url, tmp_path, topic)["rows_loaded"] == 2000
    produce(b'{"n": 500, "v": 0.25}', b"poison", None)
    assert load(config, warehouse_url, tmp_path, topic)["rows_loaded"] == 3
    assert load(config, warehouse_url, tmp_path, topic)["rows_loaded"] == 0

    count = warehouse.execute(
        "select count(*), count(distinct (partition, \"offset\")), sum(v), sum((payload->>'v')::numeric),"
        " count(payload_raw) from events"
    ).fetchone()
    assert count == (2003, 2003, Decimal("200.25"), Decimal("200.25"), 1)
    reader = Consumer({"bootstrap.servers": cluster[1], "group.id": f"g_{topic}", "log_level": 0})
    committed = reader.committed([TopicPartition(topic, p) for p in range(PARTITIONS)], timeout=10)
    reader.close()
    assert [c.offset for c in committed] == [503, 500, 500, 500]


@pytest.mark.parametrize("point", ["manifest", "committed"])
def test_a_killed_run_loses_and_doubles_nothing(
    cluster, produce, topic, warehouse_url: str, warehouse: psycopg.Connection, tmp_path: Path, point: str
):
    config = {"protocol": "kafka", "bootstrap_servers": cluster[1], "topic": topic, "batch_bytes": 65536}
    (tmp_path / "kafka.json").write_text(json.dumps(config))
    produce(*[b'{"n": %d}' % n for n in range(1000)])
    command = [sys.executable, "-m", "dwcli", "run", "--config", "kafka.json", "--query", topic]
    command += ["--source", "s", "--table", "events", "--lake", "lake", "--warehouse", warehouse_url]

    def run(**environment: str) -> int:
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | environment, capture_output=True, timeout=60
        )
        return done.returncode

    assert run(DW_TEST_CRASH_AT=point) == -signal.SIGKILL
    produce(*[b'{"n": %d}' % n for n in range(1000, 1500)], partition=1)
    assert run() == 0
    assert warehouse.execute("select count(*), count(distinct n), max(n) from events").fetchone() == (
        1500,
        1500,
        1499,
    )

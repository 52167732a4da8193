"""The MQTT connector, on a real Mosquitto."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import paho.mqtt.client as paho
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from dwcli.connectors import create_connector
from dwcli.connectors.mqtt import Config, session_name
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, QueryFailed, SourceData, UsageError
from dwcli.events import ignore
from dwcli.pipeline.record import Job, RunOptions
from dwcli.pipeline.runner import attempt
from dwcli.warehouse.engine import make_engine
from tests.services import required

URL = os.environ.get("DW_TEST_MQTT", "mqtt://127.0.0.1:1883")


class Publisher:
    """Publishes with QoS 1; when `send` returns, the broker has the messages."""

    def __init__(self, host, port):
        self.address = (host, port)
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self.client.connect(host, port)
        self.client.loop_start()

    def send(self, topic, body, qos=1, retain=False, **properties):
        told = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(told, name, value)
        self.client.publish(topic, body, qos=qos, retain=retain, properties=told).wait_for_publish(20)

    def numbers(self, topic, first, last, pad=0):
        sent = [
            self.client.publish(topic, f'{{"n": {n}, "pad": "{"x" * pad}"}}', qos=1)
            for n in range(first, last + 1)
        ]
        for message in sent:
            message.wait_for_publish(20)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def forget(host, port, name):
    """Drop a session: connecting with a clean start ends it."""
    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5)
    client.connect(host, port, clean_start=True)
    deadline = time.monotonic() + 10
    while not client.is_connected():
        assert time.monotonic() < deadline
        client.loop(0.1)
    client.disconnect()


@pytest.fixture
def broker():
    parts = urlsplit(required("Mosquitto", URL))
    made = Publisher(parts.hostname, parts.port or 1883)
    yield made
    made.close()


@pytest.fixture
def topic(broker):
    """A topic of the test's own; the session that dw makes for it is dropped afterwards."""
    name = f"dw_test/{secrets.token_hex(4)}"
    yield name
    for filter in (name, f"{name}/#"):
        forget(*broker.address, session_name(Config(**config(name)), filter))


def config(topic, **more):
    parts = urlsplit(URL)
    return {
        "host": parts.hostname,
        "port": parts.port or 1883,
        "topic": topic,
        "client_id": f"dw-{topic[-8:]}",
        "poll_timeout_seconds": 0.5,
    } | more


@pytest.fixture
def source(topic):
    opened = []

    def connect(**more):
        connector = create_connector({"protocol": "mqtt"} | config(topic, **more))
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def read(connector, query="", position=None):
    """The numbers that came, the last position, and the items."""
    items = list(connector.fetch_data(query, Cursor(position=position)).items)
    frames = [item.payload for item in items if item.payload is not None]
    return [n for frame in frames for n in frame.to_dict().get("n", ())], items[-1].position, items


def read_and_acknowledge(connector, query="", position=None):
    numbers, position, items = read(connector, query, position)
    connector.acknowledge(position)
    connector.close()
    return numbers, position, items


def count(first, last):
    return list(range(first, last + 1))


@pytest.fixture
def subscribed(source):
    """The position after the first run, which makes the session."""
    return read_and_acknowledge(source())[1]


def test_messages_become_rows(broker, topic, source):
    everything = f"{topic}/#"
    read_and_acknowledge(source(), everything)
    body = '{"id": 7, "name": "naïve 🦆", "price": 0.10, "stream": "mine"}'.encode()
    broker.send(f"{topic}/ä", body, ContentType="json", UserProperty=[("a", "1")], CorrelationData=b"\xff")
    broker.send(f"{topic}/b", b"not json \xff")
    broker.send(f"{topic}/c", b"")
    _, _, (item,) = read(source(), everything)
    first, second, third = item.payload.rows(named=True)
    assert (first["protocol"], first["stream"], first["message_key"]) == ("mqtt", everything, f"{topic}/ä")
    assert first["name"] == "naïve 🦆" and first["id"] == 7 and first["event_time"] is None
    assert first["payload"] == body.decode() and first["payload_stream"] == "mine"
    assert first["metadata"] == (
        '{"qos":1,"ContentType":"json","CorrelationData":{"base64":"/w=="},"UserProperty":[["a","1"]]}'
    )
    assert second["payload"] is None and second["payload_raw"] == b"not json \xff"
    assert third["payload"] is None and third["metadata"] == '{"qos":1}'


def test_the_first_read_makes_the_session_and_tells_the_columns(topic, source):
    numbers, position, (item,) = read(source())
    assert numbers == [] and item.payload.height == 0
    assert item.payload.columns[:2] == ["protocol", "stream"] and position["count"] == 0


def test_what_is_published_while_dw_is_away_is_kept(broker, topic, source, subscribed):
    broker.numbers(topic, 1, 10)
    assert read_and_acknowledge(source(), position=subscribed)[0] == count(1, 10)
    assert read_and_acknowledge(source(), position=subscribed)[0] == []


def test_what_was_not_acknowledged_comes_again(broker, topic, source, subscribed):
    broker.numbers(topic, 1, 10)
    connector = source()
    assert read(connector)[0] == count(1, 10)
    connector.close()
    numbers, _, items = read_and_acknowledge(source())
    assert numbers == count(1, 10) and "redelivered" in items[0].payload["metadata"][0]
    assert read_and_acknowledge(source())[0] == []


def test_max_messages_leaves_the_rest_to_the_next_run(broker, topic, source, subscribed):
    broker.numbers(topic, 1, 10)
    assert read_and_acknowledge(source(max_messages=4))[0] == count(1, 4)
    assert read_and_acknowledge(source(max_messages=4))[0] == count(5, 8)
    assert read_and_acknowledge(source(max_messages=4))[0] == count(9, 10)


def test_what_comes_during_the_load_is_left_to_the_next_run(broker, topic, source, subscribed):
    broker.numbers(topic, 1, 5)
    connector = source()
    _, position, _ = read(connector)
    broker.numbers(topic, 6, 9)
    connector.acknowledge(position)
    connector.close()
    assert read_and_acknowledge(source())[0] == count(6, 9)


def test_the_connection_is_kept_alive_while_a_load_takes_long(broker, topic, source, subscribed, monkeypatch):
    monkeypatch.setattr("dwcli.connectors.mqtt.KEEPALIVE_SECONDS", 4)
    broker.numbers(topic, 1, 5)
    connector = source()
    _, position, _ = read(connector)
    time.sleep(10)  # the broker hangs up after one and a half times the keepalive
    connector.acknowledge(position)
    connector.close()
    assert read_and_acknowledge(source())[0] == []


def test_acknowledgements_arrive_though_more_messages_are_on_their_way(broker, topic, source, subscribed):
    broker.numbers(topic, 1, 900, pad=5_000)
    assert read_and_acknowledge(source(max_messages=300))[0] == count(1, 300)
    assert read_and_acknowledge(source())[0] == count(301, 900)


def test_a_retained_message_is_read_once(broker, topic, source):
    broker.send(topic, b'{"n": 1}', retain=True)
    try:
        numbers, position, items = read_and_acknowledge(source())
        assert numbers == [1] and "retained" in items[0].payload["metadata"][0]
        assert read_and_acknowledge(source(), position=position)[0] == []
    finally:
        broker.send(topic, b"", retain=True)


def test_a_session_that_the_broker_dropped_is_an_error_until_it_is_allowed(broker, topic, source, subscribed):
    forget(*broker.address, subscribed["session"])
    for _ in range(2):
        with pytest.raises(SourceData, match="has not kept the session"):
            read(source(), position=subscribed)
    assert read_and_acknowledge(source(on_gap="continue"), position=subscribed)[0] == []
    broker.numbers(topic, 1, 2)
    assert read_and_acknowledge(source(), position=subscribed)[0] == [1, 2]


def test_batches_and_memory_are_bounded(broker, topic, source, subscribed):
    """20 MB wait, and none is acknowledged before all have been read."""
    broker.numbers(topic, 1, 1)
    read_and_acknowledge(source())  # what is loaded with the first batch is no message
    broker.numbers(topic, 1, 1000, pad=20_000)
    connector = source(batch_bytes=1_000_000)
    before = psutil.Process().memory_info().rss
    sizes, peak, came = [], 0, []
    for item in connector.fetch_data("").items:
        sizes.append(item.payload.estimated_size())
        came += list(item.payload["n"])
        peak = max(peak, psutil.Process().memory_info().rss - before)
    assert came == count(1, 1000)
    assert max(sizes) <= 1_000_000 and peak < 15_000_000


def cut(connector):
    """Break the connection as a network does: no word from either side comes through."""
    connector.client.session.mqtt.socket().shutdown(socket.SHUT_RDWR)


def test_a_cut_connection_is_said_to_be_lost(broker, topic, source, subscribed):
    broker.numbers(topic, 1, 300, pad=1000)
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("").items
    next(items)
    cut(connector)
    with pytest.raises(ConnectionFailed) as caught:
        list(items)
    assert caught.value.layer == "lost"


def test_another_reader_of_the_same_name_is_an_error(broker, topic, source, subscribed):
    broker.numbers(topic, 1, 300, pad=1000)
    items = source(batch_bytes=64 * 1024).fetch_data("").items
    next(items)
    read(source())
    with pytest.raises(ConnectionFailed) as caught:
        list(items)
    assert caught.value.layer == "lost"


def test_an_acknowledgement_that_fails_is_no_error(broker, topic, source, subscribed, caplog):
    broker.numbers(topic, 1, 5)
    connector = source()
    _, position, _ = read(connector)
    cut(connector)
    connector.acknowledge(position)
    connector.close()
    assert "come again" in caplog.text
    assert read_and_acknowledge(source())[0] == count(1, 5)


def test_closing_the_connector_ends_a_read(broker, topic, source, subscribed):
    broker.numbers(topic, 1, 300, pad=1000)
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("").items
    next(items)
    client = connector.client
    connector.close()
    connector.module.close(client)
    with pytest.raises(ConnectionFailed):
        list(items)


def test_discover_tells_the_topic(topic, source):
    (resource,) = source().discover()
    assert (resource.name, resource.kind, resource.primary_key) == (topic, "topic", ())


@contextmanager
def own_broker(folder, *lines):
    """Port of a broker that is this test's alone."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        pytest.skip("no mosquitto on the PATH")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = folder / "mosquitto.conf"
    settings.write_text("\n".join([f"listener {port} 127.0.0.1", *lines, ""]))
    process = subprocess.Popen([program, "-c", settings], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def test_each_layer_of_a_failed_connection_is_named(broker, topic, source, tmp_path, monkeypatch):
    monkeypatch.setattr("dwcli.connectors.mqtt.TIMEOUT_SECONDS", 2.0)
    passwords = tmp_path / "passwords"
    passwords.write_text("u:right\n")
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("no mosquitto_passwd on the PATH")
    subprocess.run([tool, "-U", passwords], check=True)
    passwords.chmod(0o644)
    tmp_path.chmod(0o755)

    def layer(**more):
        with pytest.raises(ConnectionFailed) as caught:
            source(**more)
        assert caught.value.hint and "secret-word" not in f"{caught.value} {caught.value.why}"
        return caught.value.layer

    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    assert layer(host="no-such-host.invalid") == "name"
    assert layer(port=closed) == "port"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert layer(port=silent.getsockname()[1]) == "port"
    assert layer(tls=True) == "tls"
    with own_broker(tmp_path, f"password_file {passwords}", "user root") as port:
        assert layer(port=port) == "login"
        assert layer(port=port, username="u", password="secret-word") == "login"
        assert read(source(port=port, username="u", password="right"))[0] == []


def test_what_is_no_topic_is_refused(topic, source):
    with pytest.raises(QueryFailed, match="no topic"):
        read(source(), "a/#/b")


def run(warehouse_url, lake, topic, options=None, **more):
    """One run of a pipeline that reads the topic; more: config of the connector."""
    job = Job(
        pipeline="s.p",
        source="s",
        lake_name="s.p",
        connector=lambda: create_connector({"protocol": "mqtt"} | config(topic, **more)),
        query=topic,
        schema="public",
        table="t",
        lake=lake,
    )
    engine = make_engine(warehouse_url)
    try:
        result, error = attempt(job, engine, options or RunOptions(), ignore)
    finally:
        engine.dispose()
    if error is not None:
        raise error
    return result


def test_runs_load_what_was_kept(broker, topic, warehouse_url, warehouse, tmp_path):
    assert run(warehouse_url, tmp_path, topic)["rows_loaded"] == 0
    broker.numbers(topic, 1, 700)
    assert run(warehouse_url, tmp_path, topic, max_messages=500)["rows_loaded"] == 500
    assert run(warehouse_url, tmp_path, topic)["rows_loaded"] == 200
    assert run(warehouse_url, tmp_path, topic)["rows_loaded"] == 0
    (row,) = warehouse.execute("select count(*), count(distinct n), max(n) from t")
    assert row == (700, 700, 700)
    with pytest.raises(UsageError):
        run(warehouse_url, tmp_path, topic, options=RunOptions(full_refresh=True))

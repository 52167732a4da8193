"""The NATS connector, on a real server with JetStream."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import nats
import pytest
from nats.js import api

from dwcli.connectors import create_connector
from dwcli.connectors.nats import covers
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing, SourceData, UsageError
from dwcli.events import ignore
from dwcli.pipeline.record import Job, RunOptions
from dwcli.pipeline.runner import attempt
from dwcli.warehouse.engine import make_engine
from tests.services import required
from tests.waiting import until

URL = os.environ.get("DW_TEST_NATS", "nats://127.0.0.1:4222")


class Server:
    """A client for the test's own use, in a loop of its own."""

    def __init__(self, url):
        self.loop = asyncio.new_event_loop()
        self.client = self.do(nats.connect(url))
        self.js = self.client.jetstream()

    def do(self, work):
        return self.loop.run_until_complete(work)

    def publish(self, subject, *bodies, headers=None):
        async def all_of_them():
            for body in bodies:
                await self.js.publish(subject, body, headers=headers)

        self.do(all_of_them())

    def numbers(self, subject, first, last, pad=0):
        self.publish(
            subject, *(f'{{"n": {n}, "pad": "{"x" * pad}"}}'.encode() for n in range(first, last + 1))
        )

    def waiting(self, stream, consumer):
        """Messages that it has not given yet, and that it has given and heard nothing of.

        The server takes an acknowledgement at once and works it in after that.
        """
        info = self.do(self.js.consumer_info(stream, consumer))
        return info.num_pending, info.num_ack_pending

    def close(self):
        self.do(self.client.close())
        self.loop.close()


@pytest.fixture
def server():
    made = Server(required("NATS", URL))
    yield made
    made.close()


@pytest.fixture
def stream(server):
    """A stream of the test's own, with subjects NAME.>; dropped afterwards."""
    name = f"dw_test_{secrets.token_hex(4)}"
    server.do(server.js.add_stream(name=name, subjects=[f"{name}.>"], storage="memory"))
    yield name
    server.do(server.js.delete_stream(name))


def config(**more):
    return {"protocol": "nats", "servers": URL} | more


@pytest.fixture
def source():
    opened = []

    def connect(**more):
        connector = create_connector(config(**more))
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def read(connector, query, position=None):
    """The sequences that came, the last position, and the items."""
    items = list(connector.fetch_data(query, Cursor(position=position)).items)
    frames = [item.payload for item in items if item.payload is not None]
    return [n for frame in frames for n in frame["stream_sequence"]], items[-1].position, items


def count(first, last):
    return list(range(first, last + 1))


def test_messages_become_rows(server, stream, source):
    body = '{"id": 7, "name": "naïve 🦆", "price": 0.10, "stream": "mine"}'.encode()
    server.publish(f"{stream}.a", body, headers={"Nats-Msg-Id": "m1", "x": "é"})
    server.publish(f"{stream}.b", b"not json \xff", b"")
    _, position, (item,) = read(source(), stream)
    first, second, third = item.payload.rows(named=True)
    assert (first["protocol"], first["stream"], first["stream_sequence"]) == ("nats", stream, 1)
    assert first["message_key"] == f"{stream}.a" and first["name"] == "naïve 🦆" and first["id"] == 7
    assert first["payload"] == body.decode() and first["payload_stream"] == "mine"
    assert '"Nats-Msg-Id":"m1"' in first["metadata"] and first["metadata"].startswith('{"headers"')
    assert abs(datetime.now(UTC) - first["event_time"]) < timedelta(minutes=1)
    assert second["payload"] is None and second["payload_raw"] == b"not json \xff"
    assert third["payload"] is None and second["metadata"] is None
    assert position == {"stream": stream, "sequence": 3}


def test_an_empty_stream_still_tells_its_columns(stream, source):
    _, _, (item,) = read(source(), stream)
    assert item.payload.height == 0
    assert item.payload.columns[:3] == ["protocol", "stream", "stream_sequence"]


def test_each_read_goes_on_where_the_last_one_was_committed(server, stream, source):
    server.numbers(f"{stream}.a", 1, 10)
    connector = source(max_messages=4)
    first, position, _ = read(connector, stream)
    again, _, _ = read(connector, stream)
    second, position, _ = read(connector, stream, position)
    third, position, _ = read(connector, stream, position)
    nothing, position, items = read(connector, stream, position)
    assert (first, again, second, third) == (count(1, 4), count(1, 4), count(5, 8), count(9, 10))
    assert nothing == [] and items[0].payload is None
    server.numbers(f"{stream}.a", 11, 11)
    assert read(connector, stream, position)[0] == [11]


def test_a_subject_reads_its_own_messages_alone(server, stream, source):
    for _ in range(5):
        server.numbers(f"{stream}.a.x", 1, 1)
        server.numbers(f"{stream}.b", 1, 1)
    connector = source()
    assert connector.describe(f"{stream}.a.*").row_estimate == 5
    came, position, _ = read(connector, f"{stream}.a.*")
    assert came == [1, 3, 5, 7, 9] and position["sequence"] == 10
    assert read(connector, f"{stream}.b")[0] == [2, 4, 6, 8, 10]


def test_messages_that_come_while_reading_are_left_to_the_next_run(server, stream, source):
    server.numbers(f"{stream}.a", 1, 300, pad=1000)
    items = source(batch_bytes=64 * 1024).fetch_data(stream).items
    next(items)
    server.numbers(f"{stream}.a", 301, 305)
    last = list(items)[-1]
    assert last.position["sequence"] in (300, 305)
    assert read(source(), stream, {"stream": stream, "sequence": 300})[0] == count(301, 305)


def test_what_retention_took_unread_is_an_error_that_counts_it(server, stream, source):
    server.numbers(f"{stream}.a", 1, 10)
    _, position, _ = read(source(), stream)
    server.numbers(f"{stream}.a", 11, 20)
    server.do(server.js.purge_stream(stream, keep=7))
    with pytest.raises(SourceData, match="3 messages behind 10") as caught:
        read(source(), stream, position)
    assert "14" in caught.value.why and "on_gap" in caught.value.hint
    came, position, _ = read(source(on_gap="continue"), stream, position)
    assert came == count(14, 20) and read(source(), stream, position)[0] == []


def test_dropping_what_was_read_is_no_gap(server, stream, source):
    server.numbers(f"{stream}.a", 1, 10)
    _, position, _ = read(source(), stream)
    server.do(server.js.purge_stream(stream))
    assert read(source(), stream, position)[0] == []
    server.numbers(f"{stream}.a", 11, 12)
    assert read(source(), stream, position)[0] == [11, 12]


def test_retention_that_overtakes_a_read_is_noticed(server, stream, source):
    server.numbers(f"{stream}.a", 1, 400, pad=1000)
    items = source(batch_bytes=64 * 1024).fetch_data(stream).items
    next(items)
    server.do(server.js.purge_stream(stream, keep=10))
    with pytest.raises(SourceData, match="dropped unread"):
        list(items)


def test_a_message_deleted_in_the_middle_is_no_gap(server, stream, source):
    server.numbers(f"{stream}.a", 1, 5)
    server.do(server.js.delete_msg(stream, 3))
    assert read(source(), stream)[0] == [1, 2, 4, 5]


def test_a_stream_made_anew_is_an_error(server, stream, source):
    server.numbers(f"{stream}.a", 1, 2)
    with pytest.raises(SourceData, match="ends at 2"):
        read(source(), stream, {"stream": stream, "sequence": 9})
    assert read(source(), stream, {"stream": "another", "sequence": 9})[0] == [1, 2]


def test_a_consumer_that_stood_still_for_too_long_is_made_again(server, stream, source, monkeypatch):
    monkeypatch.setattr("dwcli.connectors.nats.IDLE_SECONDS", 0.5)
    server.numbers(f"{stream}.a", 1, 300, pad=1000)
    items = source(batch_bytes=64 * 1024).fetch_data(stream).items
    came = list(next(items).payload["stream_sequence"])
    deadline = time.monotonic() + 20
    while server.do(server.js.stream_info(stream)).state.consumer_count:
        assert time.monotonic() < deadline
    came += [n for item in items for n in item.payload["stream_sequence"]]
    assert came == count(1, 300)


def test_a_read_leaves_no_consumer_behind(server, stream, source):
    server.numbers(f"{stream}.a", 1, 10)
    items = source().fetch_data(stream).items
    next(items)
    items.close()
    assert server.do(server.js.stream_info(stream)).state.consumer_count == 0


def test_a_durable_is_acknowledged_after_the_commit_and_what_was_not_comes_again(server, stream, source):
    server.numbers(f"{stream}.a", 1, 10)
    connector = source(durable="dw", max_messages=5)
    assert read(connector, stream)[0] == count(1, 5)
    connector.close()  # what nobody acknowledged is given back at once
    connector = source(durable="dw")
    came, position, _ = read(connector, stream, {"stream": stream, "sequence": 5})
    assert sorted(came) == count(1, 10)
    connector.acknowledge(position)
    connector.close()
    until(lambda: server.waiting(stream, "dw") == (0, 0))
    assert read(source(durable="dw"), stream)[0] == []


def test_a_durable_does_not_give_a_message_twice_in_one_read(server, stream, source):
    server.numbers(f"{stream}.a", 1, 300, pad=1000)
    connector = source(durable="dw", acknowledge_seconds=0.1, batch_bytes=64 * 1024)
    items = connector.fetch_data(stream).items
    came = list(next(items).payload["stream_sequence"])
    other = server.do(server.js.pull_subscribe_bind(durable="dw", stream=stream))
    deadline = time.monotonic() + 20
    while server.do(other.fetch(1))[0].metadata.num_delivered == 1:
        assert time.monotonic() < deadline
    came += [n for item in items for n in item.payload["stream_sequence"]]
    assert len(came) == len(set(came))


def test_a_work_queue_is_emptied_by_acknowledging(server, source):
    name = f"dw_test_{secrets.token_hex(4)}"
    server.do(
        server.js.add_stream(
            name=name, subjects=[name], storage="memory", retention=api.RetentionPolicy.WORK_QUEUE
        )
    )
    try:
        server.numbers(name, 1, 10)
        with pytest.raises(QueryFailed) as caught:
            read(source(), name)
        assert caught.value.hint == "durable: dw"
        connector = source(durable="dw")
        came, position, _ = read(connector, name)
        connector.acknowledge(position)
        assert came == count(1, 10)
        assert server.do(server.js.stream_info(name)).state.messages == 0
    finally:
        server.do(server.js.delete_stream(name))


def test_batches_are_bounded_by_bytes(server, stream, source):
    server.numbers(f"{stream}.a", 1, 200, pad=10)
    server.numbers(f"{stream}.a", 201, 400, pad=20_000)
    server.numbers(f"{stream}.a", 401, 402, pad=900_000)
    came, _, items = read(source(batch_bytes=200_000), stream)
    assert came == count(1, 402)
    sizes = [item.payload.estimated_size() for item in items]
    # A payload is there twice: whole, and in the column of its field.
    assert len(items) > 20 and sorted(sizes)[-3] <= 3 * 200_000


def test_missing_streams_and_subjects_are_told(stream, source):
    with pytest.raises(ResourceMissing, match="no stream keeps the subject"):
        read(source(), "nowhere.at.all")
    with pytest.raises(ResourceMissing, match=f"Did you mean '{stream}'"):
        read(source(stream=stream + "x"), "a")


def test_discover_lists_subjects(server, stream, source):
    server.numbers(f"{stream}.a", 1, 3)
    found = {resource.name: resource for resource in source().discover()}
    resource = found[f"{stream}.>"]
    assert resource.row_estimate == 3 and resource.kind == "subject"
    assert resource.primary_key == ("stream", "stream_sequence")
    assert [r.name for r in source(subject=f"{stream}.a").discover()] == [f"{stream}.a"]


@pytest.mark.parametrize(
    ("pattern", "subject", "whether"),
    [
        ("a.>", "a.b", True),
        ("a.>", "a", False),
        ("a.>", "a.*.>", True),
        ("a.*", "a.b", True),
        ("a.*", "a.>", False),
        ("a.*", "a.b.c", False),
        ("a.b", "a.*", False),
        (">", "a", True),
    ],
)
def test_subjects_are_compared_with_their_wildcards(pattern, subject, whether):
    assert covers(pattern, subject) is whether


@contextmanager
def own_server(folder, *arguments):
    """URL of a server that is this test's alone, and its process."""
    program = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin")
    if program is None:
        pytest.skip("no nats-server on the PATH")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "-a", "127.0.0.1", "-p", str(port), *arguments]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield f"127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait(20)


def test_a_server_that_goes_away_is_said_to_be_lost(source, tmp_path):
    with own_server(tmp_path, "-js", "-sd", str(tmp_path)) as (address, process):
        server = Server(f"nats://{address}")
        server.do(server.js.add_stream(name="s", subjects=["s"], storage="memory"))
        server.numbers("s", 1, 300, pad=1000)
        server.close()
        items = source(servers=address, batch_bytes=64 * 1024).fetch_data("s").items
        next(items)
        process.kill()
        process.wait()
        with pytest.raises(ConnectionFailed) as caught:
            list(items)
        assert caught.value.layer == "lost"


def test_closing_the_connector_ends_a_read(server, stream, source):
    server.numbers(f"{stream}.a", 1, 300, pad=1000)
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data(stream).items
    next(items)
    client = connector.client
    connector.close()
    connector.module.close(client)
    with pytest.raises(ConnectionFailed):
        list(items)


def test_each_layer_of_a_failed_connection_is_named(source, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]

    def layer(**more):
        with pytest.raises(ConnectionFailed) as caught:
            source(**more)
        assert caught.value.hint and "secret-word" not in f"{caught.value} {caught.value.why}"
        return caught.value.layer

    assert layer(servers="nats://no-such-host.invalid:4222") == "name"
    assert layer(servers=f"127.0.0.1:{closed}") == "port"
    with own_server(tmp_path, "-js", "-sd", str(tmp_path), "--user", "u", "--pass", "right") as (address, _):
        assert layer(servers=address) == "login"
        assert layer(servers=address, username="u", password="secret-word") == "login"
        assert layer(servers=address, token="secret-word") == "login"
        both = f"127.0.0.1:{closed}, {address}"
        assert list(source(servers=both, username="u", password="right").discover()) == []
    with own_server(tmp_path) as (address, _):
        assert layer(servers=address) == "database"


def run(warehouse_url, lake, query, write="append", key=(), options=None, **more):
    """One run of a pipeline that reads the subject; more: config of the connector."""
    job = Job(
        pipeline="s.p",
        source="s",
        lake_name="s.p",
        connector=lambda: create_connector(config(**more)),
        query=query,
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


def test_runs_load_each_message_once(server, stream, warehouse_url, warehouse, tmp_path):
    server.numbers(f"{stream}.a", 1, 3000)
    assert run(warehouse_url, tmp_path, stream, max_messages=2000)["rows_loaded"] == 2000
    assert run(warehouse_url, tmp_path, stream)["rows_loaded"] == 1000
    server.numbers(f"{stream}.a", 3001, 3007)
    assert run(warehouse_url, tmp_path, stream)["rows_loaded"] == 7
    assert run(warehouse_url, tmp_path, stream)["rows_loaded"] == 0
    (row,) = warehouse.execute("select count(*), count(distinct stream_sequence), max(n) from t")
    assert row == (3007, 3007, 3007)


def test_a_durable_that_gives_again_what_was_loaded_is_merged(
    server, stream, warehouse_url, warehouse, tmp_path, monkeypatch
):
    server.numbers(f"{stream}.a", 1, 100)
    settings = {"durable": "dw", "write": "merge", "key": ("stream", "stream_sequence")}
    with monkeypatch.context() as patched:
        patched.setattr("dwcli.connectors.nats.acknowledge", lambda client, position: None)
        run(warehouse_url, tmp_path, stream, **settings)
    server.numbers(f"{stream}.a", 101, 110)
    assert run(warehouse_url, tmp_path, stream, **settings)["rows_inserted"] == 10
    until(lambda: server.waiting(stream, "dw") == (0, 0))
    with pytest.raises(UsageError):
        run(warehouse_url, tmp_path, stream, options=RunOptions(full_refresh=True), **settings)
    (row,) = warehouse.execute("select count(*), count(distinct n) from t")
    assert row == (110, 110)


@pytest.mark.parametrize("point", ["fetch:2", "manifest", "committed"])
def test_a_killed_run_loses_nothing_and_loads_nothing_twice(
    server, stream, warehouse_url, warehouse, tmp_path, point
):
    server.numbers(f"{stream}.a", 1, 500, pad=1000)
    settings = tmp_path / "source.json"
    settings.write_text(json.dumps(config(batch_bytes=64 * 1024)))
    command = [sys.executable, "-m", "dwcli", "run", "--config", str(settings), "--query", stream]
    command += [
        "--source",
        "s",
        "--table",
        "t",
        "--lake",
        str(tmp_path / "lake"),
        "--warehouse",
        warehouse_url,
    ]
    killed = subprocess.run(command, env=os.environ | {"DW_TEST_CRASH_AT": point}, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    server.numbers(f"{stream}.a", 501, 510)
    again = subprocess.run(command, capture_output=True)
    assert again.returncode == 0, again.stderr.decode()
    (row,) = warehouse.execute("select count(*), count(distinct stream_sequence), max(n) from t")
    assert row == (510, 510, 510)

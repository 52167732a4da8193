"""The Redis connector, on a real server."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from dwcli.connectors import create_connector
from dwcli.connectors import redis as ours
from dwcli.connectors._messages import Shape, item_of
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing, SourceData
from dwcli.events import ignore
from dwcli.pipeline.record import Job, RunOptions
from dwcli.pipeline.runner import attempt
from dwcli.warehouse.engine import make_engine
from tests.services import required

URL = os.environ.get("DW_TEST_REDIS", "redis://127.0.0.1:6379")


@pytest.fixture
def server():
    parts = urlsplit(required("Redis", URL))
    with redis.Redis(host=parts.hostname, port=parts.port or 6379, protocol=2) as client:
        yield client


@contextmanager
def own_server(folder, *arguments):
    """Port of a server that is this test's alone."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on the PATH")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--save", "", "--bind", "127.0.0.1", *arguments]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
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


@pytest.fixture
def stream(server):
    """A stream's name of the test's own, dropped afterwards."""
    name = f"dw_test_{secrets.token_hex(4)}"
    yield name
    server.delete(name)


def config(**more):
    parts = urlsplit(URL)
    return {"protocol": "redis", "host": parts.hostname, "port": parts.port or 6379} | more


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


def add(server, stream, count, start=1, **fields):
    """Entries with ids start-0, start+1-0 …"""
    with server.pipeline(transaction=False) as pipe:
        for n in range(start, start + count):
            pipe.xadd(stream, {"n": n} | fields, id=f"{n}-0")
        pipe.execute()


def read(connector, query, position=None):
    """The ids that came, the last position, and the items."""
    items = list(connector.fetch_data(query, Cursor(position=position)).items)
    frames = [item.payload for item in items if item.payload is not None]
    ids = [id for frame in frames for id in frame["entry_id"]]
    return ids, items[-1].position, items


def ids(first, last):
    return [f"{n}-0" for n in range(first, last + 1)]


def test_entries_become_rows(server, stream, source):
    server.xadd(stream, {"naïve": "🦆 tab\t", "qty": "007", "note": ""}, id="1700000000123-4")
    server.xadd(stream, {"qty": b"\xff\x00"}, id="1700000000123-5")
    _, position, (item,) = read(source(), stream)
    first, second = item.payload.rows(named=True)
    assert first["protocol"] == "redis" and first["stream"] == stream
    assert first["entry_id"] == "1700000000123-4"
    assert first["event_time"] == datetime.fromtimestamp(1700000000.123, UTC)
    assert first["naïve"] == "🦆 tab\t" and first["qty"] == "007" and first["note"] == ""
    assert second["naïve"] is None and second["qty"] == "/wA="
    assert second["metadata"] == '{"base64":["qty"]}'
    assert item.types["payload"] == "jsonb" and position["id"] == "1700000000123-5"


def test_an_empty_stream_still_tells_its_columns(server, stream, source):
    server.xadd(stream, {"a": 1}, id="1-0")
    server.xdel(stream, "1-0")
    _, _, (item,) = read(source(), stream)
    assert item.payload.height == 0
    assert item.payload.columns[:3] == ["protocol", "stream", "entry_id"]


def test_each_read_goes_on_where_the_last_one_was_committed(server, stream, source):
    add(server, stream, 10)
    connector = source(max_messages=4)
    first, position, _ = read(connector, stream)
    again, _, _ = read(connector, stream)
    second, position, _ = read(connector, stream, position)
    third, position, _ = read(connector, stream, position)
    nothing, position, items = read(connector, stream, position)
    assert (first, second, third) == (ids(1, 4), ids(5, 8), ids(9, 10)) and again == first
    assert nothing == [] and items[0].payload is None
    add(server, stream, 1, start=11)
    assert read(connector, stream, position)[0] == ["11-0"]


def test_entries_that_come_while_reading_are_left_to_the_next_run(server, stream, source):
    add(server, stream, 500, pad="x" * 1000)
    items = source(batch_bytes=64 * 1024).fetch_data(stream).items
    next(items)
    add(server, stream, 5, start=1000)
    last = list(items)[-1]
    assert last.position["id"] == "500-0"
    assert read(source(), stream, last.position)[0] == ids(1000, 1004)


def test_trimmed_entries_are_an_error_that_counts_them(server, stream, source):
    add(server, stream, 10)
    _, position, _ = read(source(), stream)
    add(server, stream, 10, start=11)
    server.xtrim(stream, maxlen=7, approximate=False)
    with pytest.raises(SourceData, match="3 entries behind 10-0") as caught:
        read(source(), stream, position)
    assert "14-0" in caught.value.why and "on_gap" in caught.value.hint
    came, position, _ = read(source(on_gap="continue"), stream, position)
    assert came == ids(14, 20)
    assert read(source(), stream, position)[0] == []


def test_trimming_what_was_read_is_no_gap(server, stream, source):
    add(server, stream, 10)
    _, position, _ = read(source(max_messages=6), stream)
    server.xtrim(stream, maxlen=4, approximate=False)
    came, position, _ = read(source(), stream, position)
    assert came == ids(7, 10)
    server.xtrim(stream, maxlen=0, approximate=False)
    assert read(source(), stream, position)[0] == []
    add(server, stream, 3, start=11)
    assert read(source(), stream, position)[0] == ids(11, 13)


def test_trimming_while_reading_is_noticed(server, stream, source):
    add(server, stream, 400, pad="x" * 1000)
    items = source(batch_bytes=64 * 1024).fetch_data(stream).items
    next(items)
    server.xtrim(stream, maxlen=10, approximate=False)
    with pytest.raises(SourceData, match="trimmed"):
        list(items)


def test_a_stream_made_anew_is_an_error(server, stream, source):
    add(server, stream, 10)
    _, position, _ = read(source(), stream)
    server.delete(stream)
    add(server, stream, 3)
    with pytest.raises(SourceData, match="ends at 3-0"):
        read(source(), stream, position)


def test_a_position_in_another_stream_is_not_taken_for_this_one(server, stream, source):
    add(server, stream, 3)
    assert read(source(), stream, {"stream": "other", "id": "9-9", "added": 9})[0] == ids(1, 3)


def test_a_group_is_acknowledged_after_the_commit_and_what_was_not_comes_again(server, stream, source):
    add(server, stream, 10)
    server.xgroup_create(stream, "g", id="0")
    server.xreadgroup("g", "other", {stream: ">"}, count=2)
    first, _, _ = read(source(group="g", max_messages=5), stream)
    again, position, _ = read(source(group="g"), stream)
    assert first == ids(3, 7) and again == ids(3, 10)
    connector = source(group="g")
    connector.acknowledge(position)
    waiting = server.xpending(stream, "g")
    assert [(c["name"], c["pending"]) for c in waiting["consumers"]] == [(b"other", 2)]
    assert read(connector, stream, position)[0] == []


def test_a_run_that_died_before_it_acknowledged_is_not_read_again(server, stream, source):
    add(server, stream, 5)
    server.xgroup_create(stream, "g", id="0")
    _, position, _ = read(source(group="g"), stream)
    time.sleep(0.01)  # the server tells times in milliseconds; what is claimed later has to be later
    server.xreadgroup("g", "other", {stream: ">"})
    add(server, stream, 2, start=6)
    assert read(source(group="g"), stream, position)[0] == ids(6, 7)


def test_entries_that_were_claimed_later_are_read(server, stream, source):
    add(server, stream, 5)
    server.xgroup_create(stream, "g", id="0")
    server.xreadgroup("g", "other", {stream: ">"}, count=2)
    came, position, _ = read(source(group="g"), stream)
    time.sleep(0.05)
    server.xclaim(stream, "g", "dw", min_idle_time=0, message_ids=["1-0", "2-0"])
    claimed, position, _ = read(source(group="g"), stream, position)
    assert came == ids(3, 5) and claimed == ids(1, 2)
    source(group="g").acknowledge(position)
    assert server.xpending(stream, "g")["pending"] == 0


def test_a_missing_group_says_how_to_make_it(server, stream, source):
    add(server, stream, 1)
    with pytest.raises(ResourceMissing) as caught:
        read(source(group="none"), stream)
    assert caught.value.hint == f"XGROUP CREATE {stream} none 0"


def test_batches_are_bounded_by_bytes(server, stream, source):
    with server.pipeline(transaction=False) as pipe:
        for n in range(1, 601):
            pipe.xadd(stream, {"pad": "x" * 20_000}, id=f"{n}-0")
        pipe.execute()
    came, _, items = read(source(batch_bytes=200_000), stream)
    assert came == ids(1, 600)
    sizes = [item.payload.estimated_size() for item in items]
    # The first reply comes before it is known how wide the entries are.
    assert len(items) > 100 and max(sizes[1:]) <= 200_000


def test_missing_streams_and_other_keys_are_told_apart(server, stream, source):
    add(server, stream, 1)
    with pytest.raises(ResourceMissing, match=f"Did you mean '{stream}'"):
        read(source(), stream + "s")
    server.delete(stream)
    server.set(stream, "x")
    with pytest.raises(ResourceMissing, match="is a string"):
        read(source(), stream)


def test_discover_lists_streams(server, stream, source):
    add(server, stream, 3)
    server.set(stream + "_text", "x")
    try:
        found = {resource.name: resource for resource in source().discover()}
    finally:
        server.delete(stream + "_text")
    assert found[stream].row_estimate == 3 and found[stream].kind == "stream"
    assert found[stream].primary_key == ("stream", "entry_id") and stream + "_text" not in found


def test_a_connection_that_is_cut_between_two_replies_is_made_again(server, stream, source):
    add(server, stream, 500, pad="x" * 1000)
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data(stream).items
    first = next(items)
    server.client_kill_filter(_id=str(connector.client.server.client_id()))
    came = [id for item in [first, *items] for id in item.payload["entry_id"]]
    assert came == ids(1, 500)


def test_a_server_that_goes_away_is_said_to_be_lost(source, tmp_path):
    with own_server(tmp_path) as port, redis.Redis(port=port, protocol=2) as server:
        add(server, "s", 500, pad="x" * 1000)
        items = source(host="127.0.0.1", port=port, batch_bytes=64 * 1024).fetch_data("s").items
        next(items)
        server.shutdown(nosave=True)
        with pytest.raises(ConnectionFailed) as caught:
            list(items)
        assert caught.value.layer == "lost"


def test_closing_the_connector_ends_a_read(server, stream, source):
    add(server, stream, 10)
    connector = source()
    connector.close()
    connector.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """Port of a server that wants a password and has users with few rights."""
    with own_server(tmp_path_factory.mktemp("redis"), "--requirepass", "right") as port:
        with redis.Redis(port=port, password="right", protocol=2) as client:
            client.execute_command(
                "ACL SETUSER reader on >word ~s* +ping +type +xinfo +multi +exec +client|setname"
            )
            client.execute_command("ACL SETUSER nobody on >word")
            client.xadd("s1", {"a": 1})
        yield port


def test_each_layer_of_a_failed_connection_is_named(guarded, source, monkeypatch):
    monkeypatch.setattr("dwcli.connectors.redis.TIMEOUT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]

    def layer(**more):
        with pytest.raises(ConnectionFailed) as caught:
            source(**{"host": "127.0.0.1", "port": guarded, "password": "right"} | more)
        assert caught.value.hint and "secret-word" not in f"{caught.value} {caught.value.why}"
        return caught.value.layer

    assert layer(host="no-such-host.invalid") == "name"
    assert layer(port=closed) == "port"
    assert layer(password="secret-word") == "login"
    assert layer(password="") == "login"
    assert layer(username="nobody", password="word") == "permission"
    assert layer(database=99) == "database"
    assert layer(tls=True) == "tls"


def test_a_user_that_may_not_read_is_told_which_right_is_missing(guarded, source):
    connector = source(host="127.0.0.1", port=guarded, username="reader", password="word")
    assert connector.describe("s1").row_estimate == 1
    with pytest.raises(QueryFailed) as caught:
        read(connector, "s1")
    assert "+xrange" in caught.value.hint


def run(warehouse_url, lake, stream, **more):
    """One run of a pipeline that reads the stream; more: config of the connector."""
    job = Job(
        pipeline="s.p",
        source="s",
        lake_name="s.p",
        connector=lambda: create_connector(config(**more)),
        query=stream,
        schema="public",
        table="t",
        lake=lake,
    )
    engine = make_engine(warehouse_url)
    try:
        result, error = attempt(job, engine, RunOptions(), ignore)
    finally:
        engine.dispose()
    if error is not None:
        raise error
    return result


def test_runs_load_each_entry_once(server, stream, warehouse_url, warehouse, tmp_path):
    add(server, stream, 3000, pad="x" * 100)
    server.xgroup_create(stream, "g", id="0")
    assert run(warehouse_url, tmp_path, stream, group="g", max_messages=2000)["rows_loaded"] == 2000
    assert server.xpending(stream, "g")["pending"] == 0
    assert run(warehouse_url, tmp_path, stream, group="g")["rows_loaded"] == 1000
    add(server, stream, 7, start=5000)
    assert run(warehouse_url, tmp_path, stream, group="g", batch_bytes=64 * 1024)["rows_loaded"] == 7
    assert run(warehouse_url, tmp_path, stream, group="g")["rows_loaded"] == 0
    (row,) = warehouse.execute("select count(*), count(distinct entry_id), max(payload->>'n') from t")
    assert row == (3007, 3007, "999")


def test_values_that_postgresql_cannot_hold_stop_no_run(server, stream, warehouse_url, warehouse, tmp_path):
    server.xadd(stream, {"a": "x\x00y", "b": '{"not": "parsed"}', "": "nameless", "A": "upper"}, id="1-0")
    server.xadd(stream, {b"\xff": "name", "a": "\ud800".encode("utf-8", "surrogatepass")}, id="2-0")
    assert run(warehouse_url, tmp_path, stream)["rows_loaded"] == 2
    rows = warehouse.execute("select entry_id, payload->>'b', payload->>'A', a from t order by 1").fetchall()
    assert rows[0][1:3] == ('{"not": "parsed"}', "upper")


@pytest.mark.parametrize("point", ["fetch:2", "copied", "manifest", "commit", "committed"])
def test_a_killed_run_loses_nothing_and_loads_nothing_twice(
    server, stream, warehouse_url, warehouse, tmp_path, point
):
    add(server, stream, 500, pad="x" * 1000)
    server.xgroup_create(stream, "g", id="0")
    settings = tmp_path / "source.json"
    settings.write_text(json.dumps(config(group="g", batch_bytes=64 * 1024)))
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
    add(server, stream, 10, start=501)
    again = subprocess.run(command, capture_output=True)
    assert again.returncode == 0, again.stderr.decode()
    (row,) = warehouse.execute("select count(*), count(distinct entry_id) from t")
    assert row == (510, 510)
    assert server.xpending(stream, "g")["pending"] == 0


# -- entries with the same fields ---------------------------------------------------------------------------

TEXTS = ["", "plain", 'é"\\\n\0', "12", "2024-01-02", "2024-01-02T03:04:05Z", "null", "1e9999", "x" * 20_000]


@given(
    names=st.lists(
        st.sampled_from(["a", "b", "é", "stream", "payload_x"]), min_size=1, max_size=4, unique=True
    ),
    rows=st.lists(st.lists(st.sampled_from(TEXTS), min_size=4, max_size=4), min_size=1, max_size=6),
    expand=st.booleans(),
)
def test_entries_alike_become_the_same_columns_at_once_as_one_by_one(names, rows, expand):
    entries = [
        (
            f"{number + 5}-{number}".encode(),
            [part.encode() for pair in zip(names, row, strict=False) for part in pair],
        )
        for number, row in enumerate(rows)
    ]
    made = []
    for make in (
        ours._alike,
        lambda shape, es, at: item_of(shape, [ours._message(e) for e in es], at),
    ):
        shape = Shape("redis", "s", {"entry_id": "text"}, expand=expand)
        made += [[make(shape, entries, 1), make(shape, entries[::-1], 2)]]
    for at_once, one_by_one in zip(*made, strict=True):
        assert at_once.types == one_by_one.types
        assert at_once.position == one_by_one.position
        assert_frame_equal(at_once.payload, one_by_one.payload)


@pytest.mark.parametrize(
    "entries",
    [
        [(b"1-0", [b"a", b"1"]), (b"2-0", [b"b", b"1"])],
        [(b"1-0", [b"a", b"1", b"a", b"2"])],
        [(b"1-0", [b"a", b"\xff"])],
        [(b"1-0", [b"\xff", b"1"])],
        [(b"18446744073709551615-0", [b"a", b"1"])],
        [(b"253402300800000-0", [b"a", b"1"])],
        [(b"1-0", [part for number in range(1_001) for part in (b"f%d" % number, b"")])],
        [],
    ],
)
def test_other_entries_are_looked_at_one_by_one(entries):
    assert ours._alike(Shape("redis", "s", {"entry_id": "text"}), entries, None) is None

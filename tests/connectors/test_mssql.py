"""The SQL Server connector: Microsoft's driver on a server that speaks TDS over CSV and JSON files.

What that server cannot say (exact decimals, datetime2(7), rowversion, permissions) is tested on the SQL
that is sent and on the text that SQL Server documents as its answer.
"""

from __future__ import annotations

import ctypes.util
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from decimal import Decimal
from types import SimpleNamespace

import polars as pl
import pytest

from dwcli.connectors import create_connector, mssql
from dwcli.connectors._mssqltypes import parsed
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing
from tests.pipeline.runs import rows_of
from tests.pipeline.runs import run as run_job

if not os.environ.get("CI"):
    pytest.importorskip("pysqlbridge", reason="make servers installs it")
    if ctypes.util.find_library("ltdl") is None:
        pytest.skip("the driver needs libltdl: apt install libltdl7", allow_module_level=True)

HOSTILE = "tab\t ' \" ` \\ \\N % %s ] [ 🦆 \u2028 é e\u0301"
ROWS = [
    (1, "Ada é", 99.5, 9007199254740993),
    (2, None, None, None),
    (3, HOSTILE, 0.1, -5),
    (4, "x" * 50, 1.0, 0),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridge")
    # A text is declared as long as the longest of them, and a duck is counted as one.
    people = [dict(zip(("id", "name", "score", "big"), row, strict=True)) for row in ROWS]
    tables = {
        "people": people,
        "a.b": [{"a-b": 1}, {"a-b": 2}, {"a-b": 3}],
        "my table": [{"my table": 1}, {"my table": 2}, {"my table": 3}],
        "br]ack[et": [{"br]ack[et": 1}, {"br]ack[et": 2}, {"br]ack[et": 3}],
        "select x": [{"select x": 1}, {"select x": 2}, {"select x": 3}],
        "snö☃": [{"snö☃": 1}, {"snö☃": 2}, {"snö☃": 3}],
        "wide": [{"id": n, "tx": "x" * (3_500 if n > 300 else 10)} for n in range(1, 601)],
        "many": [{"id": n, "tx": f"row {n} " * 8} for n in range(60_000)],
    }
    listed = []
    for place, (name, rows) in enumerate(tables.items()):
        (folder / f"{place}.json").write_text(json.dumps(rows), "utf-8")
        listed.append({"name": name, "json": f"{place}.json"})
    logins = [{"user": "sa", "password": "${env:BRIDGE_PASSWORD}"}]
    (folder / "bridge.json").write_text(json.dumps({"tables": listed, "logins": logins}), "utf-8")
    return folder


@contextmanager
def bridge(folder):
    """A server over the folder's files, on a free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pysqlbridge", "--config", "bridge.json", "--port", "0"],
        cwd=folder,
        env={**os.environ, "BRIDGE_PASSWORD": "right;}{", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        heard = []
        for line in process.stdout:
            heard.append(line)
            if "listening on" in line:
                break
        else:
            pytest.fail("".join(heard))
        # What it says from now on is read, so that it never waits for a reader.
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        yield int(heard[-1].rpartition(":")[2])
    finally:
        process.terminate()
        process.wait()
        reader.join()
        process.stdout.close()


@pytest.fixture(scope="module")
def port(folder):
    with bridge(folder) as port:
        yield port


def config(port):
    return {
        "protocol": "sqlserver", "host": "127.0.0.1", "port": port, "database": "master", "username": "sa",
        "password": "right;}{", "trust_server_certificate": True,
    }  # fmt: skip


@pytest.fixture
def source(port):
    """Opens a connector on the server."""
    opened = []

    def connect(**more):
        connector = create_connector(config(port) | more)
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def read(connector, query, cursor=None):
    """All rows as one frame, the types of the first batch, and the batches."""
    items = list(connector.fetch_data(query, cursor).items)
    return pl.concat([item.payload for item in items]), dict(items[0].types), items


def test_values_and_types_arrive(source):
    frame, types, _ = read(source(), "people")
    assert frame.rows() == ROWS
    assert types == {"id": "bigint", "name": "text", "score": "double precision", "big": "bigint"}
    assert read(source(), "SELECT * FROM people WHERE 1 = 1 -- all;")[1] == types


def test_times_of_a_query_are_read_in_the_zone_of_the_source(source):
    query = (
        "SELECT CAST('2024-07-01T12:00:00.123' AS datetime2(7)) AS at,"
        " CAST('2024-03-10T02:30:00' AS datetime) AS gap"
    )
    frame, types, (item,) = read(source(timezone="America/New_York"), query)
    assert types == {"at": "timestamptz", "gap": "timestamptz"}
    assert frame["at"][0] == datetime.datetime(2024, 7, 1, 16, 0, 0, 123000, datetime.UTC)
    assert f"{frame['gap'][0]:%H:%M}" == "07:30"
    assert item.metadata["changed"] == {"gap: local time that America/New_York skips → shifted": 1}


def test_an_empty_result_still_tells_its_columns(source):
    frame, types, items = read(source(), "SELECT id, name FROM people WHERE id > 99")
    assert frame.height == 0 and len(items) == 1
    assert frame.schema == {"id": pl.Int64, "name": pl.String} and types == {"id": "bigint", "name": "text"}


@pytest.mark.parametrize("name", ["a.b", "my table", "br]ack[et", "select x", "snö☃"])
def test_hostile_names_are_found_again_and_read(source, name):
    connector = source()
    column = name.replace(".", "-")
    (resource,) = (r for r in connector.discover() if [c.name for c in r.columns] == [column])
    frame, _, _ = read(connector, resource.name, Cursor(column, "2", None, "bigint"))
    assert frame[column].to_list() == [2, 3]
    assert connector.describe(resource.name).name == resource.name


def test_the_start_is_inclusive_the_end_exclusive_and_null_is_read(source):
    connector = source()

    def ids(column, start, end=None, type="", query="people"):
        return sorted(read(connector, query, Cursor(column, start, end, type))[0]["id"].to_list())

    assert ids("id", "2", None, "bigint") == [2, 3, 4]
    assert ids("id", "2", "3", "bigint") == [2]
    assert ids("id", None, "2", "bigint") == [1]
    assert ids("big", "9007199254740993", None, "bigint") == [1, 2]
    assert ids("score", "0.1", "99.5", "double precision") == [2, 3, 4]
    assert ids("id", "2", query="WITH a AS (SELECT id, ')' AS x FROM people) SELECT id FROM a") == [2, 3, 4]


def test_batches_are_bounded_by_bytes(source):
    items = read(source(batch_bytes=64 * 1024), "wide")[2]
    assert sum(item.payload.height for item in items) == 600
    assert len(items) > 10 and max(item.payload.estimated_size() for item in items) <= 2 * 64 * 1024


def test_stopping_early_leaves_nothing_open(source):
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("many").items
    next(items)
    items.close()
    assert connector.client.reading == []
    assert read(connector, "SELECT COUNT(*) AS n FROM people")[0].item() == 4


def test_closing_the_connector_ends_a_read(source):
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("many").items
    next(items)
    connector.close()
    connector.close()
    with pytest.raises(ConnectionFailed) as caught:
        list(items)
    assert caught.value.layer == "lost"


@contextmanager
def cutting_relay(port, after):
    """A relay to the server that cuts a connection once `after` bytes have come from the server."""

    def carry(source, target, allowed):
        with source, target:
            while allowed > 0 and (data := _received(source)):
                target.sendall(data[:allowed])
                allowed -= len(data)
            for end in (source, target):
                _shut(end)

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            for pair in ((client, server, 10**12), (server, client, after)):
                threading.Thread(target=carry, args=pair, daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _received(connection):
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def _shut(connection):
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def test_a_connection_that_is_cut_while_reading_is_said_to_be_lost(port, source):
    with cutting_relay(port, after=1_500_000) as relayed:
        connector = source(port=relayed, batch_bytes=64 * 1024)
        items = connector.fetch_data("many").items
        next(items)
        with pytest.raises(ConnectionFailed) as caught:
            list(items)
        assert caught.value.layer == "lost" and connector.client.reading == []
        connector.close()


def test_discover_and_describe(source):
    connector = source()
    found = {r.name: r for r in connector.discover()}
    assert {"people", "a.b", "wide", "[select x]"} <= set(found) or {"[a.b]"} <= set(found)
    people = found["people"]
    assert [(c.name, c.type) for c in people.columns][:2] == [("id", "bigint"), ("name", "text")]
    assert people.columns[1].source_type.startswith("nvarchar(") and people.kind == "table"
    assert connector.describe("[dbo].[people]") == connector.describe("DBO.PEOPLE") == people
    described = connector.describe("SELECT id, name FROM people")
    assert [c.type for c in described.columns] == ["bigint", "text"] and described.kind == "query"


def test_the_key_alone_is_read(source):
    frame = pl.concat([item.payload for item in source().keys("people", ["id"])])
    assert frame.to_dict(as_series=False) == {"id": [1, 2, 3, 4]}
    with pytest.raises(QueryFailed, match="no column nope"):
        list(source().keys("people", ["nope"]))


def test_missing_tables_and_wrong_sql_are_told_apart(source):
    connector = source()
    with pytest.raises(ResourceMissing, match=r"no table 'peopel'. Did you mean 'people'"):
        list(connector.fetch_data("peopel").items)
    with pytest.raises(ResourceMissing):
        list(connector.fetch_data("SELECT * FROM nowhere").items)
    with pytest.raises(ResourceMissing, match=r"no cursor column 'idd'. Did you mean 'id'"):
        list(connector.fetch_data("people", Cursor("idd", "1")).items)
    with pytest.raises(QueryFailed) as caught:
        list(connector.fetch_data("SELECT nope FROM people").items)
    assert "nope" in caught.value.why


def test_each_layer_of_a_failed_connection_is_named(source):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]

    def layer(**more):
        with pytest.raises(ConnectionFailed) as caught:
            source(**more)
        assert caught.value.hint and "secret-word" not in f"{caught.value} {caught.value.why}"
        return caught.value.layer

    assert layer(host="no-such-host.invalid") == "name"
    assert layer(port=free) == "port"
    assert layer(password="secret-word") == "login"
    assert layer(trust_server_certificate=False) == "tls"


def test_ctrl_c_is_heard_while_a_server_is_silent(monkeypatch):
    monkeypatch.setattr(mssql, "LOGIN_SECONDS", 5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
        connector = create_connector(config(silent.getsockname()[1]))
        timer.start()
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            connector.connect()
        assert time.monotonic() - begun < 4
        timer.join()


def test_a_missing_system_library_is_told_with_its_package(tmp_path):
    """The driver finds a file of that name that is no library, as if there were none."""
    (tmp_path / "libltdl.so.7").write_text("")
    script = (
        "from dwcli.connectors.mssql import Config, _open\n"
        "try: _open(Config(host='127.0.0.1', database='d', username='u', password='p'))\n"
        "except Exception as error: print(type(error).__name__, error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("DriverMissing apt install libltdl7")


def test_runs_into_postgres_take_up_where_the_last_one_ended(
    folder, port, warehouse_url, warehouse, tmp_path
):
    made = SimpleNamespace(connector=lambda: create_connector(config(port)))
    settings = {"protocol": "mssql", "query": "people", "write": "merge", "key": ("id",), "cursor": "id"}
    first = run_job(warehouse_url, tmp_path, made, **settings)
    assert first.error is None and first.result["rows_loaded"] == 4
    second = run_job(warehouse_url, tmp_path, made, **settings)
    assert second.error is None and second.result["rows_read"] == 1
    assert rows_of(warehouse, "SELECT id, name, score, big FROM t ORDER BY id") == ROWS


# -- what only a real server has: the SQL that is sent, and the text that it answers with ---------------


def declared(kind, name="x", **more):
    return mssql.Declared(name, kind, **more)


def test_every_type_is_asked_for_in_a_form_that_holds_it():
    asked = {
        kind: mssql.selected(declared(kind)) for kind in ("decimal", "money", "datetime2", "bigint", "xml")
    }
    assert asked == {
        "decimal": "CONVERT(varchar(42), dw.[x])",
        "money": "CONVERT(varchar(42), CONVERT(decimal(19, 4), dw.[x]))",
        "datetime2": "CONVERT(varchar(33), dw.[x], 126)",
        "bigint": "dw.[x]",
        "xml": "CONVERT(nvarchar(max), dw.[x])",
    }
    assert "SWITCHOFFSET(dw.[x], '+00:00')" in mssql.selected(declared("datetimeoffset"))
    types = {
        "money": "numeric(19,4)", "uniqueidentifier": "uuid", "rowversion": "bigint", "varbinary": "bytea",
        "nvarchar": "text", "xml": "text", "time": "time", "datetimeoffset": "timestamptz", "bit": "boolean",
        "hierarchyid": "text", "sql_variant": "text", "real": "double precision",
    }  # fmt: skip
    assert {kind: mssql.postgres_type(declared(kind)) for kind in types} == types
    assert mssql.postgres_type(declared("decimal", precision=38, scale=10)) == "numeric(38,10)"


def test_what_the_server_prints_is_parsed_exactly():
    def values(texts, type, zone="UTC"):
        filled = parsed(pl.Series(texts, dtype=pl.String), type, zone)
        return filled.series.to_list(), dict(filled.changed)

    assert values(["1234567890123456789012345678.0123456789", "-.50", None], "numeric(38,10)")[0] == [
        Decimal("1234567890123456789012345678.0123456789"), Decimal("-0.5000000000"), None,
    ]  # fmt: skip
    assert values(["922337203685477.5807", "-922337203685477.5808"], "numeric(19,4)")[0] == [
        Decimal("922337203685477.5807"), Decimal("-922337203685477.5808"),
    ]  # fmt: skip
    times = ["2024-01-02T03:04:05.1234567", "9999-12-31T23:59:59.9999999", "0001-01-01T00:00:00", None]
    found, changed = values(times, "timestamptz")
    assert [str(t) for t in found] == [
        "2024-01-02 03:04:05.123456+00:00", "9999-12-31 23:59:59.999999+00:00", "0001-01-01 00:00:00+00:00",
        "None",
    ]  # fmt: skip
    assert changed == {"100 nanoseconds cut to microseconds": 2}
    assert values(["2024-01-02T03:04:05.123", "2024-01-02T03:04:05.1234560"], "timestamptz")[1] == {}
    clocks, changed = values(["12:34:56.1234567", "23:59:59", "00:00:00.5000000"], "time")
    assert [str(t) for t in clocks] == ["12:34:56.123456", "23:59:59", "00:00:00.500000"]
    assert changed == {"100 nanoseconds cut to microseconds": 1}
    assert values(["2024-02-29", None], "date")[0] == [datetime.date(2024, 2, 29), None]


def test_bounds_are_of_the_columns_own_type():
    settings = mssql.Config(host="h", database="d", username="u", password="p", timezone="Europe/Berlin")
    at = datetime.datetime(2024, 7, 1, 10, 0, 0, 6667, datetime.UTC)

    def bound(kind, value):
        return mssql.bound(declared(kind), value, settings)

    assert bound("datetime", at) == "CAST('2024-07-01T12:00:00.006' AS datetime)"
    assert bound("datetime2", at) == "CAST('2024-07-01T12:00:00.006667' AS datetime2(7))"
    assert bound("datetimeoffset", at) == "CAST('2024-07-01T10:00:00.006667+00:00' AS datetimeoffset(7))"
    assert bound("decimal", Decimal("9007199254740993.01")) == "9007199254740993.01"
    assert bound("rowversion", 2001) == "CAST(CAST(2001 AS bigint) AS binary(8))"
    assert bound("float", 0.1) == "0.1e0" and bound("float", 1e300) == "1e+300"
    assert bound("nvarchar", "it's\\\n") == "N'it''s\\' + N'\n'"
    assert mssql.comparable(declared("varchar")).endswith("COLLATE Latin1_General_100_BIN2")


def test_a_rowversion_stops_before_the_oldest_open_transaction():
    settings = mssql.Config(host="h", database="d", username="u", password="p")
    columns = (declared("int", "id"), declared("timestamp", "rv", nullable=False))
    source = mssql.Source("[dbo].[t] AS dw", columns, ("dbo", "t"))
    sql = mssql.statement(source, Cursor("rv", "2001", None, "bigint"), settings)
    assert sql == (
        "SELECT dw.[id] AS [id], CONVERT(bigint, dw.[rv]) AS [rv] FROM (SELECT * FROM [dbo].[t] AS dw"
        " WHERE dw.[rv] < MIN_ACTIVE_ROWVERSION()) AS dw"
        " WHERE (dw.[rv] >= CAST(CAST(2001 AS bigint) AS binary(8)))"
    )
    (candidate,) = mssql._cursors(columns, [mssql._column(c) for c in columns], (), set())
    assert candidate.column == "rv" and candidate.sure


@pytest.mark.parametrize(
    ("before", "query"),
    [
        ("", "SELECT 1"),
        ("", "SELECT a FROM t WITH (NOLOCK)"),
        ("WITH a AS (SELECT 1 AS x), b (y) AS (SELECT ')' FROM a) ", "SELECT * FROM b"),
        ("/* with */ WITH [select] AS (SELECT 1 AS x -- select\n) ", "SELECT x FROM [select]"),
    ],
)
def test_a_with_is_put_before_the_brackets(before, query):
    assert mssql.split_with(before + query) == (before, query)


def test_no_value_of_the_config_is_read_as_a_setting():
    settings = mssql.Config(
        host="h", database="d};Encrypt=no", username="u", password="p;}", hostname_in_certificate="x"
    )
    text = mssql.connection_string(settings)
    assert "Database={d}};Encrypt=no}" in text and "PWD={p;}}}" in text and "Encrypt={yes}" in text

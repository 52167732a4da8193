"""The ClickHouse connector, on ClickHouse's own engine (chdb) behind HTTP."""

from __future__ import annotations

import datetime
import os
import socket
import subprocess
import sys
from decimal import Decimal
from types import SimpleNamespace

import polars as pl
import pytest
import urllib3

from dwcli.connectors import create_connector
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing
from tests.connectors.chdb_server import serve
from tests.pipeline.runs import rows_of
from tests.pipeline.runs import run as run_job

if not os.environ.get("CI"):
    pytest.importorskip("chdb", reason="make servers installs it", exc_type=ImportError)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("clickhouse")) as server:
        yield server


@pytest.fixture
def server(engine):
    """The server with an empty database `shop`."""
    engine.run("CREATE DATABASE shop")
    engine.errors, engine.cut_after = "text", None
    engine.denied.clear()
    engine.statements.clear()
    yield engine
    engine.run("DROP DATABASE shop")


@pytest.fixture
def source(server):
    """Opens a connector on the test's database."""
    opened = []

    def connect(**more):
        connector = create_connector(config(server) | more)
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def config(server):
    host, port = server.server_address
    return {
        "protocol": "clickhouse", "host": host, "port": port, "database": "shop",
        "username": "reader", "password": "right",
    }  # fmt: skip


def read(connector, query, cursor=None):
    """All rows as one frame, the types of the first batch, and the batches."""
    items = list(connector.fetch_data(query, cursor).items)
    return pl.concat([item.payload for item in items]), dict(items[0].types), items


HARD = """
CREATE TABLE shop.hard (
  id UInt8, b Nullable(Bool), u64 Nullable(UInt64), i128 Nullable(Int128), u256 Nullable(UInt256),
  f32 Nullable(Float32), f64 Nullable(Float64), bf Nullable(BFloat16), d9 Nullable(Decimal(9, 2)),
  d38 Nullable(Decimal(38, 10)), d76 Nullable(Decimal(76, 40)), s Nullable(String),
  lc LowCardinality(Nullable(String)), fs Nullable(FixedString(4)), u Nullable(UUID), i4 Nullable(IPv4),
  i6 Nullable(IPv6), da Nullable(Date), d32 Nullable(Date32), dt Nullable(DateTime('Europe/Berlin')),
  t6 Nullable(DateTime64(6, 'Asia/Tokyo')), t9 Nullable(DateTime64(9)),
  e Nullable(Enum8('it\\'s)' = 1, 'b' = 2)),
  tm Nullable(Time64(3)), i16 Nullable(Int16)
) ENGINE = MergeTree ORDER BY id SETTINGS enable_time_time64_type = 1
"""
HOSTILE = "tab\t nl\n cr\r ' \" ` \\ \\N % {x:String} 🦆 \u2028 é e\u0301"


def quoted(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def add_hard_values(server):
    """A table of every simple type, with one row of values and one of NULLs."""
    server.run("SET enable_time_time64_type = 1")
    server.run(HARD)
    server.run(
        "INSERT INTO shop.hard VALUES (1, true, 18446744073709551615,"
        " -170141183460469231731687303715884105728,"
        " 115792089237316195423570985008687907853269984665640564039457584007913129639935, 0.1,"
        " 1.7976931348623157e308, 1.5, 1234567.89, 1234567890123456789012345678.0123456789,"
        f" 123456789012345678901234567890123456.0000000000000000000000000000000000000001, {quoted(HOSTILE)},"
        " 'lów', 'ab', '550e8400-e29b-11d4-a716-446655440000', '1.2.3.4', '::ffff:1.2.3.4', '2149-06-06',"
        " '1900-01-01', '2024-07-01 12:00:00', '2024-07-01 12:00:00.000001', '2024-07-01 12:00:00.123456789',"
        " 'it\\'s)', '-112:34:56.125', -32768)"
    )
    server.run("INSERT INTO shop.hard (id) VALUES (2)")


def test_hard_values_arrive_exactly(server, source):
    add_hard_values(server)
    frame, types, (item,) = read(source(), "hard")
    first, second = (dict(zip(frame.columns, row, strict=True)) for row in frame.sort("id").rows())
    utc = datetime.UTC
    assert first == {
        "id": 1,
        "b": True,
        "u64": 2**64 - 1,
        "i128": str(-(2**127)),
        "u256": str(2**256 - 1),
        "f32": 0.10000000149011612,
        "f64": 1.7976931348623157e308,
        "bf": 1.5,
        "d9": Decimal("1234567.89"),
        "d38": Decimal("1234567890123456789012345678.0123456789"),
        "d76": "123456789012345678901234567890123456.0000000000000000000000000000000000000001",
        "s": HOSTILE,
        "lc": "lów",
        "fs": b"ab\0\0",
        "u": "550e8400-e29b-11d4-a716-446655440000",
        "i4": "1.2.3.4",
        "i6": "::ffff:1.2.3.4",
        "da": datetime.date(2149, 6, 6),
        "d32": datetime.date(1900, 1, 1),
        "dt": datetime.datetime(2024, 7, 1, 10, tzinfo=utc),
        "t6": datetime.datetime(2024, 7, 1, 3, 0, 0, 1, tzinfo=utc),
        "t9": datetime.datetime(2024, 7, 1, 12, 0, 0, 123456, tzinfo=utc),
        "e": "it's)",
        "tm": "-112:34:56.125",
        "i16": -32768,
    }
    assert set(second.values()) == {2, None}
    assert types == {
        "id": "bigint", "b": "boolean", "u64": "numeric(20,0)", "i128": "numeric", "u256": "numeric",
        "f32": "double precision", "f64": "double precision", "bf": "double precision", "d9": "numeric(9,2)",
        "d38": "numeric(38,10)", "d76": "numeric(76,40)", "s": "text", "lc": "text", "fs": "bytea",
        "u": "uuid", "i4": "inet", "i6": "inet", "da": "date", "d32": "date", "dt": "timestamptz",
        "t6": "timestamptz", "t9": "timestamptz", "e": "text", "tm": "interval", "i16": "bigint",
    }  # fmt: skip
    assert item.metadata["changed"] == {"t9: nanoseconds cut to microseconds": 1}
    assert read(source(), "SELECT * FROM hard WHERE s LIKE '%é%' OR 1 -- all;")[1] == types


def test_nested_values_become_json(server, source):
    server.run(
        "CREATE TABLE shop.n (id UInt8, a Array(Nullable(Int64)), m Map(String, Decimal(18, 4)),"
        " t Tuple(x Float64, y Array(DateTime64(3, 'Asia/Tokyo'))), g Array(Int256), j JSON,"
        " n Nested(k Int8, v String),"
        " w Variant(String, UInt64), d Dynamic) ENGINE = MergeTree ORDER BY id"
    )
    server.run(
        "INSERT INTO shop.n FORMAT JSONEachRow "
        '{"id":1,"a":[9007199254740993,null],"m":{"é":1.25},"t":{"x":"nan","y":["2024-01-01 09:00:00.5"]},'
        '"g":["-57896044618658097711785492504343953926634992332820282019728792003956564819968"],'
        '"j":{"p":{"q":[1,null]}},"n.k":[1],"n.v":["/"],"w":7,"d":"x"}'
    )
    frame, types, (item,) = read(source(), "n")
    row = {name: frame[name][0] for name in frame.columns}
    assert row == {
        "id": 1,
        "a": "[9007199254740993,null]",
        "m": '{"é":1.25}',
        "t": '{"x":"nan","y":["2024-01-01T00:00:00.500Z"]}',
        "g": "[-57896044618658097711785492504343953926634992332820282019728792003956564819968]",
        "j": '{"p":{"q":[1,null]}}',
        "n.k": "[1]",
        "n.v": '["\\/"]',
        "w": "7",
        "d": '"x"',
    }
    assert {types[name] for name in frame.columns if name != "id"} == {"jsonb"}
    assert item.metadata["changed"] == {"t: NaN or infinity in JSON → string": 1}
    frame = read(source(), "SELECT CAST(NULL AS Dynamic) AS d, CAST(NULL AS Nullable(String)) AS s")[0]
    assert frame.rows() == [(None, None)]


def test_bytes_that_are_not_utf8_are_counted(server, source):
    query = "SELECT arrayJoin([unhex('61ff'), 'é']) AS s, [s] AS a, toFixedString(s, 2) AS f"
    frame, _, (item,) = read(source(), query)
    assert frame.rows() == [("\\x61ff", '["a\ufffd"]', b"a\xff"), ("é", '["é"]', "é".encode())]
    assert item.metadata["changed"] == {
        "s: bytes that are not UTF-8 → hex text": 1,
        "a: bytes that are not UTF-8 → U+FFFD": 1,
    }


def test_an_empty_table_still_tells_its_columns(server, source):
    server.run("CREATE TABLE shop.e (a UInt64, d Decimal(12, 2), t DateTime) ENGINE = Memory")
    for query in ("e", "SELECT * FROM e"):
        frame, types, items = read(source(), query)
        assert frame.height == 0 and len(items) == 1
        assert frame.schema == {"a": pl.UInt64, "d": pl.Decimal(12, 2), "t": pl.Datetime("us", "UTC")}
        assert types == {"a": "numeric(20,0)", "d": "numeric(12,2)", "t": "timestamptz"}


@pytest.mark.parametrize(
    "name", ["a.b", "my table", "`tick`", 'quo"te', "select x", "per%cent {x}", "snö☃", "it's"]
)
def test_hostile_names_are_found_again_and_read(server, source, name):
    quoted = "`" + name.replace("`", "\\`") + "`"
    server.run(f"CREATE TABLE shop.{quoted} ({quoted} Int32) ENGINE = MergeTree ORDER BY {quoted}")
    server.run(f"INSERT INTO shop.{quoted} VALUES (1), (2), (3)")
    connector = source()
    (resource,) = connector.discover()
    frame, _, _ = read(connector, resource.name, Cursor(name, "2", None, "bigint"))
    assert frame[name].to_list() == [2, 3]
    assert connector.describe(resource.name).name == resource.name


def test_the_start_is_inclusive_the_end_exclusive_and_null_is_read(server, source):
    server.run(
        "CREATE TABLE shop.c (id UInt64, at Nullable(DateTime64(6, 'Asia/Tokyo')), ns DateTime64(9, 'UTC'),"
        " n Nullable(Decimal(18, 2)), tx Nullable(String), h UInt256, da Date, e Enum8('a' = 2, 'b' = 1),"
        " dt DateTime) ENGINE = MergeTree ORDER BY id"
    )
    server.run(
        "INSERT INTO shop.c VALUES (1, '2024-01-01 00:00:00.000001', '2024-01-01 00:00:00.000000999', 1, 'A',"
        " 1, '2024-01-01', 'a', '2024-01-01 00:00:01'),"
        "(2, '2024-01-01 00:00:00.000002', '2024-01-01 00:00:00.000001001', 2, 'a', 2, '2024-01-02', 'b',"
        " '2024-01-01 00:00:02'),"
        "(3, '2024-01-01 00:00:00.000002', '2024-01-01 00:00:00.000001999', 9007199254740993.01, 'b ',"
        " 340282366920938463463374607431768211457, '2024-01-03', 'b', '2024-01-01 00:00:03'),"
        "(4, NULL, '2024-01-01 00:00:00.000002', NULL, NULL, 0, '2024-01-04', 'a', '2024-01-01 00:00:04'),"
        "(18446744073709551615, '2024-01-01 00:00:00.000003', '2025-01-01 00:00:00', 9007199254740994, 'é',"
        " 340282366920938463463374607431768211458, '2024-01-05', 'a', '2024-01-01 00:00:05')"
    )
    connector = source()
    big = 2**64 - 1

    def ids(column, start, end=None, type=""):
        return sorted(read(connector, "c", Cursor(column, start, end, type))[0]["id"].to_list())

    assert ids("at", "2023-12-31 15:00:00.000002+00", None, "timestamptz") == [2, 3, 4, big]
    assert ids("at", "2023-12-31 15:00:00.000002+00", "2023-12-31 15:00:00.000003+00") == [2, 3, 4]
    assert ids("ns", "2024-01-01 00:00:00.000001+00", "2024-01-01 00:00:00.000002+00") == [2, 3]
    assert ids("n", "9007199254740993.01", None, "numeric(18,2)") == [3, 4, big]
    assert ids("tx", "a", None, "text") == [2, 3, 4, big]
    assert ids("tx", "x' OR 1=1 -- ", None, "text") == [4, big]
    assert ids("tx", "\\", "b!", "text") == [2, 3, 4]
    assert ids("id", str(big), None, "numeric(20,0)") == [big]
    assert ids("da", "2024-01-03", "2024-01-05", "date") == [3, 4]
    assert ids("dt", "2024-01-01 00:00:03+00", None, "timestamptz") == [3, 4, big]
    assert ids("e", "b", None, "text") == [2, 3]
    query = "SELECT id AS i, h FROM c WHERE tx NOT LIKE 'z%'"
    assert sorted(read(connector, query, Cursor("i", "3"))[0]["i"].to_list()) == [3, big]


def test_batches_are_bounded_by_bytes(server, source):
    server.run("CREATE TABLE shop.wide (id UInt32, tx String) ENGINE = MergeTree ORDER BY id")
    server.run(
        "INSERT INTO shop.wide SELECT number, repeat('x', if(number > 300, 20000, 10)) FROM numbers(600)"
    )
    items = read(source(batch_bytes=200_000), "wide")[2]
    assert sum(item.payload.height for item in items) == 600
    assert len(items) > 15 and max(item.payload.estimated_size() for item in items) <= 2 * 200_000
    (statement,) = (s for s in server.statements if "wide" in s and s.startswith("SELECT dw"))
    assert statement.startswith("SELECT dw.`id` AS `id`")


def test_a_large_result_is_streamed(server, source):
    items = (
        source(batch_bytes=1_000_000)
        .fetch_data("SELECT number AS n, toString(n) AS s FROM numbers(2000000)")
        .items
    )
    rows, largest = 0, 0
    for item in items:
        rows += item.payload.height
        largest = max(largest, item.payload.estimated_size())
    assert rows == 2_000_000 and largest < 2_000_000


@pytest.mark.parametrize("told", ["text", "tagged"])
def test_an_error_in_the_middle_of_the_answer_is_an_error(server, source, told):
    server.errors = told
    items = source(batch_bytes=64 * 1024).fetch_data(
        "SELECT number, throwIf(number = 300000, 'the disk is full') AS x FROM numbers(1000000)"
    ).items  # fmt: skip
    next(items)
    with pytest.raises(QueryFailed) as caught:
        list(items)
    assert "the disk is full" in caught.value.why and "exception__" not in caught.value.why


@pytest.mark.parametrize("after", [100, 5_000, 900_000])
def test_an_answer_that_is_cut_is_said_to_be_lost(server, source, after):
    server.cut_after = after
    connector = source(batch_bytes=64 * 1024)
    with pytest.raises(ConnectionFailed) as caught:
        list(connector.fetch_data("SELECT number FROM numbers(1000000)").items)
    assert caught.value.layer == "lost" and connector.client.reading == []


def test_stopping_early_ends_the_query_on_the_server(server, source):
    server.ended_by_client.clear()
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("SELECT number, repeat('x', 100) FROM numbers(10000000)").items
    next(items)
    items.close()
    assert connector.client.reading == []
    assert server.ended_by_client.wait(20)
    assert read(connector, "SELECT 1 AS a")[0].rows() == [(1,)]


def test_closing_the_connector_ends_a_read(server, source):
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("SELECT number, repeat('x', 100) FROM numbers(10000000)").items
    next(items)
    connector.close()
    connector.close()
    with pytest.raises(ConnectionFailed) as caught:
        list(items)
    assert caught.value.layer == "lost"


def test_closing_ends_a_read_that_never_waits_for_the_server(server, source, monkeypatch):
    """Bytes that come after a shutdown are received all the same, so the read has to look for itself."""
    monkeypatch.setattr(urllib3.HTTPResponse, "shutdown", lambda response: None)
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("SELECT number, repeat('x', 100) FROM numbers(10000000)").items
    next(items)
    connector.close()
    with pytest.raises(ConnectionFailed, match="broke while reading"):
        list(items)


def test_discover_tells_keys_cursors_and_sizes(server, source):
    server.run(
        "CREATE TABLE shop.r (id UInt64, v UInt32, updated_at DateTime, note String,"
        " made DateTime MATERIALIZED now())"
        " ENGINE = ReplacingMergeTree(v) ORDER BY (id, note)"
    )
    server.run(
        "CREATE TABLE shop.m (updated_at DateTime64(3), x Nullable(Int8)) ENGINE = MergeTree"
        " ORDER BY updated_at"
    )
    server.run("CREATE VIEW shop.v AS SELECT id FROM shop.r")
    server.run("INSERT INTO shop.r VALUES (1, 1, now(), 'a'), (2, 1, now(), 'b')")
    connector = source()
    m, r, v = connector.discover()
    assert (r.name, r.primary_key) == ("r", ("id", "note"))
    assert r.key_reason == "sorting key of a ReplacingMergeTree: FINAL gives one row each"
    assert r.row_estimate == 2 and r.bytes_estimate > 0
    assert [c.name for c in r.columns] == ["id", "v", "updated_at", "note"]
    assert [c.column for c in r.cursors] == ["v", "updated_at"]
    assert m.primary_key == () and m.cursors[0].column == "updated_at" and m.cursors[0].sure
    assert [c.nullable for c in m.columns] == [False, True] and m.columns[0].source_type == "DateTime64(3)"
    assert v.kind == "view"
    assert connector.describe("r") == r
    described = connector.describe("SELECT id, updated_at FROM r")
    assert [c.type for c in described.columns] == [
        "numeric(20,0)",
        "timestamptz",
    ] and described.kind == "query"
    assert connector.describe("system.one").columns[0].name == "dummy"


def test_replaced_rows_are_left_out_unless_asked_for(server, source):
    server.run("CREATE TABLE shop.r (id UInt8, v UInt8) ENGINE = ReplacingMergeTree(v) ORDER BY id")
    server.run("SYSTEM STOP MERGES shop.r")
    server.run("INSERT INTO shop.r VALUES (1, 1)")
    server.run("INSERT INTO shop.r VALUES (1, 2)")
    assert read(source(), "r")[0].rows() == [(1, 2)]
    assert read(source(), "r", Cursor("v", "1", None, "bigint"))[0].rows() == [(1, 2)]
    assert source().describe("r").primary_key == ("id",)
    plain = source(final=False)
    assert read(plain, "r")[0].height == 2 and plain.describe("r").primary_key == ()


def test_the_key_alone_is_read(server, source):
    server.run("CREATE TABLE shop.k (id UInt8, v String) ENGINE = MergeTree ORDER BY id")
    server.run("INSERT INTO shop.k VALUES (1, 'a'), (2, 'b')")
    frame = pl.concat([item.payload for item in source().keys("k", ["id"])])
    assert frame.to_dict(as_series=False) == {"id": [1, 2]}
    with pytest.raises(QueryFailed, match="no column nope"):
        list(source().keys("k", ["nope"]))


def test_missing_tables_and_wrong_sql_are_told_apart(server, source):
    server.run("CREATE TABLE shop.orders (id Int8) ENGINE = Memory")
    connector = source()
    with pytest.raises(ResourceMissing, match=r"no table 'order'. Did you mean 'orders'"):
        list(connector.fetch_data("order").items)
    with pytest.raises(ResourceMissing):
        list(connector.fetch_data("SELECT * FROM nowhere").items)
    with pytest.raises(ResourceMissing, match=r"no cursor column 'idd'. Did you mean 'id'"):
        list(connector.fetch_data("orders", Cursor("idd", "1")).items)
    with pytest.raises(QueryFailed) as caught:
        list(connector.fetch_data("SELECT nope FROM orders").items)
    assert "nope" in caught.value.why
    with pytest.raises((QueryFailed, ResourceMissing)):
        list(connector.fetch_data("DROP TABLE orders").items)
    with pytest.raises(QueryFailed):
        list(connector.fetch_data("SELECT 1) AS a, (SELECT 2").items)
    server.denied.add("orders")
    with pytest.raises(QueryFailed) as caught:
        list(connector.fetch_data("orders").items)
    assert caught.value.hint == "GRANT SELECT ON `shop`.* TO `reader`"


def test_each_layer_of_a_failed_connection_is_named(server, source):
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
    assert layer(database="no_such_database") == "database"
    assert layer(tls=True) == "tls"


def test_runs_into_postgres_take_up_where_the_last_one_ended(server, warehouse_url, warehouse, tmp_path):
    server.run(
        "CREATE TABLE shop.orders (id UInt64, total Decimal(12, 2), tags Array(String), at DateTime64(6))"
        " ENGINE = MergeTree ORDER BY id"
    )
    server.run(
        "INSERT INTO shop.orders VALUES (1, 1.10, ['a'], '2024-01-01 00:00:00'),"
        " (2, 2, [], '2024-01-02 00:00:00'),"
        " (3, 3, ['é'], '2024-01-02 00:00:00')"
    )
    made = SimpleNamespace(connector=lambda: create_connector(config(server)))
    settings = {"protocol": "clickhouse", "query": "orders", "write": "merge", "key": ("id",), "cursor": "at"}
    first = run_job(warehouse_url, tmp_path, made, **settings)
    assert first.error is None and first.result["rows_loaded"] == 3
    server.run(
        "INSERT INTO shop.orders VALUES (4, 4, [], '2024-01-02 00:00:00'), (5, 5, [], '2024-01-03 00:00:00')"
    )
    second = run_job(warehouse_url, tmp_path, made, **settings)
    assert second.error is None and second.result["rows_read"] == 4
    assert rows_of(warehouse, "SELECT id, total, tags, at::text FROM t ORDER BY id")[0] == (
        1, Decimal("1.10"), ["a"], "2024-01-01 00:00:00+00",
    )  # fmt: skip
    assert rows_of(warehouse, "SELECT count(*), sum(total) FROM t") == [(5, Decimal("15.10"))]


def test_hard_values_reach_postgres(server, warehouse_url, warehouse, tmp_path):
    add_hard_values(server)
    made = SimpleNamespace(connector=lambda: create_connector(config(server)))
    outcome = run_job(warehouse_url, tmp_path, made, protocol="clickhouse", query="hard")
    assert outcome.error is None
    names = "u64, i128, u256, d38, d76, s, fs, u, i6, d32, dt, t6, tm"
    texts = ", ".join(f"{name}::text" for name in names.split(", "))
    first, second = rows_of(warehouse, f"SELECT {texts} FROM t ORDER BY id")
    assert first == (
        str(2**64 - 1), str(-(2**127)), str(2**256 - 1), "1234567890123456789012345678.0123456789",
        "123456789012345678901234567890123456.0000000000000000000000000000000000000001", HOSTILE,
        "\\x61620000", "550e8400-e29b-11d4-a716-446655440000", "::ffff:1.2.3.4/128", "1900-01-01",
        "2024-07-01 10:00:00+00", "2024-07-01 03:00:00.000001+00", "-112:34:56.125",
    )  # fmt: skip
    assert set(second) == {None}


def test_a_profile_that_fixes_settings_refuses_only_what_needs_them(server, source):
    connector = source()
    known = connector.client.server.server_settings
    name = "output_format_json_quote_denormals"
    known[name] = SimpleNamespace(name=name, value="0", readonly=1)
    assert read(connector, "SELECT 1 AS a")[0].rows() == [(1,)]
    with pytest.raises(QueryFailed, match=f"may not change the setting {name}") as caught:
        read(connector, "SELECT [1.5] AS a")
    assert "readonly = 2" in caught.value.hint


def test_a_port_that_is_no_clickhouse_is_told_without_a_traceback():
    script = (
        "import socket, threading\n"
        "from dwcli.connectors import create_connector\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "def serve():\n"
        "    for _ in range(9):\n"
        "        with server.accept()[0] as connection:\n"
        "            connection.recv(9); connection.sendall(b'SSH-2.0-x\\r\\n')\n"
        "threading.Thread(target=serve, daemon=True).start()\n"
        "config = dict(protocol='clickhouse', host='127.0.0.1', port=server.getsockname()[1])\n"
        "try: create_connector(config).connect()\n"
        "except Exception as error: print(error.layer, error.why)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("port ") and "SSH-2.0" in done.stdout
    assert done.stderr == ""

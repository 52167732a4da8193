"""The Cassandra connector, on a server of the tests that speaks CQL's binary protocol."""

from __future__ import annotations

import datetime
import json
import struct
from decimal import Decimal
from types import SimpleNamespace
from uuid import UUID

import polars as pl
import pytest
from cassandra.util import Duration

from dwcli.connectors import cassandra, create_connector
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing, SourceData
from tests.connectors.cassandra_server import Server, Stored, Table
from tests.connectors.servers_documents import free_port
from tests.pipeline import runs

UTC = datetime.UTC


@pytest.fixture
def serve():
    """Starts a server with these tables in the keyspace `ks`, and opens connectors on it."""
    opened = []

    def start(tables, udts=None, **more):
        server = Server({"ks": tables}, udts or {}, **more)
        server.__enter__()
        opened.append(server.__exit__)

        def connect(**given):
            config = {"protocol": "cassandra", "hosts": ["127.0.0.1"], "port": server.port, "keyspace": "ks"}
            connector = create_connector(config | given)
            connector.connect()
            opened.append(lambda *_: connector.close())
            return connector

        return SimpleNamespace(server=server, connect=connect)

    yield start
    for end in reversed(opened):
        end(None, None, None)


def read(connector, query, cursor=None):
    items = list(connector.fetch_data(query, cursor).items)
    return pl.concat([item.payload for item in items]), dict(items[0].types), items


SCALARS = {
    "id": "uuid", "tu": "timeuuid", "a": "ascii", "t": "text", "i": "int", "b": "bigint", "c": "counter",
    "s": "smallint", "ti": "tinyint", "v": "varint", "d": "decimal", "f": "float", "db": "double",
    "ok": "boolean", "raw": "blob", "at": "timestamp", "day": "date", "tm": "time", "dur": "duration",
    "ip": "inet",
}  # fmt: skip


def test_every_scalar_arrives_exactly(serve):
    ident = UUID("550e8400-e29b-11d4-a716-446655440000")
    row = [
        ident, ident, "plain", "é 🦆 \u2028", 2**31 - 1, -(2**63), 7, -(2**15), 127, -(10**40),
        Decimal("-1234567890123456789012345678901234567890.0010"),
        struct.unpack("f", struct.pack("f", 0.1))[0],
        1.7976931348623157e308, True, bytes(range(256)), datetime.datetime(1969, 12, 31, 23, 59, 59, 999000),
        datetime.date(9999, 12, 31), Stored(struct.pack(">q", 86_399_999_999_000)),
        Duration(14, -3, -1_500_000_000), "2001:db8::1",
    ]  # fmt: skip
    nothing = [ident, *[None] * (len(SCALARS) - 1)]
    source = serve({"t": Table(SCALARS, [row, nothing], ("id",))})
    frame, types, _ = read(source.connect(), "t")
    got = frame.row(0, named=True)
    assert got["id"] == got["tu"] == str(ident) and types["id"] == types["tu"] == "uuid"
    assert (got["a"], got["t"]) == ("plain", "é 🦆 \u2028")
    assert [got[n] for n in ("i", "b", "c", "s", "ti")] == [2**31 - 1, -(2**63), 7, -(2**15), 127]
    assert got["v"] == str(-(10**40)) and types["v"] == types["d"] == "numeric"
    assert got["d"] == "-1234567890123456789012345678901234567890.0010"
    assert got["f"] == row[11] and got["db"] == row[12] and types["f"] == "double precision"
    assert got["ok"] is True and got["raw"] == bytes(range(256)) and types["raw"] == "bytea"
    assert got["at"] == datetime.datetime(1969, 12, 31, 23, 59, 59, 999000, UTC)
    assert got["day"] == datetime.date(9999, 12, 31) and types["day"] == "date"
    assert (got["tm"], types["tm"]) == ("23:59:59.999999", "time")
    assert (got["dur"], types["dur"]) == ("14 mons -3 days -1.500000 secs", "interval")
    assert (got["ip"], types["ip"]) == ("2001:db8::1", "inet")
    assert set(frame.row(1)[1:]) == {None}


def test_collections_tuples_and_udts_are_jsonb(serve):
    columns = {
        "id": "int", "l": "list<decimal>", "s": "set<int>", "m": "map<int, frozen<list<text>>>",
        "tp": "tuple<int, text, timestamp>", "u": "frozen<addr>", "n": "map<text, frozen<addr>>",
    }  # fmt: skip
    udts = {"addr": [("street name", "text"), ("at", "timestamp"), ("ids", "list<uuid>")]}
    at, ident = datetime.datetime(2024, 1, 1), UUID(int=1)
    address = ("é", at, [ident])
    row = [1, [Decimal("1.10"), Decimal("1E+3")], {3, 1}, {7: ["a"]}, (1, "x", at), address, {"k": address}]
    source = serve({"t": Table(columns, [row, [2, *[None] * 6]], ("id",))}, udts)
    frame, types, _ = read(source.connect(), "t")
    got = frame.row(0, named=True)
    shown = {"street name": "é", "at": "2024-01-01T00:00:00Z", "ids": [str(ident)]}
    assert got["l"] == "[1.10,1E+3]" and json.loads(got["s"]) == [1, 3]
    assert json.loads(got["m"]) == {"7": ["a"]} and json.loads(got["tp"]) == [1, "x", "2024-01-01T00:00:00Z"]
    assert json.loads(got["u"]) == shown and json.loads(got["n"]) == {"k": shown}
    assert {types[name] for name in "lsmun"} == {"jsonb"} and types["tp"] == "jsonb"


def test_what_python_has_not_arrives_as_postgresql_writes_it(serve):
    columns = {"id": "int", "at": "timestamp", "day": "date", "tm": "time", "n": "int"}

    def row(number, ms, days, ns):
        values = (Stored(struct.pack(form, v)) for form, v in ((">q", ms), (">I", days + 2**31), (">q", ns)))
        return [number, *values, Stored(b"")]

    rows = [row(1, 253402300800000, 2932897, 1_001), row(2, -(2**63), -(2**31), 0)]
    frame, types, (item,) = read(serve({"t": Table(columns, rows, ("id",))}).connect(), "t")
    assert frame["at"].to_list() == ["10000-01-01 00:00:00.000+00", "-infinity"]
    assert frame["day"].to_list() == ["10000-01-01", "-infinity"]
    assert frame["tm"].to_list() == ["00:00:00.000001", "00:00:00.000000"] and frame["n"].null_count() == 2
    assert (types["at"], types["day"], types["n"]) == ("timestamptz", "date", "bigint")
    assert item.metadata["changed"] == {
        "at: instant outside PostgreSQL's range → infinity": 1,
        "day: date outside PostgreSQL's range → infinity": 1,
        "tm: nanoseconds cut": 1,
    }


def test_a_value_that_cannot_be_decoded_is_named(serve):
    huge = Stored(struct.pack(">i", 2**31 - 1) + b"\x01")
    source = serve({"t": Table({"id": "int", "d": "decimal"}, [[1, huge]], ("id",))})
    with pytest.raises(SourceData, match="column 'd'"):
        read(source.connect(), "t")


def numbers(count, width=10):
    return Table({"id": "int", "t": "text"}, [[n, "x" * width] for n in range(count)], ("id",))


def test_pages_follow_the_size_of_rows(serve):
    rows = [[n, "x" * (20_000 if n > 600 else 10)] for n in range(1200)]
    source = serve({"wide": Table({"id": "int", "t": "text"}, rows, ("id",))})
    frame, _, items = read(source.connect(batch_bytes=200_000), "wide")
    assert frame["id"].to_list() == list(range(1200))
    sizes = [item.payload.estimated_size() for item in items]
    assert len(items) > 15 and max(sizes) <= 2 * 200_000
    assert source.server.pages[0] == 100 and source.server.pages[-2] < 10
    assert sum(source.server.pages) == 1200


def test_an_empty_table_still_tells_its_columns(serve):
    source = serve({"t": Table(SCALARS, [], ("id",))})
    frame, types, items = read(source.connect(), "t")
    assert frame.height == 0 and len(items) == 1 and list(types) == list(frame.columns)
    assert frame.schema["at"] == pl.Datetime("us", "UTC") and frame.schema["i"] == pl.Int64


def test_the_start_is_inclusive_the_end_exclusive_and_null_is_read(serve):
    columns = {"id": "int", "at": "timestamp", "n": "decimal", "s": "text", "day": "date", "tu": "timeuuid"}

    def at(second, micro=0):
        return datetime.datetime(2024, 1, 1, 0, 0, second, micro)

    day = datetime.date
    rows = [
        [1, at(1), Decimal("1"), "a", day(2024, 1, 1), None],
        [2, at(2), Decimal("1.10"), "b", day(2024, 1, 2), None],
        [3, at(2), Decimal("1.1"), "b", day(2024, 1, 2), None],
        [4, None, None, None, None, None],
        [5, at(2, 1000), Decimal("2"), "é", day(2024, 1, 3), None],
    ]
    connector = serve({"c": Table(columns, rows, ("id",))}).connect()

    def ids(column, start, end, kind, query="c"):
        return read(connector, query, Cursor(column, start, end, kind))[0]["id"].to_list()

    assert ids("at", "2024-01-01 01:00:02+01", None, "timestamptz") == [2, 3, 4, 5]
    assert ids("at", "2024-01-01 00:00:02+00", "2024-01-01 00:00:02.0005+00", "timestamptz") == [2, 3, 4]
    assert ids("at", None, "2024-01-01 00:00:02+00", "timestamptz") == [1, 4]
    assert ids("n", "1.1", None, "numeric") == [2, 3, 4, 5]
    assert ids("id", "3", None, "bigint") == [3, 4, 5]
    assert ids("s", "b", None, "text") == [2, 3, 4, 5]
    assert ids("day", "2024-01-02", "2024-01-03", "date") == [2, 3, 4]
    assert ids("id", "3", None, "bigint", "SELECT id, at FROM c") == [3, 4, 5]
    assert ids("id", "9", None, "bigint") == []
    with pytest.raises(QueryFailed, match="timeuuid"):
        ids("tu", "x", None, "uuid")
    with pytest.raises(ResourceMissing, match="no cursor column 'idd'"):
        ids("idd", "1", None, "bigint")


def test_names_of_any_kind_are_found_again_and_read(serve):
    table = Table({"Ünï": "int", 'quo"te': "int", "select": "int"}, [[1, 2, 3]], ("Ünï",))
    connector = serve({"MyTable": table, "plain": numbers(1)}).connect()
    assert [r.name for r in connector.discover()] == ["MyTable", "plain"]
    for query in ("MyTable", '"MyTable"', "ks.MyTable", "mytable"):
        frame, _, _ = read(connector, query)
        assert frame.row(0, named=True) == {"Ünï": 1, 'quo"te': 2, "select": 3}


def test_discover_and_describe_tell_keys_and_types(serve):
    columns = {"day": "date", "at": "timestamp", "v": "varint", "b": "int", "updated_at": "timestamp"}
    connector = serve({"e": Table(columns, [], ("day", "b"), ("at",))}).connect()
    (found,) = connector.discover()
    assert [(c.name, c.type, c.nullable) for c in found.columns] == [
        ("day", "date", False), ("b", "bigint", False), ("at", "timestamptz", True),
        ("updated_at", "timestamptz", True), ("v", "numeric", True),
    ]  # fmt: skip
    assert found.primary_key == ("day", "b", "at") and [c.column for c in found.cursors] == ["updated_at"]
    assert connector.describe("e") == found
    query = connector.describe("SELECT v, at FROM e")
    assert [(c.name, c.type) for c in query.columns] == [("v", "numeric"), ("at", "timestamptz")]


def test_keys_alone_are_read(serve):
    connector = serve({"t": numbers(3)}).connect()
    (item,) = connector.keys("t", ["id"])
    assert item.payload.rows() == [(0,), (1,), (2,)]
    (item,) = connector.keys("SELECT id, t FROM t", ["id"])
    assert item.payload.columns == ["id"] and list(item.types) == ["id"]


def test_what_is_not_there_or_wrong_is_named(serve):
    connector = serve({"orders": numbers(1), "secret": numbers(1)}, forbidden=("secret",)).connect()
    with pytest.raises(ResourceMissing, match=r"no table 'order'. Did you mean 'orders'"):
        read(connector, "order")
    with pytest.raises(ResourceMissing, match="not there"):
        read(connector, "SELECT a FROM nowhere")
    with pytest.raises(QueryFailed) as caught:
        read(connector, "SELECT nope FROM orders")
    assert "nope" in caught.value.why
    with pytest.raises(QueryFailed, match="may not read") as caught:
        read(connector, "secret")
    assert "GRANT SELECT" in caught.value.hint


def test_a_connection_cut_while_reading_is_said_to_be_lost(serve):
    source = serve({"t": numbers(5000)})
    connector = source.connect(batch_bytes=64 * 1024)
    source.server.cut_at_page = 3
    rows = 0
    with pytest.raises(ConnectionFailed) as caught:
        for item in connector.fetch_data("t").items:
            rows += item.payload.height
    assert caught.value.layer == "lost" and rows < 5000


def test_closing_the_connector_ends_a_read(serve):
    connector = serve({"t": numbers(5000, 200)}).connect(batch_bytes=64 * 1024)
    items = connector.fetch_data("t").items
    next(items)
    connector.close()
    connector.close()
    with pytest.raises(ConnectionFailed) as caught:
        list(items)
    assert caught.value.layer == "lost"


def test_each_layer_of_a_failed_connection_is_named(serve, monkeypatch):
    monkeypatch.setattr(cassandra, "TIMEOUT_SECONDS", 1.5)
    source = serve({"t": numbers(2)}, password="right-word")

    def failed(**more):
        with pytest.raises(ConnectionFailed) as caught:
            source.connect(**more)
        told = f"{caught.value} {caught.value.why} {caught.value.hint}"
        assert caught.value.hint and "secret-word" not in told and "right-word" not in told
        return caught.value.layer

    right = {"username": "reader", "password": "right-word"}
    assert failed(hosts=["no-such-host.invalid"]) == "name"
    assert failed(port=free_port()) == "port"
    assert failed(username="reader", password="secret-word") == "login"
    assert failed() == "login"
    assert failed(keyspace="kss", **right) == "database"
    assert failed(tls=True, **right) in ("tls", "port")
    assert read(source.connect(**right), "t")[0].height == 2


def test_runs_into_postgresql_and_again(serve, warehouse_url, warehouse, tmp_path):
    columns = {
        "id": "int",
        "n": "varint",
        "day": "date",
        "tm": "time",
        "dur": "duration",
        "m": "map<text, int>",
    }
    beyond = Stored(struct.pack(">I", 2932897 + 2**31))
    noon = Stored(struct.pack(">q", 43_200_000_000_000))
    table = Table(columns, [[1, 10**30, beyond, noon, Duration(1, 2, 3_000_000_000), {"a": 1}]], ("id",))
    source = serve({"t": table})
    config = {"protocol": "scylla", "hosts": ["127.0.0.1"], "port": source.server.port, "keyspace": "ks"}
    connector = SimpleNamespace(connector=lambda: create_connector(config))

    def load():
        more = {"query": "t", "write": "merge", "key": ("id",), "cursor": "n"}
        outcome = runs.run(warehouse_url, tmp_path, connector, **more)
        assert outcome.error is None
        return outcome.result

    assert load()["rows_inserted"] == 1
    table.rows += [[2, 10**30, None, None, None, None], [3, 5, None, None, None, None]]
    assert load()["rows_read"] == 2
    got = runs.rows_of(warehouse, "select id, n, day::text, tm::text, dur::text, m from t order by id")
    assert got == [
        (1, Decimal(10**30), "10000-01-01", "12:00:00", "1 mon 2 days 00:00:03", {"a": 1}),
        (2, Decimal(10**30), None, None, None, None),
    ]

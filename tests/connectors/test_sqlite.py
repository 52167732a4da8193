"""The SQLite connector, on real files."""

from __future__ import annotations

import datetime
import sqlite3

import polars as pl
import pytest

from dwcli.connectors import create_connector
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing, SourceData


@pytest.fixture
def path(tmp_path):
    return tmp_path / "shop 100%?#x.db"


@pytest.fixture
def run(path):
    """Writes to the test's file."""
    connection = sqlite3.connect(path, isolation_level=None)

    def execute(sql, rows=None):
        if rows is None:
            return connection.execute(sql)
        with connection:
            connection.execute("BEGIN")
            return connection.executemany(sql, rows)

    yield execute
    connection.close()


@pytest.fixture
def source(path):
    opened = []

    def connect(**more):
        connector = create_connector({"protocol": "sqlite3", "database_path": str(path)} | more)
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def read(connector, query, cursor=None):
    """The items of a read, and the rows of all of them."""
    items = list(connector.fetch_data(query, cursor).items)
    return items, [row for item in items for row in item.payload.rows()]


def test_declared_types_arrive_exactly(run, source):
    run(
        "CREATE TABLE t (i INTEGER, r REAL, n NUMERIC, d DECIMAL(10,2), b BOOLEAN, tx VARCHAR(9), bl BLOB,"
        " da DATE, at DATETIME)"
    )
    every_byte = bytes(range(256))
    row = (
        2**63 - 1,
        0.1,
        2**53 + 1,
        12.345,
        1,
        "00501 🦆\n",
        every_byte,
        "0001-01-01",
        "2024-01-02 03:04:05.123456",
    )
    run("INSERT INTO t VALUES (?,?,?,?,?,?,?,?,?)", [row, (None,) * 9])
    (item,), rows = read(source(), "t")
    assert rows[0] == (
        2**63 - 1,
        0.1,
        str(2**53 + 1),
        "12.345",
        True,
        "00501 🦆\n",
        every_byte,
        datetime.date(1, 1, 1),
        datetime.datetime(2024, 1, 2, 3, 4, 5, 123456, datetime.UTC),
    )
    assert set(rows[1]) == {None}
    assert list(item.types.values()) == [
        "bigint", "double precision", "numeric", "numeric", "boolean", "text", "bytea", "date", "timestamptz"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("declared", "values", "type", "expected"),
    [
        ("INTEGER", [1, "N/A", None], "text", ["1", "N/A", None]),
        ("INTEGER", [1, 1.5], "numeric", ["1", "1.5"]),
        ("", [2**53 + 1, 0.5], "numeric", [str(2**53 + 1), "0.5"]),
        ("", [2**53, 0.5], "numeric", [str(2**53), "0.5"]),
        ("", [float("inf"), 1.0], "double precision", [float("inf"), 1.0]),
        ("REAL", [1e300, 5e-324], "double precision", [1e300, 5e-324]),
        ("NUMERIC", [float("-inf"), 1], "numeric", ["-Infinity", "1"]),
        ("BOOLEAN", [0, 1, 2], "bigint", [0, 1, 2]),
        ("DATE", ["2024-01-01", "2024-02-30"], "text", ["2024-01-01", "2024-02-30"]),
        ("DATETIME", ["2024-01-01", "soon"], "text", ["2024-01-01", "soon"]),
        ("DATETIME", ["2024-01-01 00:00:00.1234567"], "text", ["2024-01-01 00:00:00.1234567"]),
        ("TIMESTAMP", [1700000000, None], "bigint", [1700000000, None]),
        ("BLOB", [b"\x00\xff", b""], "bytea", [b"\x00\xff", b""]),
        ("", [None, None], None, [None, None]),
    ],
)
def test_values_that_do_not_keep_the_declared_type_decide_it(run, source, declared, values, type, expected):
    run(f"CREATE TABLE t (c {declared})")
    run("INSERT INTO t VALUES (?)", [(value,) for value in values])
    items, rows = read(source(), "t")
    assert [row[0] for row in rows] == expected
    assert items[0].types.get("c") == type
    assert source().describe("t").columns[0].type == (type or "text")


def test_a_later_batch_comes_wider_and_the_column_stays_wide(run, source):
    run("CREATE TABLE t (c INTEGER)")
    run("INSERT INTO t VALUES (?)", [(i,) for i in range(5000)] + [("x",)] + [(i,) for i in range(5000)])
    items, rows = read(source(), "t")
    assert [item.types["c"] for item in items] == ["bigint", "text"]
    assert [str(row[0]) for row in rows] == [*map(str, range(5000)), "x", *map(str, range(5000))]


def test_bytes_among_texts_become_hex_and_are_counted(run, source):
    run("CREATE TABLE t (c TEXT)")
    run("INSERT INTO t VALUES ('a'), (x'00ff')")
    (item,), rows = read(source(), "t")
    assert rows == [("a",), ("\\x00ff",)] and item.metadata["changed"] == {"c: bytes → hex text": 1}


def test_text_that_is_not_utf8_is_named_or_kept_as_hex(run, source):
    run("CREATE TABLE t (c TEXT)")
    run("INSERT INTO t VALUES (CAST(x'736563726574ff' AS TEXT))")
    with pytest.raises(SourceData, match="t: the column 'c' holds text that is not UTF-8") as caught:
        read(source(), "t")
    assert "secret" not in f"{caught.value} {caught.value.why}"
    assert read(source(invalid_text="hex"), "t")[1] == [("\\x736563726574ff",)]


def test_times_in_every_iso_spelling_and_in_the_zone_of_the_source(run, source):
    run("CREATE TABLE t (at TIMESTAMP)")
    spelled = [
        "2024-07-01 12:00:00", "2024-07-01T12:00", "2024-07-01", "2024-07-01T12:00:00.5Z",
        "2024-07-01 12:00:00+02:00", "2024-07-01 12:00:00-0330",
    ]  # fmt: skip
    run("INSERT INTO t VALUES (?)", [(text,) for text in spelled])
    _, rows = read(source(timezone="America/New_York"), "t")
    assert [f"{at:%H:%M:%S.%f}" for (at,) in rows] == [
        "16:00:00.000000", "16:00:00.000000", "04:00:00.000000", "12:00:00.500000", "10:00:00.000000",
        "15:30:00.000000",
    ]  # fmt: skip


def test_a_query_keeps_the_declared_types_of_its_columns(run, source):
    run("CREATE TABLE t (id INTEGER PRIMARY KEY, at DATETIME, b BOOLEAN)")
    run("INSERT INTO t VALUES (1, '2024-01-01', 1)")
    (item,), _ = read(source(), "SELECT id, at, b, id * 2 AS double FROM t WHERE '%' <> '?' -- note\n;")
    assert dict(item.types) == {"id": "bigint", "at": "timestamptz", "b": "boolean", "double": "bigint"}


def test_an_empty_table_still_tells_its_columns(run, source):
    run("CREATE TABLE t (id INTEGER PRIMARY KEY, at DATETIME, tx TEXT)")
    (item,), rows = read(source(), "t")
    assert rows == [] and item.payload.schema == {
        "id": pl.Int64, "at": pl.Datetime("us", "UTC"), "tx": pl.String,
    }  # fmt: skip


def test_the_start_is_inclusive_the_end_exclusive_and_null_is_read(run, source):
    run("CREATE TABLE t (id INTEGER PRIMARY KEY, at DATETIME, n NUMERIC, tx TEXT COLLATE NOCASE, any)")
    run(
        "INSERT INTO t VALUES (1, '2024-01-01T00:00:00.000001Z', 1, 'A', 10),"
        "(2, '2024-01-01 00:00:00.000002', 2.5, 'a', 9),"
        "(3, '2024-01-01 02:00:00.000002+02:00', 9007199254740993, 'b', '1'),"
        "(4, NULL, NULL, NULL, NULL), (5, '2024-01-03', 9007199254740994, 'é', 'x')"
    )
    connector = source()

    def ids(column, start, end, type):
        return [row[0] for row in read(connector, "t", Cursor(column, start, end, type))[1]]

    assert ids("at", "2024-01-01 00:00:00.000002+00", None, "timestamptz") == [2, 3, 4, 5]
    assert ids("AT", "2024-01-01 00:00:00.000002+00", "2024-01-03 00:00:00+00", "") == [2, 3, 4]
    assert ids("at", "2025-01-01 00:00:00+00", "2026-01-01 00:00:00+00", "timestamptz") == [4]
    assert ids("n", "9007199254740993", None, "numeric") == [3, 4, 5]
    assert ids("tx", "a", None, "text") == [2, 3, 4, 5]
    assert ids("tx", "x' OR 1=1 --", None, "text") == [4, 5]
    assert ids("any", "10", None, "text") == [1, 2, 4, 5]


def test_a_cursor_beyond_all_rows_gives_one_empty_batch(run, source):
    run("CREATE TABLE t (at DATETIME)")
    run("INSERT INTO t VALUES ('2024-01-01')")
    (item,), rows = read(source(), "t", Cursor("at", "2024-01-01 00:00:00.000001+00", None, "timestamptz"))
    assert rows == [] and item.payload.columns == ["at"]


@pytest.mark.parametrize(
    "name", ["a.b", "my table", 'quo"te', "select x", "per%cent ?", "x; DROP TABLE y", "snö☃"]
)
def test_hostile_names_are_found_again_and_read(run, source, name):
    quoted = '"' + name.replace('"', '""') + '"'
    run(f"CREATE TABLE {quoted} ({quoted} INTEGER PRIMARY KEY)")
    run(f"INSERT INTO {quoted} VALUES (1), (2)")
    connector = source()
    (resource,) = connector.discover()
    assert resource.primary_key == (name,)
    assert read(connector, resource.name, Cursor(name, "2"))[1] == [(2,)]


def test_stopping_early_frees_the_file(run, source):
    run("CREATE TABLE t (c TEXT)")
    run("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 5000)
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("t").items
    assert next(items).payload.height < 1000
    items.close()
    assert connector.client.reading == []
    run("DROP TABLE t")


def test_closing_the_connector_ends_a_read(run, source):
    run("CREATE TABLE t (c TEXT)")
    run("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 5000)
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("t").items
    next(items)
    connector.close()
    connector.close()
    with pytest.raises(ConnectionFailed):
        list(items)


def test_nothing_can_be_written(run, source):
    run("CREATE TABLE t (c)")
    run("INSERT INTO t VALUES (1)")
    connector = source()
    for query in ("DELETE FROM t", "SELECT 1; DELETE FROM t", "WITH x AS (SELECT 1) DELETE FROM t"):
        with pytest.raises((QueryFailed, ResourceMissing)):
            read(connector, query)
    assert run("SELECT count(*) FROM t").fetchone() == (1,)


def test_discover_tells_keys_cursors_and_estimates(run, source):
    run("CREATE TABLE a (id INTEGER PRIMARY KEY, updated_at DATETIME NOT NULL)")
    run("CREATE INDEX a_updated ON a (updated_at)")
    run("CREATE TABLE b (x INT NOT NULL, y INT NOT NULL, n INT UNIQUE, UNIQUE (x, y))")
    run("CREATE TABLE c (k TEXT PRIMARY KEY)")
    run("CREATE TABLE w (k TEXT PRIMARY KEY, v) WITHOUT ROWID")
    run("CREATE VIEW v AS SELECT id FROM a")
    run("CREATE VIEW broken AS SELECT * FROM gone")
    run("INSERT INTO a VALUES (?, '2024-01-01')", [(i,) for i in range(1, 11)])
    found = {resource.name: resource for resource in source().discover()}
    assert list(found) == ["a", "b", "broken", "c", "v", "w"]
    a = found["a"]
    assert (a.primary_key, a.key_reason, a.row_estimate) == (("id",), "primary key in the source", 10)
    assert a.cursors[0].column == "updated_at" and a.cursors[0].sure and not a.columns[0].nullable
    assert (found["b"].primary_key, found["b"].key_reason) == (
        ("x", "y"),
        "unique and not null in the source",
    )
    assert found["c"].key_reason == "primary key in the source, which SQLite lets hold NULL"
    assert not found["w"].columns[0].nullable and found["w"].row_estimate is None
    assert found["v"].kind == "view" and found["broken"].columns == ()
    assert source().describe("a") == a
    run("ANALYZE")
    assert source().describe("a").row_estimate == 10


def test_missing_tables_and_wrong_sql_are_told_apart(run, source):
    run("CREATE TABLE orders (id)")
    connector = source()
    with pytest.raises(ResourceMissing, match=r"no table 'order'. Did you mean 'orders'"):
        read(connector, "order")
    with pytest.raises(QueryFailed) as caught:
        read(connector, "SELECT nope FROM orders")
    assert "nope" in caught.value.why
    with pytest.raises(ResourceMissing, match=r"no cursor column 'idd'. Did you mean 'id'"):
        read(connector, "orders", Cursor("idd", "1"))


def test_files_that_cannot_be_read_are_told_apart(run, source, path, tmp_path):
    with pytest.raises(ConnectionFailed, match="does not exist") as caught:
        source(database_path=str(tmp_path / "none.db"))
    assert caught.value.layer == "name" and not (tmp_path / "none.db").exists()
    with pytest.raises(ConnectionFailed, match="is a folder"):
        source(database_path=str(tmp_path))
    (tmp_path / "text.db").write_text("not a database, but long enough to look at " * 20)
    with pytest.raises(ConnectionFailed, match="is not a SQLite database") as caught:
        source(database_path=str(tmp_path / "text.db"))
    assert caught.value.layer == "database"
    run("CREATE TABLE t (c)")
    run("BEGIN EXCLUSIVE")
    with pytest.raises(ConnectionFailed, match="is locked"):
        source(busy_seconds=0)
    run("ROLLBACK")
    assert [resource.name for resource in source(busy_seconds=0).discover()] == ["t"]

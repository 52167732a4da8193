"""The DuckDB connector, on real files."""

from __future__ import annotations

import datetime
from decimal import Decimal

import polars as pl
import pytest

from dwcli.connectors import create_connector
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing

duckdb = pytest.importorskip("duckdb")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "shop 100%?.duckdb"


@pytest.fixture
def run(path):
    """Writes to the test's file; it is closed after each statement, as DuckDB lets in one writer alone."""

    def execute(sql):
        with duckdb.connect(str(path)) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(sql)

    return execute


@pytest.fixture
def source(path):
    opened = []

    def connect(**more):
        connector = create_connector({"protocol": "duckdb", "database_path": str(path)} | more)
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def read(connector, query, cursor=None):
    """The first item, and all rows as one frame."""
    items = list(connector.fetch_data(query, cursor).items)
    return items[0], pl.concat([item.payload for item in items])


UTC = datetime.UTC
HARD = [
    # SQL, PostgreSQL type, value
    ("true", "boolean", True),
    ("(-128)::TINYINT", "bigint", -128),
    ("9223372036854775807::BIGINT", "bigint", 2**63 - 1),
    ("18446744073709551615::UBIGINT", "numeric(20,0)", 2**64 - 1),
    ("-170141183460469231731687303715884105727::HUGEINT", "numeric", str(-(2**127) + 1)),
    ("340282366920938463463374607431768211455::UHUGEINT", "numeric", str(2**128 - 1)),
    ("12345678901234567890123456789.123456789::DECIMAL(38,9)", "numeric(38,9)",
     Decimal("12345678901234567890123456789.123456789")),
    ("0.1::DOUBLE", "double precision", 0.1),
    ("'-inf'::DOUBLE", "double precision", float("-inf")),
    ("'00501'", "text", "00501"),
    ("'\\x00\\xFF'::BLOB", "bytea", b"\x00\xff"),
    ("DATE '0001-01-01'", "date", datetime.date(1, 1, 1)),
    ("TIME '23:59:59.999999'", "time", datetime.time(23, 59, 59, 999999)),
    ("TIME '24:00:00'", "time", "24:00:00"),
    ("TIMETZ '12:00:00.5+02'", "timetz", "12:00:00.5+02"),
    ("TIMESTAMP '9999-12-31 23:59:59.999999'", "timestamptz",
     datetime.datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)),
    ("TIMESTAMP_S '2024-01-01 00:00:01'", "timestamptz", datetime.datetime(2024, 1, 1, 0, 0, 1, 0, UTC)),
    ("TIMESTAMP_MS '2024-01-01 00:00:00.001'", "timestamptz",
     datetime.datetime(2024, 1, 1, 0, 0, 0, 1000, UTC)),
    ("TIMESTAMPTZ '2024-01-01 00:00:00+02'", "timestamptz",
     datetime.datetime(2023, 12, 31, 22, 0, 0, 0, UTC)),
    ("TIMESTAMP 'infinity'", "timestamptz", "infinity"),
    ("TIMESTAMPTZ '-infinity'", "timestamptz", "-infinity"),
    ("TIMESTAMP_S 'infinity'", "timestamptz", "infinity"),
    ("TIMESTAMP_NS 'infinity'", "timestamptz", "infinity"),
    ("DATE '-infinity'", "date", "-infinity"),
    ("INTERVAL '-1 year 2 days 03:04:05.6'", "interval", "-1 year 2 days 03:04:05.6"),
    ("'550e8400-e29b-11d4-a716-446655440000'::UUID", "uuid", "550e8400-e29b-11d4-a716-446655440000"),
    ("'1011'::BIT", "bit varying", "1011"),
    ("'b'::ENUM('a', 'b')", "text", "b"),
    ("'{\"n\": 1.10}'::JSON", "jsonb", '{"n": 1.10}'),
    ("{'h': 12345678901234567890123::HUGEINT, 'd': 0.10::DECIMAL(38,2)}", "jsonb",
     '{"h":12345678901234567890123,"d":0.10}'),
    ("['a\"b', NULL]", "jsonb", '["a\\"b",null]'),
    ("[1, 2]::INTEGER[2]", "jsonb", "[1,2]"),
    ("MAP{'k': 1}", "jsonb", '{"k":1}'),
    ("union_value(num := 2)", "jsonb", '{"num":2}'),
]  # fmt: skip


def test_hard_values_arrive_exactly(run, source):
    run("CREATE TABLE t AS SELECT " + ", ".join(f"{sql} AS c{i}" for i, (sql, _, _) in enumerate(HARD)))
    run("INSERT INTO t (c0) VALUES (NULL)")
    item, frame = read(source(), "t")
    values, nulls = frame.rows()
    for i, (sql, type, value) in enumerate(HARD):
        assert (sql, item.types[f"c{i}"], values[i]) == (sql, type, value)
    assert set(nulls) == {None}
    described = source().describe("t").columns
    assert [column.type for column in described] == [type for _, type, _ in HARD]


def test_a_batch_with_infinity_is_postgresql_text(run, source):
    run("CREATE TABLE t (d DATE, ts TIMESTAMP, id INTEGER)")
    run(
        "INSERT INTO t VALUES ('infinity', '-infinity', 1), "
        "('0044-03-15 (BC)', '0044-03-15 (BC) 01:02:03.5', 2), ('2024-02-29', '290000-12-31 00:00:00', 3),"
        "(NULL, NULL, 4), ('270001-01-01', '1969-12-31 23:59:59', 5)"
    )
    item, frame = read(source(), "t")
    assert frame.sort("id")["d"].to_list() == [
        "infinity",
        "0044-03-15 BC",
        "2024-02-29",
        None,
        "270001-01-01",
    ]
    assert frame.sort("id")["ts"].to_list() == [
        "-infinity",
        "0044-03-15 01:02:03.500000+00 BC",
        "290000-12-31 00:00:00.000000+00",
        None,
        "1969-12-31 23:59:59.000000+00",
    ]
    assert dict(item.types) == {"d": "date", "ts": "timestamptz", "id": "bigint"}


def test_dates_that_python_cannot_hold_stay_dates(run, source):
    run("CREATE TABLE t AS SELECT DATE '0044-03-15 (BC)' AS d, TIMESTAMP '290000-01-01' AS ts")
    _, frame = read(source(), "t")
    assert frame["d"].to_physical().to_list() == [-735160]
    assert frame["ts"].to_physical().to_list() == [9089348860800000000]


def test_nanoseconds_are_cut_and_counted(run, source):
    run("CREATE TABLE t AS SELECT unnest(['2024-01-01 00:00:00.123456789', '1969-12-31 23:59:59.999999'])"
        "::TIMESTAMP_NS AS ts")  # fmt: skip
    item, frame = read(source(), "t")
    assert [at.microsecond for at in frame["ts"]] == [123456, 999999]
    assert item.metadata["changed"] == {"ts: nanoseconds cut to microseconds": 1}


def test_json_holds_no_nan(run, source):
    run("CREATE TABLE t AS SELECT {'a': 'NaN'::DOUBLE, 'b': ['-inf'::FLOAT], 'c': 'NaN'} AS s")
    item, frame = read(source(), "t")
    assert frame["s"].to_list() == ['{"a":"NaN","b":["-Infinity"],"c":"NaN"}']
    assert item.metadata["changed"] == {"s: NaN or Infinity in JSON → string": 2}


def test_timestamps_are_read_in_the_zone_of_the_source(run, source):
    run("CREATE TABLE t AS SELECT TIMESTAMP '2024-07-01 12:00:00' AS ts, 'infinity'::TIMESTAMP AS never")
    _, frame = read(source(timezone="America/New_York"), "t")
    assert frame.row(0) == (datetime.datetime(2024, 7, 1, 16, tzinfo=UTC), "infinity")


def test_an_empty_table_still_tells_its_columns(run, source):
    run("CREATE TABLE t (id INTEGER, ts TIMESTAMP, m DECIMAL(10,2), s INTEGER[])")
    item, frame = read(source(), "t")
    assert frame.height == 0 and item.types["s"] == "jsonb"
    assert frame.schema["ts"] == pl.Datetime("us", "UTC") and frame.schema["m"] == pl.Decimal(10, 2)


def test_the_start_is_inclusive_the_end_exclusive_and_null_is_read(run, source):
    run("CREATE TABLE t (id INTEGER, ts TIMESTAMP, tz TIMESTAMPTZ, n HUGEINT, tx VARCHAR COLLATE NOCASE)")
    run(
        "INSERT INTO t VALUES (1, '2024-01-01 00:00:00.000001', '2024-01-01 00:00:00.000001+00', 1, 'A'),"
        "(2, '2024-01-01 00:00:00.000002', '2024-01-01 00:00:00.000002+00', 9007199254740993, 'a'),"
        "(3, NULL, NULL, NULL, NULL),"
        "(4, '2024-01-01 00:00:00.000003', '2024-01-01 00:00:00.000003+00', 9007199254740994, 'é')"
    )
    connector = source(timezone="Europe/Berlin")

    def ids(column, start, end, type):
        return sorted(read(connector, "t", Cursor(column, start, end, type))[1]["id"].to_list())

    assert ids("ts", "2023-12-31 23:00:00.000002+00", None, "timestamptz") == [2, 3, 4]
    assert ids("ts", "2023-12-31 23:00:00.000002+00", "2023-12-31 23:00:00.000003+00", "") == [2, 3]
    assert ids("tz", "2024-01-01 00:00:00.000002+00", None, "timestamptz") == [2, 3, 4]
    assert ids("n", "9007199254740993", None, "numeric") == [2, 3, 4]
    assert ids("tx", "a", None, "text") == [2, 3, 4]
    assert ids("tx", "x' OR 1=1 --", None, "text") == [3, 4]


@pytest.mark.parametrize("name", ["a.b", "my table", 'quo"te', "select x", "x; DROP TABLE y", "snö☃"])
def test_hostile_names_are_found_again_and_read(run, source, name):
    quoted = '"' + name.replace('"', '""') + '"'
    run(f"CREATE SCHEMA {quoted}")
    run(f"CREATE TABLE {quoted}.{quoted} ({quoted} INTEGER PRIMARY KEY)")
    run(f"INSERT INTO {quoted}.{quoted} VALUES (1), (2)")
    connector = source()
    (resource,) = connector.discover()
    assert resource.primary_key == (name,)
    _, frame = read(connector, resource.name, Cursor(name, "2"))
    assert frame.rows() == [(2,)]


def test_batches_are_bounded_by_bytes_and_reading_can_stop(run, source):
    run("CREATE TABLE t AS SELECT i, repeat('x', 1000) AS tx FROM range(20000) r(i)")
    connector = source(batch_bytes=500_000)
    items = connector.fetch_data("t").items
    heights = [next(items).payload.height for _ in range(3)]
    assert max(heights) <= 2048
    items.close()
    assert connector.client.reading == []
    assert read(connector, "SELECT count(*) AS n FROM t")[1].item() == 20000


def test_nothing_can_be_written(run, source, tmp_path):
    run("CREATE TABLE t AS SELECT 1 AS a")
    connector = source()
    target = tmp_path / "out.csv"
    for query in (
        "DELETE FROM t",
        "SELECT 1; DELETE FROM t",
        f"COPY t TO '{target}'",
        "FROM t; DROP TABLE t",
    ):
        with pytest.raises((QueryFailed, ResourceMissing)):
            read(connector, query)
    assert read(connector, "FROM t")[1].item() == 1 and not target.exists()


def test_discover_tells_keys_cursors_and_estimates(run, source):
    run("CREATE TABLE a (id INTEGER PRIMARY KEY, updated_at TIMESTAMP NOT NULL)")
    run("CREATE TABLE b (x INTEGER NOT NULL, y INTEGER NOT NULL, n INTEGER UNIQUE, UNIQUE (x, y))")
    run("CREATE VIEW v AS SELECT id FROM a")
    run("CREATE SCHEMA s2")
    run("CREATE TABLE s2.c (k VARCHAR)")
    run("INSERT INTO a SELECT i, '2024-01-01' FROM range(10) r(i)")
    a, b, v, c = source().discover()
    assert (a.name, a.primary_key, a.row_estimate) == ("a", ("id",), 10)
    assert a.cursors[0].column == "updated_at"
    assert (b.primary_key, b.key_reason) == (("x", "y"), "unique and not null in the source")
    assert (v.kind, c.name) == ("view", "s2.c")
    assert source().describe("a") == a
    assert [column.type for column in source().describe("SELECT id, [id] AS l FROM a").columns] == [
        "bigint",
        "jsonb",
    ]


def test_missing_tables_and_wrong_sql_are_told_apart(run, source):
    run("CREATE TABLE orders (id INTEGER)")
    connector = source()
    with pytest.raises(ResourceMissing, match=r"no table 'order'. Did you mean 'orders'"):
        read(connector, "order")
    with pytest.raises(ResourceMissing):
        read(connector, "SELECT * FROM nowhere")
    with pytest.raises(QueryFailed) as caught:
        read(connector, "SELECT nope FROM orders")
    assert "nope" in caught.value.why


def test_files_that_cannot_be_read_are_told_apart(run, source, path, tmp_path):
    with pytest.raises(ConnectionFailed, match="does not exist"):
        source(database_path=str(tmp_path / "none.duckdb"))
    (tmp_path / "text.duckdb").write_text("not a database " * 500)
    with pytest.raises(ConnectionFailed, match="is not a DuckDB database"):
        source(database_path=str(tmp_path / "text.duckdb"))
    with duckdb.connect(str(path)), pytest.raises(ConnectionFailed, match="is in use"):
        source()

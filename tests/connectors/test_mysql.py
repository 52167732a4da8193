"""The MySQL connector, on a real MariaDB or MySQL server."""

from __future__ import annotations

import datetime
import os
import random
import secrets
import socket
import struct
from decimal import Decimal
from urllib.parse import unquote, urlsplit

import polars as pl
import pymysql
import pytest

from dwcli.connectors import create_connector
from dwcli.contract import Cursor
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing

URL = urlsplit(os.environ.get("DW_TEST_MYSQL_URL", "mysql://root@127.0.0.1:3306"))
SERVER = {"host": URL.hostname, "port": URL.port or 3306, "username": URL.username or "root"}
PASSWORD = unquote(URL.password or "")


def admin(database=None):
    return pymysql.connect(
        host=SERVER["host"],
        port=SERVER["port"],
        user=SERVER["username"],
        password=PASSWORD,
        database=database,
        autocommit=True,
        charset="utf8mb4",
    )


@pytest.fixture
def database():
    """A database of the test's own, dropped afterwards."""
    try:
        connection = admin()
    except pymysql.OperationalError as error:
        pytest.skip(f"no MySQL server: {error.args[0]}")
    name = f"dw_test_{secrets.token_hex(4)}"
    with connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        yield name
        cursor.execute(f"DROP DATABASE `{name}`")


@pytest.fixture
def run(database):
    """Runs statements in the test's database."""
    connection = admin(database)

    def execute(sql, rows=None):
        with connection.cursor() as cursor:
            if rows is not None:
                cursor.executemany(sql, rows)
            else:
                cursor.execute(sql)
            return cursor.fetchall()

    with connection:
        execute("SET SESSION sql_mode = '', time_zone = '+00:00'")
        yield execute


@pytest.fixture
def source(database):
    """Opens a connector on the test's database."""
    opened = []

    def connect(**more):
        config = {"protocol": "mysql", **SERVER, "password": PASSWORD, "database": database} | more
        connector = create_connector(config)
        connector.connect()
        opened.append(connector)
        return connector

    yield connect
    for connector in opened:
        connector.close()


def read(connector, query, cursor=None):
    """All rows as one frame, and the types of the first batch."""
    items = list(connector.fetch_data(query, cursor).items)
    return pl.concat([item.payload for item in items]), dict(items[0].types), items


HARD = """
CREATE TABLE hard (
  u BIGINT UNSIGNED, i BIGINT, z INT(8) UNSIGNED ZEROFILL, t TINYINT(1), m DECIMAL(12,2), d38 DECIMAL(38,10),
  d65 DECIMAL(65,30), f FLOAT, d DOUBLE, b BIT(12), b1 BIT(1), y YEAR, da DATE, dt DATETIME(6),
  ts TIMESTAMP(6) NULL, tm TIME(6), j JSON, e ENUM('a','b'), s SET('a','b'), vb VARBINARY(300),
  l1 VARCHAR(20) CHARACTER SET latin1, tx LONGTEXT, ch CHAR(5)
)
"""


def test_hard_values_arrive_exactly(run, source):
    run(HARD)
    every_byte = bytes(range(256))
    hostile = "tab\t nl\n cr\r ' \" ` \\ \\N % %s 🦆 \u2028 é e\u0301"
    row = (
        2**64 - 1, -(2**63), 42, 7, Decimal("9999999999.99"),
        Decimal("1234567890123456789012345678.0123456789"),
        "12345678901234567890123456789012345.000000000000000000000000000001", 0.1, 1.7976931348623157e308,
        0b101, 1, 2155, "9999-12-31", "2024-03-10 02:30:00.123456", "2024-01-01 00:00:00.000001",
        "-838:59:59", '{"a": 12345678901234567890.10}', "b", "a,b", every_byte, "é", hostile, "00501",
    )  # fmt: skip
    run(f"INSERT INTO hard VALUES ({','.join(['%s'] * len(row))})", [row, (None,) * len(row)])
    frame, types, _ = read(source(), "hard")
    first, second = frame.rows()
    got = dict(zip(frame.columns, first, strict=True))

    assert got["u"] == 2**64 - 1 and types["u"] == "numeric(20,0)" and frame.schema["u"] == pl.UInt64
    assert got["i"] == -(2**63) and types["i"] == "bigint"
    assert got["z"] == 42 and got["t"] == 7 and types["t"] == "bigint"
    assert got["m"] == Decimal("9999999999.99") and types["m"] == "numeric(12,2)"
    assert got["d38"] == Decimal("1234567890123456789012345678.0123456789")
    assert got["d65"] == row[6] and types["d65"] == "numeric(65,30)"
    assert got["f"] == struct.unpack("f", struct.pack("f", 0.1))[0] and types["f"] == "double precision"
    assert got["d"] == 1.7976931348623157e308
    assert got["b"] == "000000000101" and got["b1"] == "1" and types["b"] == "bit varying"
    assert got["y"] == 2155
    assert got["da"] == datetime.date(9999, 12, 31)
    assert got["dt"] == datetime.datetime(2024, 3, 10, 2, 30, 0, 123456, datetime.UTC)
    assert got["ts"] == datetime.datetime(2024, 1, 1, 0, 0, 0, 1, datetime.UTC)
    assert types["dt"] == types["ts"] == "timestamptz"
    assert got["tm"] == "-838:59:59.000000" and types["tm"] == "interval"
    assert got["j"] == row[16] and types["j"] == "jsonb"
    assert got["e"] == "b" and got["s"] == "a,b"
    assert got["vb"] == every_byte and types["vb"] == "bytea"
    assert got["l1"] == "é" and got["tx"] == hostile and got["ch"] == "00501"
    assert set(second) == {None}


def test_a_query_has_the_same_types_as_its_table(run, source):
    run(HARD)
    run("INSERT INTO hard (u, m, d65, vb) VALUES (18446744073709551615, 1.10, 1, x'00ff')")
    _, table_types, _ = read(source(), "hard")
    frame, query_types, _ = read(source(), "SELECT * FROM hard WHERE tx LIKE '%x' OR 1 -- all;")
    text_like = {"j": "text"} if query_types["j"] == "text" else {}
    assert query_types == table_types | text_like
    assert frame["u"].to_list() == [2**64 - 1]


def test_every_double_and_float_survives(run, source):
    run("CREATE TABLE n (id INT PRIMARY KEY, d DOUBLE, f FLOAT)")
    generator = random.Random(1)
    doubles = [struct.unpack("<d", generator.randbytes(8))[0] for _ in range(2000)]
    doubles = [d for d in doubles if d == d and abs(d) not in (0.0, float("inf")) and abs(d) > 2.3e-308]
    floats = [struct.unpack("<f", struct.pack("<f", generator.uniform(-1e6, 1e6)))[0] for _ in doubles]
    rows = [(i, repr(d), repr(f)) for i, (d, f) in enumerate(zip(doubles, floats, strict=True))]
    run("INSERT INTO n VALUES (%s, %s, %s)", rows)
    frame, _, _ = read(source(), "n")
    frame = frame.sort("id")
    assert frame["d"].to_list() == doubles
    assert frame["f"].to_list() == floats


def test_zero_dates_become_null_and_are_counted(run, source):
    run("CREATE TABLE z (id INT, da DATE, dt DATETIME)")
    run("SET SESSION sql_mode = 'ALLOW_INVALID_DATES'")
    run("INSERT INTO z VALUES (1, '0000-00-00', '0000-00-00 00:00:00'), (2, '2024-00-15', NULL)")
    run("INSERT INTO z VALUES (3, '2024-02-30', '2024-01-01'), (4, NULL, '2024-01-01')")
    frame, _, (item,) = read(source(), "z")
    assert frame["da"].null_count() == 4
    assert item.metadata["changed"] == {"da: zero date → NULL": 3, "dt: zero date → NULL": 1}


def test_datetimes_are_read_in_the_zone_of_the_source(run, source):
    run("CREATE TABLE w (id INT, dt DATETIME, ts TIMESTAMP NULL)")
    run("INSERT INTO w VALUES (1, '2024-03-10 02:30:00', '2024-01-01 12:00:00')")
    run("INSERT INTO w VALUES (2, '2024-11-03 01:30:00', NULL), (3, '2024-07-01 12:00:00', NULL)")
    frame, _, (item,) = read(source(timezone="America/New_York"), "w")
    hours = [f"{t:%H:%M}" for t in frame["dt"]]
    assert hours == ["07:30", "06:30", "16:00"]
    assert f"{frame['ts'][0]:%H:%M}" == "12:00"
    assert set(item.metadata["changed"]) == {
        "dt: local time that America/New_York has twice → the later",
        "dt: local time that America/New_York skips → shifted",
    }


def test_tinyint1_is_a_boolean_when_asked(run, source):
    run("CREATE TABLE b (x BOOLEAN)")
    run("INSERT INTO b VALUES (0), (1), (NULL)")
    frame, types, _ = read(source(tinyint1_is_bool=True), "b")
    assert frame["x"].to_list() == [False, True, None] and types == {"x": "boolean"}


def test_types_that_only_mariadb_has(run, source):
    if "MariaDB" not in run("SELECT version()")[0][0]:
        pytest.skip("this server is MySQL")
    run("CREATE TABLE m (u UUID, a INET6)")
    run("INSERT INTO m VALUES ('550e8400-e29b-11d4-a716-446655440000', '::1')")
    frame, types, _ = read(source(), "m")
    assert frame.rows() == [("550e8400-e29b-11d4-a716-446655440000", "::1")]
    assert types == {"u": "uuid", "a": "inet"}


def test_an_empty_table_still_tells_its_columns(run, source):
    run(HARD)
    frame, types, items = read(source(), "hard")
    assert frame.height == 0 and len(items) == 1 and len(types) == len(frame.columns) == 23
    assert frame.schema["m"] == pl.Decimal(12, 2)
    frame, types, _ = read(source(), "SELECT u, dt FROM hard")
    assert frame.schema == {"u": pl.UInt64, "dt": pl.Datetime("us", "UTC")}


@pytest.mark.parametrize(
    "name", ["a.b", "my table", "`tick`", 'quo"te', "select x", "per%cent %s", "drop table x; --", "snö☃"]
)
def test_hostile_names_are_found_again_and_read(run, source, name):
    quoted = "`" + name.replace("`", "``") + "`"
    run(f"CREATE TABLE {quoted} ({quoted} INT PRIMARY KEY)".replace("%", "%%") % ())
    run(f"INSERT INTO {quoted} VALUES (1), (2), (3)")
    connector = source()
    (resource,) = connector.discover()
    assert resource.primary_key == (name,)
    frame, _, _ = read(connector, resource.name, Cursor(name, "2", None, "bigint"))
    assert frame[name].to_list() == [2, 3]
    assert connector.describe(resource.name).name == resource.name


def test_the_start_is_inclusive_the_end_exclusive_and_null_is_read(run, source):
    run(
        "CREATE TABLE c (id INT PRIMARY KEY, at DATETIME(6), n DECIMAL(30,2), tx VARCHAR(9)"
        " COLLATE utf8mb4_general_ci)"
    )
    run(
        "INSERT INTO c VALUES (1, '2024-01-01 00:00:00.000001', 1, 'A'),"
        "(2, '2024-01-01 00:00:00.000002', 2, 'a'),"
        "(3, '2024-01-01 00:00:00.000002', 9007199254740993, 'b '), (4, NULL, NULL, NULL),"
        "(5, '2024-01-01 00:00:00.000003', 9007199254740994, 'é')"
    )
    connector = source(timezone="Europe/Berlin")

    def ids(column, start, end, type):
        return sorted(read(connector, "c", Cursor(column, start, end, type))[0]["id"].to_list())

    assert ids("at", "2023-12-31 23:00:00.000002+00", None, "timestamptz") == [2, 3, 4, 5]
    assert ids("at", "2023-12-31 23:00:00.000002+00", "2023-12-31 23:00:00.000003+00", "") == [2, 3, 4]
    assert ids("at", None, "2023-12-31 23:00:00.000002+00", "timestamptz") == [1, 4]
    assert ids("n", "9007199254740993.00", None, "numeric(30,2)") == [3, 4, 5]
    assert ids("tx", "a", None, "text") == [2, 3, 4, 5]
    assert ids("tx", "b", None, "text") == [3, 4, 5]
    assert ids("tx", "x' OR 1=1 -- ", None, "text") == [4, 5]
    query = "SELECT * FROM c WHERE tx NOT LIKE 'z%'"
    assert sorted(read(connector, query, Cursor("id", "3"))[0]["id"].to_list()) == [3, 5]


def test_zero_dates_are_read_where_null_is(run, source):
    run("CREATE TABLE z (id INT, at DATETIME)")
    run("INSERT INTO z VALUES (1, '0000-00-00'), (2, '2024-01-01'), (3, '2024-01-02')")
    frame, _, _ = read(source(), "z", Cursor("at", "2024-01-02 00:00:00+00", None, "timestamptz"))
    assert sorted(frame["id"].to_list()) == [1, 3]


def test_batches_are_bounded_by_bytes(run, source):
    run("CREATE TABLE wide (id INT PRIMARY KEY, tx LONGTEXT)")
    run("INSERT INTO wide SELECT seq, REPEAT('x', IF(seq > 300, 20000, 10)) FROM seq_1_to_600")
    items = read(source(batch_bytes=200_000), "wide")[2]
    assert sum(item.payload.height for item in items) == 600
    sizes = [item.payload.estimated_size() for item in items]
    assert len(items) > 15 and max(sizes) <= 2 * 200_000


def test_stopping_early_ends_the_query_on_the_server(run, source):
    run("CREATE TABLE big (id INT PRIMARY KEY, tx VARCHAR(200))")
    run("INSERT INTO big SELECT seq, REPEAT('x', 200) FROM seq_1_to_200000")
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("big").items
    next(items)
    client = connector.client
    (reading,) = client.reading
    items.close()
    assert client.reading == [] and not reading.open
    assert next(connector.fetch_data("SELECT count(*) n FROM big").items).payload.item() == 200_000


def test_a_connection_killed_while_reading_is_said_to_be_lost(run, source):
    run("CREATE TABLE big (id INT PRIMARY KEY, tx VARCHAR(200))")
    run("INSERT INTO big SELECT seq, REPEAT('x', 200) FROM seq_1_to_200000")
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("big").items
    next(items)
    run(f"KILL {connector.client.reading[0].thread_id()}")
    with pytest.raises(ConnectionFailed) as caught:
        list(items)
    assert caught.value.layer == "lost" and connector.client.reading == []


def test_closing_the_connector_ends_a_read(run, source):
    run("CREATE TABLE big (id INT PRIMARY KEY, tx VARCHAR(200))")
    run("INSERT INTO big SELECT seq, REPEAT('x', 200) FROM seq_1_to_200000")
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("big").items
    next(items)
    connector.close()
    connector.close()
    with pytest.raises(ConnectionFailed):
        list(items)


def test_a_read_is_one_snapshot_that_writes_nothing(run, source):
    run("CREATE TABLE t (id INT PRIMARY KEY)")
    run("INSERT INTO t VALUES (1)")
    connector = source()
    for query in (
        "DELETE FROM t",
        "SELECT * FROM t; DELETE FROM t",
        "SELECT * FROM t INTO OUTFILE '/nowhere'",
    ):
        with pytest.raises((QueryFailed, ResourceMissing)):
            list(connector.fetch_data(query).items)
    assert run("SELECT count(*) FROM t") == ((1,),)


def test_discover_tells_keys_cursors_and_estimates(run, source):
    run(
        "CREATE TABLE a (id INT AUTO_INCREMENT PRIMARY KEY, updated_at TIMESTAMP(6) NOT NULL, j JSON,"
        " KEY (updated_at))"
    )
    run("CREATE TABLE b (x INT NOT NULL, y INT NOT NULL, n INT, UNIQUE (n), UNIQUE (x, y))")
    run("CREATE VIEW v AS SELECT id, j FROM a")
    run("INSERT INTO a (updated_at) VALUES ('2024-01-01'), ('2024-01-02')")
    run("ANALYZE TABLE a")
    a, b, v = source().discover()
    assert (a.name, a.primary_key, a.key_reason) == ("a", ("id",), "primary key in the source")
    assert [c.type for c in a.columns] == ["bigint", "timestamptz", "jsonb"]
    assert a.columns[0].source_type.startswith("int") and not a.columns[0].nullable
    assert a.cursors[0].column == "updated_at" and a.cursors[0].sure
    assert a.row_estimate == 2 and a.bytes_estimate > 0
    assert (b.primary_key, b.key_reason) == (("x", "y"), "unique and not null in the source")
    assert v.kind == "view" and v.primary_key == ()
    assert source().describe("a") == a
    described = source().describe("SELECT id, updated_at FROM a")
    assert [c.type for c in described.columns] == ["bigint", "timestamptz"] and described.kind == "query"


def test_missing_tables_and_wrong_sql_are_told_apart(run, source):
    run("CREATE TABLE orders (id INT)")
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
    with pytest.raises(QueryFailed) as caught:
        list(connector.fetch_data("SELECT 1 AS a, 2 AS a").items)
    assert "AS" in caught.value.hint


def test_each_layer_of_a_failed_connection_is_named(run, source, database):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]

    def layer(**more):
        with pytest.raises(ConnectionFailed) as caught:
            source(**more)
        assert caught.value.hint and "secret-word" not in f"{caught.value} {caught.value.why}"
        return caught.value.layer

    user = f"u{secrets.token_hex(4)}"
    run(f"CREATE USER '{user}'@'%' IDENTIFIED BY 'right'")
    try:
        assert layer(host="no-such-host.invalid") == "name"
        assert layer(port=free) == "port"
        assert layer(username=user, password="secret-word") == "login"
        assert layer(username=user, password="right") == "permission"
        assert layer(database="no_such_database") == "database"
        if run("SHOW VARIABLES LIKE 'have_ssl'") == (("have_ssl", "DISABLED"),):
            assert layer(ssl_mode="required") == "tls"
        run(f"GRANT SELECT ON `{database}`.* TO '{user}'@'%'")
        run("CREATE TABLE t (id INT)")
        assert [r.name for r in source(username=user, password="right").discover()] == ["t"]
    finally:
        run(f"DROP USER '{user}'@'%'")

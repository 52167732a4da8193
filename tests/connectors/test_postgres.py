"""Reading from a real PostgreSQL: every hard value, every way a read can end."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import polars as pl
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dwcli.connectors import create_connector
from dwcli.contract import Cursor
from dwcli.errors import ConfigError, ConnectionFailed, QueryFailed, ResourceMissing

URL = os.environ.get("DW_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")


@pytest.fixture(scope="module")
def database():
    """The name of a database of our own."""
    name = f"h_pg_{os.getpid()}"
    with psycopg.connect(URL, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
        yield name
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def server(database):
    """A session of the test's own, in UTC, in an empty schema that the search path begins with."""
    with psycopg.connect(make_conninfo(URL, dbname=database), autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        connection.execute("DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public")
        yield connection


def configured(database, /, **changes):
    parts = conninfo_to_dict(URL)
    config = {
        "protocol": "postgres",
        "host": parts.get("host", "localhost"),
        "port": int(parts.get("port", 5432)),
        "database": database,
        "username": parts.get("user", "postgres"),
    }
    if "password" in parts:
        config["password"] = parts["password"]
    return create_connector(config | changes)


@pytest.fixture
def source(server, database):
    """The connector under test, connected to the same database."""
    connector = configured(database)
    connector.connect()
    yield connector
    connector.close()


def frames(connector, query, cursor=None):
    return [item.payload for item in connector.fetch_data(query, cursor).items]


def column(connector, query, name, cursor=None):
    return [value for frame in frames(connector, query, cursor) for value in frame[name].to_list()]


# -- values ------------------------------------------------------------------------------------------

BYTES = "decode('" + bytes(range(256)).hex() + "', 'hex')"
HARD = {
    "smallint": ["-32768", "32767", "0"],
    "integer": ["-2147483648", "2147483647"],
    "bigint": ["-9223372036854775808", "9223372036854775807"],
    "oid": ["0", "4294967295"],
    "real": ["0.1", "-0", "NaN", "Infinity", "-Infinity", "3.4028235e38", "1e-45"],
    "double precision": ["0.1", "-0", "NaN", "Infinity", "-Infinity", "1.7976931348623157e308", "5e-324"],
    "boolean": ["true", "false"],
    "numeric(12,2)": ["0", "0.01", "-0.01", "9999999999.99", "-9999999999.99", "10000", "1.50"],
    "numeric(18,2)": ["9999999999999999.99", "-9999999999999999.99", "0.05", "10000.00"],
    "numeric(18,18)": ["0.000000000000000001", "-0.999999999999999999"],
    "numeric(38,0)": ["9" * 38, "-" + "9" * 38, "1" + "0" * 37, "18446744073709551616"],
    "numeric(38,19)": ["9" * 19 + "." + "9" * 19, "0.0000000000000000001", "-1"],
    "numeric(5,2)": ["NaN", "1.5", "-999.99", "0.00"],
    "numeric(50,10)": ["9" * 40 + ".0000000001", "-1"],
    "numeric": [
        *("0", "0.00", "1.50", "-1.5", "1e-20", "50000.0000000000000001", "9" * 38, "-" + "9" * 60),
        *("NaN", "Infinity", "-Infinity", "1e1000", "1e-1000", "12345678.90", "10000", "100000000"),
    ],
    "money": ["$1.23", "-$92,233,720,368,547,758.08"],
    "text": [
        "",
        "short",
        "twelve bytes",
        "thirteen byte",
        "ünïcødé",
        "🦆" * 40,
        "a\nb\tc\\N\r",
        "0501",
        "'\"",
    ],
    "character varying(20)": ["ab ", ""],
    '"char"': ["a", ""],
    "name": ["pg_class"],
    "json": ['{"a": 1, "a": 2 }', "null", '"\\u0000"'],
    "jsonb": ['{"b": [1, null, "x"], "a": 1e3}', "null", '"🦆"', "1"],
    "xml": ["<a>b</a>", "<a/>text"],
    "uuid": ["00112233-4455-6677-8899-aabbccddeeff", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    "date": ["1970-01-01", "0001-01-01", "9999-12-31", "2024-02-29"],
    "time": ["00:00", "23:59:59.999999", "12:30:00.5"],
    "timestamp": ["1970-01-01", "0001-01-02 00:00:00", "9999-12-30 23:59:59.999999", "1999-12-31 23:59:59.9"],
    "timestamptz": ["1970-01-01 00:00+00", "2024-02-29 12:00:00.000001+05:30", "1883-11-18 12:00-05"],
    "interval": ["1 year 2 mons 3 days 04:05:06.789", "-1 day", "0"],
    "timetz": ["24:00:00+00", "12:00:00.5-08"],
    "inet": ["10.0.0.1/8", "::1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "bit(3)": ["101"],
    "bit varying": ["", "10101"],
    "integer[]": ["{1,NULL,3}", "{}", "{{1,2},{3,4}}", "[0:1]={1,2}"],
    "text[]": ['{"a,b","\\"",NULL,"NULL",""}'],
    "numeric(10,2)[]": ["{1.50,NaN}"],
    "timestamp[]": ["{infinity,2024-01-01}"],
    "money[]": ["{$1.50,NULL}"],
    "int4range": ["[1,5)", "empty"],
    "tstzrange": ["[2024-01-01,)"],
    "tsvector": ["'a':1 'b':2"],
    "point": ["(1,2)"],
    "xid": ["1"],
    "pg_lsn": ["16/B374D848"],
    "regclass": ["pg_class"],
    "mood": ["glad", "söt"],
    "mood[]": ["{glad,NULL}"],
    "price": ["1.50"],
    "nested_price": ["1.50"],
    "price[]": ["{1.50}"],
    "pair": ['(1,"a b")', "(,)"],
    "pair[]": ['{"(1,x)",NULL}'],
}
#: Values that no dtype holds: their whole batch is text.
BEYOND = {
    "date": ["infinity", "-infinity", "0044-03-15 BC", "4713-01-01 BC", "10000-01-01", "5874897-12-31"],
    "time": ["24:00:00", "12:00:00.25"],
    "timestamp": [
        "infinity",
        "-infinity",
        "0001-12-31 23:59:59.5 BC",
        "4713-01-01 BC",
        "294276-12-31 23:59:59.999999",
    ],
    "timestamptz": [
        "infinity",
        "-infinity",
        "0044-03-15 12:00 BC",
        "10000-01-01",
        "294276-12-31 23:59:59.999999",
    ],
}
SETUP = """
CREATE TYPE mood AS ENUM ('glad', 'söt');
CREATE DOMAIN price AS numeric(10,2);
CREATE DOMAIN nested_price AS price CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text);
"""
CASES = [(name, values) for name, values in HARD.items()] + [
    (name, [*values, *HARD[name], None]) for name, values in BEYOND.items()
]


def as_text(value):
    """A value of a frame as PostgreSQL would take it."""
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return None if value is None else str(value)


@pytest.mark.parametrize(("type_name", "values"), CASES, ids=[f"{name}-{len(v)}" for name, v in CASES])
def test_hard_values_arrive_as_the_server_prints_them(server, source, type_name, values):
    server.execute(SETUP)
    server.execute(f"CREATE TABLE hard (n int, v {type_name}, after text)")
    for n, value in enumerate([*values, None]):
        server.execute(
            sql.SQL("INSERT INTO hard VALUES ({}, {}::{}, 'after')").format(n, value, sql.SQL(type_name))
        )
    [item] = source.fetch_data("hard").items
    described = {column.name: column.type for column in source.describe("hard").columns}
    assert item.types.get("v", described["v"]) == described["v"]
    assert set(item.payload["after"]) == {"after"}
    warehouse = sql.SQL(described["v"])
    compare = sql.SQL("SELECT v::{t}::text, %s::text::{t}::text FROM hard WHERE n = %s").format(t=warehouse)
    for n, value in item.payload.select("n", "v").iter_rows():
        printed, arrived = server.execute(compare, [as_text(value), n]).fetchone()
        assert arrived == printed


def test_all_256_bytes_arrive(server, source):
    server.execute(f"CREATE TABLE blobs AS SELECT {BYTES} AS b UNION ALL SELECT '' UNION ALL SELECT NULL")
    assert column(source, "blobs", "b") == [bytes(range(256)), b"", None]


def test_the_padding_of_a_character_column_arrives(server, source):
    server.execute("CREATE TABLE t AS SELECT 'ab'::character(5) AS v")
    assert column(source, "t", "v") == ["ab   "]


def test_text_that_stands_in_for_a_time_is_spelled_as_the_server_spells_it(server, source):
    server.execute("CREATE TABLE t (v timestamptz)")
    server.execute(
        "INSERT INTO t SELECT unnest(%s::timestamptz[])", [[*BEYOND["timestamptz"], "2024-01-01 00:00:00.25"]]
    )
    printed = [row[0] for row in server.execute("SELECT v::text FROM t")]
    assert column(source, "t", "v") == printed


@pytest.mark.parametrize(
    ("type_name", "warehouse", "dtype"),
    [
        ("smallint", "bigint", pl.Int16),
        ("integer", "bigint", pl.Int32),
        ("oid", "bigint", pl.Int64),
        ("numeric(12,2)", "numeric(12,2)", pl.Decimal(12, 2)),
        ("numeric", "numeric", pl.String),
        ("real", "real", pl.Float32),
        ("timestamp(3)", "timestamptz", pl.Datetime("us", "UTC")),
        ("varchar(20)", "text", pl.String),
        ("interval day to second", "interval day to second", pl.String),
        ("varchar(20)[]", "character varying(20)[]", pl.String),
        ("mood", "text", pl.String),
        ("mood[]", "text[]", pl.String),
        ("nested_price", "numeric(10,2)", pl.Decimal(10, 2)),
        ("price[]", "numeric(10,2)[]", pl.String),
        ("pair", "text", pl.String),
        ("regclass", "text", pl.String),
        ("money", "numeric", pl.String),
        ("uuid", "uuid", pl.String),
        ("jsonb", "jsonb", pl.String),
    ],
)
def test_an_empty_table_comes_as_one_frame_with_its_types(server, source, type_name, warehouse, dtype):
    server.execute(SETUP)
    server.execute(f"CREATE TABLE nothing (v {type_name})")
    [item] = source.fetch_data("nothing").items
    assert (item.payload.height, item.payload.schema["v"]) == (0, dtype)
    [described] = source.describe("nothing").columns
    assert described.type == warehouse
    assert item.types.get("v", warehouse) == warehouse


def test_naive_timestamps_are_read_in_the_time_zone_of_the_source(server, database):
    server.execute("CREATE TABLE t (n int, v timestamp)")
    wall = {
        "2024-01-15 12:00": "2024-01-15 17:00",
        "2024-07-15 12:00": "2024-07-15 16:00",
        "2024-03-10 02:30": "2024-03-10 07:30",  # the clock skipped it
        "2024-11-03 01:30": "2024-11-03 05:30",  # the clock showed it twice
    }
    server.execute(
        "INSERT INTO t SELECT row_number() OVER (), v FROM unnest(%s::timestamp[]) v", [list(wall)]
    )
    connector = configured(database, timezone="America/New_York")
    connector.connect()
    expected = [datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in wall.values()]
    assert column(connector, "t", "v") == expected
    server.execute(
        "INSERT INTO t VALUES (9, 'infinity'), (10, '10500-01-01 12:00'), (11, '0044-03-15 12:00 BC')"
    )
    printed = [
        row[0]
        for row in server.execute("SELECT (v AT TIME ZONE 'America/New_York')::text FROM t WHERE n > 8")
    ]
    assert column(connector, "SELECT v FROM t WHERE n > 8", "v") == printed
    connector.close()


def test_large_tables_come_in_frames_of_the_size_asked_for(server, database):
    server.execute("CREATE TABLE many AS SELECT n, repeat('x', 100) AS pad FROM generate_series(1, 10000) n")
    connector = configured(database, batch_bytes=64 * 1024)
    connector.connect()
    got = frames(connector, "many")
    assert len(got) > 10
    assert pl.concat(got)["n"].to_list() == list(range(1, 10_001))
    connector.close()


# -- queries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 AS n",
        "select 1 as n;",
        "-- which\nSELECT 1 AS n -- one",
        "/* a */ WITH w AS (SELECT 1 AS n) SELECT * FROM w",
        "(SELECT 1 AS n)",
        "SELECT CASE WHEN '%' = '%%' THEN 0 ELSE 1 END AS n",
    ],
)
def test_a_query_may_be_written_in_many_ways(source, query):
    assert column(source, query, "n") == [1]
    assert [c.name for c in source.describe(query).columns] == ["n"]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1) TO PROGRAM 'true' --",
        "SELECT 1; DROP TABLE victim",
        "WITH gone AS (DELETE FROM victim RETURNING *) SELECT * FROM gone",
        "SELECT nextval('counter')",
        "SELECT nonsense(",
        "SELECT 1 AS a, 2 AS a",
        "SELECT 1/0 AS n",
    ],
)
def test_a_query_that_writes_or_is_no_query_is_refused(server, source, query):
    server.execute("CREATE TABLE victim AS SELECT 1 AS n; CREATE SEQUENCE counter")
    with pytest.raises(QueryFailed) as failed:
        frames(source, query)
    assert "Traceback" not in failed.value.why
    assert server.execute("SELECT count(*) FROM victim").fetchone() == (1,)


HOSTILE = [
    'Mixed "Case" Table',
    "sp ace.dot",
    "'; DROP TABLE x; --",
    "🦆" * 15 + "abc",
    "select",
    "%s {} %",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_of_tables_and_columns_are_just_names(server, source, name):
    server.execute(sql.SQL("CREATE TABLE {0} ({0} int)").format(sql.Identifier(name)))
    server.execute(sql.SQL("INSERT INTO {0} VALUES (1), (2)").format(sql.Identifier(name)))
    [resource] = source.discover()
    assert column(source, resource.name, name, Cursor(column=name, start="2")) == [2]
    assert source.describe(resource.name) == resource
    quoted = sql.Identifier(name).as_string(server)
    assert column(source, quoted, name) == [1, 2]


def test_names_without_quotes_are_found_as_written_and_in_lower_case(server, source):
    server.execute('CREATE TABLE "Orders" (a int); CREATE TABLE items (b int)')
    assert [c.name for c in source.describe("Orders").columns] == ["a"]
    assert [c.name for c in source.describe("PUBLIC.Items").columns] == ["b"]


def test_a_missing_table_is_answered_with_the_nearest_name(server, source):
    server.execute("CREATE TABLE customers (a int)")
    for wrong in ("custmers", "public.custmers"):
        with pytest.raises(ResourceMissing, match=r"Did you mean 'public\.customers'\?"):
            source.describe(wrong)
        with pytest.raises(ResourceMissing):
            frames(source, wrong)
    with pytest.raises(ResourceMissing):
        source.describe("")


def test_errors_carry_no_values_of_rows(server, source):
    server.execute("CREATE TABLE t AS SELECT 'secret-4111'::text AS v")
    for cast in ("v::jsonb = 'null'", "v::int = 1", "v::uuid IS NULL", "('9' || right(v, 4))::smallint = 1"):
        with pytest.raises(QueryFailed) as failed:
            frames(source, f"SELECT v FROM t WHERE {cast}")
        assert "4111" not in failed.value.message + failed.value.why + failed.value.hint


# -- incremental -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_name", "values", "start", "end", "expected"),
    [
        ("int", ["1", "2", "2", "3", None], "2", "3", [1, 2, 3]),
        ("bigint", ["1", "9223372036854775807"], "9223372036854775807", None, [1]),
        ("int", ["1", "2"], "1.5", None, [1]),
        ("numeric", ["1.10", "1.2"], "1.2", None, [1]),
        ("oid", ["1", "3000000000"], "2", None, [1]),
        ("text", ["B", "a", "b", "ä", None], "a", None, [1, 2, 3, 4]),
        ("character(3)", ["a", "b"], "b  ", None, [1]),
        ("date", ["2024-01-01", "2024-01-02"], "2024-01-02", "2024-01-03", [1]),
        ("date", ["2024-01-01", "2024-01-02"], "2024-01-01 12:00:00+00", None, [1]),
        (
            "timestamptz",
            ["2024-01-01 00:00Z", "2024-01-01 00:00:00.000001Z"],
            "2024-01-01 00:00:00.000001+00",
            None,
            [1],
        ),
        ("timestamp", ["2024-01-01 00:00", "2024-01-02", "infinity"], "2024-01-02 00:00:00+00", None, [1, 2]),
        (
            "uuid",
            ["00000000-0000-0000-0000-000000000001"] * 2,
            "00000000-0000-0000-0000-000000000001",
            None,
            [0, 1],
        ),
    ],
)
def test_a_cursor_delivers_ties_and_nulls_and_nothing_before_it(
    server, source, type_name, values, start, end, expected
):
    server.execute(f"CREATE TABLE t (n int, v {type_name})")
    for n, value in enumerate(values):
        server.execute(sql.SQL("INSERT INTO t VALUES ({}, {}::{})").format(n, value, sql.SQL(type_name)))
    wanted = [n for n in expected if not (n == 3 and type_name == "int")] + (
        [values.index(None)] if None in values else []
    )
    cursor = Cursor("v", start, end)
    assert column(source, "t", "n", cursor) == sorted(set(wanted))
    assert column(source, "SELECT * FROM t", "n", cursor) == sorted(set(wanted))


def test_the_cursor_of_a_naive_timestamp_is_compared_in_the_time_zone_of_the_source(server, database):
    server.execute("CREATE TABLE t AS SELECT timestamp '2024-01-15 12:00' AS v")
    connector = configured(database, timezone="America/New_York")
    connector.connect()
    assert len(column(connector, "t", "v", Cursor("v", "2024-01-15 17:00:00+00"))) == 1
    assert column(connector, "t", "v", Cursor("v", "2024-01-15 17:00:00.000001+00")) == []
    connector.close()


def test_a_hostile_cursor_value_is_only_a_value(server, source):
    server.execute("CREATE TABLE victim (v text)")
    assert column(source, "victim", "v", Cursor("v", "2024'; DROP TABLE victim; --\\")) == []
    server.execute("ALTER TABLE victim ADD n int")
    for start in ("1); DROP TABLE victim; --", "\0", "\ud800"):
        with pytest.raises(QueryFailed):
            frames(source, "victim", Cursor("n", start))
    assert server.execute("SELECT count(*) FROM victim").fetchone() == (0,)


def test_a_cursor_column_that_is_not_there_is_an_error(server, source):
    server.execute("CREATE TABLE t (updated_at timestamptz)")
    with pytest.raises(QueryFailed, match="Did you mean 'updated_at'"):
        frames(source, "t", Cursor("updatd_at", "2024-01-01"))


def test_a_read_is_one_snapshot(server, database):
    server.execute("CREATE TABLE t AS SELECT n, repeat('x', 100) AS pad FROM generate_series(1, 100000) n")
    connector = configured(database, batch_bytes=64 * 1024)
    connector.connect()
    items = iter(connector.fetch_data("t").items)
    read = next(items).payload.height
    server.execute("INSERT INTO t SELECT n, '' FROM generate_series(1, 1000) n")
    assert read + sum(item.payload.height for item in items) == 100_000
    connector.close()


# -- ends --------------------------------------------------------------------------------------------


def sessions(server):
    """How many sessions of dw the server has in this database, other than the catalogue's."""
    return server.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dw' AND datname = current_database()"
        " AND (query LIKE 'COPY%' OR xact_start IS NOT NULL)"
    ).fetchone()[0]


BIG = "SELECT n, repeat('x', 1000) AS pad FROM generate_series(1, 10000000) n"


def wait_until(condition):
    """Poll the server for something that it does in its own time."""
    gate = threading.Event()
    for _ in range(200):
        if condition():
            return
        gate.wait(0.05)
    raise AssertionError("it did not happen within ten seconds")


def test_a_read_left_early_ends_on_the_server_and_the_next_one_works(server, source):
    items = iter(source.fetch_data(BIG).items)
    next(items)
    assert sessions(server) == 1
    items.close()
    wait_until(lambda: sessions(server) == 0)
    assert column(source, "SELECT 1 AS n", "n") == [1]


def test_close_ends_a_read_that_waits_in_another_thread(server, database):
    connector = configured(database)
    connector.connect()
    failures = []

    def read_on():
        try:
            list(connector.fetch_data("SELECT pg_sleep(60)::text AS n").items)
        except (QueryFailed, ConnectionFailed) as error:
            failures.append(error)

    reader = threading.Thread(target=read_on)
    reader.start()
    wait_until(lambda: sessions(server) == 1)
    connector.close()
    connector.close()
    reader.join(10)
    assert not reader.is_alive()
    assert len(failures) == 1
    wait_until(lambda: sessions(server) == 0)


def test_a_server_that_ends_the_session_is_a_lost_connection_and_never_an_end(server, source):
    items = iter(source.fetch_data(BIG).items)
    next(items)
    server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'dw' AND datname = current_database() AND query LIKE 'COPY%'"
    )
    with pytest.raises(ConnectionFailed) as lost:
        list(items)
    assert lost.value.layer == "lost"


def test_an_error_in_the_middle_of_a_read_is_the_query_s(source):
    items = iter(source.fetch_data(BIG.replace("n,", "1 / (100000 - n) AS n,")).items)
    assert next(items).payload.height > 0
    with pytest.raises(QueryFailed) as failed:
        list(items)
    assert "division by zero" in failed.value.why


# -- connecting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "layer"),
    [
        ({"host": "no-such-host.invalid"}, "name"),
        ({"host": "127.0.0.1", "port": 1}, "port"),
        ({"username": "nobody_here"}, "login"),
        ({"database": "nothing_here"}, "database"),
        ({"sslmode": "verify-full", "sslrootcert": "/nonexistent"}, "tls"),
    ],
)
def test_a_connection_that_fails_says_how_far_it_got(database, changes, layer):
    connector = configured(database, **changes)
    with pytest.raises(ConnectionFailed) as failed:
        connector.connect()
    assert failed.value.layer == layer
    assert failed.value.hint


def test_a_role_that_may_not_connect_or_read_is_told_so(server, database):
    role = f"h_pg_reader_{os.getpid()}"
    server.execute(f"CREATE ROLE {role} LOGIN; CREATE TABLE hidden (a int); CREATE TABLE shown (a int)")
    try:
        server.execute(f"GRANT USAGE ON SCHEMA public TO {role}; GRANT SELECT ON shown TO {role}")
        connector = configured(database, username=role)
        connector.connect()
        assert [resource.name for resource in connector.discover()] == ["public.shown"]
        with pytest.raises(QueryFailed, match="may not read"):
            frames(connector, "hidden")
        connector.close()
        server.execute(f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")
        with pytest.raises(ConnectionFailed) as failed:
            configured(database, username=role).connect()
        assert failed.value.layer == "permission"
    finally:
        server.execute(f"GRANT CONNECT ON DATABASE {database} TO PUBLIC")
        server.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_time_zone_that_does_not_exist_is_a_config_error(database):
    with pytest.raises(ConfigError, match="time zone"):
        configured(database, timezone="Mars/Olympus")


# -- catalogue ---------------------------------------------------------------------------------------


def test_discover_tells_keys_cursors_and_estimates(server, source):
    server.execute(
        """
        CREATE TABLE orders (id bigint PRIMARY KEY, total numeric(12,2), updated_at timestamptz NOT NULL);
        CREATE INDEX ON orders (updated_at);
        CREATE TABLE codes (country text NOT NULL, code text NOT NULL, note text, UNIQUE (country, code));
        CREATE TABLE loose (a int UNIQUE);
        CREATE TABLE parts (n int) PARTITION BY RANGE (n);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000);
        CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (1000) TO (2000);
        INSERT INTO parts SELECT n FROM generate_series(0, 1999) n;
        CREATE VIEW seen AS SELECT id FROM orders;
        CREATE MATERIALIZED VIEW kept AS SELECT 1 AS n;
        ANALYZE parts
        """
    )
    found = {resource.name.removeprefix("public."): resource for resource in source.discover()}
    assert {name: resource.kind for name, resource in found.items()} == {
        "orders": "table",
        "codes": "table",
        "loose": "table",
        "parts": "table",
        "seen": "view",
        "kept": "materialized view",
    }
    assert found["orders"].primary_key == ("id",)
    assert found["orders"].key_reason == "primary key in the source"
    assert found["orders"].cursors[0].column == "updated_at"
    assert found["orders"].cursors[0].sure
    assert [(c.name, c.type, c.nullable, c.source_type) for c in found["orders"].columns] == [
        ("id", "bigint", False, "bigint"),
        ("total", "numeric(12,2)", True, "numeric(12,2)"),
        ("updated_at", "timestamptz", False, "timestamp with time zone"),
    ]
    assert found["codes"].primary_key == ("country", "code")
    assert "codes_country_code_key" in found["codes"].key_reason
    assert found["loose"].primary_key == ()
    assert found["loose"].row_estimate is None
    assert found["parts"].row_estimate == 2000
    assert found["parts"].bytes_estimate > 0
    assert found["seen"].row_estimate is None
    assert column(source, "parts", "n") == list(range(2000))
    for name, resource in found.items():
        assert source.describe(name) == resource


def test_a_query_is_described_without_being_run(source):
    described = source.describe("SELECT 1/0 AS n, 1.50::numeric(5,2) AS price, now() AS updated_at")
    assert [(c.name, c.type) for c in described.columns] == [
        ("n", "bigint"),
        ("price", "numeric(5,2)"),
        ("updated_at", "timestamptz"),
    ]
    assert described.kind == "query"
    assert described.cursors[0].column == "updated_at"


def test_a_query_that_cannot_be_described_leaves_the_session_usable(source):
    with pytest.raises(QueryFailed):
        source.describe("SELECT nonsense(")
    assert source.describe("SELECT 1 AS n").columns[0].name == "n"


def test_decimals_are_decimals(server, source):
    server.execute("CREATE TABLE t AS SELECT 1.50::numeric(12,2) AS v")
    assert column(source, "t", "v") == [Decimal("1.50")]


def test_a_row_that_is_committed_late_is_read_by_the_next_run(server, database, source):
    server.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamptz NOT NULL)")
    server.execute("INSERT INTO t VALUES (1, '2026-01-01')")
    with psycopg.connect(make_conninfo(URL, dbname=database)) as slow:
        slow.execute("INSERT INTO t VALUES (2, '2026-01-02')")
        with slow.transaction():  # a savepoint has a number of its own
            slow.execute("INSERT INTO t VALUES (3, '2026-01-03')")
        server.execute("INSERT INTO t VALUES (4, '2026-01-04')")

        first = list(source.fetch_data("t", Cursor("at", again=True)).items)
        slow.commit()

    assert [item.payload["id"].to_list() for item in first] == [[1, 4]]
    reached = Cursor("at", "2026-01-04 00:00:00+00", None, "timestamptz", first[-1].position, again=True)
    second = list(source.fetch_data("t", reached).items)
    assert sorted(second[0].payload["id"]) == [2, 3, 4]
    third = list(source.fetch_data("t", replace(reached, position=second[-1].position)).items)
    assert third[0].payload["id"].to_list() == [4]


def test_late_rows_are_not_given_twice_where_they_would_be_appended(server, database, source):
    server.execute("CREATE TABLE t (id int PRIMARY KEY, at int NOT NULL)")
    with psycopg.connect(make_conninfo(URL, dbname=database)) as slow:
        slow.execute("INSERT INTO t VALUES (1, 1)")
        server.execute("INSERT INTO t VALUES (2, 2)")
        (item,) = source.fetch_data("t", Cursor("at")).items
        assert item.position is None
        slow.commit()
    (item,) = source.fetch_data("t", Cursor("at", "2", position={"xmin": "3"})).items
    assert item.payload["id"].to_list() == [2]


def open_transaction_of(source):
    (*_, item) = source.fetch_data("t", Cursor("at", again=True)).items
    return item.position


def test_only_what_may_still_write_here_makes_the_next_run_look_for_late_rows(server, database, source):
    server.execute("CREATE TABLE t (id int PRIMARY KEY, at int NOT NULL)")
    server.execute("INSERT INTO t VALUES (1, 1)")
    with psycopg.connect(URL) as elsewhere, psycopg.connect(make_conninfo(URL, dbname=database)) as here:
        elsewhere.execute("SELECT txid_current()")
        server.execute("INSERT INTO t VALUES (2, 2)")  # so that elsewhere's number is among the running ones
        assert open_transaction_of(source) == {}
        here.execute("INSERT INTO t VALUES (3, 3)")
        oldest = here.execute("SELECT txid_current()").fetchone()[0]
        server.execute("INSERT INTO t VALUES (4, 4)")
        assert open_transaction_of(source) == {"xmin": str(oldest)}


def test_who_may_not_see_other_sessions_expects_late_rows_of_them(server, database):
    server.execute("CREATE TABLE t (id int PRIMARY KEY, at int NOT NULL); GRANT SELECT ON t TO PUBLIC")
    role = f"h_pg_blind_{os.getpid()}"
    server.execute(f"GRANT USAGE ON SCHEMA public TO PUBLIC; CREATE ROLE {role} LOGIN PASSWORD 'x'")
    try:
        with contextlib.closing(configured(database, username=role, password="x")) as source:
            source.connect()
            assert set(open_transaction_of(source)) == {"xmin"}
    finally:
        server.execute(f"DROP ROLE {role}")


def test_a_view_has_no_transaction_numbers_and_is_read_by_its_cursor(server, database, source):
    server.execute("CREATE TABLE t (id int, at int); CREATE VIEW v AS SELECT * FROM t")
    server.execute("INSERT INTO t VALUES (1, 1), (2, 2)")
    reached = Cursor("at", "2", type="bigint", position={"xmin": "3"}, again=True)
    for query in ("v", "select * from t"):
        (item,) = source.fetch_data(query, reached).items
        assert item.payload["id"].to_list() == [2]

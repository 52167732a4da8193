"""The Oracle connector, at the border of Oracle's driver: its own types, no server.

Connections that fail are real ones, to listeners that refuse, say nothing, or hang up.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import socket
import threading
from decimal import Decimal
from types import SimpleNamespace

import polars as pl
import pytest

oracledb = pytest.importorskip("oracledb", reason="pip install 'dwcli[oracle]'")

from dwcli.connectors import create_connector, oracle  # noqa: E402
from dwcli.contract import Cursor  # noqa: E402
from dwcli.errors import ConnectionFailed, QueryFailed, ResourceMissing, SourceData  # noqa: E402
from tests.connectors.oracle_driver import Database, column, error  # noqa: E402
from tests.pipeline.runs import rows_of  # noqa: E402
from tests.pipeline.runs import run as run_job  # noqa: E402

CONFIG = {
    "protocol": "oracle_db", "host": "127.0.0.1", "service_name": "FREEPDB1", "username": "shop",
    "password": "secret-word",
}  # fmt: skip
ID = column("ID", oracledb.DB_TYPE_NUMBER, 10, 0, null_ok=False)
ID_IN_CATALOGUE = ("ID", "NUMBER", 22, 10, 0, "N")


@pytest.fixture
def database(monkeypatch):
    database = Database()
    monkeypatch.setattr(oracledb, "connect", database.connect)
    monkeypatch.setattr(oracle, "reach", lambda host, port: None)
    yield database
    assert database.open == 0


@pytest.fixture
def source(database):
    """Opens a connector on the database."""
    opened = []

    def connect(**more):
        connector = create_connector(CONFIG | more)
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


def test_numbers_never_pass_through_a_float(database, source):
    number = oracledb.DB_TYPE_NUMBER
    database.add(
        "N",
        [
            column("I", number, 18, 0), column("BIG", number, 38, 0), column("M", number, 12, 2),
            column("ANY", number, 0, -127), column("FL", number, 126, -127), column("UP", number, 5, -2),
            column("TINY", number, 3, 5), column("D", oracledb.DB_TYPE_BINARY_DOUBLE),
        ],
        [
            ("-999999999999999999", "99999999999999999999999999999999999999", "9999999999.99",
             "0.12345678901234567890123456789012345678", "9007199254740993.1", "1234500", "0.00123", 0.1),
            (None,) * 8,
        ],
    )  # fmt: skip
    frame, types, _ = read(source(), "N")
    assert frame.rows() == [
        (
            -999999999999999999, "99999999999999999999999999999999999999", Decimal("9999999999.99"),
            "0.12345678901234567890123456789012345678", "9007199254740993.1", Decimal(1234500),
            Decimal("0.00123"), 0.1,
        ),
        (None,) * 8,
    ]  # fmt: skip
    assert types == {
        "I": "bigint", "BIG": "numeric(38,0)", "M": "numeric(12,2)", "ANY": "numeric", "FL": "numeric",
        "UP": "numeric(7,0)", "TINY": "numeric(5,5)", "D": "double precision",
    }  # fmt: skip


def add_times(database):
    """A table of every kind of time."""
    at = datetime.datetime(2024, 7, 1, 12, 0, 0, 123456)
    zone = datetime.timezone(datetime.timedelta(hours=2))
    database.add(
        "T",
        [
            column("D", oracledb.DB_TYPE_DATE), column("T6", oracledb.DB_TYPE_TIMESTAMP, 0, 6),
            column("T9", oracledb.DB_TYPE_TIMESTAMP, 0, 9),
            column("Z6", oracledb.DB_TYPE_TIMESTAMP_TZ, 0, 6),
            column("Z9", oracledb.DB_TYPE_TIMESTAMP_TZ, 0, 9),
            column("L6", oracledb.DB_TYPE_TIMESTAMP_LTZ, 0, 6),
            column("DS", oracledb.DB_TYPE_INTERVAL_DS, 2, 6),
            column("D9", oracledb.DB_TYPE_INTERVAL_DS, 2, 9), column("YM", oracledb.DB_TYPE_INTERVAL_YM, 2),
        ],
        [
            (
                at.replace(microsecond=0), at, "2024-07-01 12:00:00.123456789", at.replace(tzinfo=zone),
                "2024-07-01 10:00:00.000000000", at, -datetime.timedelta(days=1, hours=2, microseconds=5),
                "-01 02:03:04.123456789", oracledb.IntervalYM(-1, -3),
            ),
            (None,) * 9,
        ],
    )  # fmt: skip


def test_times_keep_what_the_driver_drops(database, source):
    add_times(database)
    connector = source(timezone="Europe/Berlin")
    frame, types, (item,) = read(connector, "T")
    row = dict(zip(frame.columns, (str(v) for v in frame.row(0)), strict=True))
    assert row == {
        "D": "2024-07-01 10:00:00+00:00",
        "T6": "2024-07-01 10:00:00.123456+00:00",
        "T9": "2024-07-01 10:00:00.123456+00:00",
        "Z6": "2024-07-01 12:00:00.123456+00:00",
        "Z9": "2024-07-01 10:00:00+00:00",
        "L6": "2024-07-01 12:00:00.123456+00:00",
        "DS": "-26:00:00.000005",
        "D9": "-26:03:04.123456",
        "YM": "-1 years -3 mons",
    }
    assert set(frame.row(1)) == {None}
    assert set(types.values()) == {"timestamptz", "interval"}
    assert item.metadata["changed"] == {
        "T9: nanoseconds cut to microseconds": 1, "D9: nanoseconds cut to microseconds": 1,
    }  # fmt: skip
    sql = database.statements[-1][0]
    assert 'TO_CHAR(dw."T9", \'YYYY-MM-DD HH24:MI:SS.FF9\') AS "T9"' in sql
    assert 'SYS_EXTRACT_UTC(dw."Z6") AS "Z6"' in sql and 'dw."T6" AS "T6"' in sql
    assert "TO_CHAR(SYS_EXTRACT_UTC(dw.\"Z9\"), 'YYYY-MM-DD HH24:MI:SS.FF9')" in sql
    assert 'SYS_EXTRACT_UTC(CAST(dw."L6" AS TIMESTAMP(9) WITH TIME ZONE))' in sql


def test_texts_bytes_and_json_arrive_whole(database, source):
    every_byte = bytes(range(256))
    database.add(
        "X",
        [
            column("V", oracledb.DB_TYPE_VARCHAR, internal_size=400), column("E", oracledb.DB_TYPE_VARCHAR),
            column("C", oracledb.DB_TYPE_CLOB), column("NC", oracledb.DB_TYPE_NCLOB),
            column("LG", oracledb.DB_TYPE_LONG), column("B", oracledb.DB_TYPE_BLOB),
            column("R", oracledb.DB_TYPE_RAW, internal_size=256), column("RI", oracledb.DB_TYPE_ROWID),
            column("J", oracledb.DB_TYPE_JSON), column("BO", oracledb.DB_TYPE_BOOLEAN),
        ],
        [
            (
                "é 🦆", "", "c" * 100_000, "ü", "l", every_byte, b"\0\1", "AAAR3sAAEAAAACXAAA",
                '{"a": 0.10}', True,
            ),
        ],
    )  # fmt: skip
    frame, types, _ = read(source(), "X")
    assert frame.row(0) == (
        "é 🦆", None, "c" * 100_000, "ü", "l", every_byte, b"\0\1", "AAAR3sAAEAAAACXAAA", '{"a": 0.10}', True,
    )  # fmt: skip
    assert types == {
        "V": "text", "E": "text", "C": "text", "NC": "text", "LG": "text", "B": "bytea", "R": "bytea",
        "RI": "text", "J": "jsonb", "BO": "boolean",
    }  # fmt: skip


def test_what_cannot_be_read_is_named(database, source):
    database.add("G", [ID, column("SHAPE", oracledb.DB_TYPE_OBJECT)], [])
    with pytest.raises(QueryFailed, match=r"SHAPE \(OBJECT\) cannot be read"):
        read(source(), "G")
    frame = pl.concat([item.payload for item in source().keys("G", ["ID"])])
    assert frame.columns == ["ID"]


def test_an_empty_table_still_tells_its_columns(database, source):
    database.add(
        "E", [ID, column("AT", oracledb.DB_TYPE_DATE), column("M", oracledb.DB_TYPE_NUMBER, 12, 2)], []
    )
    for query in ("E", "SELECT * FROM E"):
        frame, types, items = read(source(), query)
        assert frame.height == 0 and len(items) == 1
        assert frame.schema == {"ID": pl.Int64, "AT": pl.Datetime("us", "UTC"), "M": pl.Decimal(12, 2)}
        assert types == {"ID": "bigint", "AT": "timestamptz", "M": "numeric(12,2)"}


@pytest.mark.parametrize("name", ["ORDERS", "a.b", "my table", 'quo"te', "select x", "snö☃", "lower"])
def test_hostile_names_are_found_again(database, source, name):
    escaped = name.replace('"', '""')
    database.add(escaped, [ID], [(1,), (2,)], [ID_IN_CATALOGUE])
    database.catalogue = {name: database.catalogue[escaped]}
    database.tables[name] = database.tables[escaped]
    connector = source()
    (resource,) = connector.discover()
    assert read(connector, resource.name)[0]["ID"].to_list() == [1, 2]
    assert connector.describe(resource.name) == resource
    assert f'FROM "SHOP"."{escaped}" dw' in database.statements[-6][0] + database.statements[-7][0]


def test_bounds_are_of_the_columns_own_type(database, source):
    def sent(kind, start, end, type, precision=None, scale=None, null_ok=True):
        database.add("C", [column("c", kind, precision, scale, null_ok)], [])
        read(source(timezone="Europe/Berlin"), "C", Cursor("c", start, end, type))
        sql, parameters = database.statements[-1]
        return sql.partition(" WHERE ")[2], list(parameters.values())

    at, later = "2024-07-01 10:00:00.000001+00", "2024-07-01 10:00:00.000002+00"
    assert sent(oracledb.DB_TYPE_NUMBER, "9007199254740993", "9007199254740994", "bigint", 18, 0, False) == (
        '(dw."c" >= :dw_0 AND dw."c" < :dw_1)', [9007199254740993, 9007199254740994],
    )  # fmt: skip
    assert sent(oracledb.DB_TYPE_NUMBER, "1.10", None, "numeric(12,2)", 12, 2) == (
        '(dw."c" >= :dw_0) OR dw."c" IS NULL', [Decimal("1.10")],
    )  # fmt: skip
    assert sent(oracledb.DB_TYPE_DATE, at, None, "timestamptz", None, None, False) == (
        "(dw.\"c\" >= TO_DATE(:dw_0, 'YYYY-MM-DD HH24:MI:SS'))", ["2024-07-01 12:00:00"],
    )  # fmt: skip
    assert sent(oracledb.DB_TYPE_TIMESTAMP, at, later, "timestamptz", 0, 6, False) == (
        "(dw.\"c\" >= TO_TIMESTAMP(:dw_0, 'YYYY-MM-DD HH24:MI:SS.FF6')"
        " AND dw.\"c\" < TO_TIMESTAMP(:dw_1, 'YYYY-MM-DD HH24:MI:SS.FF6'))",
        ["2024-07-01 12:00:00.000001", "2024-07-01 12:00:00.000002"],
    )
    assert sent(oracledb.DB_TYPE_TIMESTAMP_TZ, at, None, "timestamptz", 0, 6, False) == (
        "(dw.\"c\" >= TO_TIMESTAMP_TZ(:dw_0, 'YYYY-MM-DD HH24:MI:SS.FF6 TZH:TZM'))",
        ["2024-07-01 10:00:00.000001 +00:00"],
    )
    assert sent(oracledb.DB_TYPE_VARCHAR, "x' OR 1=1", None, "text", None, None, False)[1] == ["x' OR 1=1"]
    with pytest.raises(ResourceMissing, match=r"no cursor column 'd'"):
        read(source(), "C", Cursor("d", "1"))


def test_batches_are_bounded_by_bytes(database, source):
    rows = [(n, "x" * (20_000 if n > 300 else 10)) for n in range(600)]
    database.add("W", [ID, column("TX", oracledb.DB_TYPE_CLOB)], rows)
    items = read(source(batch_bytes=200_000), "W")[2]
    assert sum(item.payload.height for item in items) == 600
    assert len(items) > 15 and max(item.payload.estimated_size() for item in items) <= 2 * 200_000


def test_rows_per_call_follow_the_declared_widths():
    number = oracle.Declared("a", "NUMBER", size=22)
    assert oracle.rows_per_call([number], 8 * 1024 * 1024) == oracle.MOST_ROWS
    assert oracle.rows_per_call([oracle.Declared("c", "CLOB")], 1280 * 1024) == 10
    assert oracle.rows_per_call([oracle.Declared("v", "VARCHAR2", size=32767)] * 20, 64 * 1024) == 1


def test_closing_the_connector_ends_a_read(database, source):
    database.add("W", [ID], [(n,) for n in range(100_000)])
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("W").items
    next(items)
    connector.close()
    connector.close()
    with pytest.raises(ConnectionFailed) as caught:
        list(items)
    assert caught.value.layer == "lost" and database.cancelled == 1


def test_stopping_early_closes_the_connection(database, source):
    database.add("W", [ID], [(n,) for n in range(100_000)])
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("W").items
    next(items)
    assert database.open == 2
    items.close()
    assert database.open == 1 and connector.client.reading == []


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (error("ORA-03113", "end-of-file on communication channel"), ConnectionFailed, "broke while reading"),
        (error("DPY-4011", "the database or network closed the connection"), ConnectionFailed, "broke"),
        (ConnectionResetError("reset"), ConnectionFailed, "broke while reading"),
        (error("ORA-01555", "snapshot too old"), QueryFailed, "the moment that the read began at"),
        (error("ORA-01031", "insufficient privileges"), QueryFailed, "may not read"),
        (error("ORA-00904", '"NOPE": invalid identifier'), QueryFailed, "refused the query"),
        (ValueError("year -4712 is out of range"), SourceData, "cannot hold a value"),
    ],
)
def test_errors_while_reading_are_told_in_our_words(database, source, raised, kind, said):
    database.add("W", [ID], [(n,) for n in range(100_000)])
    connector = source(batch_bytes=64 * 1024)
    items = connector.fetch_data("W").items
    next(items)
    database.fails = raised
    with pytest.raises(kind, match=said):
        list(items)
    database.fails = None
    assert connector.client.reading == []


def test_discover_tells_keys_cursors_and_estimates(database, source):
    database.add(
        "ORDERS",
        [],
        [(1,), (2,)],
        [
            ID_IN_CATALOGUE,
            ("TOTAL", "NUMBER", 22, 12, 2, "Y"),
            ("QTY", "NUMBER", 22, None, 0, "Y"),
            ("ANY", "NUMBER", 22, None, None, "Y"),
            ("UPDATED_AT", "TIMESTAMP(6) WITH TIME ZONE", 13, None, 6, "N"),
            ("SPAN", "INTERVAL DAY(2) TO SECOND(6)", 11, 2, 6, "Y"),
            ("NOTE", "VARCHAR2", 400, None, None, "Y"),
        ],
        key=("ID",),
        indexed=("ID", "UPDATED_AT"),
    )
    (orders,) = source().discover()
    assert (orders.name, orders.primary_key, orders.key_reason) == (
        "ORDERS",
        ("ID",),
        "primary key in the source",
    )
    assert {c.name: c.type for c in orders.columns} == {
        "ID": "bigint", "TOTAL": "numeric(12,2)", "QTY": "numeric(38,0)", "ANY": "numeric",
        "UPDATED_AT": "timestamptz", "SPAN": "interval", "NOTE": "text",
    }  # fmt: skip
    assert [c.source_type for c in orders.columns][:2] == ["NUMBER(10,0)", "NUMBER(12,2)"]
    assert orders.columns[-1].source_type == "VARCHAR2(400)" and not orders.columns[0].nullable
    assert orders.cursors[0].column == "UPDATED_AT" and orders.cursors[0].sure
    assert orders.row_estimate == 2
    assert source().describe("shop.orders") == orders


def test_missing_tables_are_told_with_the_nearest_name(database, source):
    database.add("ORDERS", [ID], [], [ID_IN_CATALOGUE])
    with pytest.raises(ResourceMissing, match=r"no table 'ORDER'. Did you mean 'ORDERS'"):
        read(source(), "ORDER")
    with pytest.raises(ResourceMissing):
        read(source(), "SELECT * FROM nowhere")


def test_runs_into_postgres_take_up_where_the_last_one_ended(database, warehouse_url, warehouse, tmp_path):
    at = datetime.datetime(2024, 1, 1)
    columns = [ID, column("TOTAL", oracledb.DB_TYPE_NUMBER, 12, 2), column("AT", oracledb.DB_TYPE_DATE)]
    database.add("ORDERS", columns, [(1, "1.10", at), (2, None, at)], [ID_IN_CATALOGUE])
    made = SimpleNamespace(connector=lambda: create_connector(CONFIG))
    settings = {"protocol": "oracle", "query": "ORDERS", "write": "merge", "key": ("ID",), "cursor": "AT"}
    first = run_job(warehouse_url, tmp_path, made, **settings)
    assert first.error is None and first.result["rows_loaded"] == 2
    second = run_job(warehouse_url, tmp_path, made, **settings)
    assert second.error is None
    assert list(database.statements[-1][1].values()) == ["2024-01-01 00:00:00"]
    found = rows_of(warehouse, "SELECT id, total, at::text FROM t ORDER BY 1")
    assert found == [(1, Decimal("1.10"), "2024-01-01 00:00:00+00"), (2, None, "2024-01-01 00:00:00+00")]


def test_every_kind_of_time_reaches_postgres(database, warehouse_url, warehouse, tmp_path):
    add_times(database)
    made = SimpleNamespace(connector=lambda: create_connector(CONFIG | {"timezone": "Europe/Berlin"}))
    outcome = run_job(warehouse_url, tmp_path, made, protocol="oracle", query="T")
    assert outcome.error is None
    found = rows_of(warehouse, "SELECT t6::text, z6::text, ds::text, d9::text, ym::text FROM t ORDER BY 1")
    assert found[0] == (
        "2024-07-01 10:00:00.123456+00", "2024-07-01 12:00:00.123456+00", "-26:00:00.000005",
        "-26:03:04.123456", "-1 years -3 mons",
    )  # fmt: skip
    assert set(found[1]) == {None}


# -- the real driver, on ports that are no database -----------------------------------------------------


@contextlib.contextmanager
def listener(answer):
    """A port that reads what the driver says first, answers this, and hangs up; None says nothing."""

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                held.append(connection)
                if answer is None:
                    continue
                with connection, contextlib.suppress(OSError):
                    if connection.recv(4096):
                        connection.sendall(answer)

    held = []
    server = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
        for connection in held:
            connection.close()


def refusal(text):
    """A listener's REFUSE packet."""
    body = bytes([34, 0]) + len(text).to_bytes(2, "big") + text.encode()
    return (8 + len(body)).to_bytes(2, "big") + b"\0\0\4\0\0\0" + body


def failed(**more):
    with pytest.raises(ConnectionFailed) as caught:
        create_connector(CONFIG | more).connect()
    assert caught.value.hint and "secret-word" not in f"{caught.value} {caught.value.why}"
    return caught.value


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_each_layer_of_a_failed_connection_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    assert failed(host="no-such-host.invalid").layer == "name"
    assert failed(port=free).layer == "port"
    with listener(b"") as port:
        assert failed(port=port).layer == "port"
        assert failed(port=port, tls=True).layer == "tls"
    with listener(refusal("(DESCRIPTION=(ERR=12514)(ERROR_STACK=(ERROR=(CODE=12514)(EMFI=4))))")) as port:
        assert failed(port=port).layer == "database"
        assert "knows no service 'FREEPDB1'" in str(failed(port=port))
    with listener(refusal("(DESCRIPTION=(ERR=12528)(ERROR_STACK=(ERROR=(CODE=12528)(EMFI=4))))")) as port:
        assert failed(port=port).layer == "database"
    monkeypatch.setattr(oracle, "CONNECT_SECONDS", 0.5)
    with listener(None) as port:
        silent = failed(port=port)
        assert silent.layer == "port" and "says nothing" in str(silent)
    # The driver leaves the socket of a login that was cut to the garbage collector, which warns of it.
    for thread in threading.enumerate():
        if thread.name == "dw-waiting":
            thread.join(10)
    gc.collect()


@pytest.mark.parametrize(
    ("code", "layer"),
    [("ORA-01017", "login"), ("ORA-28000", "login"), ("ORA-01045", "permission"), ("DPY-3010", "database")],
)
def test_a_refused_login_is_told_by_its_number(monkeypatch, code, layer):
    def refuse(**arguments):
        raise error(code, "the server's own words")

    monkeypatch.setattr(oracledb, "connect", refuse)
    monkeypatch.setattr(oracle, "reach", lambda host, port: None)
    assert failed().layer == layer

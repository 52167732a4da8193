"""Every golden value by every way that can hold it: it is in the warehouse as it was at the source.

A way writes the values into a real source, and says of each which text PostgreSQL would read it from. What it
leaves out (None) such a source cannot hold at all.
"""

from __future__ import annotations

import csv
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import time
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pymysql
import pytest

from dwcli.connectors import create_connector
from dwcli.pipeline.record import Job, RunOptions
from dwcli.pipeline.runner import attempt
from dwcli.warehouse.engine import make_engine
from tests.services import MARIADB_URL, POSTGRES_URL, required
from tests.values.golden import VALUES, count

Held = Sequence[tuple[int, str]]
#: writes the values of a kind and gives the source's config, its query and what it holds
Way = Callable[[Path, str, Held], tuple[dict[str, Any], str, Held]]
BEYOND = ("infinity", "BC", "10000-")


def test_there_are_enough() -> None:
    assert count() >= 120


@pytest.fixture
def postgres() -> Iterator[Way]:
    url, names = required("PostgreSQL", POSTGRES_URL), []

    def write(folder: Path, kind: str, held: Held) -> tuple[dict[str, Any], str, Held]:
        names.append(f"golden_{secrets.token_hex(4)}")
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("set timezone = 'UTC'")
            session.execute(f"create table {names[-1]} (id int primary key, v {kind})")
            cast = "decode(%s, 'hex')" if kind == "bytea" else f"%s::text::{kind}"
            with session.cursor() as cursor:
                cursor.executemany(f"insert into {names[-1]} values (%s, {cast})", held)
        parts = urlsplit(url)
        return (
            {
                "protocol": "postgres",
                "host": parts.hostname,
                "port": parts.port or 5432,
                "database": parts.path[1:],
                "username": parts.username,
                "password": unquote(parts.password or ""),
            },
            names[-1],
            held,
        )

    yield write
    with psycopg.connect(url, autocommit=True) as session:
        for name in names:
            session.execute(f"drop table {name}")


MYSQL_TYPES = {
    "bigint": "BIGINT",
    "numeric": "DECIMAL(65,30)",
    "double precision": "DOUBLE",
    "text": "LONGTEXT",
    "date": "DATE",
    "timestamptz": "DATETIME(6)",
    "time": "TIME(6)",
    "boolean": "TINYINT(1)",
    "bytea": "LONGBLOB",
    "uuid": "CHAR(36)",
    "jsonb": "JSON",
}


@pytest.fixture
def mysql() -> Iterator[Way]:
    parts, names = urlsplit(required("MariaDB", MARIADB_URL)), []
    password, database = unquote(parts.password or ""), parts.path[1:]
    server: dict[str, Any] = {"host": parts.hostname, "port": parts.port or 3306, "user": parts.username}
    server |= {"password": password, "database": database}

    def write(folder: Path, kind: str, held: Held) -> tuple[dict[str, Any], str, Held]:
        names.append(f"golden_{secrets.token_hex(4)}")
        held = [(n, v) for n, v in held if _in_mysql(kind, v)]
        with (
            closing(pymysql.connect(**server, charset="utf8mb4", autocommit=True)) as session,
            session.cursor() as cursor,
        ):
            cursor.execute(f"CREATE TABLE {names[-1]} (id INT PRIMARY KEY, v {MYSQL_TYPES[kind]})")
            rows = [(n, _plain(kind, v)) for n, v in held]
            cursor.executemany(f"INSERT INTO {names[-1]} VALUES (%s, %s)", rows)
        config = {
            "protocol": "mysql",
            "host": parts.hostname,
            "port": server["port"],
            "database": database,
            "username": parts.username,
            "password": password,
            "tinyint1_is_bool": True,
        }
        return config, names[-1], held

    yield write
    with (
        closing(pymysql.connect(**server, autocommit=True)) as session,
        session.cursor() as cursor,
    ):
        for name in names:
            cursor.execute(f"DROP TABLE {name}")


def _in_mysql(kind: str, value: str) -> bool:
    if kind == "numeric":
        return len(Decimal(value).as_tuple().digits) <= 65 and abs(Decimal(value)) < Decimal(10) ** 35
    if kind in ("date", "timestamptz"):
        return not any(text in value for text in BEYOND)
    if kind == "double precision":
        return value not in ("NaN", "Infinity", "-Infinity")
    return not (kind == "jsonb" and value.startswith("[["))  # deeper than MariaDB reads


def _plain(kind: str, value: str) -> Any:
    """A value as a driver takes it, for sources without PostgreSQL's types."""
    if kind == "bigint":
        return int(value)
    if kind == "double precision":
        return float(value)
    if kind == "boolean":
        return value == "true"
    if kind == "bytea":
        return bytes.fromhex(value)
    return value.removesuffix("+00") if kind == "timestamptz" else value


SQLITE_TYPES = {"bigint": "BIGINT", "double precision": "DOUBLE", "bytea": "BLOB", "boolean": "BOOLEAN"}
SQLITE_TYPES |= {"date": "DATE", "timestamptz": "DATETIME", "time": "TIME"}


@pytest.fixture
def sqlite() -> Way:
    def write(folder: Path, kind: str, held: Held) -> tuple[dict[str, Any], str, Held]:
        held = [(n, v) for n, v in held if v != "NaN"]
        with closing(sqlite3.connect(folder / "golden.db")) as session, session:
            session.execute(f"create table t (id integer primary key, v {SQLITE_TYPES.get(kind, 'TEXT')})")
            session.executemany("insert into t values (?, ?)", [(n, _plain(kind, v)) for n, v in held])
        return {"protocol": "sqlite", "database_path": str(folder / "golden.db")}, "t", held

    return write


DUCKDB_TYPES = {"numeric": "DECIMAL(38,18)", "double precision": "DOUBLE", "text": "VARCHAR", "jsonb": "JSON"}
DUCKDB_TYPES |= {"timestamptz": "TIMESTAMPTZ", "bytea": "BLOB"}


@pytest.fixture
def duckdb() -> Way:
    driver = pytest.importorskip("duckdb")

    def write(folder: Path, kind: str, held: Held) -> tuple[dict[str, Any], str, Held]:
        held = [(n, v) for n, v in held if _in_duckdb(kind, v)]
        with driver.connect(str(folder / "golden.duckdb")) as session:
            session.execute("SET TimeZone = 'UTC'")
            session.execute(f"CREATE TABLE t (id INTEGER, v {DUCKDB_TYPES.get(kind, kind)})")
            value = "unhex(?)" if kind == "bytea" else "?"
            for number, text in held:
                text = text.replace(" BC", " (BC)")
                session.execute(f"INSERT INTO t VALUES (?, {value})", [number, text])
        return {"protocol": "duckdb", "database_path": str(folder / "golden.duckdb")}, "t", held

    return write


def _in_duckdb(kind: str, value: str) -> bool:
    if kind == "numeric":
        digits, exponent = Decimal(value).as_tuple()[1:]
        return isinstance(exponent, int) and exponent >= -18 and len(digits) + exponent <= 20
    return not (kind == "jsonb" and ("1e400" in value or value.startswith("[[")))


@pytest.fixture
def csv_file() -> Way:
    def write(folder: Path, kind: str, held: Held) -> tuple[dict[str, Any], str, Held]:
        with (folder / "golden.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
            writer.writerows([("id", "v"), *held])
        return {"protocol": "files", "path": str(folder), "format": "csv"}, "golden.csv", held

    return write


@pytest.fixture
def ndjson_file() -> Way:
    def write(folder: Path, kind: str, held: Held) -> tuple[dict[str, Any], str, Held]:
        numbers = kind in ("bigint", "numeric", "double precision", "boolean", "jsonb")
        lines = [
            f'{{"id": {n}, "v": {v if numbers and v[-1:] not in "Ny" else json.dumps(v)}}}\n' for n, v in held
        ]
        (folder / "golden.ndjson").write_text("".join(lines), "utf-8")
        return {"protocol": "files", "path": str(folder)}, "golden.ndjson", held

    return write


PARQUET_TYPES = {
    "bigint": pa.int64(),
    "numeric": pa.decimal128(38, 18),
    "double precision": pa.float64(),
    "date": pa.date32(),
    "timestamptz": pa.timestamp("us", "UTC"),
    "time": pa.time64("us"),
    "boolean": pa.bool_(),
    "bytea": pa.binary(),
}


@pytest.fixture
def parquet_file() -> Way:
    def write(folder: Path, kind: str, held: Held) -> tuple[dict[str, Any], str, Held]:
        held = [(n, v) for n, v in held if _in_parquet(kind, v)]
        values = pa.array([v for _, v in held], pa.string())
        dtype = PARQUET_TYPES.get(kind, pa.string())
        if kind == "bytea":
            column = pa.array([bytes.fromhex(v) for _, v in held], dtype)
        elif kind == "numeric":
            column = pa.array([Decimal(v) for _, v in held], dtype)
        elif kind == "time":
            column = pa.array([time.fromisoformat(v) for _, v in held], dtype)
        elif kind == "timestamptz":
            column = pa.array([v.removesuffix("+00") for _, v in held]).cast(pa.timestamp("us")).cast(dtype)
        else:
            column = values.cast(dtype)
        table = pa.table({"id": pa.array([n for n, _ in held], pa.int64()), "v": column})
        pq.write_table(table, folder / "golden.parquet")
        return {"protocol": "files", "path": str(folder)}, "golden.parquet", held

    return write


def _in_parquet(kind: str, value: str) -> bool:
    if kind == "time":
        return value != "24:00:00"
    if kind in ("date", "timestamptz"):
        return not any(text in value for text in BEYOND)
    return _in_duckdb(kind, value) if kind == "numeric" else True


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(
    "way", ["postgres", "mysql", "sqlite", "duckdb", "csv_file", "ndjson_file", "parquet_file"]
)
def test_every_value_arrives_as_it_was(
    request: pytest.FixtureRequest, warehouse_url: str, warehouse: Any, tmp_path: Path, way: str, kind: str
) -> None:
    write: Way = request.getfixturevalue(way)
    config, query, held = write(tmp_path, kind, list(enumerate(VALUES[kind])))
    assert len(held) * 2 >= len(VALUES[kind])
    job = Job("s.p", "s", "s.p", lambda: create_connector(config), query, "public", "t", tmp_path / "lake")
    engine = make_engine(warehouse_url)
    try:
        result, error = attempt(job, engine, RunOptions(), lambda event: None)
    finally:
        engine.dispose()
    assert error is None, result
    assert result["rows_loaded"] == len(held)
    assert result["values_changed"] == {}

    wrong = []
    for number, text in held:
        same = f"v::text::{kind} = %s::text::{kind}"
        if kind == "bytea":  # a text file has it as text
            same = "v::text = %s" if way in ("csv_file", "ndjson_file") else "encode(v, 'hex') = %s"
        found = warehouse.execute(f"select v::text, {same} from t where id = %s", (text, number)).fetchone()
        if found is None or not found[1]:
            wrong.append((text[:60], found and found[0]))
    assert wrong == []

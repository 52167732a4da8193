"""SQLite files: read-only, streamed, with the types that the values really have.

SQLite keeps any value in any column, so a declared type is a wish. A batch whose values do not keep it
comes in a wider type, and the column stays wide for the rest of the run: nothing is changed, nothing
fails. Expressions without a declared type take the type of their values.
"""

from __future__ import annotations

import datetime
import functools
import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dwcli.connectors._catalog import cursor_candidates
from dwcli.connectors._sqltext import (
    Dialect,
    bounded,
    cursor_value,
    find_column,
    find_table,
    is_select,
    picked,
    quoted,
    spelled,
    stripped,
)
from dwcli.connectors._temporary import no_room
from dwcli.contract import LOCAL_PATH, Column, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData

if TYPE_CHECKING:
    import polars as pl

TITLE = "SQLite"
ALIASES = ("sqlite3",)
TRIED = "SQLite 3.40"
QUERY = "a table, or a SELECT"
INCREMENTAL = "a cursor column"
TYPING = "inferred"
STREAMING = True

DIALECT = Dialect(quote='"', place="?")
#: Rows that `describe` looks at to see which types the values have
PEEK_ROWS = 1000
#: The name under which a query is read. It lives in the connection's own temporary schema.
VIEW = "dw_query"
#: A day on either side: `julianday` takes a time without a zone for UTC
MARGIN_DAYS = 1.0


class Config(ConnectorConfig):
    """A SQLite database file."""

    database_path: Path = Field(description="path of the database file", json_schema_extra=LOCAL_PATH)
    timezone: str = Field(
        "UTC",
        description="time zone of dates and times that name none",
        json_schema_extra={"advanced": True},
    )
    busy_seconds: float = Field(
        10.0,
        ge=0,
        description="seconds to wait for a locked database",
        json_schema_extra={"advanced": True},
    )
    invalid_text: Literal["error", "hex"] = Field(
        "error",
        description="what to do with text that is not UTF-8: stop, or keep its bytes as hex",
        json_schema_extra={"advanced": True},
    )


@dataclass
class Client:
    """An open file. Every read has a connection of its own, so that it is one consistent snapshot."""

    config: Config
    catalogue: sqlite3.Connection
    reading: list[sqlite3.Connection] = field(default_factory=list)


def connect(config: Config) -> Client:
    """Open the file read-only. Raises ConnectionFailed when it is missing, locked or not a database."""
    return Client(config, _open(config))


def close(client: Client) -> None:
    """Close the file; a read that is under way ends with an error."""
    for connection in [*client.reading]:
        connection.interrupt()
    client.catalogue.close()


def _open(config: Config) -> sqlite3.Connection:
    path = config.database_path.expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConnectionFailed(
            f"the file {path} {what}", layer="name", hint="check database_path; it is read from where dw runs"
        )
    uri = f"{path.resolve().as_uri()}?mode=ro"
    connection = None
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=config.busy_seconds, check_same_thread=False)
        connection.execute("PRAGMA schema_version").fetchone()
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise _unusable(path, error) from None
    if config.invalid_text == "hex":
        connection.text_factory = _text_or_bytes
    return connection


def _text_or_bytes(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _unusable(path: Path, error: sqlite3.Error) -> ConnectionFailed:
    why = str(error)
    if "not a database" in why or "malformed" in why:
        hint = "check database_path: the file is something else, encrypted, or damaged"
        return ConnectionFailed(f"{path} is not a SQLite database", layer="database", why=why, hint=hint)
    if "locked" in why or "busy" in why:
        hint = "another program holds it for writing; try again, or set busy_seconds higher"
        return ConnectionFailed(f"{path} is locked", layer="database", why=why, hint=hint)
    hint = "check that the file can be read; one in WAL mode also needs its folder to be writable"
    return ConnectionFailed(f"{path} cannot be opened", layer="permission", why=why, hint=hint)


def _failed(error: sqlite3.Error, query: str) -> DwError:
    """The driver's error in our words. A text that cannot be decoded is left out: it is data."""
    why = str(error)
    if match := re.match(r"Could not decode to UTF-8 column '(.*?)' with text", why, re.DOTALL):
        return SourceData(
            f"{query}: the column '{match[1]}' holds text that is not UTF-8",
            hint="set invalid_text: hex in the source, or select hex(column)",
        )
    if isinstance(error, sqlite3.DatabaseError) and ("malformed" in why or "disk I/O" in why):
        return SourceData(
            f"{query}: the file is damaged", why=why, hint='sqlite3 FILE "PRAGMA integrity_check"'
        )
    if "locked" in why:
        return ConnectionFailed(
            "the database is locked", layer="database", why=why, hint="try again, or set busy_seconds higher"
        )
    if "disk is full" in why:  # what it sorts does not fit
        return no_room("what SQLite sorts", why)
    if "interrupted" in why:
        return ConnectionFailed("the read was stopped", layer="lost", why=why)
    return QueryFailed("SQLite refused the query", why=why, hint="check the query's SQL")


# -- the catalogue --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Declared:
    """One column as the catalogue tells it."""

    name: str
    source_type: str
    nullable: bool
    key_position: int

    @property
    def type(self) -> str:
        return declared_type(self.source_type)


def declared_type(source_type: str) -> str:
    """The PostgreSQL type that a declared SQLite type asks for; "" when it asks for none.

    The rules of affinity (sqlite.org/datatype3.html), with the names people give to booleans, dates
    and times taken at their word first.
    """
    name = re.sub(r"\(.*", "", source_type).strip().upper()
    if name in ("BOOLEAN", "BOOL"):
        return "boolean"
    if name == "DATE":
        return "date"
    if name.startswith(("DATETIME", "TIMESTAMP")):
        return "timestamptz"
    if "INT" in name:
        return "bigint"
    if any(part in name for part in ("CHAR", "CLOB", "TEXT", "STRING")):
        return "text"
    if "BLOB" in name:
        return "bytea"
    if any(part in name for part in ("REAL", "FLOA", "DOUB")):
        return "double precision"
    if name in ("NUMERIC", "DECIMAL", "NUMBER", "MONEY"):
        return "numeric"
    return ""


def discover(client: Client) -> Iterator[Resource]:
    """Every table and view, by name."""
    with _errors("the catalogue"):
        kinds = _tables(client.catalogue)
        columns = _columns(client.catalogue, None)
        unique, leading = _indexes(client.catalogue)
        estimates = _analysed(client.catalogue)
    for name, kind in kinds.items():
        declared = columns.get(name, ())
        found = _resource(client.catalogue, name, kind, declared, unique[name], estimates.get(name))
        cursors = cursor_candidates(found.columns, found.primary_key, leading[name])
        yield replace(found, cursors=cursors)


def describe(client: Client, query: str) -> Resource:
    """Columns of a table or query, with the types that its first rows really have.

    Raises ResourceMissing for a table that is not there, QueryFailed for SQL that SQLite refuses.
    """
    connection = _open(client.config)
    try:
        with _errors(query):
            source = _source(connection, query)
            seen = _peek(connection, source, client.config)
            unique, leading = _indexes(connection)
            estimates = _analysed(connection)
            if source.table is None:
                found = Resource(query, kind="query")
            else:
                name = source.table
                found = _resource(
                    connection, name, source.kind, source.columns, unique[name], estimates.get(name)
                )
    finally:
        connection.close()
    columns = tuple(
        Column(c.name, seen.get(c.name) or c.type or "text", c.nullable, c.source_type)
        for c in source.columns
    )
    led = leading[source.table] if source.table else set()
    return replace(found, columns=columns, cursors=cursor_candidates(columns, found.primary_key, led))


def _peek(connection: sqlite3.Connection, source: _Source, config: Config) -> dict[str, str]:
    """The types of the first rows, by column."""
    from dwcli.connectors import _sqlitetypes

    fills = [_sqlitetypes.fill_for(c.type, config.timezone) for c in source.columns]
    rows = connection.execute(f"SELECT * FROM {source.sql} LIMIT {PEEK_ROWS}").fetchall()  # noqa: S608
    if not rows:
        return {}
    return {
        column.name: fill(values, "").type
        for column, fill, values in zip(source.columns, fills, zip(*rows, strict=True), strict=True)
    }


def _resource(
    connection: sqlite3.Connection,
    name: str,
    kind: str,
    declared: Sequence[_Declared],
    unique: Sequence[tuple[str, ...]],
    estimate: int | None,
) -> Resource:
    """A table or view, with the types that it declares."""
    columns = tuple(Column(c.name, c.type or "text", c.nullable, c.source_type) for c in declared)
    key, reason = _key(declared, unique)
    if estimate is None and kind == "table":
        estimate = _highest_rowid(connection, name)
    return Resource(spelled([name], DIALECT), columns, key, reason, estimate, kind=kind)


def _key(declared: Sequence[_Declared], unique: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], str]:
    key = sorted((c for c in declared if c.key_position), key=lambda c: c.key_position)
    if key:
        holds_null = any(c.nullable for c in key)
        reason = "primary key in the source" + (", which SQLite lets hold NULL" if holds_null else "")
        return tuple(c.name for c in key), reason
    required = {c.name for c in declared if not c.nullable}
    for columns in sorted(unique, key=len):
        if required.issuperset(columns):
            return columns, "unique and not null in the source"
    return (), ""


TABLES_SQL = """
    SELECT name, type FROM sqlite_master
    WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite@_%' ESCAPE '@' ORDER BY name
"""


def _tables(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute(TABLES_SQL).fetchall())


COLUMNS_SQL = """
    SELECT m.name, p.name, p.type, p."notnull", p.pk, m.sql LIKE '%without%rowid%'
    FROM sqlite_master m, pragma_table_xinfo(m.name) p
    WHERE m.type IN ('table', 'view') AND p.hidden <> 1 AND (m.name = ?1 OR ?1 IS NULL)
"""


def _columns(connection: sqlite3.Connection, table: str | None) -> dict[str, tuple[_Declared, ...]]:
    """The columns of one table, or of all; a view that no longer works has none."""
    try:
        rows = connection.execute(COLUMNS_SQL, (table,)).fetchall()
    except sqlite3.OperationalError:
        if table is not None:
            return {}
        return {name: c for table in _tables(connection) for name, c in _columns(connection, table).items()}
    found: dict[str, list[_Declared]] = defaultdict(list)
    for name, column, source_type, not_null, pk, without_rowid in rows:
        found[name].append(_Declared(column, source_type or "", not (not_null or (pk and without_rowid)), pk))
    return {name: _rowid_never_null(columns) for name, columns in found.items()}


def _rowid_never_null(columns: Sequence[_Declared]) -> tuple[_Declared, ...]:
    """INTEGER PRIMARY KEY is the rowid, the one kind of key that SQLite never lets be NULL."""
    keys = [c for c in columns if c.key_position]
    if len(keys) != 1 or keys[0].source_type.upper() != "INTEGER":
        return tuple(columns)
    return tuple(
        _Declared(c.name, c.source_type, c.nullable and c is not keys[0], c.key_position) for c in columns
    )


INDEXES_SQL = """
    SELECT m.name, l.name, l."unique", l.partial, x.seqno, x.name
    FROM sqlite_master m, pragma_index_list(m.name) l, pragma_index_info(l.name) x
    WHERE m.type = 'table' ORDER BY m.name, l.name, x.seqno
"""


def _indexes(
    connection: sqlite3.Connection,
) -> tuple[dict[str, list[tuple[str, ...]]], dict[str, set[str]]]:
    """By table: the columns of each unique index, and the columns that lead an index."""
    indexes: dict[tuple[str, str], list[str | None]] = defaultdict(list)
    whole: dict[tuple[str, str], bool] = {}
    for table, index, is_unique, partial, _, column in connection.execute(INDEXES_SQL):
        indexes[table, index].append(column)
        whole[table, index] = bool(is_unique) and not partial
    unique: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    leading: dict[str, set[str]] = defaultdict(set)
    for (table, index), columns in indexes.items():
        named = tuple(column for column in columns if column is not None)
        if whole[table, index] and len(named) == len(columns):
            unique[table].append(named)
        if columns[0] is not None:
            leading[table].add(columns[0])
    return unique, leading


def _analysed(connection: sqlite3.Connection) -> dict[str, int]:
    """Row counts from the last ANALYZE, where there was one."""
    try:
        rows = connection.execute("SELECT tbl, max(CAST(stat AS INTEGER)) FROM sqlite_stat1 GROUP BY tbl")
        return {table: int(count) for table, count in rows if count is not None}
    except sqlite3.OperationalError:
        return {}


def _highest_rowid(connection: sqlite3.Connection, table: str) -> int | None:
    """The last row's number: a guess at the row count that costs one look into the tree."""
    try:
        (highest,) = connection.execute(f"SELECT max(rowid) FROM {quoted(table, DIALECT)}").fetchone()  # noqa: S608
    except sqlite3.Error:
        return None
    return highest if isinstance(highest, int) and highest >= 0 else None


# -- reading --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What is read: a table, or a query behind a temporary view."""

    sql: str
    columns: tuple[_Declared, ...]
    table: str | None = None
    kind: str = "table"


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Stream a table or a SELECT in batches of about `batch_bytes`, as one consistent snapshot.

    Raises ResourceMissing, QueryFailed, SourceData for a damaged file or text that is not UTF-8.
    """
    yield from _read(client, query, cursor, ())


def keys(client: Client, query: str, key: Sequence[str]) -> Iterator[IngestedItem]:
    """The columns of the key of every row, in batches of about `batch_bytes`. Raises as `read` does."""
    yield from _read(client, query, Cursor(), key)


def _read(client: Client, query: str, cursor: Cursor, only: Sequence[str]) -> Iterator[IngestedItem]:
    """`only`: names of columns; none for all."""
    from dwcli.connectors import _sqlitetypes
    from dwcli.connectors._rows import RowColumn, empty_item, items

    connection = _open(client.config)
    client.reading.append(connection)
    try:
        with _errors(query):
            source = _source(connection, query)
            source = replace(source, columns=picked(source.columns, only))
            columns = [
                RowColumn(c.name, _sqlitetypes.fill_for(c.type, client.config.timezone))
                for c in source.columns
            ]
            sql, parameters, keep = _statement(source, cursor, client.config)
            rows = connection.execute(sql, parameters)
            if columns:
                yield from items(rows.fetchmany, columns, client.config.batch_bytes, keep)
            else:
                yield empty_item(columns)
    finally:
        client.reading.remove(connection)
        connection.close()


@contextmanager
def _errors(query: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _failed(error, query) from None


def _source(connection: sqlite3.Connection, query: str) -> _Source:
    """The table that a query names, or a temporary view of the query.

    The view is what keeps the declared types of a query's plain columns, and what makes sure that it
    is one SELECT: SQLite accepts nothing else in its place.
    """
    tables = _tables(connection) | {name: "table" for name in ("sqlite_master", "sqlite_sequence")}
    known = [("main", name) for name in tables]
    found = find_table(query, known, "main", DIALECT)
    if found is not None:
        name = found[1]
        columns = _columns(connection, name).get(name) or _view_columns(connection, name)
        return _Source(f"main.{quoted(name, DIALECT)}", columns, name, tables[name])
    if not is_select(query):
        names = [spelled([name], DIALECT) for name in tables]
        raise ResourceMissing(
            f"the database has no table '{query}'.{nearest(query, names)}",
            hint="name a table or view of the file, or give a SELECT",
        )
    connection.execute(f"CREATE TEMP VIEW {VIEW} AS {stripped(query)}")
    return _Source(f"temp.{VIEW}", _view_columns(connection, VIEW), None, "query")


def _view_columns(connection: sqlite3.Connection, view: str) -> tuple[_Declared, ...]:
    rows = connection.execute(f"PRAGMA table_info({quoted(view, DIALECT)})")
    return tuple(_Declared(name, source_type or "", True, 0) for _, name, source_type, *_ in rows)


def _statement(
    source: _Source, cursor: Cursor, config: Config
) -> tuple[str, list[Any], Callable[[pl.DataFrame], pl.DataFrame] | None]:
    """The SELECT, its parameters, and what filters its batches exactly where SQLite cannot."""
    from dwcli.connectors import _sqlitetypes

    columns = [quoted(c.name, DIALECT) for c in source.columns]
    if not cursor.column or (cursor.start is None and cursor.end is None):
        return (*bounded(columns, source.sql, "", None, None), None)
    declared = _cursor_column(source, cursor)
    wanted = cursor.type or declared.type
    name = quoted(declared.name, DIALECT)
    start, end = (cursor_value(text, wanted, cursor) for text in (cursor.start, cursor.end))
    if isinstance(start or end, datetime.date):
        keep = functools.partial(_sqlitetypes.between, declared.name, start, end)
        return (*_near(columns, source.sql, name, start, end), keep)
    if wanted == "text":
        # Numbers sort before text in SQLite; the warehouse has them as text, so they are compared as text.
        name = f"{name} COLLATE BINARY" if declared.type == "text" else f"CAST({name} AS TEXT)"
    start, end = (float(v) if not isinstance(v, (int, str, type(None))) else v for v in (start, end))
    return (*bounded(columns, source.sql, name, start, end), None)


def _cursor_column(source: _Source, cursor: Cursor) -> _Declared:
    wanted = find_column(cursor, [c.name for c in source.columns])
    return next(c for c in source.columns if c.name == wanted)


def _near(
    columns: Sequence[str], source: str, name: str, start: datetime.date | None, end: datetime.date | None
) -> tuple[str, list[Any]]:
    """Rows whose time is within a day of the bounds, or that SQLite cannot read as a time.

    SQLite knows times to the millisecond, without zones, in several spellings: this leaves out what is
    far away, and `_sqlitetypes.between` decides the rest.
    """
    within, parameters = [], []
    day = f"julianday({name})"
    if start is not None:
        within.append(f"{day} >= julianday(?) - {MARGIN_DAYS}")
        parameters.append(_iso(start))
    if end is not None:
        within.append(f"{day} < julianday(?) + {MARGIN_DAYS}")
        parameters.append(_iso(end))
    where = f"({' AND '.join(within)}) OR {day} IS NULL"
    return f"SELECT {', '.join(columns)} FROM {source} WHERE {where}", parameters  # noqa: S608


def _iso(value: datetime.date) -> str:
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).replace(tzinfo=None).isoformat(" ", "milliseconds")
    return value.isoformat()

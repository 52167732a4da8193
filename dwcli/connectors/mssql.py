"""SQL Server, through Microsoft's own driver: one SELECT per read, fetched as Arrow batches.

What Arrow or the driver could bend (decimals, money, times of seven digits, GUIDs) is turned into text by
the server and parsed here, a column at a time. datetime and datetime2 have no zone and are read in
`timezone`; a datetimeoffset is an instant.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr

from dwcli.connectors import driver_missing
from dwcli.connectors._catalog import cursor_candidates
from dwcli.connectors._gather import gather
from dwcli.connectors._probe import reach
from dwcli.connectors._sqltext import (
    bounded,
    cursor_value,
    find_column,
    find_table,
    is_select,
    picked,
    stripped,
)
from dwcli.connectors._waiting import heard, waited
from dwcli.contract import Column, ConnectorConfig, Cursor, CursorCandidate, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, DriverMissing, DwError, QueryFailed, ResourceMissing, SourceData

TITLE = "SQL Server"
ALIASES = ("sqlserver",)
EXTRA = "mssql"
STAND_IN = "pysqlbridge 2.1, which speaks TDS and is read-only"
QUERY = "a table, or a SELECT"
INCREMENTAL = "a column that grows, rowversion"
TYPING = "declared"
STREAMING = True

#: Where a bound goes in the text; no name and no query holds this character.
PLACE = "\x00"
FIRST_ROWS, MOST_ROWS = 64, 8192
#: Bytes that the driver sets aside for a value without a declared length
LONG_BYTES = 256
LOGIN_TIMEOUT_ATTRIBUTE = 103
LOGIN_SECONDS = 10
#: The order of Unicode's code points, whatever the column's own collation
BINARY_ORDER = "COLLATE Latin1_General_100_BIN2"


class Config(ConnectorConfig):
    """A SQL Server database."""

    host: str = Field(description="name or address of the server")
    port: int = Field(1433, ge=1, le=65535, description="port of the server")
    database: str = Field(description="name of the database")
    username: str = Field(description="user that may read it")
    password: SecretStr = Field(description="the user's password")
    encrypt: Literal["yes", "no", "strict"] = Field(
        "yes",
        description="whether the connection is encrypted; strict is TDS 8.0",
        json_schema_extra={"advanced": True},
    )
    trust_server_certificate: bool = Field(
        False,
        description="whether a certificate of the server's own making is taken unchecked",
        json_schema_extra={"advanced": True},
    )
    hostname_in_certificate: str | None = Field(
        None,
        description="name in the server's certificate, where it is not the host's",
        json_schema_extra={"advanced": True},
    )
    timezone: str = Field(
        "UTC",
        description="time zone of datetime and datetime2 columns",
        json_schema_extra={"advanced": True},
    )
    isolation: Literal["read committed", "snapshot", "read uncommitted"] = Field(
        "read committed",
        description="isolation of a read; snapshot needs ALLOW_SNAPSHOT_ISOLATION",
        json_schema_extra={"advanced": True},
    )
    read_only_replica: bool = Field(
        False,
        description="whether an availability group may send the read to a secondary",
        json_schema_extra={"advanced": True},
    )


@dataclass
class Client:
    """A connection for the catalogue; every read has one of its own."""

    config: Config
    catalogue: Any
    reading: list[Any] = field(default_factory=list)
    closed: bool = False


def connect(config: Config) -> Client:
    """Connect and log in. Raises ConnectionFailed with the layer that failed, DriverMissing."""
    reach(config.host, config.port)
    return Client(config, _open(config))


def close(client: Client) -> None:
    """Close the connections; a read that is under way ends with ConnectionFailed."""
    client.closed = True
    for cursor in [*client.reading]:
        with contextlib.suppress(Exception):
            # The one call that the driver allows while another thread waits for rows.
            cursor.hstmt._cancel()
    with contextlib.suppress(Exception):
        client.catalogue.close()


def _open(config: Config) -> Any:
    try:
        import mssql_python
    except ImportError as error:
        raise driver_missing("mssql", error) from None
    mssql_python.pooling(enabled=False)
    try:
        connection = waited(
            lambda: mssql_python.connect(
                connection_string(config),
                autocommit=True,
                attrs_before={LOGIN_TIMEOUT_ATTRIBUTE: LOGIN_SECONDS},
            ),
            undo=lambda late: late.close(),
        )
    except (mssql_python.Error, RuntimeError, ValueError) as error:
        raise _refused(config, error) from None
    if config.isolation != "read committed":
        with _errors(config, "the session"):
            connection.execute(f"SET TRANSACTION ISOLATION LEVEL {config.isolation.upper()}").close()
    return connection


def connection_string(config: Config) -> str:
    """What the driver is told, each value in braces so that none of it is read as a setting."""
    values = {
        "Server": f"{config.host},{config.port}",
        "Database": config.database,
        "UID": config.username,
        "PWD": config.password.get_secret_value(),
        "Encrypt": config.encrypt,
        "TrustServerCertificate": "yes" if config.trust_server_certificate else "no",
        "ConnectRetryCount": "0",
    }
    if config.hostname_in_certificate:
        values["HostnameInCertificate"] = config.hostname_in_certificate
    if config.read_only_replica:
        values["ApplicationIntent"] = "ReadOnly"
    return ";".join(f"{name}={{{value.replace('}', '}}')}}}" for name, value in values.items())


def _text(error: Exception) -> str:
    """The server's or the driver's own sentence."""
    text = str(getattr(error, "ddbc_error", "") or error)
    return re.sub(r"^(\[[^\]]*\])+", "", text).strip()[:500]


def _refused(config: Config, error: Exception) -> DwError:
    """Which layer a failed login belongs to, with what to do about it."""
    why, where = _text(error), f"{config.host}:{config.port}"
    user, database = config.username, config.database
    if "Failed to load the driver" in why or "libltdl" in why:
        return DriverMissing(
            f"{TITLE}'s driver is installed, but a library of the system that it needs is not",
            why=why.split(". Please", 1)[0],
            hint="apt install libltdl7 libkrb5-3",
        )
    if "SSL" in why or "certificate" in why:
        hint = (
            "for a certificate of the server's own making set trust_server_certificate: true; "
            "for another name in it, hostname_in_certificate"
        )
        return ConnectionFailed(f"no TLS with {where}", layer="tls", why=why, hint=hint)
    if "Cannot open database" in why:
        hint = "check the database's spelling, and that the user is mapped to it: CREATE USER … FOR LOGIN …"
        message = f"{where} does not open the database '{database}' for '{user}'"
        return ConnectionFailed(message, layer="database", why=why, hint=hint)
    if "Login failed" in why:
        hint = "check username and password, and that the server takes SQL logins, not Windows ones alone"
        return ConnectionFailed(f"{where} does not let '{user}' in", layer="login", why=why, hint=hint)
    hint = "check that the port is SQL Server's; one that insists on encryption needs encrypt: yes or strict"
    return ConnectionFailed(f"no SQL Server answers on {where}", layer="port", why=why, hint=hint)


@contextmanager
def _errors(config: Config, query: str) -> Iterator[None]:
    """The driver's errors in our words."""
    import mssql_python
    import pyarrow

    try:
        yield
    except mssql_python.Error as error:
        raise _failed(config, query, error) from None
    except (RuntimeError, OverflowError, pyarrow.ArrowException) as error:
        raise SourceData(f"{query}: the driver cannot read the data", why=_text(error)) from None


_LOST = re.compile(
    r"Communication link failure|TCP Provider|Timeout expired|connection is (broken|no longer usable|closed)|"
    r"Operation cancell?ed|not connected|shut ?down|Connection (is )?(closed|busy|not open)|reset by peer",
    re.IGNORECASE,
)


def _failed(config: Config, query: str, error: Exception) -> DwError:
    why = _text(error)
    if _LOST.search(str(error)):
        return _lost(config, why)
    if re.search(r"Invalid object name", why, re.IGNORECASE):
        return ResourceMissing("the query names a table that is not there", why=why)
    if "permission was denied" in why:
        return QueryFailed(
            f"'{config.username}' may not read {query}",
            why=why,
            hint=f"GRANT SELECT ON DATABASE::{quoted(config.database)} TO {quoted(config.username)}",
        )
    if "ORDER BY" in why:
        hint = "take the ORDER BY off: the order of rows in a table means nothing"
    elif "No column name" in why or "specified multiple times" in why:
        hint = "name each column with AS"
    else:
        hint = "check the query's SQL"
    return QueryFailed("the server refused the query", why=why, hint=hint)


def _lost(config: Config, why: str) -> ConnectionFailed:
    return ConnectionFailed(
        f"the connection to {config.host}:{config.port} broke while reading",
        layer="lost",
        why=why,
        hint="run it again: nothing was committed",
    )


# -- names ----------------------------------------------------------------------------------------------


def quoted(name: str) -> str:
    """One name as an identifier."""
    return f"[{name.replace(']', ']]')}]"


_PLAIN = re.compile(r"[^\W\d][\w$#@]*( [\w$#@]+)*")
_PART = re.compile(r'\s*(?:\[((?:[^\]]|\]\])*)\]|"((?:[^"]|"")*)"|([^.\["]+?))\s*(\.|\Z)', re.DOTALL)


def name_parts(text: str) -> tuple[str, ...]:
    """`a.b`, `[a].[b.c]` or `"a"."b"` as its parts, brackets and quotes taken off."""
    parts, position = [], 0
    while position < len(text):
        match = _PART.match(text, position)
        if match is None:
            return (text,)
        brackets, quotes, plain, _ = match.groups()
        if brackets is not None:
            parts.append(brackets.replace("]]", "]"))
        else:
            parts.append(plain if quotes is None else quotes.replace('""', '"'))
        position = match.end()
    return tuple(parts)


def spelled(parts: Sequence[str]) -> str:
    """The name as it goes into `query`: parts in brackets only where a plain spelling would be misread."""
    return ".".join(
        part if _PLAIN.fullmatch(part) and not is_select(part) else quoted(part) for part in parts
    )


def literal(text: str) -> str:
    """A string in SQL. A backslash before a line's end would join the two lines."""
    return "N'" + text.replace("'", "''").replace("\\\n", "\\' + N'\n").replace("\\\r", "\\' + N'\r") + "'"


# -- the catalogue --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """One column, from the catalogue or from the head of a result."""

    name: str
    #: SQL Server's name of the type, without its length, such as `nvarchar`
    kind: str
    nullable: bool = True
    #: bytes that a value may have; -1 for a (max) type
    length: int = 0
    precision: int = 0
    scale: int = 0
    source_type: str = ""


_Name = tuple[str, ...]

TABLES_SQL = """
    SELECT s.name, o.name AS name2, o.object_id, o.type
    FROM sys.objects o JOIN sys.schemas s ON s.schema_id = o.schema_id
    WHERE o.type IN ('U', 'V') AND o.is_ms_shipped = 0 ORDER BY s.name, o.name
"""
COLUMNS_SQL = """
    SELECT c.object_id, c.name, t.name AS type, b.name AS base, c.max_length, c.precision, c.scale,
        c.is_nullable
    FROM sys.columns c JOIN sys.types t ON t.user_type_id = c.user_type_id
        LEFT JOIN sys.types b ON b.user_type_id = c.system_type_id
    WHERE 1 = 1 {only} ORDER BY c.object_id, c.column_id
"""
INDEXES_SQL = """
    SELECT i.object_id, i.index_id, i.is_primary_key, i.is_unique, c.name, c.is_nullable
    FROM sys.indexes i
        JOIN sys.index_columns k ON k.object_id = i.object_id AND k.index_id = i.index_id
        JOIN sys.columns c ON c.object_id = k.object_id AND c.column_id = k.column_id
    WHERE k.key_ordinal > 0 AND i.has_filter = 0 {only} ORDER BY i.object_id, i.index_id, k.key_ordinal
"""
ROWS_SQL = """
    SELECT c.object_id, SUM(c.rows) AS n FROM sys.partitions c WHERE c.index_id IN (0, 1) {only}
    GROUP BY c.object_id
"""
RESULT_SQL = """
    SELECT name, system_type_name, user_type_name, is_nullable, max_length, precision, scale
    FROM sys.dm_exec_describe_first_result_set({query}, NULL, 0)
    WHERE is_hidden = 0 ORDER BY column_ordinal
"""


@dataclass(frozen=True)
class _Catalogue:
    """Everything about the tables and views of the database. `tables` is by (schema, name)."""

    tables: dict[_Name, tuple[int, str]]
    columns: dict[int, list[Declared]]
    #: by object and index: is_primary_key, is_unique, column, is_nullable
    indexes: dict[int, dict[int, list[tuple[Any, ...]]]]
    rows: dict[int, int]


def discover(client: Client) -> Iterator[Resource]:
    """Every table and view of the database, by schema and name."""
    with _errors(client.config, "the catalogue"):
        catalogue = _catalogue(client)
    for name in catalogue.tables:
        yield _resource(catalogue, name)


def describe(client: Client, query: str) -> Resource:
    """Columns, key, cursor candidates and estimates of a table; columns of a SELECT.

    Raises ResourceMissing, QueryFailed.
    """
    with _errors(client.config, query):
        catalogue = _catalogue(client, query)
        source = _source(client, query, catalogue)
    if source.table is not None:
        return _resource(catalogue, source.table)
    columns = tuple(_column(c) for c in source.columns)
    return Resource(query, columns, cursors=_cursors(source.columns, columns, (), set()), kind="query")


def _fetched(client: Client, sql: str) -> list[Any]:
    """All rows of a query on the catalogue's connection, which is opened again once it is lost."""
    import mssql_python

    if client.catalogue.closed:
        client.catalogue = _open(client.config)
    try:
        with contextlib.closing(client.catalogue.cursor()) as cursor:
            return list(heard(lambda: cursor.execute(sql).fetchall(), cursor.hstmt._cancel))
    except mssql_python.Error as error:
        if not _LOST.search(str(error)) or client.closed:
            raise
    client.catalogue = _open(client.config)
    with contextlib.closing(client.catalogue.cursor()) as cursor:
        return list(cursor.execute(sql).fetchall())


def _catalogue(client: Client, query: str | None = None) -> _Catalogue:
    """All tables and views, and the details of all, or of the one that a query names."""
    import mssql_python

    tables: dict[_Name, tuple[int, str]] = {
        (schema, name): (table, "view" if kind.strip() == "V" else "table")
        for schema, name, table, kind in _fetched(client, TABLES_SQL)
    }
    only = ""
    if query is not None:
        found = _find(query, list(tables))
        only = f"AND c.object_id = {tables[found][0] if found else 0}"
    columns: dict[int, list[Declared]] = defaultdict(list)
    for table, name, type_, base, length, precision, scale, nullable in _fetched(
        client, COLUMNS_SQL.format(only=only)
    ):
        kind = base or type_
        columns[table].append(
            Declared(
                name, kind, bool(nullable), length, precision, scale, _shown(kind, length, precision, scale)
            )
        )
    indexes: dict[int, dict[int, list[tuple[Any, ...]]]] = defaultdict(lambda: defaultdict(list))
    for table, index, *facts in _fetched(client, INDEXES_SQL.format(only=only)):
        indexes[table][index].append(tuple(facts))
    try:
        rows = {table: int(n) for table, n in _fetched(client, ROWS_SQL.format(only=only))}
    except mssql_python.Error:
        rows = {}
    return _Catalogue(tables, columns, indexes, rows)


def _shown(kind: str, length: int, precision: int, scale: int) -> str:
    """The type as people write it, such as `nvarchar(40)`."""
    if kind in ("decimal", "numeric"):
        return f"{kind}({precision},{scale})"
    if kind in ("datetime2", "datetimeoffset", "time"):
        return f"{kind}({scale})"
    if kind in ("char", "varchar", "nchar", "nvarchar", "binary", "varbinary"):
        count = length // 2 if kind.startswith("n") else length
        return f"{kind}({'max' if length < 0 else count})"
    return kind


def _resource(catalogue: _Catalogue, name: _Name) -> Resource:
    table, kind = catalogue.tables[name]
    declared = catalogue.columns[table]
    columns = tuple(_column(c) for c in declared)
    indexes = catalogue.indexes[table]
    key, reason = _key(indexes)
    leading = {parts[0][2] for parts in indexes.values()}
    return Resource(
        spelled(name[1:] if name[0] == "dbo" else name),
        columns,
        key,
        reason,
        catalogue.rows.get(table),
        None,
        _cursors(declared, columns, key, leading),
        kind,
    )


def _key(indexes: dict[int, list[tuple[Any, ...]]]) -> tuple[_Name, str]:
    """The primary key, else the shortest unique index over columns that cannot be NULL."""
    for parts in indexes.values():
        if parts[0][0]:
            return tuple(column for _, _, column, _ in parts), "primary key in the source"
    unique = [
        tuple(column for _, _, column, _ in parts)
        for parts in indexes.values()
        if parts[0][1] and not any(nullable for *_, nullable in parts)
    ]
    if unique:
        return min(unique, key=len), "unique and not null in the source"
    return (), ""


def _cursors(
    declared: Sequence[Declared], columns: Sequence[Column], key: Sequence[str], leading: set[str]
) -> tuple[CursorCandidate, ...]:
    """A rowversion first: it grows with every change, in the order in which the server makes them."""
    versions = [c.name for c in declared if c.kind in ("timestamp", "rowversion")]
    found = cursor_candidates([c for c in columns if c.name not in versions], key, leading)
    reason = "rowversion: grows with every insert and update"
    return (*(CursorCandidate(name, reason, sure=True) for name in versions), *found)


def _column(declared: Declared) -> Column:
    return Column(declared.name, postgres_type(declared), declared.nullable, declared.source_type)


# -- reading --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What is read: a table, or a query in brackets. `before` is the WITH of a query that has one."""

    sql: str
    columns: tuple[Declared, ...]
    table: _Name | None = None
    before: str = ""


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Fetch a table or a SELECT in batches of about `batch_bytes`.

    Stopping early drops the connection, which ends the query. Raises ResourceMissing, QueryFailed, and
    ConnectionFailed with layer `lost` when the connection breaks.
    """
    yield from _read(client, query, cursor, ())


def keys(client: Client, query: str, key: Sequence[str]) -> Iterator[IngestedItem]:
    """The columns of the key of every row, in batches of about `batch_bytes`. Raises as `read` does."""
    yield from _read(client, query, Cursor(), key)


def _read(client: Client, query: str, cursor: Cursor, only: Sequence[str]) -> Iterator[IngestedItem]:
    """`only`: names of columns; none for all."""
    from dwcli.connectors import _mssqltypes

    config = client.config
    with _errors(config, query):
        source = _source(client, query, _catalogue(client, query))
        source = replace(source, columns=picked(source.columns, only))
    columns = [(c.name, postgres_type(c)) for c in source.columns]
    connection = _open(config)
    rows = connection.cursor()
    client.reading.append(rows)
    try:
        with _errors(config, query):
            sql = statement(source, cursor, config)
            heard(lambda: rows.execute(sql), rows.hstmt._cancel)
            schema = rows.arrow_batch(0).schema
            sent = False
            for gathered in gather(_batches(client, rows, source.columns), config.batch_bytes):
                yield from _mssqltypes.items(columns, schema, gathered, config.timezone, config.batch_bytes)
                sent = True
            if not sent:
                yield from _mssqltypes.items(columns, schema, [], config.timezone, config.batch_bytes)
    finally:
        client.reading.remove(rows)
        with contextlib.suppress(Exception):
            connection.close()


def _batches(client: Client, rows: Any, columns: Sequence[Declared]) -> Iterator[Any]:
    """Arrow batches as the driver fetches them. Raises ConnectionFailed once the client is closed."""
    allowed = client.config.batch_bytes
    # The driver sets aside room for the longest value that a column may have, for every row it fetches.
    widest = sum(c.length if c.length > 0 else LONG_BYTES for c in columns)
    most = max(1, min(MOST_ROWS, allowed // max(widest, 1)))
    wanted = min(FIRST_ROWS, most)
    while True:
        if client.closed:
            raise _lost(client.config, "closed from here")
        batch = heard(functools.partial(rows.arrow_batch, wanted), rows.hstmt._cancel)
        if not batch.num_rows:
            return
        yield batch
        fitting = int(allowed // 4 / max(batch.nbytes / batch.num_rows, 1))
        wanted = max(1, min(most, wanted * 2, fitting))


def _source(client: Client, query: str, catalogue: _Catalogue) -> Source:
    """The table that a query names, or the query itself, with its columns."""
    found = _find(query, list(catalogue.tables))
    if found is not None:
        sql = ".".join(quoted(part) for part in found)
        return Source(f"{sql} AS dw", tuple(catalogue.columns[catalogue.tables[found][0]]), found)
    if not is_select(query):
        names = [spelled(name[1:] if name[0] == "dbo" else name) for name in catalogue.tables]
        raise ResourceMissing(
            f"the database '{client.config.database}' has no table '{query}'.{nearest(query, names)}",
            hint="name a table or view, or give a SELECT",
        )
    before, main = split_with(stripped(query))
    sql = f"(\n{main}\n) AS dw"
    head = f"{before}SELECT TOP 0 * FROM {sql}"  # noqa: S608
    return Source(sql, _result_columns(client, head), None, before)


def _find(query: str, known: Sequence[_Name]) -> _Name | None:
    """Which table a query names, in brackets, quotes or plainly."""
    from dwcli.connectors._sqltext import Dialect

    parts = name_parts(query.strip())
    for name in ((parts[0], ".".join(parts[1:])), ("dbo", ".".join(parts))):
        if name in known:
            return name
    return find_table(query, known, "dbo", Dialect())


_TOKEN = re.compile(
    r"""(?ix) '(?:[^']|'')*' | "(?:[^"]|"")*" | \[(?:[^\]]|\]\])*\] | --[^\n]* | /\*.*?\*/ | [()] | \w+ """,
    re.DOTALL,
)


def split_with(query: str) -> tuple[str, str]:
    """A query as the WITH before it, "" where there is none, and the SELECT, which may stand in brackets.

    SQL Server allows no WITH inside brackets.
    """
    depth, seen_with = 0, False
    for match in _TOKEN.finditer(query):
        word = match[0].lower()
        if word in "()":
            depth += 1 if word == "(" else -1
        elif word == "with" and not seen_with and depth == 0:
            seen_with = True
        elif word == "select" and depth == 0:
            return (query[: match.start()], query[match.start() :]) if seen_with else ("", query)
    return "", query


def _result_columns(client: Client, sql: str) -> tuple[Declared, ...]:
    """The columns of a query that gives no row, with the types that the server says they have.

    A server without the function that tells them is taken at the driver's word.
    """
    import mssql_python

    with contextlib.closing(client.catalogue.cursor()) as cursor:
        cursor.execute(sql)
        description = list(cursor.description)
    try:
        found = _fetched(client, RESULT_SQL.format(query=literal(sql)))
    except mssql_python.Error:
        found = []
    if len(found) == len(description):
        return tuple(
            Declared(
                name, (system or user or "").split("(", 1)[0], bool(nullable), length, precision, scale,
                system or user or "",
            )
            for name, system, user, nullable, length, precision, scale in found
        )  # fmt: skip
    return tuple(
        Declared(name, kind := _KINDS.get(python, "nvarchar"), True, -1, precision, scale, kind)
        for name, python, _, _, precision, scale, *_ in description
    )


_KINDS: dict[type, str] = {
    int: "bigint",
    float: "float",
    bool: "bit",
    Decimal: "decimal",
    bytes: "varbinary",
    datetime.datetime: "datetime2",
    datetime.date: "date",
    datetime.time: "time",
}


def statement(source: Source, cursor: Cursor, config: Config) -> str:
    """The SELECT, with the bounds of the cursor in it."""
    columns = [f"{selected(c)} AS {quoted(c.name)}" for c in source.columns]
    if not cursor.column:
        return source.before + bounded(columns, source.sql, "", None, None)[0]
    wanted = find_column(cursor, [c.name for c in source.columns])
    declared = next(c for c in source.columns if c.name == wanted)
    start, end = (
        None if text is None
        else bound(declared, cursor_value(text, cursor.type or postgres_type(declared), cursor), config)
        for text in (cursor.start, cursor.end)
    )  # fmt: skip
    name = f"dw.{quoted(declared.name)}"
    null = f"{name} IS NULL" if declared.nullable else ""
    sql = source.sql
    if declared.kind in ("timestamp", "rowversion"):
        # A transaction that is still open holds a lower version than others that are committed.
        inner = sql.removesuffix(" AS dw")
        sql = (
            f"(SELECT * FROM {inner} AS dw"  # noqa: S608
            f" WHERE {name} < MIN_ACTIVE_ROWVERSION()) AS dw"
        )
    text, bounds = bounded(columns, sql, comparable(declared), start, end, PLACE, null)
    pieces = text.split(PLACE)
    return source.before + pieces[0] + "".join(b + p for b, p in zip(bounds, pieces[1:], strict=True))


def comparable(declared: Declared) -> str:
    """The cursor column as it is compared: text by code points, whatever its collation."""
    name = f"dw.{quoted(declared.name)}"
    if declared.kind in ("timestamp", "rowversion", *_TIMES) or postgres_type(declared) in _COMPARED:
        return name
    if declared.kind in ("decimal", "numeric", "money", "smallmoney"):
        return name
    if declared.kind in ("nchar", "nvarchar", "sysname"):
        return f"{name} {BINARY_ORDER}"
    return f"CONVERT(nvarchar(max), {selected(declared)}) {BINARY_ORDER}"


_TIMES = ("datetime", "smalldatetime", "datetime2", "datetimeoffset")
_COMPARED = ("bigint", "double precision", "date", "boolean")


def bound(declared: Declared, value: Any, config: Config) -> str:
    """A cursor value as SQL of the column's own type, so that an index serves and ties stay ties."""
    kind = declared.kind
    if isinstance(value, datetime.datetime):
        if kind == "datetimeoffset":
            text = value.astimezone(datetime.UTC).isoformat("T", "microseconds")
            return f"CAST('{text}' AS datetimeoffset(7))"
        local = value.astimezone(ZoneInfo(config.timezone)).replace(tzinfo=None)
        if kind in ("datetime", "smalldatetime"):
            # Three digits name one of its ticks of 1/300 s; more would miss the row they were read from.
            return f"CAST('{local.isoformat('T', 'milliseconds')}' AS datetime)"
        return f"CAST('{local.isoformat('T', 'microseconds')}' AS datetime2(7))"
    if isinstance(value, datetime.date):
        return f"CAST('{value.isoformat()}' AS date)"
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        if kind in ("timestamp", "rowversion"):
            return f"CAST(CAST({value} AS bigint) AS binary(8))"
        return str(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, float):
        return f"{value!r}e0" if "e" not in repr(value) else repr(value)
    return literal(str(value))


# -- types ----------------------------------------------------------------------------------------------

_TYPES = {
    "bigint": "bigint",
    "int": "bigint",
    "smallint": "bigint",
    "tinyint": "bigint",
    "bit": "boolean",
    "float": "double precision",
    "real": "double precision",
    "money": "numeric(19,4)",
    "smallmoney": "numeric(10,4)",
    "date": "date",
    "datetime": "timestamptz",
    "smalldatetime": "timestamptz",
    "datetime2": "timestamptz",
    "datetimeoffset": "timestamptz",
    "time": "time",
    "uniqueidentifier": "uuid",
    "timestamp": "bigint",
    "rowversion": "bigint",
    "binary": "bytea",
    "varbinary": "bytea",
    "image": "bytea",
    "json": "jsonb",
    "vector": "jsonb",
}


def postgres_type(declared: Declared) -> str:
    """The PostgreSQL type that holds this column exactly."""
    if declared.kind in ("decimal", "numeric"):
        return f"numeric({declared.precision},{declared.scale})"
    return _TYPES.get(declared.kind, "text")


def selected(declared: Declared) -> str:
    """The column as SQL that no driver can bend."""
    name = f"dw.{quoted(declared.name)}"
    match declared.kind:
        case "decimal" | "numeric":
            return f"CONVERT(varchar(42), {name})"
        case "money" | "smallmoney":
            # Money itself is printed with two places.
            return f"CONVERT(varchar(42), CONVERT(decimal(19, 4), {name}))"
        case "date":
            return f"CONVERT(varchar(10), {name}, 23)"
        case "datetime" | "smalldatetime" | "datetime2":
            return f"CONVERT(varchar(33), {name}, 126)"
        case "datetimeoffset":
            return f"CONVERT(varchar(33), CONVERT(datetime2(7), SWITCHOFFSET({name}, '+00:00')), 126)"
        case "time":
            return f"CONVERT(varchar(16), {name}, 121)"
        case "uniqueidentifier":
            return f"LOWER(CONVERT(varchar(36), {name}))"
        case "timestamp" | "rowversion":
            return f"CONVERT(bigint, {name})"
        case "text" | "ntext" | "xml" | "json" | "vector":
            return f"CONVERT(nvarchar(max), {name})"
        case "sql_variant":
            return f"CONVERT(nvarchar(4000), {name})"
        case "image":
            return f"CONVERT(varbinary(max), {name})"
        case "hierarchyid" | "geometry" | "geography":
            return f"{name}.ToString()"
    return name

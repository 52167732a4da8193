"""ClickHouse, over its HTTP interface: one SELECT per read, streamed as Arrow, block by block.

The server turns what Arrow cannot hold (256-bit numbers, enums, addresses, nested values) into text in
the SELECT itself. A stream counts as whole only when it ends with Arrow's own end mark and nothing
follows: ClickHouse reports an error in the middle of a result inside the body, after a status of 200.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr

from dwcli.connectors import driver_missing
from dwcli.connectors._catalog import cursor_candidates
from dwcli.connectors._gather import gather
from dwcli.connectors._probe import reach
from dwcli.connectors._sqltext import (
    Dialect,
    bounded,
    cursor_value,
    find_column,
    find_table,
    is_select,
    name_parts,
    picked,
    quoted,
    spelled,
    stripped,
)
from dwcli.contract import (
    LOCAL_PATH,
    Column,
    ConnectorConfig,
    Cursor,
    CursorCandidate,
    IngestedItem,
    Resource,
)
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData

TITLE = "ClickHouse"
ALIASES = ()
EXTRA = "clickhouse"
STAND_IN = "ClickHouse 26.5's engine (chdb) behind HTTP"
QUERY = "a table, or a SELECT"
INCREMENTAL = "a column that grows"
TYPING = "declared"
STREAMING = True

DIALECT = Dialect(quote="`")
#: Where a bound goes in the text; no name and no query holds this character.
PLACE = "\x00"
#: Rows of a block, at most. The server makes it smaller where rows of a stored table are wide.
BLOCK_ROWS = 8192
#: How nested values are written as JSON: numbers as numbers, NaN as a string, times in UTC.
JSON_SETTINGS = {
    "output_format_json_quote_64bit_integers": "0",
    "output_format_json_quote_decimals": "0",
    "output_format_json_quote_denormals": "1",
    "date_time_output_format": "iso",
}
#: Bytes stay bytes, so that text that is not UTF-8 is seen here. The send timeout is how long the server
#: waits for a reader that is busy with its warehouse; its own half a minute would end long loads.
STREAM_SETTINGS = {
    "output_format_arrow_string_as_string": "0",
    "output_format_arrow_low_cardinality_as_dictionary": "0",
    "max_block_size": str(BLOCK_ROWS),
    "http_send_timeout": "3600",
    "cancel_http_readonly_queries_on_client_close": "1",
}
END_OF_ARROW = b"\xff\xff\xff\xff\x00\x00\x00\x00"

# Error codes: src/Common/ErrorCodes.cpp
UNKNOWN_TABLE, UNKNOWN_DATABASE, ACCESS_DENIED = 60, 81, 497
LOGIN = (192, 193, 194, 516)
LOST = (209, 210, 236, 394, 735)


class Config(ConnectorConfig):
    """A ClickHouse database."""

    host: str = Field(description="name or address of the server")
    port: int = Field(8123, ge=1, le=65535, description="port of its HTTP interface; 8443 is usual with TLS")
    tls: bool = Field(False, description="whether the port speaks TLS")
    database: str = Field("default", description="name of the database")
    username: str = Field("default", description="user that may read it")
    password: SecretStr = Field(SecretStr(""), description="the user's password")
    tls_verify: bool = Field(
        True, description="whether the server's certificate is checked", json_schema_extra={"advanced": True}
    )
    tls_ca: Path | None = Field(
        None,
        description="file with the certificate authority",
        json_schema_extra={"advanced": True, **LOCAL_PATH},
    )
    final: bool = Field(
        True,
        description="whether a table is read as FINAL gives it: replaced and collapsed rows left out",
        json_schema_extra={"advanced": True},
    )
    timeout_seconds: int = Field(
        300,
        ge=1,
        description="seconds that the server may stay silent during a query",
        json_schema_extra={"advanced": True},
    )


@dataclass
class Client:
    """The driver's client, the responses that are being read, and whether that is to end."""

    config: Config
    server: Any
    reading: list[Any] = field(default_factory=list)
    closed: bool = False


def connect(config: Config) -> Client:
    """Log in. Raises ConnectionFailed with the layer that failed, DriverMissing."""
    reach(config.host, config.port)
    try:
        import clickhouse_connect
        from clickhouse_connect.driver.exceptions import ClickHouseError
    except ImportError as error:
        raise driver_missing("clickhouse", error) from None
    # The driver logs the traceback of a failed request, which would land on the screen.
    logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())
    try:
        server = clickhouse_connect.get_client(
            interface="https" if config.tls else "http",
            host=config.host,
            port=config.port,
            username=config.username,
            password=config.password.get_secret_value(),
            database=config.database,
            verify=config.tls_verify,
            ca_cert=str(config.tls_ca) if config.tls_ca else None,
            send_receive_timeout=config.timeout_seconds,
            query_retries=0,
            compress=False,
            autogenerate_session_id=False,
            client_name="dw",
            show_clickhouse_errors="scrub",
        )
    except (ClickHouseError, OSError, ValueError) as error:
        raise _refused(config, error) from None
    return Client(config, server)


def close(client: Client) -> None:
    """Close the connections; a read that is under way ends with ConnectionFailed.

    The shutdown wakes a read that waits. One that never has to wait would not notice it: what a server
    goes on sending is still received.
    """
    client.closed = True
    for response in [*client.reading]:
        with contextlib.suppress(Exception):
            response.shutdown()
    with contextlib.suppress(Exception):
        client.server.close()


def _refused(config: Config, error: Exception) -> ConnectionFailed:
    """Which layer a failed login belongs to, with what to do about it."""
    where = f"{config.host}:{config.port}"
    code, why = _code_and_text(error)
    if "SSL" in why or "certificate" in why.lower():
        hint = "check the port and tls; for an authority of your own, set tls_ca"
        return ConnectionFailed(f"no TLS with {where}", layer="tls", why=why, hint=hint)
    if code in LOGIN:
        hint = "check username and password"
        message = f"{where} does not let '{config.username}' in"
        return ConnectionFailed(message, layer="login", why=why, hint=hint)
    if code == UNKNOWN_DATABASE:
        hint = "check the database's spelling; SHOW DATABASES lists those there are"
        message = f"{where} has no database '{config.database}'"
        return ConnectionFailed(message, layer="database", why=why, hint=hint)
    if code == ACCESS_DENIED:
        hint = f"GRANT SELECT ON {quoted(config.database, DIALECT)}.* TO {quoted(config.username, DIALECT)}"
        message = f"'{config.username}' may not use the database '{config.database}'"
        return ConnectionFailed(message, layer="permission", why=why, hint=hint)
    hint = "check that the port is ClickHouse's HTTP port (8123, or 8443 with tls), not 9000"
    return ConnectionFailed(f"no ClickHouse answers on {where}", layer="port", why=why, hint=hint)


def _code_and_text(error: Exception) -> tuple[int, str]:
    # Of a failed request the driver tells only that it failed; its cause knows why.
    text = str(error.__cause__ or error)
    match = re.search(r"[Cc]ode: (\d+)", text)
    code = getattr(error, "code", None) or (int(match[1]) if match else 0)
    return int(code), text.split("server response: ", 1)[-1][:500]


@contextmanager
def _errors(config: Config, query: str) -> Iterator[None]:
    """The driver's errors in our words."""
    import pyarrow
    from clickhouse_connect.driver.exceptions import ClickHouseError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClickHouseError as error:
        raise _failed(config, query, *_code_and_text(error)) from None
    except pyarrow.ArrowException as error:
        raise SourceData(f"{query}: the server's answer cannot be read", why=str(error)[:500]) from None
    except (HTTPError, OSError) as error:
        raise _lost(config, str(error)) from None


def _lost(config: Config, why: str) -> ConnectionFailed:
    return ConnectionFailed(
        f"the connection to {config.host}:{config.port} broke while reading",
        layer="lost",
        why=why,
        hint="run it again: nothing was committed",
    )


def _failed(config: Config, query: str, code: int, why: str) -> DwError:
    if code in (UNKNOWN_TABLE, UNKNOWN_DATABASE):
        return ResourceMissing("the query names a table that is not there", why=why)
    if code == ACCESS_DENIED:
        return QueryFailed(
            f"'{config.username}' may not read {query}",
            why=why,
            hint=f"GRANT SELECT ON {quoted(config.database, DIALECT)}.* TO "
            f"{quoted(config.username, DIALECT)}",
        )
    if code in LOST or not code:
        return _lost(config, why)
    return QueryFailed("the server refused the query", why=why, hint="check the query's SQL")


# -- the catalogue --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Declared:
    """One column, with ClickHouse's name of its type."""

    name: str
    source_type: str
    sorted: bool = False

    @property
    def kind(self) -> str:
        """The type without what is wrapped around it, such as `Decimal(12, 2)`."""
        return unwrapped(self.source_type)[0]

    @property
    def nullable(self) -> bool:
        return unwrapped(self.source_type)[1]


@dataclass(frozen=True)
class _Table:
    engine: str
    engine_full: str
    sorting_key: str
    rows: int | None
    bytes: int | None


TABLES_SQL = """
    SELECT database, name, engine, engine_full, sorting_key, total_rows, total_bytes
    FROM system.tables WHERE database IN ({databases}) AND NOT is_temporary AND name NOT LIKE '.inner%'
    ORDER BY database, name
"""
#: What `SELECT *` gives: columns that are computed are left out
COLUMNS_SQL = """
    SELECT database, table, name, type, is_in_sorting_key
    FROM system.columns WHERE database IN ({databases}) AND default_kind IN ('', 'DEFAULT')
    ORDER BY database, table, position
"""

_Name = tuple[str, ...]


def discover(client: Client) -> Iterator[Resource]:
    """Every table and view of the database, by name."""
    database = client.config.database
    with _errors(client.config, "the catalogue"):
        tables = _tables(client, [database])
        columns = _columns(client, [database])
    for name, table in tables.items():
        yield _resource(client.config, name, table, columns.get(name, ()))


def describe(client: Client, query: str) -> Resource:
    """Columns, key, cursor candidates and size of a table; columns of a SELECT.

    Raises ResourceMissing, QueryFailed.
    """
    with _errors(client.config, query):
        source = _source(client, query)
        if source.table is not None:
            table = _tables(client, [source.table[0]])[source.table]
            return _resource(client.config, source.table, table, source.columns)
    columns = tuple(_column(c) for c in source.columns)
    return Resource(query, columns, cursors=cursor_candidates(columns, (), ()), kind="query")


def _rows(client: Client, sql: str) -> Sequence[Sequence[Any]]:
    rows: Sequence[Sequence[Any]] = client.server.query(sql).result_rows
    return rows


def _tables(client: Client, databases: Sequence[str]) -> dict[_Name, _Table]:
    rows = _rows(client, TABLES_SQL.format(databases=", ".join(map(_literal, databases))))
    return {(database, name): _Table(*facts) for database, name, *facts in rows}


def _columns(client: Client, databases: Sequence[str]) -> dict[_Name, tuple[_Declared, ...]]:
    found: dict[_Name, list[_Declared]] = defaultdict(list)
    for database, table, *facts in _rows(
        client, COLUMNS_SQL.format(databases=", ".join(map(_literal, databases)))
    ):
        name, source_type, in_key = facts
        found[database, table].append(_Declared(name, source_type, bool(in_key)))
    return {name: tuple(columns) for name, columns in found.items()}


def _resource(config: Config, name: _Name, table: _Table, declared: Sequence[_Declared]) -> Resource:
    columns = tuple(_column(c) for c in declared)
    key, reason = _key(table, columns) if config.final else ((), "")
    leading = {table.sorting_key.split(",", 1)[0].strip().strip("`")}
    cursors = cursor_candidates(columns, key, leading)
    version = _version(table)
    if version in {c.name for c in columns} and version not in {c.column for c in cursors}:
        cursors = (CursorCandidate(version, "the version of a ReplacingMergeTree"), *cursors)
    kind = "view" if table.engine.endswith("View") else "table"
    shown = name[1:] if name[0] == config.database else name
    return Resource(spelled(shown, DIALECT), columns, key, reason, table.rows, table.bytes, cursors, kind)


def _key(table: _Table, columns: Sequence[Column]) -> tuple[_Name, str]:
    """The sorting key, where the engine keeps one row for each. A primary key is not unique here."""
    if not merges(table):
        return (), ""
    known = {c.name for c in columns}
    key = tuple(part.strip().strip("`") for part in table.sorting_key.split(","))
    if not known.issuperset(key):
        return (), ""
    return key, f"sorting key of a {table.engine}: FINAL gives one row each"


def merges(table: _Table) -> bool:
    """Whether the engine makes one row of several with the same sorting key, sooner or later."""
    return (
        re.search(r"(Replacing|Collapsing|Coalescing|Summing|Aggregating)MergeTree$", table.engine)
        is not None
    )


def _version(table: _Table) -> str:
    """The version column of `ReplacingMergeTree(version)`, or ""."""
    match = re.match(r"(?:Replicated|Shared)?ReplacingMergeTree\(([^()]*)\)", table.engine_full)
    arguments = [part.strip() for part in match[1].split(",")] if match else []
    return next((part.strip("`") for part in arguments if part and not part.startswith("'")), "")


def _column(declared: _Declared) -> Column:
    return Column(declared.name, postgres_type(declared.kind), declared.nullable, declared.source_type)


# -- reading --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What is read: a table, or a query in brackets."""

    sql: str
    columns: tuple[_Declared, ...]
    table: _Name | None = None


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Stream a table or a SELECT in batches of about `batch_bytes`.

    A SELECT sees the parts that a table has when it begins. Stopping early closes the connection, which
    ends the query. Raises ResourceMissing, QueryFailed (in the middle as well), and ConnectionFailed
    with layer `lost` when the answer ends early.
    """
    yield from _read(client, query, cursor, ())


def keys(client: Client, query: str, key: Sequence[str]) -> Iterator[IngestedItem]:
    """The columns of the key of every row, in batches of about `batch_bytes`. Raises as `read` does."""
    yield from _read(client, query, Cursor(), key)


def _read(client: Client, query: str, cursor: Cursor, only: Sequence[str]) -> Iterator[IngestedItem]:
    """`only`: names of columns; none for all."""
    import pyarrow

    from dwcli.connectors import _clickhousetypes

    config = client.config
    with _errors(config, query):
        source = _source(client, query)
        source = replace(source, columns=picked(source.columns, only))
        sql = _statement(source, cursor)
        settings = _settings(client, source.columns)
        response = client.server.raw_stream(sql, settings=settings, fmt="ArrowStream")
    client.reading.append(response)
    watched = _Watched(client, response)
    columns = [(c.name, postgres_type(c.kind), c.kind) for c in source.columns]
    try:
        with _errors(config, query):
            try:
                reader = pyarrow.ipc.open_stream(pyarrow.PythonFile(watched, mode="r"))
                batches = gather(reader, config.batch_bytes)
                for gathered in itertools.chain([next(batches, [])], batches):
                    yield from _clickhousetypes.items(columns, reader.schema, gathered, config.batch_bytes)
            except (pyarrow.ArrowException, OSError):
                # An error's text in the middle is no Arrow message; its own words say more.
                _check_no_error(config, query, watched)
                raise
            _check_end(config, query, watched)
    finally:
        client.reading.remove(response)
        with contextlib.suppress(Exception):
            response.close()


class _Watched(io.RawIOBase):
    """The body of a response that remembers its last bytes, where ClickHouse writes what went wrong."""

    KEPT = 32 * 1024

    def __init__(self, client: Client, response: Any) -> None:
        self.client, self.response = client, response
        self.tail = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, less only at the end."""
        if self.client.closed:
            raise OSError("the connection was closed")
        data: bytes = self.response.read(size if size >= 0 else None)
        self.tail = data[-self.KEPT :] if len(data) >= self.KEPT else (self.tail + data)[-self.KEPT :]
        return data


def _check_end(config: Config, query: str, watched: _Watched) -> None:
    """Raise unless the body ends with Arrow's end mark: what else is there is an error's text."""
    ended = watched.tail.endswith(END_OF_ARROW)
    rest = watched.read(_Watched.KEPT)
    if not ended or rest:
        _check_no_error(config, query, watched)
        raise _lost(config, "the answer does not end with its end mark")


def _check_no_error(config: Config, query: str, watched: _Watched) -> None:
    """Raise what the server wrote at the end of the body, if that is an error."""
    while watched.read(_Watched.KEPT):
        pass
    match = re.search(rb"Code: (\d+)\. (DB::Exception: .*)", watched.tail, re.DOTALL)
    if match is not None:
        text = match[2].decode(errors="replace").split("\r\n", 1)[0].strip()
        raise _failed(config, query, int(match[1]), text[:500])


def _settings(client: Client, columns: Sequence[_Declared]) -> dict[str, str]:
    """The settings that this server knows and lets this user change.

    Raises QueryFailed where nested values could not be written exactly without them.
    """
    known = client.server.server_settings
    wanted = {
        **STREAM_SETTINGS,
        **JSON_SETTINGS,
        "preferred_block_size_bytes": str(max(client.config.batch_bytes // 8, 64 * 1024)),
    }
    fixed = {
        name for name, value in wanted.items() if name in known and known[name].readonly and
        known[name].value != value
    }  # fmt: skip
    needed = JSON_SETTINGS.keys() if any(is_nested(c.kind) for c in columns) else set()
    if fixed & needed:
        raise QueryFailed(
            f"'{client.config.username}' may not change the setting {min(fixed & needed)}",
            hint="give the user the profile readonly = 2 instead of 1",
        )
    return {name: value for name, value in wanted.items() if name in known and name not in fixed}


def _source(client: Client, query: str) -> _Source:
    """The table that a query names, or the query itself, with its columns."""
    config = client.config
    databases = list(dict.fromkeys([config.database, name_parts(query, DIALECT)[0]]))
    if is_select(query):
        # A table may be called so as well, but only one of the own database.
        databases = databases[:1]
    tables = _tables(client, databases)
    known = list(tables)
    found = find_table(query, known, config.database, DIALECT)
    if found is not None:
        sql = ".".join(quoted(part, DIALECT) for part in found)
        final = " FINAL" if config.final and merges(tables[found]) else ""
        return _Source(f"{sql} AS dw{final}", _columns(client, [found[0]]).get(found, ()), found)
    if not is_select(query):
        names = [spelled([name], DIALECT) for database, name in known if database == config.database]
        raise ResourceMissing(
            f"the database '{config.database}' has no table '{query}'.{nearest(query, names)}",
            hint="name a table or view, or give a SELECT",
        )
    sql = f"(\n{stripped(query)}\n) AS dw"
    rows = _rows(client, f"DESCRIBE TABLE (\n{stripped(query)}\n)")
    return _Source(sql, tuple(_Declared(row[0], row[1]) for row in rows))


def _statement(source: _Source, cursor: Cursor) -> str:
    columns = [f"{selected(c)} AS {quoted(c.name, DIALECT)}" for c in source.columns]
    if not cursor.column or (cursor.start is None and cursor.end is None):
        return bounded(columns, source.sql, "", None, None)[0]
    wanted = find_column(cursor, [c.name for c in source.columns])
    declared = next(c for c in source.columns if c.name == wanted)
    kind = declared.kind
    name = _named(declared)
    compared = name if postgres_type(kind) in _COMPARED or kind.startswith("Decimal") else f"toString({name})"
    compared = name if kind == "String" else compared
    start, end = (
        None if text is None else _bound(kind, cursor_value(text, cursor.type or postgres_type(kind), cursor))
        for text in (cursor.start, cursor.end)
    )
    null = f"isNull({name})" if declared.nullable else ""
    text, bounds = bounded(columns, source.sql, compared, start, end, PLACE, null)
    pieces = text.split(PLACE)
    return "".join(itertools.chain.from_iterable(itertools.zip_longest(pieces, bounds, fillvalue="")))


_COMPARED = ("bigint", "numeric(20,0)", "numeric", "double precision", "date", "timestamptz", "boolean")


def _bound(kind: str, value: Any) -> str:
    """A cursor value as SQL that is compared with a column of this kind, exactly."""
    if isinstance(value, datetime.datetime):
        scale = 9 if _scale(kind) > 6 else 6
        text = value.astimezone(datetime.UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
        return f"toDateTime64({_literal(text)}, {scale}, 'UTC')"
    if isinstance(value, datetime.date):
        return f"toDate32({_literal(value.isoformat())})"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal) and kind.startswith(("Int", "UInt")):
        value = int(value)
    if isinstance(value, (int, float)) and -(2**63) <= value < 2**64:
        return repr(value)
    if isinstance(value, (int, Decimal)):
        if match := re.fullmatch(r"Decimal\((\d+), (\d+)\)", kind):
            # A number with a point would be a float.
            return f"CAST({_literal(format(value, 'f'))} AS Decimal({match[1]}, {match[2]}))"
        return f"CAST({_literal(format(value, 'f'))} AS {kind})"
    return _literal(str(value))


def _scale(kind: str) -> int:
    """Digits after the second of a DateTime64."""
    match = re.match(r"DateTime64\((\d+)", kind)
    return int(match[1]) if match else 0


def _literal(text: str) -> str:
    """A string as ClickHouse reads it back."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\x00", "\\0")
    return f"'{escaped}'"


# -- types ----------------------------------------------------------------------------------------------

_FIXED = {
    "Bool": "boolean",
    "Int8": "bigint",
    "Int16": "bigint",
    "Int32": "bigint",
    "Int64": "bigint",
    "UInt8": "bigint",
    "UInt16": "bigint",
    "UInt32": "bigint",
    "UInt64": "numeric(20,0)",
    "Int128": "numeric",
    "Int256": "numeric",
    "UInt128": "numeric",
    "UInt256": "numeric",
    "Float32": "double precision",
    "Float64": "double precision",
    "BFloat16": "double precision",
    "Date": "date",
    "Date32": "date",
    "DateTime": "timestamptz",
    "DateTime64": "timestamptz",
    "Time": "interval",
    "Time64": "interval",
    "String": "text",
    "FixedString": "bytea",
    "UUID": "uuid",
    "IPv4": "inet",
    "IPv6": "inet",
}
_NESTED = (
    "Array", "Map", "Tuple", "Nested", "JSON", "Object", "Variant", "Dynamic", "Point", "Ring", "Polygon",
    "MultiPolygon", "LineString", "MultiLineString", "Geometry", "QBit",
)  # fmt: skip


def unwrapped(source_type: str) -> tuple[str, bool]:
    """The type inside LowCardinality, Nullable and SimpleAggregateFunction, and whether NULL is in it."""
    nullable = False
    while match := re.fullmatch(
        r"(LowCardinality|Nullable|SimpleAggregateFunction)\((.*)\)", source_type, re.DOTALL
    ):
        nullable = nullable or match[1] == "Nullable"
        source_type = match[2]
        if match[1] == "SimpleAggregateFunction":
            source_type = re.sub(r"^\w+(\([^)]*\))?,\s*", "", source_type)
    return source_type, nullable or base(source_type) in ("Dynamic", "Variant", "Nothing")


def base(kind: str) -> str:
    """`Decimal` for `Decimal(12, 2)`."""
    return kind.split("(", 1)[0]


def is_nested(kind: str) -> bool:
    """Whether a value of this type becomes JSON."""
    return base(kind) in _NESTED


def postgres_type(kind: str) -> str:
    """The PostgreSQL type that holds this type exactly. `kind` is unwrapped."""
    if match := re.fullmatch(r"Decimal\((\d+), (\d+)\)", kind):
        return f"numeric({match[1]},{match[2]})"
    if is_nested(kind):
        return "jsonb"
    if kind.startswith("Interval") and kind[8:] in _UNITS:
        return "interval"
    return _FIXED.get(base(kind), "text")


_UNITS = ("Microsecond", "Millisecond", "Second", "Minute", "Hour", "Day", "Week", "Month", "Year")
#: Types that the Arrow of every version has as they are
_PLAIN = (
    "Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64",
    "String", "FixedString", "DateTime64", "Date32", "Nothing",
)  # fmt: skip


def _named(declared: _Declared) -> str:
    """The source's column. Its name alone would mean the SELECT's own, which may be text by then."""
    return f"dw.{quoted(declared.name, DIALECT)}"


def selected(declared: _Declared) -> str:
    """The column as SQL whose Arrow holds every value."""
    name, kind = _named(declared), declared.kind
    if match := re.fullmatch(r"Decimal\((\d+), \d+\)", kind):
        return name if int(match[1]) <= 38 else f"toString({name})"
    if base(kind) in _PLAIN:
        return name
    if base(kind) == "DateTime":
        return f"toDateTime64({name}, 0, 'UTC')"
    if kind == "Date":
        return f"toDate32({name})"
    if is_nested(kind):
        return (
            f"if(isNull({name}), NULL, toJSONString({name}))"
            if declared.nullable
            else f"toJSONString({name})"
        )
    if base(kind) == "AggregateFunction":
        return f"toString(finalizeAggregation({name}))"
    if postgres_type(kind) == "interval" and kind.startswith("Interval"):
        return f"concat(toString({name}), ' {kind[8:].lower()}')"
    return f"toString({name})"

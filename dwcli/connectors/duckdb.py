"""DuckDB files: read-only, streamed as Arrow, with casts in SQL for the types that Arrow cannot hold."""

from __future__ import annotations

import datetime
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import Field

from dwcli.connectors import driver_missing
from dwcli.connectors._catalog import cursor_candidates
from dwcli.connectors._gather import gather
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
from dwcli.contract import LOCAL_PATH, Column, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData

TITLE = "DuckDB"
ALIASES = ()
EXTRA = "duckdb"
TRIED = "DuckDB 2.0"
QUERY = "a table, or a SELECT"
INCREMENTAL = "a cursor column"
TYPING = "declared"
STREAMING = True

DIALECT = Dialect(quote='"', place="?")
#: DuckDB works in vectors of this many rows; a smaller batch saves nothing
VECTOR_ROWS = 2048


class Config(ConnectorConfig):
    """A DuckDB database file."""

    database_path: Path = Field(description="path of the database file", json_schema_extra=LOCAL_PATH)
    timezone: str = Field(
        "UTC", description="time zone of TIMESTAMP columns", json_schema_extra={"advanced": True}
    )
    memory_limit: str = Field(
        "256MB",
        pattern=r"^\d+(\.\d+)? ?(KB|MB|GB|TB|KiB|MiB|GiB|TiB)$",
        description="memory that DuckDB may take for a query, such as 256MB",
        json_schema_extra={"advanced": True},
    )


@dataclass
class Client:
    """An open database. Every read has a connection of its own in it."""

    config: Config
    connection: Any
    reading: list[Any] = field(default_factory=list)


def connect(config: Config) -> Client:
    """Open the file read-only. Raises ConnectionFailed when it is missing, held or not a database."""
    try:
        import duckdb
    except ImportError as error:
        raise driver_missing("duckdb", error) from None
    path = config.database_path.expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConnectionFailed(
            f"the file {path} {what}", layer="name", hint="check database_path; it is read from where dw runs"
        )
    try:
        connection = duckdb.connect(str(path), read_only=True)
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET memory_limit = '{config.memory_limit}'")
    except duckdb.Error as error:
        raise _unusable(path, error) from None
    return Client(config, connection)


def close(client: Client) -> None:
    """Close the file; a read that is under way ends with an error."""
    for connection in [*client.reading]:
        connection.interrupt()
    client.connection.close()


def _unusable(path: Path, error: Exception) -> ConnectionFailed:
    why = str(error)
    if "lock" in why or "different configuration" in why:
        hint = "another program holds it for writing; close that program, or read a copy of the file"
        return ConnectionFailed(f"{path} is in use", layer="database", why=why, hint=hint)
    if "not a valid" in why or "version" in why or "Corrupt" in why:
        hint = "check database_path, and that the installed duckdb is as new as the one that wrote the file"
        return ConnectionFailed(f"{path} is not a DuckDB database", layer="database", why=why, hint=hint)
    hint = "check that the file can be read"
    return ConnectionFailed(f"{path} cannot be opened", layer="permission", why=why, hint=hint)


@contextmanager
def _errors(query: str) -> Iterator[None]:
    """The driver's errors in our words."""
    import duckdb
    import pyarrow

    try:
        yield
    except (duckdb.Error, pyarrow.ArrowException, OSError) as error:
        raise _failed(query, error) from None


def _failed(query: str, error: Exception) -> DwError:
    kind, why = type(error).__name__, str(error)
    if "INTERRUPT" in why or kind == "InterruptException" or "closed" in why.lower():
        return ConnectionFailed("the read was stopped", layer="lost", why=why)
    if kind == "CatalogException" and "does not exist" in why:
        return ResourceMissing("the query names something that is not there", why=why)
    if kind == "OutOfMemoryException" or "Out of Memory" in why:
        return QueryFailed(
            "the query needs more memory than DuckDB may take", why=why, hint="raise memory_limit"
        )
    if kind == "ConversionException":
        # Its text holds the value that could not be converted.
        return SourceData(f"{query}: a value cannot be converted", hint="check the casts in the query")
    if kind in ("IOException", "FatalException", "InternalException"):
        return SourceData(f"{query}: the data cannot be read", why=why)
    return QueryFailed("DuckDB refused the query", why=why, hint="check the query's SQL")


# -- the catalogue --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Declared:
    """One column, with DuckDB's name of its type."""

    name: str
    source_type: str
    nullable: bool = True

    @property
    def type(self) -> str:
        return postgres_type(self.source_type)


TABLES_SQL = """
    SELECT schema_name, table_name, 'table', estimated_size FROM duckdb_tables()
    WHERE NOT internal AND database_name = current_database()
    UNION ALL
    SELECT schema_name, view_name, 'view', NULL FROM duckdb_views()
    WHERE NOT internal AND database_name = current_database()
    ORDER BY ALL
"""
COLUMNS_SQL = """
    SELECT schema_name, table_name, column_name, data_type, is_nullable FROM duckdb_columns()
    WHERE NOT internal AND database_name = current_database() ORDER BY table_oid, column_index
"""
CONSTRAINTS_SQL = """
    SELECT schema_name, table_name, constraint_type, constraint_column_names FROM duckdb_constraints()
    WHERE constraint_type IN ('PRIMARY KEY', 'UNIQUE') AND database_name = current_database()
    ORDER BY constraint_type, len(constraint_column_names)
"""

_Table = tuple[str, ...]


def discover(client: Client) -> Iterator[Resource]:
    """Every table and view, by schema and name."""
    with _errors("the catalogue"):
        tables, columns, constraints = _catalogue(client.connection)
    for table, (kind, rows) in tables.items():
        yield _resource(table, kind, rows, columns[table], constraints[table])


def describe(client: Client, query: str) -> Resource:
    """Columns, key and estimates of a table; columns of a SELECT. Raises ResourceMissing, QueryFailed."""
    with _errors(query):
        tables, columns, constraints = _catalogue(client.connection)
        found = find_table(query, list(tables), "main", DIALECT)
        if found is not None:
            kind, rows = tables[found]
            return _resource(found, kind, rows, columns[found], constraints[found])
        declared = _source(client.connection, query).columns
    described = tuple(Column(c.name, c.type, c.nullable, c.source_type) for c in declared)
    return Resource(query, described, cursors=cursor_candidates(described, (), ()), kind="query")


def _catalogue(
    connection: Any,
) -> tuple[
    dict[_Table, tuple[str, int | None]],
    dict[_Table, list[_Declared]],
    dict[_Table, list[tuple[str, tuple[str, ...]]]],
]:
    """By table: kind and rows; columns; primary and unique keys."""
    cursor = connection.cursor()
    tables: dict[_Table, tuple[str, int | None]] = {
        (schema, name): (kind, rows) for schema, name, kind, rows in cursor.execute(TABLES_SQL).fetchall()
    }
    columns: dict[_Table, list[_Declared]] = defaultdict(list)
    for schema, table, name, source_type, nullable in cursor.execute(COLUMNS_SQL).fetchall():
        columns[schema, table].append(_Declared(name, source_type, bool(nullable)))
    constraints: dict[_Table, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
    for schema, table, kind, names in cursor.execute(CONSTRAINTS_SQL).fetchall():
        constraints[schema, table].append((kind, tuple(names)))
    cursor.close()
    return tables, columns, constraints


def _resource(
    table: _Table,
    kind: str,
    rows: int | None,
    declared: Sequence[_Declared],
    constraints: Sequence[tuple[str, tuple[str, ...]]],
) -> Resource:
    columns = tuple(Column(c.name, c.type, c.nullable, c.source_type) for c in declared)
    required = {c.name for c in declared if not c.nullable}
    key: tuple[str, ...] = ()
    reason = ""
    for constraint, names in constraints:
        if constraint == "PRIMARY KEY":
            key, reason = names, "primary key in the source"
            break
        if not key and required.issuperset(names):
            key, reason = names, "unique and not null in the source"
    leading = {names[0] for _, names in constraints}
    cursors = cursor_candidates(columns, key, leading)
    name = table[1:] if table[0] == "main" else table
    return Resource(spelled(name, DIALECT), columns, key, reason, rows, None, cursors, kind)


# -- reading --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What is read: a table, or a query in brackets."""

    sql: str
    columns: tuple[_Declared, ...]


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Stream a table or a SELECT in batches of about `batch_bytes`.

    Raises ResourceMissing, QueryFailed, SourceData for a damaged file.
    """
    yield from _read(client, query, cursor, ())


def keys(client: Client, query: str, key: Sequence[str]) -> Iterator[IngestedItem]:
    """The columns of the key of every row, in batches of about `batch_bytes`. Raises as `read` does."""
    yield from _read(client, query, Cursor(), key)


def _read(client: Client, query: str, cursor: Cursor, only: Sequence[str]) -> Iterator[IngestedItem]:
    """`only`: names of columns; none for all."""
    from dwcli.connectors import _duckdbtypes

    config = client.config
    connection = client.connection.cursor()
    client.reading.append(connection)
    try:
        with _errors(query):
            source = _source(connection, query)
            source = replace(source, columns=picked(source.columns, only))
            sql, parameters = _statement(source, cursor, config)
            reader = _arrow_reader(connection.sql(sql, params=parameters))
            columns = [(c.name, c.source_type, c.type) for c in source.columns]
            batches = gather(reader, config.batch_bytes)
            for gathered in itertools.chain([next(batches, [])], batches):
                yield from _duckdbtypes.items(
                    columns, reader.schema, gathered, config.timezone, config.batch_bytes
                )
    finally:
        client.reading.remove(connection)
        connection.close()


def _arrow_reader(relation: Any) -> Any:
    """The relation as a stream of Arrow batches, under the name that this version of DuckDB has for it."""
    name = "to_arrow_reader" if hasattr(relation, "to_arrow_reader") else "fetch_arrow_reader"
    return getattr(relation, name)(VECTOR_ROWS)


def _source(connection: Any, query: str) -> _Source:
    """The table that a query names, or the query itself, with its columns."""
    import duckdb

    known = [(schema, name) for schema, name, _, _ in connection.execute(TABLES_SQL).fetchall()]
    found = find_table(query, known, "main", DIALECT)
    if found is not None:
        sql = ".".join(quoted(part, DIALECT) for part in found)
    elif is_select(query):
        statements = duckdb.extract_statements(query)
        if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
            raise QueryFailed("the query is not one SELECT", hint="a source is only ever read")
        sql = f"(\n{stripped(query)}\n) dw"
    else:
        names = [spelled(table[1:] if table[0] == "main" else table, DIALECT) for table in known]
        raise ResourceMissing(
            f"the database has no table '{query}'.{nearest(query, names)}",
            hint="name a table or view, or give a SELECT",
        )
    relation = connection.sql(f"SELECT * FROM {sql}")  # noqa: S608
    columns = zip(relation.columns, relation.types, strict=True)
    return _Source(sql, tuple(_Declared(name, str(type)) for name, type in columns))


def _statement(source: _Source, cursor: Cursor, config: Config) -> tuple[str, list[Any]]:
    columns = [_selected(c) for c in source.columns]
    if not cursor.column or (cursor.start is None and cursor.end is None):
        return bounded(columns, source.sql, "", None, None)
    declared = next(
        c for c in source.columns if c.name == find_column(cursor, [c.name for c in source.columns])
    )
    start, end = (_bound(declared, text, cursor, config) for text in (cursor.start, cursor.end))
    name, kind = quoted(declared.name, DIALECT), declared.source_type
    if declared.type == "text":
        # As bytes, whatever collation the column has
        return bounded(columns, source.sql, f"encode(CAST({name} AS VARCHAR))", start, end, "encode(?)")
    return bounded(columns, source.sql, name, start, end, f"CAST(CAST(? AS VARCHAR) AS {kind})")


def _bound(declared: _Declared, text: str | None, cursor: Cursor, config: Config) -> str | None:
    """A cursor value as text that DuckDB casts to the column's own type; a TIMESTAMP in its zone."""
    value = cursor_value(text, cursor.type or declared.type, cursor)
    if isinstance(value, datetime.datetime) and "WITH TIME ZONE" not in declared.source_type:
        return value.astimezone(ZoneInfo(config.timezone)).replace(tzinfo=None).isoformat(" ")
    return text


# -- types ----------------------------------------------------------------------------------------------

_TYPES = {
    "BOOLEAN": "boolean",
    "TINYINT": "bigint",
    "SMALLINT": "bigint",
    "INTEGER": "bigint",
    "BIGINT": "bigint",
    "UTINYINT": "bigint",
    "USMALLINT": "bigint",
    "UINTEGER": "bigint",
    "UBIGINT": "numeric(20,0)",
    "HUGEINT": "numeric",
    "UHUGEINT": "numeric",
    "BIGNUM": "numeric",
    "VARINT": "numeric",
    "FLOAT": "double precision",
    "DOUBLE": "double precision",
    "VARCHAR": "text",
    "BLOB": "bytea",
    "DATE": "date",
    "TIME": "time",
    "TIME_NS": "time",
    "TIME WITH TIME ZONE": "timetz",
    "TIMESTAMP": "timestamptz",
    "TIMESTAMP_S": "timestamptz",
    "TIMESTAMP_MS": "timestamptz",
    "TIMESTAMP_NS": "timestamptz",
    "TIMESTAMP WITH TIME ZONE": "timestamptz",
    "INTERVAL": "interval",
    "UUID": "uuid",
    "JSON": "jsonb",
    "BIT": "bit varying",
}
#: What Arrow and polars hold as it is; everything else is fetched as text or cast first
_DIRECT = (
    "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
    "FLOAT", "DOUBLE", "VARCHAR", "BLOB", "DATE", "TIMESTAMP", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE",
)  # fmt: skip
_NESTED = re.compile(r"(?s)^(STRUCT|MAP|UNION)\(.*\)$|.*\[\d*\]$")


def postgres_type(source_type: str) -> str:
    """The PostgreSQL type that holds this DuckDB type exactly."""
    if source_type.startswith("DECIMAL") and not _NESTED.match(source_type):
        return source_type.replace("DECIMAL", "numeric").replace(" ", "")
    return "jsonb" if _NESTED.match(source_type) else _TYPES.get(source_type, "text")


def _selected(declared: _Declared) -> str:
    """The column in a form that Arrow holds exactly."""
    name, kind = quoted(declared.name, DIALECT), declared.source_type
    if _NESTED.match(kind):
        # to_json writes numbers to the last digit; Arrow and polars would take large ones through float.
        return f"CAST(to_json({name}) AS VARCHAR) AS {name}"
    if kind in _DIRECT or kind.startswith("DECIMAL"):
        return name
    wanted = "TIMESTAMP" if kind in ("TIMESTAMP_S", "TIMESTAMP_MS") else "VARCHAR"
    return f"CAST({name} AS {wanted}) AS {name}"

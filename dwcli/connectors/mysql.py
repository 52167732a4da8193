"""MySQL and MariaDB: one consistent snapshot per read, streamed row by row from the server.

Values are taken as the server prints them and parsed a column at a time, so that nothing passes
through a type that cannot hold it. DATETIME has no zone and is read in `timezone`; TIMESTAMP is an
instant. What PostgreSQL cannot hold (zero dates) becomes NULL and is counted.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import re
import socket
import ssl
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr

from dwcli.connectors import driver_missing
from dwcli.connectors._catalog import cursor_candidates
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
from dwcli.contract import Column, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing

if TYPE_CHECKING:
    from dwcli.connectors._rows import Fill

TITLE = "MySQL or MariaDB"
ALIASES = ("mariadb",)
EXTRA = "mysql"
TRIED = "MariaDB 10.11"
QUERY = "a table, or a SELECT"
INCREMENTAL = "a cursor column"
TYPING = "declared"
STREAMING = True

DIALECT = Dialect(quote="`", place="%s")
#: What a session is told first. The write timeout is how long the server waits for a reader that is
#: busy with its warehouse; the server's own minute would end long loads.
SESSION = (
    "SET SESSION time_zone = '+00:00', sql_mode = '', net_write_timeout = 3600",
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
)
SNAPSHOT = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"

# Error numbers: dev.mysql.com/doc/mysql-errors, mariadb.com/kb/en/mariadb-error-codes
LOST = (0, 1053, 1152, 1158, 1159, 1160, 1161, 1317, 1927, 2006, 2013, 2014, 2055)
NO_SUCH_TABLE, DUPLICATE_COLUMN = 1146, 1060


class Config(ConnectorConfig):
    """A MySQL or MariaDB database."""

    host: str = Field(description="name or address of the server")
    port: int = Field(3306, ge=1, le=65535, description="port of the server")
    database: str = Field(description="name of the database")
    username: str = Field(description="user that may read it")
    password: SecretStr = Field(SecretStr(""), description="the user's password")
    timezone: str = Field(
        "UTC", description="time zone of DATETIME columns", json_schema_extra={"advanced": True}
    )
    ssl_mode: Literal["disabled", "preferred", "required", "verify-ca", "verify-full"] = Field(
        "preferred", description="how far TLS is insisted on", json_schema_extra={"advanced": True}
    )
    ssl_ca: Path | None = Field(
        None, description="file with the certificate authority", json_schema_extra={"advanced": True}
    )
    tinyint1_is_bool: bool = Field(
        False,
        description="whether TINYINT(1) is a boolean, other values than 0 and 1 being true",
        json_schema_extra={"advanced": True},
    )


@dataclass
class Client:
    """A connection for the catalogue; every read has one of its own, dropped when it ends."""

    config: Config
    catalogue: Any
    reading: list[Any] = field(default_factory=list)


def connect(config: Config) -> Client:
    """Connect and log in. Raises ConnectionFailed with the layer that failed, DriverMissing."""
    reach(config.host, config.port)
    return Client(config, _open(config))


def close(client: Client) -> None:
    """Close the connections; a read that is under way ends with ConnectionFailed."""
    for connection in [*client.reading]:
        with contextlib.suppress(OSError, AttributeError):
            connection._sock.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(Exception):
        client.catalogue.close()


def _open(config: Config, as_bytes: bool = False) -> Any:
    """A session in UTC. as_bytes: every value as the bytes that the server sent."""
    try:
        import pymysql
        from pymysql.converters import encoders
    except ImportError as error:
        raise driver_missing("mysql", error) from None
    no_decoders: Any = encoders
    try:
        connection = pymysql.connect(
            host=config.host,
            port=config.port,
            user=config.username,
            password=config.password.get_secret_value(),
            database=config.database,
            charset="utf8mb4",
            autocommit=True,
            program_name="dw",
            use_unicode=not as_bytes,
            conv=no_decoders if as_bytes else None,
            ssl_disabled=config.ssl_mode == "disabled",
            ssl=_tls(config),
        )
    except (pymysql.Error, RuntimeError, OSError) as error:
        raise _refused(config, error) from None
    with _errors(config, "the session"), connection.cursor() as cursor:
        for statement in SESSION:
            cursor.execute(statement)
    return connection


def _tls(config: Config) -> ssl.SSLContext | None:
    """The TLS that is insisted on; None leaves it to what the server offers."""
    if config.ssl_mode in ("disabled", "preferred"):
        return None
    try:
        context = ssl.create_default_context(cafile=str(config.ssl_ca) if config.ssl_ca else None)
    except OSError as error:
        raise ConnectionFailed(
            f"the certificate file {config.ssl_ca} cannot be read",
            layer="tls",
            why=error.strerror or str(error),
            hint="check ssl_ca: it is a PEM file",
        ) from None
    context.check_hostname = config.ssl_mode == "verify-full"
    if config.ssl_mode == "required":
        context.verify_mode = ssl.CERT_NONE
    return context


def _refused(config: Config, error: Exception) -> ConnectionFailed:
    """Which layer a failed login belongs to, with what to do about it."""
    number, why = _number_and_text(error)
    where = f"{config.host}:{config.port}"
    user, database = config.username, config.database
    if number == 2026 or "SSL" in why or "certificate" in why.lower():
        hint = "set ssl_ca to the server's authority, or choose another ssl_mode"
        return ConnectionFailed(f"no TLS with {where}", layer="tls", why=why, hint=hint)
    match number:
        case 1045 | 1698:
            hint = "check username and password"
            return ConnectionFailed(f"{where} does not let '{user}' in", layer="login", why=why, hint=hint)
        case 1049:
            hint = "check the database's spelling; SHOW DATABASES lists those there are"
            message = f"{where} has no database '{database}'"
            return ConnectionFailed(message, layer="database", why=why, hint=hint)
        case 1044:
            hint = f"GRANT SELECT ON `{database}`.* TO '{user}'"
            message = f"'{user}' may not use the database '{database}'"
            return ConnectionFailed(message, layer="permission", why=why, hint=hint)
        case 1130 | 1129:
            hint = "the server lets this user in from other hosts only: ask for a grant"
            return ConnectionFailed(f"{where} refuses this machine", layer="permission", why=why, hint=hint)
        case 1040 | 1203 | 1226:
            hint = "try again, or raise the server's max_connections"
            return ConnectionFailed(f"{where} has no free connection", layer="login", why=why, hint=hint)
        case 2003 | 2006 | 2013:
            hint = "check that the port is MySQL's"
            return ConnectionFailed(f"no MySQL answers on {where}", layer="port", why=why, hint=hint)
    hint = "check username, password and the user's authentication plugin"
    return ConnectionFailed(f"no login to {where}", layer="login", why=why, hint=hint)


def _number_and_text(error: Exception) -> tuple[int, str]:
    if len(error.args) > 1 and isinstance(error.args[0], int):
        return error.args[0], str(error.args[1])
    return -1, str(error)


@contextmanager
def _errors(config: Config, query: str) -> Iterator[None]:
    """The driver's errors in our words."""
    import pymysql

    try:
        yield
    except (pymysql.Error, OSError, struct.error) as error:
        raise _failed(config, query, error) from None


def _failed(config: Config, query: str, error: Exception) -> DwError:
    number, why = _number_and_text(error)
    if number in LOST or isinstance(error, OSError):
        return ConnectionFailed(
            f"the connection to {config.host}:{config.port} broke while reading",
            layer="lost",
            why=why,
            hint="run it again: nothing was committed",
        )
    if number == NO_SUCH_TABLE:
        return ResourceMissing("the query names a table that is not there", why=why)
    if number in (1142, 1143, 1370):
        return QueryFailed(
            f"'{config.username}' may not read {query}",
            why=why,
            hint=f"GRANT SELECT ON `{config.database}`.* TO '{config.username}'",
        )
    hint = "name each column with AS" if number == DUPLICATE_COLUMN else "check the query's SQL"
    return QueryFailed("the server refused the query", why=why, hint=hint)


# -- the catalogue --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Declared:
    """One column, from the catalogue or from the head of a result."""

    name: str
    #: MySQL's name of the type, such as `bigint`, `varchar`; `json` for MariaDB's JSON as well
    kind: str
    source_type: str = ""
    nullable: bool = True
    unsigned: bool = False
    #: decimal: precision; bit: number of bits; tinyint: display width
    size: int = 0
    scale: int = 0


TABLES_SQL = """
    SELECT table_name, table_type, table_rows, data_length
    FROM information_schema.tables WHERE table_schema = %s ORDER BY table_name
"""
COLUMNS_SQL = """
    SELECT table_name, column_name, data_type, column_type, is_nullable, numeric_precision, numeric_scale
    FROM information_schema.columns
    WHERE table_schema = %s AND (table_name = %s OR %s IS NULL)
    ORDER BY table_name, ordinal_position
"""
INDEXES_SQL = """
    SELECT table_name, index_name, non_unique, column_name, nullable, sub_part
    FROM information_schema.statistics
    WHERE table_schema = %s AND (table_name = %s OR %s IS NULL)
    ORDER BY table_name, index_name, seq_in_index
"""
#: MariaDB's JSON is a text with a check; MySQL's check constraints have no table name, and need none
JSON_SQL = """
    SELECT table_name, check_clause FROM information_schema.check_constraints
    WHERE constraint_schema = %s AND check_clause LIKE 'json_valid(%%'
"""


def discover(client: Client) -> Iterator[Resource]:
    """Every table and view of the database, by name."""
    schema = client.config.database
    with _errors(client.config, "the catalogue"), _cursor(client) as cursor:
        tables = _tables(cursor, schema)
        columns = _columns(cursor, schema, None)
        indexes = _indexes(cursor, schema, None)
    for name, facts in tables.items():
        yield _resource(client.config, (schema, name), facts, columns.get(name, ()), indexes[name])


def describe(client: Client, query: str) -> Resource:
    """Columns, key, cursor candidates and estimates of a table; columns of a SELECT.

    Raises ResourceMissing, QueryFailed.
    """
    with _errors(client.config, query), _cursor(client) as cursor:
        source = _source(cursor, client.config, query)
        if source.table is None:
            columns = tuple(_column(c, client.config) for c in source.columns)
            return Resource(query, columns, cursors=cursor_candidates(columns, (), ()), kind="query")
        schema, name = source.table
        facts = _tables(cursor, schema)[name]
        indexes = _indexes(cursor, schema, name)
    return _resource(client.config, source.table, facts, source.columns, indexes[name])


@contextmanager
def _cursor(client: Client) -> Iterator[Any]:
    """A cursor of the catalogue's connection, which is opened again when the server has dropped it."""
    import pymysql

    try:
        client.catalogue.ping(reconnect=False)
    except pymysql.Error:
        client.catalogue = _open(client.config)
    with client.catalogue.cursor() as cursor:
        yield cursor


def _tables(cursor: Any, schema: str) -> dict[str, tuple[str, int | None, int | None]]:
    """By name: kind, rows and bytes, the last two as the engine guesses them."""
    cursor.execute(TABLES_SQL, (schema,))
    return {
        name: ("view" if "VIEW" in kind else "table", rows, size)
        for name, kind, rows, size in cursor.fetchall()
    }


def _columns(cursor: Any, schema: str, table: str | None) -> dict[str, tuple[_Declared, ...]]:
    checked = _json_checked(cursor, schema)
    cursor.execute(COLUMNS_SQL, (schema, table, table))
    found: dict[str, list[_Declared]] = defaultdict(list)
    for name, column, kind, source_type, nullable, precision, scale in cursor.fetchall():
        width = re.search(r"\((\d+)\)", source_type) if kind == "tinyint" else None
        found[name].append(
            _Declared(
                column,
                "json" if (name, column) in checked else kind.lower(),
                source_type,
                nullable == "YES",
                "unsigned" in source_type,
                int(width[1]) if width else int(precision or 0),
                int(scale or 0),
            )
        )
    return {name: tuple(columns) for name, columns in found.items()}


def _json_checked(cursor: Any, schema: str) -> set[tuple[str, str]]:
    """(table, column) of the texts that MariaDB knows as JSON."""
    import pymysql

    try:
        cursor.execute(JSON_SQL, (schema,))
    except pymysql.Error:
        return set()
    found = set()
    for table, clause in cursor.fetchall():
        if match := re.fullmatch(r"json_valid\(`((?:[^`]|``)+)`\)", clause):
            found.add((table, match[1].replace("``", "`")))
    return found


def _indexes(cursor: Any, schema: str, table: str | None) -> dict[str, dict[str, list[tuple[Any, ...]]]]:
    """By table and index: (non_unique, column, nullable, sub_part) in the index's order."""
    cursor.execute(INDEXES_SQL, (schema, table, table))
    found: dict[str, dict[str, list[tuple[Any, ...]]]] = defaultdict(lambda: defaultdict(list))
    for name, index, *facts in cursor.fetchall():
        found[name][index].append(tuple(facts))
    return found


def _resource(
    config: Config,
    table: tuple[str, str],
    facts: tuple[str, int | None, int | None],
    declared: Sequence[_Declared],
    indexes: dict[str, list[tuple[Any, ...]]],
) -> Resource:
    kind, rows, size = facts
    columns = tuple(_column(c, config) for c in declared)
    key, reason = _key(indexes)
    leading = {parts[0][1] for parts in indexes.values()}
    name = table[1:] if table[0] == config.database else table
    return Resource(
        spelled(name, DIALECT),
        columns,
        key,
        reason,
        rows,
        size,
        cursor_candidates(columns, key, leading),
        kind,
    )


def _key(indexes: dict[str, list[tuple[Any, ...]]]) -> tuple[tuple[str, ...], str]:
    """The primary key, else the shortest unique index over whole columns that cannot be NULL."""
    if "PRIMARY" in indexes:
        return tuple(column for _, column, _, _ in indexes["PRIMARY"]), "primary key in the source"
    unique = [
        tuple(column for _, column, _, _ in parts)
        for parts in indexes.values()
        if all(
            not non_unique and column and null != "YES" and not sub for non_unique, column, null, sub in parts
        )
    ]
    if unique:
        return min(unique, key=len), "unique and not null in the source"
    return (), ""


def _column(declared: _Declared, config: Config) -> Column:
    return Column(declared.name, postgres_type(declared, config), declared.nullable, declared.source_type)


# -- reading --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What is read: a table, or a query in brackets."""

    sql: str
    columns: tuple[_Declared, ...]
    table: tuple[str, str] | None = None


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Stream a table or a SELECT in batches of about `batch_bytes`, from one consistent snapshot.

    Stopping early drops the connection, so that the server stops as well. Raises ResourceMissing,
    QueryFailed, and ConnectionFailed with layer `lost` when the connection breaks.
    """
    yield from _read(client, query, cursor, ())


def keys(client: Client, query: str, key: Sequence[str]) -> Iterator[IngestedItem]:
    """The columns of the key of every row, in batches of about `batch_bytes`. Raises as `read` does."""
    yield from _read(client, query, Cursor(), key)


def _read(client: Client, query: str, cursor: Cursor, only: Sequence[str]) -> Iterator[IngestedItem]:
    """`only`: names of columns; none for all."""
    from pymysql.cursors import SSCursor

    from dwcli.connectors._rows import RowColumn, items

    config = client.config
    with _errors(config, query), _cursor(client) as catalogue:
        source = _source(catalogue, config, query)
        source = replace(source, columns=picked(source.columns, only))
    sql, parameters = _statement(source, cursor, config)
    columns = [RowColumn(c.name, _fill(c, config)) for c in source.columns]
    connection = _open(config, as_bytes=True)
    client.reading.append(connection)
    rows = connection.cursor(SSCursor)
    try:
        with _errors(config, query):
            rows.execute(SNAPSHOT)
            rows.execute(sql, parameters)
            yield from items(functools.partial(_fetch, rows), columns, config.batch_bytes)
    finally:
        client.reading.remove(connection)
        _drop(connection, rows)


def _fill(declared: _Declared, config: Config) -> Fill:
    from dwcli.connectors import _mysqltypes

    zone = config.timezone if declared.kind == "datetime" else "UTC"
    whole = declared.kind == "bigint" and declared.unsigned
    return _mysqltypes.fill_for(postgres_type(declared, config), zone, whole, declared.size)


def _fetch(rows: Any, count: int) -> list[list[bytes | None]]:
    """At most `count` rows of a running result, none at its end, each value as the server sent it.

    The driver's `fetchmany` makes four calls for every value and takes twice as long for a whole read.
    A value is its length, then its bytes; 251 stands for NULL, 252 to 254 for lengths of 2, 3, 8 bytes.
    """
    result = rows._result
    places = range(result.field_count)
    found: list[list[bytes | None]] = []
    while len(found) < count and result.unbuffered_active:
        packet = rows.connection._read_packet()
        if result._check_packet_is_eof(packet):
            result.unbuffered_active = False
            break
        data: bytes = packet.get_all_data()
        row: list[bytes | None] = []
        position = 0
        for _ in places:
            length = data[position]
            position += 1
            if length == 251:
                row.append(None)
                continue
            if length > 251:
                wide = _LENGTH_BYTES[length]
                length = int.from_bytes(data[position : position + wide], "little")
                position += wide
            row.append(data[position : position + length])
            position += length
        found.append(row)
    return found


_LENGTH_BYTES = {252: 2, 253: 3, 254: 8}


def _drop(connection: Any, rows: Any) -> None:
    """Close a connection in the middle of a result. The cursor's own close would read it to its end."""
    if rows._result is not None:
        rows._result.unbuffered_active = False
    with contextlib.suppress(Exception):
        connection.close()


def _source(cursor: Any, config: Config, query: str) -> _Source:
    """The table that a query names, or the query itself, with its columns."""
    schemas = dict.fromkeys([config.database, name_parts(query, DIALECT)[0]])
    known = [(schema, name) for schema in schemas for name in _tables(cursor, schema)]
    found = find_table(query, known, config.database, DIALECT)
    if found is not None:
        schema, name = found
        sql = f"{quoted(schema, DIALECT)}.{quoted(name, DIALECT)}"
        return _Source(sql, _columns(cursor, schema, name)[name], (schema, name))
    if not is_select(query):
        names = [spelled([name], DIALECT) for schema, name in known if schema == config.database]
        raise ResourceMissing(
            f"the database '{config.database}' has no table '{query}'.{nearest(query, names)}",
            hint="name a table or view, or give a SELECT",
        )
    sql = f"(\n{stripped(query)}\n) dw"
    cursor.execute(f"SELECT * FROM {sql} LIMIT 0")  # noqa: S608
    # The unsigned flag and the character set are in no public attribute of the driver.
    return _Source(sql, tuple(_from_result(column) for column in cursor._result.fields))


_KINDS = {
    0: "decimal", 1: "tinyint", 2: "smallint", 3: "int", 4: "float", 5: "double", 7: "timestamp",
    8: "bigint", 9: "mediumint", 10: "date", 11: "time", 12: "datetime", 13: "year", 14: "date",
    16: "bit", 245: "json", 246: "decimal", 255: "geometry",
}  # fmt: skip
_BINARY_CHARSET, _UNSIGNED_FLAG, _NOT_NULL_FLAG = 63, 32, 1


def _from_result(column: Any) -> _Declared:
    """A column as the head of a result tells it."""
    binary = column.charsetnr == _BINARY_CHARSET
    kind = _KINDS.get(column.type_code, "varbinary" if binary else "varchar")
    unsigned = bool(column.flags & _UNSIGNED_FLAG)
    size = column.length
    if kind == "decimal":
        size -= (column.scale > 0) + (not unsigned)
    nullable = not column.flags & _NOT_NULL_FLAG
    return _Declared(column.name, kind, kind, nullable, unsigned, size, column.scale)


def _statement(source: _Source, cursor: Cursor, config: Config) -> tuple[str, tuple[Any, ...]]:
    """The SELECT and its parameters. Percent signs are doubled, as the driver's formatting wants."""
    columns = [_selected(c) for c in source.columns]
    sql, null, start, end = "", "", None, None
    if cursor.column and (cursor.start is not None or cursor.end is not None):
        declared = _cursor_column(source, cursor)
        wanted = cursor.type or postgres_type(declared, config)
        start, end = (
            _bound(declared, cursor_value(text, wanted, cursor), config)
            for text in (cursor.start, cursor.end)
        )
        sql = _comparable(declared)
        null = f"{sql} IS NULL" if declared.nullable else ""
        if declared.kind in ("date", "datetime", "timestamp"):
            # Zero dates become NULL, so they are read where NULL is.
            null = f"{sql} IS NULL OR {sql} < '0001-01-01'"
    text, parameters = bounded(
        [_doubled(c) for c in columns], _doubled(source.sql), _doubled(sql), start, end, "%s", _doubled(null)
    )
    return text, tuple(parameters)


def _doubled(sql: str) -> str:
    return sql.replace("%", "%%")


def _selected(declared: _Declared) -> str:
    """The column, so that the server prints all of it: a FLOAT is printed to six digits only."""
    name = quoted(declared.name, DIALECT)
    return f"{name} * 1e0 AS {name}" if declared.kind == "float" else name


_TEXTS = (
    "char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set", "json", "uuid",
    "inet4", "inet6",
)  # fmt: skip


def _comparable(declared: _Declared) -> str:
    """The cursor column as it is compared: text byte by byte, whatever its collation."""
    name = quoted(declared.name, DIALECT)
    if declared.kind in _TEXTS:
        return f"CAST(CONVERT({name} USING utf8mb4) AS BINARY)"
    return f"{name} * 1e0" if declared.kind == "float" else name


def _bound(declared: _Declared, value: Any, config: Config) -> Any:
    """A cursor value as the column's own kind is compared: DATETIME in its zone, text as bytes."""
    if isinstance(value, datetime.datetime):
        zone = ZoneInfo(config.timezone if declared.kind == "datetime" else "UTC")
        return value.astimezone(zone).replace(tzinfo=None).isoformat(" ", "microseconds")
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, str) and declared.kind in _TEXTS:
        return value.encode()
    return value


def _cursor_column(source: _Source, cursor: Cursor) -> _Declared:
    wanted = find_column(cursor, [c.name for c in source.columns])
    return next(c for c in source.columns if c.name == wanted)


# -- types ----------------------------------------------------------------------------------------------

_INTEGERS = ("tinyint", "smallint", "mediumint", "int", "bigint", "year")
_FIXED = {
    "float": "double precision",
    "double": "double precision",
    "date": "date",
    "datetime": "timestamptz",
    "timestamp": "timestamptz",
    "time": "interval",
    "bit": "bit varying",
    "json": "jsonb",
    "uuid": "uuid",
    "inet4": "inet",
    "inet6": "inet",
}
_BYTES = (
    "binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "vector", "geometry", "point",
    "linestring", "polygon", "multipoint", "multilinestring", "multipolygon", "geometrycollection",
    "geomcollection",
)  # fmt: skip


def postgres_type(declared: _Declared, config: Config) -> str:
    """The PostgreSQL type that holds this column exactly."""
    kind = declared.kind
    if kind == "tinyint" and declared.size == 1 and config.tinyint1_is_bool:
        return "boolean"
    if kind == "bigint" and declared.unsigned:
        return "numeric(20,0)"
    if kind in _INTEGERS:
        return "bigint"
    if kind == "decimal":
        return f"numeric({declared.size},{declared.scale})"
    if kind in _BYTES:
        return "bytea"
    return _FIXED.get(kind, "text")

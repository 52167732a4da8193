"""Oracle Database, with Oracle's own driver in its thin mode: one SELECT per read, which sees one moment.

A NUMBER is taken as a decimal, never as a float. DATE and TIMESTAMP have no zone and are read in
`timezone`; times with a zone are turned into UTC by the server, since the driver drops the zone.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any
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
from dwcli.connectors._waiting import waited
from dwcli.contract import LOCAL_PATH, Column, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData

if TYPE_CHECKING:
    from dwcli.connectors._rows import Fill

TITLE = "Oracle Database"
ALIASES = ("oracle_db",)
EXTRA = "oracle"
STAND_IN = "none: the driver's own types, no server"
QUERY = "a table, or a SELECT"
INCREMENTAL = "a column that grows"
TYPING = "declared"
STREAMING = True

DIALECT = Dialect(quote='"')
#: Where a bound goes in the text; no name and no query holds this character.
PLACE = "\x00"
MOST_ROWS = 1024
#: Bytes that a value without a declared length is taken to have
LONG_BYTES = 128 * 1024
CONNECT_SECONDS = 15.0
#: Text is compared byte by byte, and printed numbers have a point, whatever the client's language is.
SESSION = (
    "ALTER SESSION SET TIME_ZONE = '+00:00' NLS_NUMERIC_CHARACTERS = '.,' NLS_COMP = BINARY NLS_SORT = BINARY"
)


class Config(ConnectorConfig):
    """An Oracle database."""

    host: str = Field(description="name or address of the server")
    port: int = Field(1521, ge=1, le=65535, description="port of the listener")
    service_name: str = Field(description="name of the service, such as FREEPDB1")
    username: str = Field(description="user that may read it")
    password: SecretStr = Field(description="the user's password")
    schema_name: str | None = Field(
        None,
        description="schema of names that have none, where it is not the user's own",
        json_schema_extra={"advanced": True},
    )
    timezone: str = Field(
        "UTC", description="time zone of DATE and TIMESTAMP columns", json_schema_extra={"advanced": True}
    )
    tls: bool = Field(
        False, description="whether the listener's port speaks TLS", json_schema_extra={"advanced": True}
    )
    wallet_location: Path | None = Field(
        None,
        description="folder with the wallet (ewallet.pem)",
        json_schema_extra={"advanced": True, **LOCAL_PATH},
    )
    wallet_password: SecretStr | None = Field(
        None, description="the wallet's password", json_schema_extra={"advanced": True}
    )


@dataclass
class Client:
    """A connection for the catalogue; every read has one of its own."""

    config: Config
    catalogue: Any
    #: the schema of names that have none
    schema: str
    reading: list[Any] = field(default_factory=list)
    closed: bool = False


def connect(config: Config) -> Client:
    """Connect and log in. Raises ConnectionFailed with the layer that failed, DriverMissing."""
    reach(config.host, config.port)
    connection = _open(config)
    schema = config.schema_name or str(connection.username).upper()
    return Client(config, connection, schema)


def close(client: Client) -> None:
    """Close the connections; a read that is under way ends with ConnectionFailed."""
    client.closed = True
    for connection in [*client.reading]:
        with contextlib.suppress(Exception):
            connection.cancel()
    with contextlib.suppress(Exception):
        client.catalogue.close()


def _open(config: Config) -> Any:
    try:
        import oracledb
    except ImportError as error:
        raise driver_missing("oracle", error) from None
    wallet = {}
    if config.wallet_location:
        wallet["wallet_location"] = str(config.wallet_location)
    if config.wallet_password:
        wallet["wallet_password"] = config.wallet_password.get_secret_value()
    arguments = {
        "user": config.username,
        "password": config.password.get_secret_value(),
        "host": config.host,
        "port": config.port,
        "service_name": config.service_name,
        "protocol": "tcps" if config.tls else "tcp",
        "program": "dw",
        **wallet,
    }
    try:
        # The driver itself waits for a silent listener for ever.
        connection: Any = waited(
            functools.partial(oracledb.connect, **arguments),
            CONNECT_SECONDS,
            undo=lambda late: late.close(),
            ends=False,
        )
    except TimeoutError:
        where = f"{config.host}:{config.port}"
        raise ConnectionFailed(
            f"{where} takes the connection but says nothing within {CONNECT_SECONDS:g} s",
            layer="port",
            hint="check that the port is the listener's, and tls: a port that speaks TLS waits for it",
        ) from None
    except (oracledb.Error, OSError) as error:
        raise _refused(config, error) from None
    with _errors(config, "the session"), connection.cursor() as cursor:
        cursor.execute(SESSION)
    return connection


# Error numbers: docs.oracle.com/error-help/db; DPY-: the driver's own
_LOGIN = ("ORA-01017", "ORA-01005", "ORA-28000", "ORA-28001", "ORA-28040", "DPY-3015")
_SERVICE = ("ORA-12514", "ORA-12505", "ORA-12516", "ORA-12521", "DPY-6001", "DPY-6003")
_LOST = (
    "ORA-00028", "ORA-01012", "ORA-01013", "ORA-02396", "ORA-03113", "ORA-03114", "ORA-03135", "ORA-12537",
    "ORA-12547", "ORA-12570", "DPY-1001", "DPY-4011", "DPY-4024", "DPY-5006", "DPY-6005",
)  # fmt: skip


def _code_and_text(error: Exception) -> tuple[str, str]:
    """`ORA-01017` or `DPY-6005`, and the first line of what was said."""
    told = error.args[0] if error.args else None
    text = str(getattr(told, "message", None) or error).split("\nHelp:", 1)[0]
    text = " ".join(re.sub(r" \(CONNECTION_ID=[^)]*\)", "", text).split())
    codes = re.findall(r"\b(?:ORA|DPY)-\d+", re.sub(r"\(Similar to [^)]*\)", "", text))
    code = str(getattr(told, "full_code", "") or (codes[0] if codes else ""))
    if code == "DPY-6005" and len(codes) > 1:
        # "Cannot connect": what follows says why.
        code = codes[-1]
    prefix, _, number = code.partition("-")
    return f"ORA-{int(number):05}" if prefix == "ORA" and number.isdigit() else code, text[:500]


def _refused(config: Config, error: Exception) -> ConnectionFailed:
    """Which layer a failed login belongs to, with what to do about it."""
    code, why = _code_and_text(error)
    where, user = f"{config.host}:{config.port}", config.username
    if code in _LOGIN:
        hint = "check username and password, and that the account is neither locked nor expired"
        if code in ("DPY-3015", "ORA-28040"):
            hint = "the account has only an old password verifier: give it its password anew"
        return ConnectionFailed(f"{where} does not let '{user}' in", layer="login", why=why, hint=hint)
    if code == "ORA-01045":
        hint = f"GRANT CREATE SESSION TO {user}"
        return ConnectionFailed(f"'{user}' may not connect to {where}", "permission", why, hint)
    if code in _SERVICE:
        hint = "check service_name; `lsnrctl status` on the server lists the services"
        message = f"{where} knows no service '{config.service_name}'"
        return ConnectionFailed(message, layer="database", why=why, hint=hint)
    if re.search(r"SSL|certificate|\bTLS\b|DPY-6002", f"{code} {why}"):
        hint = (
            "check tls and the port (2484 is usual with TLS); for an authority of your own, wallet_location"
        )
        return ConnectionFailed(f"no TLS with {where}", layer="tls", why=why, hint=hint)
    if code in ("DPY-3010", "DPY-3001"):
        hint = "the driver needs Oracle 12.1 or newer, and no native network encryption: use tls instead"
        return ConnectionFailed(f"{where} cannot be spoken to", layer="database", why=why, hint=hint)
    if code == "DPY-6000":
        hint = "the listener is there but hands nobody on: check that the database is open"
        return ConnectionFailed(f"the listener on {where} refuses", layer="database", why=why, hint=hint)
    hint = "check that the port is the listener's; 1521 is usual"
    return ConnectionFailed(f"no Oracle answers on {where}", layer="port", why=why, hint=hint)


@contextmanager
def _errors(config: Config, query: str) -> Iterator[None]:
    """The driver's errors in our words."""
    import oracledb

    try:
        yield
    except (oracledb.Error, OSError) as error:
        raise _failed(config, query, error) from None
    except (ValueError, OverflowError) as error:
        # The driver makes Python dates, which have no year before 1 and none after 9999.
        raise SourceData(
            f"{query}: the driver cannot hold a value",
            why=str(error)[:500],
            hint="give a SELECT that turns the column into text: TO_CHAR(column, 'SYYYY-MM-DD HH24:MI:SS')",
        ) from None


def _failed(config: Config, query: str, error: Exception) -> DwError:
    code, why = _code_and_text(error)
    if code in _LOST or isinstance(error, OSError):
        return _lost(config, why)
    match code:
        case "ORA-00942":
            hint = "check the name; a table of another schema also needs a grant"
            return ResourceMissing("the query names a table that is not there", why=why, hint=hint)
        case "ORA-01031" | "ORA-41900":
            hint = f"GRANT SELECT ON … TO {config.username}"
            return QueryFailed(f"'{config.username}' may not read {query}", why=why, hint=hint)
        case "ORA-01555":
            hint = "run it again at a quieter hour, or raise UNDO_RETENTION"
            return QueryFailed(
                "the server no longer has the moment that the read began at", why=why, hint=hint
            )
        case "ORA-00918" | "ORA-00998" | "ORA-00960":
            hint = "name each column with AS"
            return QueryFailed("the server refused the query", why=why, hint=hint)
    return QueryFailed("the server refused the query", why=why, hint="check the query's SQL")


def _lost(config: Config, why: str) -> ConnectionFailed:
    return ConnectionFailed(
        f"the connection to {config.host}:{config.port} broke while reading",
        layer="lost",
        why=why,
        hint="run it again: nothing was committed",
    )


# -- the catalogue --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """One column, from the catalogue or from the head of a result."""

    name: str
    #: Oracle's name of the type, without numbers, such as `TIMESTAMP WITH TIME ZONE`
    kind: str
    nullable: bool = True
    #: NUMBER: digits, 0 where none are declared
    precision: int = 0
    #: NUMBER: places, -127 where none are declared; times and intervals: digits of the second
    scale: int = 0
    #: bytes that a value may have, 0 where it has no limit
    size: int = 0
    source_type: str = ""


_Name = tuple[str, ...]

TABLES_SQL = """
    SELECT o.owner, o.object_name, o.object_type, t.num_rows, t.blocks
    FROM all_objects o LEFT JOIN all_tables t ON t.owner = o.owner AND t.table_name = o.object_name
    WHERE o.owner = :owner AND o.object_type IN ('TABLE', 'VIEW', 'MATERIALIZED VIEW')
        AND o.object_name NOT LIKE 'BIN$%'
    ORDER BY o.object_name, o.object_type
"""
COLUMNS_SQL = """
    SELECT table_name, column_name, data_type, data_length, data_precision, data_scale, nullable
    FROM all_tab_columns WHERE owner = :owner ORDER BY table_name, column_id
"""
KEYS_SQL = """
    SELECT c.table_name, c.constraint_name, c.constraint_type, k.column_name
    FROM all_constraints c
        JOIN all_cons_columns k ON k.owner = c.owner AND k.constraint_name = c.constraint_name
    WHERE c.owner = :owner AND c.constraint_type IN ('P', 'U') AND c.status = 'ENABLED'
    ORDER BY c.table_name, c.constraint_type, c.constraint_name, k.position
"""
LEADING_SQL = """
    SELECT table_name, column_name FROM all_ind_columns WHERE table_owner = :owner AND column_position = 1
"""


def discover(client: Client) -> Iterator[Resource]:
    """Every table and view of the schema, by name."""
    with _errors(client.config, "the catalogue"):
        yield from _resources(client, client.schema).values()


def describe(client: Client, query: str) -> Resource:
    """Columns, key, cursor candidates and estimates of a table; columns of a SELECT.

    Raises ResourceMissing, QueryFailed.
    """
    with _errors(client.config, query):
        source = _source(client, query)
        if source.table is not None:
            return _resources(client, source.table[0])[source.table]
    columns = tuple(_column(c) for c in source.columns)
    return Resource(query, columns, cursors=cursor_candidates(columns, (), ()), kind="query")


def _fetched(client: Client, sql: str, owner: str) -> list[Any]:
    """All rows of a catalogue query; its connection is opened again when the server has dropped it."""
    import oracledb

    try:
        client.catalogue.ping()
    except oracledb.Error:
        client.catalogue = _open(client.config)
    with client.catalogue.cursor() as cursor:
        cursor.execute(sql, owner=owner)
        return list(cursor.fetchall())


def _tables(client: Client, owners: Sequence[str]) -> dict[_Name, tuple[str, int | None]]:
    """Kind and estimated rows of every table and view of these schemas."""
    return {
        (owner, name): ("view" if kind == "VIEW" else "table", None if rows is None else int(rows))
        for schema in owners
        for owner, name, kind, rows, _ in _fetched(client, TABLES_SQL, schema)
    }


def _resources(client: Client, owner: str) -> dict[_Name, Resource]:
    declared: dict[str, list[Declared]] = defaultdict(list)
    for table, name, data_type, length, precision, scale, nullable in _fetched(client, COLUMNS_SQL, owner):
        declared[table].append(
            from_catalogue(name, data_type, length, precision, scale, nullable == "Y")
        )  # fmt: skip
    constraints: dict[str, dict[tuple[str, str], list[str]]] = defaultdict(lambda: defaultdict(list))
    for table, constraint, kind, column in _fetched(client, KEYS_SQL, owner):
        constraints[table][kind, constraint].append(column)
    leading: dict[str, set[str]] = defaultdict(set)
    for table, column in _fetched(client, LEADING_SQL, owner):
        leading[table].add(column)
    found = {}
    for name, (kind, rows) in _tables(client, [owner]).items():
        columns = tuple(_column(c) for c in declared[name[1]])
        key, reason = _key(constraints[name[1]], columns)
        cursors = cursor_candidates(columns, key, leading[name[1]])
        shown = spelled(name[1:] if owner == client.schema else name, DIALECT)
        found[name] = Resource(shown, columns, key, reason, rows, None, cursors, kind)
    return found


def _key(constraints: dict[tuple[str, str], list[str]], columns: Sequence[Column]) -> tuple[_Name, str]:
    """The primary key, else the shortest unique constraint over columns that cannot be NULL."""
    required = {c.name for c in columns if not c.nullable}
    for (kind, _), names in constraints.items():
        if kind == "P":
            return tuple(names), "primary key in the source"
    unique = [tuple(names) for names in constraints.values() if required.issuperset(names)]
    return (min(unique, key=len), "unique and not null in the source") if unique else ((), "")


def from_catalogue(
    name: str, data_type: str, length: int | None, precision: int | None, scale: int | None, nullable: bool
) -> Declared:
    """A column as ALL_TAB_COLUMNS tells it. `INTEGER` has no precision there, but a scale of 0."""
    kind = re.sub(r"\(\d+\)", "", data_type)
    shown = data_type
    if kind == "NUMBER":
        if precision is None and scale == 0:
            precision = 38
        declared = precision is not None
        scale = -127 if scale is None else scale
        shown = f"NUMBER({precision},{scale})" if declared else "NUMBER"
    elif kind in ("VARCHAR2", "NVARCHAR2", "CHAR", "NCHAR", "RAW"):
        shown = f"{kind}({length})"
    size = 0 if kind in _LONG else int(length or 0)
    return Declared(name, kind, nullable, int(precision or 0), int(scale or 0), size, shown)


#: DbType names of the driver
_KINDS = {
    "DB_TYPE_TIMESTAMP_TZ": "TIMESTAMP WITH TIME ZONE",
    "DB_TYPE_TIMESTAMP_LTZ": "TIMESTAMP WITH LOCAL TIME ZONE",
    "DB_TYPE_INTERVAL_DS": "INTERVAL DAY TO SECOND",
    "DB_TYPE_INTERVAL_YM": "INTERVAL YEAR TO MONTH",
    "DB_TYPE_VARCHAR": "VARCHAR2",
    "DB_TYPE_NVARCHAR": "NVARCHAR2",
    "DB_TYPE_LONG_NVARCHAR": "LONG",
    "DB_TYPE_LONG_RAW": "LONG RAW",
    "DB_TYPE_BINARY_INTEGER": "BINARY_INTEGER",
    "DB_TYPE_XMLTYPE": "XMLTYPE",
}


def from_result(column: Any) -> Declared:
    """A column as the head of a result tells it."""
    name = column.type_code.name
    kind = _KINDS.get(name, name.removeprefix("DB_TYPE_"))
    precision, scale = int(column.precision or 0), int(column.scale or 0)
    if kind == "OBJECT" and getattr(column.type, "name", "") == "XMLTYPE":
        kind = "XMLTYPE"
    if kind.startswith(("TIMESTAMP", "INTERVAL DAY")) and not column.scale:
        scale = 0
    size = 0 if kind in _LONG else int(column.internal_size or 0)
    return Declared(column.name, kind, bool(column.null_ok), precision, scale, size, kind)


def _column(declared: Declared) -> Column:
    return Column(declared.name, postgres_type(declared), declared.nullable, declared.source_type)


# -- reading --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What is read: a table, or a query in brackets, both called dw."""

    sql: str
    columns: tuple[Declared, ...]
    table: _Name | None = None


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Fetch a table or a SELECT in batches of about `batch_bytes`, all of one moment.

    Stopping early drops the connection, which ends the query. Raises ResourceMissing, QueryFailed,
    SourceData for a date that Python cannot hold, and ConnectionFailed with layer `lost`.
    """
    yield from _read(client, query, cursor, ())


def keys(client: Client, query: str, key: Sequence[str]) -> Iterator[IngestedItem]:
    """The columns of the key of every row, in batches of about `batch_bytes`. Raises as `read` does."""
    yield from _read(client, query, Cursor(), key)


def _read(client: Client, query: str, cursor: Cursor, only: Sequence[str]) -> Iterator[IngestedItem]:
    """`only`: names of columns; none for all."""
    from dwcli.connectors._rows import RowColumn, items

    config = client.config
    with _errors(config, query):
        source = _source(client, query)
        source = replace(source, columns=picked(source.columns, only))
        unreadable = [f"{c.name} ({c.kind})" for c in source.columns if c.kind in _UNREADABLE]
        if unreadable:
            raise QueryFailed(
                f"{query}: {', '.join(unreadable)} cannot be read as it is",
                hint="give a SELECT that names the other columns, or the attributes of this one",
            )
    sql, parameters = statement(source, cursor, config)
    columns = [RowColumn(c.name, _fill(c, config)) for c in source.columns]
    connection = _open(config)
    client.reading.append(connection)
    try:
        with _errors(config, query):
            rows = connection.cursor()
            rows.outputtypehandler = exact
            rows.arraysize = rows.prefetchrows = rows_per_call(source.columns, config.batch_bytes)
            rows.execute(sql, parameters)

            def fetch(count: int) -> list[Any]:
                if client.closed:
                    raise _lost(config, "closed from here")
                found: list[Any] = rows.fetchmany(count)
                return found

            yield from items(fetch, columns, config.batch_bytes)
    finally:
        client.reading.remove(connection)
        with contextlib.suppress(Exception):
            connection.close()


def exact(cursor: Any, column: Any) -> Any:
    """How the driver is told to fetch a column: numbers as decimals, LOBs as what they hold."""
    import oracledb

    kind = column.type_code
    if kind is oracledb.DB_TYPE_NUMBER and not (column.precision and column.scale == 0):
        return cursor.var(Decimal, arraysize=cursor.arraysize)
    if kind in (oracledb.DB_TYPE_CLOB, oracledb.DB_TYPE_NCLOB):
        long = oracledb.DB_TYPE_LONG if kind is oracledb.DB_TYPE_CLOB else oracledb.DB_TYPE_LONG_NVARCHAR
        return cursor.var(long, arraysize=cursor.arraysize)
    if kind is oracledb.DB_TYPE_BLOB:
        return cursor.var(oracledb.DB_TYPE_LONG_RAW, arraysize=cursor.arraysize)
    return None


def rows_per_call(columns: Sequence[Declared], batch_bytes: int) -> int:
    """Rows that the driver fetches at once: no more than fit where every value is as long as it may be."""
    widest = sum(c.size or (LONG_BYTES if c.kind in _LONG else 16) for c in columns)
    return max(1, min(MOST_ROWS, batch_bytes // max(widest, 1)))


def _source(client: Client, query: str) -> Source:
    """The table that a query names, or the query itself, with its columns."""
    owners = list(dict.fromkeys([client.schema, *_owners(query)]))
    known = list(_tables(client, owners[:1] if is_select(query) else owners))
    found = find_table(query, known, client.schema, DIALECT)
    if found is None and not is_select(query):
        names = [spelled([name], DIALECT) for owner, name in known if owner == client.schema]
        raise ResourceMissing(
            f"the schema '{client.schema}' has no table '{query}'.{nearest(query, names)}",
            hint="name a table or view (schema.table for another schema's), or give a SELECT",
        )
    sql = (
        f"(\n{stripped(query)}\n) dw"
        if found is None
        else ".".join(quoted(part, DIALECT) for part in found) + " dw"
    )
    with client.catalogue.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {sql} WHERE 1 = 0")  # noqa: S608
        return Source(sql, tuple(from_result(column) for column in cursor.description), found)


def _owners(query: str) -> list[str]:
    """The schemas that `owner.table` may mean: as it is spelled, and in capitals."""
    parts = name_parts(query.strip(), DIALECT)
    return [parts[0], parts[0].upper()] if len(parts) > 1 else []


def statement(source: Source, cursor: Cursor, config: Config) -> tuple[str, dict[str, Any]]:
    """The SELECT and its parameters."""
    columns = [f"{selected(c)} AS {quoted(c.name, DIALECT)}" for c in source.columns]
    if not cursor.column:
        return bounded(columns, source.sql, "", None, None)[0], {}
    wanted = find_column(cursor, [c.name for c in source.columns])
    declared = next(c for c in source.columns if c.name == wanted)
    start, end = (
        _bound(declared, cursor_value(text, cursor.type or postgres_type(declared), cursor), config)
        for text in (cursor.start, cursor.end)
    )
    name = f"dw.{quoted(declared.name, DIALECT)}"
    null = f"{name} IS NULL" if declared.nullable else ""
    text, bounds = bounded(columns, source.sql, name, start, end, PLACE, null)
    parameters = {f"dw_{place}": value for place, value in enumerate(bounds)}
    for place in parameters:
        text = text.replace(PLACE, _parameter(declared, place), 1)
    return text, parameters


_SECONDS = "YYYY-MM-DD HH24:MI:SS"


def _parameter(declared: Declared, place: str) -> str:
    """SQL of a parameter as the column's own type, so that an index serves."""
    match declared.kind:
        case "DATE":
            return f"TO_DATE(:{place}, '{_SECONDS}')"
        case "TIMESTAMP":
            return f"TO_TIMESTAMP(:{place}, '{_SECONDS}.FF6')"
        case "TIMESTAMP WITH TIME ZONE" | "TIMESTAMP WITH LOCAL TIME ZONE":
            return f"TO_TIMESTAMP_TZ(:{place}, '{_SECONDS}.FF6 TZH:TZM')"
    return f":{place}"


def _bound(declared: Declared, value: Any, config: Config) -> Any:
    """A cursor value as it is bound: times as text in the column's zone."""
    if not isinstance(value, datetime.datetime):
        return value
    if declared.kind.endswith("ZONE"):
        utc = value.astimezone(datetime.UTC).replace(tzinfo=None)
        return f"{utc.isoformat(' ', 'microseconds')} +00:00"
    local = value.astimezone(ZoneInfo(config.timezone)).replace(tzinfo=None)
    return local.isoformat(" ", "seconds" if declared.kind == "DATE" else "microseconds")


# -- types ----------------------------------------------------------------------------------------------

_LONG = ("CLOB", "NCLOB", "BLOB", "LONG", "LONG RAW", "JSON", "XMLTYPE", "VECTOR")
#: Object types, cursors and files outside of the database
_UNREADABLE = ("OBJECT", "CURSOR", "BFILE")
_FIXED = {
    "FLOAT": "numeric",
    "BINARY_FLOAT": "double precision",
    "BINARY_DOUBLE": "double precision",
    "BINARY_INTEGER": "bigint",
    "BOOLEAN": "boolean",
    "DATE": "timestamptz",
    "TIMESTAMP": "timestamptz",
    "TIMESTAMP WITH TIME ZONE": "timestamptz",
    "TIMESTAMP WITH LOCAL TIME ZONE": "timestamptz",
    "INTERVAL DAY TO SECOND": "interval",
    "INTERVAL YEAR TO MONTH": "interval",
    "RAW": "bytea",
    "LONG RAW": "bytea",
    "BLOB": "bytea",
    "JSON": "jsonb",
    "VECTOR": "jsonb",
}


def postgres_type(declared: Declared) -> str:
    """The PostgreSQL type that holds this column exactly."""
    if declared.kind == "NUMBER":
        return _number(declared.precision, declared.scale)
    return _FIXED.get(declared.kind, "text")


def _number(precision: int, scale: int) -> str:
    """NUMBER(5,-2) has two zeros more than digits; NUMBER(3,5) has two zeros behind its point."""
    if not precision or scale == -127:
        return "numeric"
    if scale == 0 and precision <= 18:
        return "bigint"
    return f"numeric({max(precision, scale, precision - scale)},{max(scale, 0)})"


def selected(declared: Declared) -> str:
    """The column as SQL whose Python value is exact."""
    name = f"dw.{quoted(declared.name, DIALECT)}"
    match declared.kind:
        case "TIMESTAMP WITH TIME ZONE":
            name = f"SYS_EXTRACT_UTC({name})"
        case "TIMESTAMP WITH LOCAL TIME ZONE":
            name = f"SYS_EXTRACT_UTC(CAST({name} AS TIMESTAMP(9) WITH TIME ZONE))"
        case "INTERVAL DAY TO SECOND" if declared.scale > 6:
            return f"TO_CHAR({name})"
        case "JSON":
            return f"JSON_SERIALIZE({name} RETURNING CLOB)"
        case "VECTOR":
            return f"FROM_VECTOR({name} RETURNING CLOB)"
        case "XMLTYPE":
            return f"XMLSERIALIZE(CONTENT {name} AS CLOB)"
    if declared.kind.startswith("TIMESTAMP") and declared.scale > 6:
        # Python's datetime would cut nanoseconds without a word.
        return f"TO_CHAR({name}, '{_SECONDS}.FF9')"
    return name


def _fill(declared: Declared, config: Config) -> Fill:
    from dwcli.connectors import _oracletypes

    zone = "UTC" if declared.kind.endswith("ZONE") else config.timezone
    return _oracletypes.fill_for(declared.kind, postgres_type(declared), zone)

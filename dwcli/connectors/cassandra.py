"""Cassandra and ScyllaDB: tables and CQL queries, a page at a time.

Values are taken as the server sends them and decoded here, so that nothing passes through a type that
cannot hold it: dates of any year, nanoseconds, decimals of any length. Pages follow the batch's size.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import ssl
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SecretStr

from dwcli.connectors import driver_missing
from dwcli.connectors._catalog import cursor_candidates
from dwcli.connectors._probe import TIMEOUT_SECONDS, reach
from dwcli.connectors._sqltext import (
    Dialect,
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
from dwcli.errors import ConfigError, ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData

if TYPE_CHECKING:
    from dwcli.connectors._documents import Changed, Forms
    from dwcli.connectors._rows import Fill, Filled

TITLE = "Cassandra or ScyllaDB"
ALIASES = ("scylla", "scylladb")
EXTRA = "cassandra"
STAND_IN = "a server of the tests that speaks CQL protocol 4"
QUERY = "a table, or a SELECT in CQL"
INCREMENTAL = "cursor column, filtered here"
TYPING = "declared"
STREAMING = True

DIALECT = Dialect(quote='"', place="%s")
#: Rows of the first page, before their size is known, and of any page
FIRST_PAGE, LARGEST_PAGE = 100, 5_000
#: A decimal may have an exponent of 32 bits, which PostgreSQL's numeric and this machine's memory have not.
DIGITS_BEFORE, DIGITS_AFTER = 131_072, 16_383
#: 4714-11-24 BC, where PostgreSQL's dates begin, and 5874898-01-01, where they end
FIRST_DAY, END_OF_DAYS = -2_440_588, 2_145_042_906

_ADVANCED: Any = {"advanced": True}


class Config(ConnectorConfig):
    """A keyspace of a Cassandra or ScyllaDB cluster."""

    hosts: list[str] = Field(min_length=1, description="names or addresses of some of its servers")
    port: int = Field(9042, ge=1, le=65535, description="port of the servers")
    keyspace: str = Field(min_length=1, description="name of the keyspace")
    username: str = Field("", description="user that may read it; empty where the cluster asks for none")
    password: SecretStr = Field(
        SecretStr(""), description="the user's password", json_schema_extra={"needs": "username"}
    )
    datacenter: str = Field(
        "", description="data centre whose servers are asked; empty for all", json_schema_extra=_ADVANCED
    )
    consistency: Literal["ONE", "LOCAL_ONE", "QUORUM", "LOCAL_QUORUM", "ALL"] = Field(
        "LOCAL_QUORUM", description="how many replicas answer each page", json_schema_extra=_ADVANCED
    )
    timeout_seconds: float = Field(
        60.0, gt=0, description="how long one page may take, in seconds", json_schema_extra=_ADVANCED
    )
    tls: bool = Field(False, description="whether TLS is used", json_schema_extra=_ADVANCED)
    tls_ca: Path | None = Field(
        None, description="file with the certificate authority", json_schema_extra=_ADVANCED
    )


@dataclass
class Client:
    """The driver's cluster and its session."""

    config: Config
    cluster: Any
    session: Any

    @property
    def where(self) -> str:
        return f"{', '.join(self.config.hosts)} (port {self.config.port})"


def connect(config: Config) -> Client:
    """Connect and log in. Raises ConnectionFailed with the layer that failed, DriverMissing, ConfigError."""
    try:
        import cassandra.cluster  # type: ignore[import-untyped]
    except ImportError as error:
        raise driver_missing("cassandra", error) from None
    # Without a handler of its own the driver's warnings end up on the terminal.
    logging.getLogger("cassandra").addHandler(logging.NullHandler())
    _reach_one(config)
    cluster = cassandra.cluster.Cluster(**_arguments(config))
    client = Client(config, cluster, None)
    try:
        client.session = cluster.connect()
        client.session.client_protocol_handler = _raw_protocol()
        known = _query(client, KEYSPACES)
    except (cassandra.cluster.NoHostAvailable, cassandra.DriverException, OSError) as error:
        close(client)
        raise _refused(client, error) from None
    names = [row["keyspace_name"] for row in known]
    if config.keyspace not in names:
        close(client)
        raise ConnectionFailed(
            f"{client.where} has no keyspace '{config.keyspace}'.{nearest(config.keyspace, names)}",
            layer="database",
            hint=f"keyspaces: {', '.join(names)}",
        )
    return client


def close(client: Client) -> None:
    """Close the connections; a read that is under way ends with ConnectionFailed."""
    with contextlib.suppress(Exception):
        client.cluster.shutdown()


def _reach_one(config: Config) -> None:
    failed: ConnectionFailed | None = None
    for host in config.hosts:
        try:
            return reach(host, config.port)
        except ConnectionFailed as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _arguments(config: Config) -> dict[str, Any]:
    from cassandra import ConsistencyLevel
    from cassandra.auth import PlainTextAuthProvider  # type: ignore[import-untyped]
    from cassandra.cluster import EXEC_PROFILE_DEFAULT, ExecutionProfile
    from cassandra.policies import DCAwareRoundRobinPolicy, RoundRobinPolicy  # type: ignore[import-untyped]
    from cassandra.query import tuple_factory  # type: ignore[import-untyped]

    servers = DCAwareRoundRobinPolicy(config.datacenter) if config.datacenter else RoundRobinPolicy()
    profile = ExecutionProfile(
        load_balancing_policy=servers,
        consistency_level=getattr(ConsistencyLevel, config.consistency),
        row_factory=tuple_factory,
        request_timeout=config.timeout_seconds,
    )
    given: dict[str, Any] = {
        "contact_points": config.hosts,
        "port": config.port,
        "execution_profiles": {EXEC_PROFILE_DEFAULT: profile},
        "connect_timeout": TIMEOUT_SECONDS,
        "control_connection_timeout": TIMEOUT_SECONDS,
        # The catalogue is asked for what is needed; the driver would read all of it.
        "schema_metadata_enabled": False,
        "token_metadata_enabled": False,
        "application_name": "dw",
    }
    if config.username:
        given["auth_provider"] = PlainTextAuthProvider(config.username, config.password.get_secret_value())
    if config.tls or config.tls_ca:
        try:
            context = ssl.create_default_context(cafile=str(config.tls_ca) if config.tls_ca else None)
        except OSError:
            raise ConfigError(
                f"the certificate file {config.tls_ca} cannot be read", hint="check tls_ca"
            ) from None
        # Servers are found by address, and their certificates carry names. An authority of one's own vouches
        # for these servers alone; one that all the world trusts, for anybody's.
        context.check_hostname = config.tls_ca is None
        given["ssl_context"] = context
    return given


def _raw_protocol() -> Any:
    """The driver's protocol, with the values of a result left as the bytes that came."""
    from cassandra.protocol import ResultMessage, _ProtocolHandler  # type: ignore[import-untyped]

    class RawResult(ResultMessage):  # type: ignore[misc, unused-ignore]
        def recv_results_rows(
            self, f: Any, protocol_version: int, user_type_map: Any, result_metadata: Any, policy: Any
        ) -> None:
            self.recv_results_metadata(f, user_type_map)
            columns = self.column_metadata or result_metadata
            (count,) = struct.unpack(">i", f.read(4))
            self.parsed_rows = [self.recv_row(f, len(columns)) for _ in range(count)]
            self.column_names = [column[2] for column in columns]
            self.column_types = [column[3] for column in columns]

    class RawProtocol(_ProtocolHandler):  # type: ignore[misc, unused-ignore]
        message_types_by_opcode: Mapping[int, Any] = {
            **_ProtocolHandler.message_types_by_opcode,
            ResultMessage.opcode: RawResult,
        }

    return RawProtocol


def _refused(client: Client, error: Exception) -> DwError:
    """Which layer a failed connection belongs to, with what to do about it."""
    import cassandra

    config, where, why = client.config, client.where, _words(error)
    causes = _causes(error)
    if any(isinstance(cause, cassandra.AuthenticationFailed) for cause in causes):
        asked = not config.username
        return ConnectionFailed(
            f"{where} asks for a user" if asked else f"{where} does not let '{config.username}' in",
            layer="login",
            why="" if asked else why,
            hint="set username and password" if asked else "check username and password",
        )
    if any(isinstance(cause, cassandra.Unauthorized) for cause in causes):
        hint = f"GRANT SELECT ON KEYSPACE {config.keyspace} TO {config.username}"
        return ConnectionFailed("the user may not read the catalogue", layer="permission", why=why, hint=hint)
    if any(isinstance(cause, ssl.SSLError) for cause in causes) or "SSL" in why:
        hint = "set tls_ca to the servers' authority; leave tls out where they have none"
        return ConnectionFailed(f"no TLS with {where}", layer="tls", why=why, hint=hint)
    hint = "check that the port is that of CQL, and tls: a server with TLS closes plain connections"
    return ConnectionFailed(f"no Cassandra answers on {where}", layer="port", why=why, hint=hint)


def _causes(error: Exception) -> list[Any]:
    """An error, and those of the servers that were tried."""
    found = getattr(error, "errors", None)
    return [error, *(found.values() if isinstance(found, dict) else ())]


def _words(error: Exception) -> str:
    *_, last = _causes(error)
    return str(getattr(last, "message", None) or last).split("\n")[0].removesuffix(", last_host=None")


@contextmanager
def _errors(client: Client, query: str) -> Iterator[None]:
    """The driver's errors in our words."""
    import cassandra
    import cassandra.cluster

    try:
        yield
    except (cassandra.cluster.NoHostAvailable, cassandra.DriverException, OSError) as error:
        raise _failed(client, query, error) from None


def _failed(client: Client, query: str, error: Exception) -> DwError:
    import cassandra

    why = _words(error)
    if isinstance(error, cassandra.Unauthorized):
        hint = f"GRANT SELECT ON KEYSPACE {client.config.keyspace} TO {client.config.username}"
        return QueryFailed(f"the user may not read {query}", why=why, hint=hint)
    if isinstance(error, cassandra.RequestExecutionException | cassandra.OperationTimedOut):
        return QueryFailed(
            "the cluster did not answer a page in time, or with enough replicas",
            why=why,
            hint="run it again; set timeout_seconds higher, batch_bytes lower, or another consistency",
        )
    if isinstance(error, cassandra.InvalidRequest) and "unconfigured table" in why:
        return ResourceMissing("the query names a table that is not there", why=why)
    if isinstance(error, cassandra.RequestValidationException):
        return QueryFailed("the server refused the query", why=why, hint="check the query's CQL")
    return ConnectionFailed(
        f"the connection to {client.where} broke while reading",
        layer="lost",
        why=why,
        hint="run it again: nothing was committed",
    )


# -- the catalogue --------------------------------------------------------------------------------------

KEYSPACES = "SELECT keyspace_name FROM system_schema.keyspaces"
TABLES = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s"
VIEWS = "SELECT view_name FROM system_schema.views WHERE keyspace_name = %s"
COLUMNS = (
    "SELECT table_name, column_name, kind, position, type FROM system_schema.columns WHERE keyspace_name = %s"
)


@dataclass(frozen=True)
class _Declared:
    """One column, as system_schema.columns tells it."""

    name: str
    #: CQL's name of the type, such as `frozen<map<text, int>>`
    source_type: str
    #: partition_key, clustering, static or regular
    kind: str = "regular"
    position: int = -1

    @property
    def nullable(self) -> bool:
        # Beside a partition that has static columns alone, a clustering column is null.
        return self.kind != "partition_key"


def discover(client: Client) -> Iterator[Resource]:
    """Every table and materialized view of the keyspace, by name."""
    keyspace = client.config.keyspace
    with _errors(client, "the catalogue"):
        tables, columns = _tables(client, keyspace), _columns(client, keyspace)
    for name, kind in sorted(tables.items()):
        yield _resource(client, (keyspace, name), kind, columns[name])


def describe(client: Client, query: str) -> Resource:
    """Columns and key of a table; columns of a SELECT, which is prepared and not run.

    Raises ResourceMissing, QueryFailed, ConnectionFailed.
    """
    with _errors(client, query):
        table = _table(client, query)
        if table is None:
            head = client.session.prepare(stripped(query)).result_metadata or ()
            columns = tuple(
                Column(c[2], postgres_type(c[3].cql_parameterized_type()), source_type=c[3].typename)
                for c in head
            )
            return Resource(query, columns, kind="query")
        keyspace, name = table
        return _resource(client, table, _tables(client, keyspace)[name], _columns(client, keyspace)[name])


def _query(client: Client, cql: str, *given: str) -> list[dict[str, Any]]:
    """Rows of the catalogue: texts and whole numbers."""
    found = client.session.execute(cql, given or None)
    names, types = found.column_names, found.column_types
    version = client.cluster.protocol_version
    return [
        {name: kind.from_binary(value, version) for name, kind, value in zip(names, types, row, strict=True)}
        for row in found
    ]


def _tables(client: Client, keyspace: str) -> dict[str, str]:
    views = [row["view_name"] for row in _query(client, VIEWS, keyspace)]
    tables = [row["table_name"] for row in _query(client, TABLES, keyspace)]
    return dict.fromkeys(tables, "table") | dict.fromkeys(views, "view")


def _columns(client: Client, keyspace: str) -> dict[str, list[_Declared]]:
    """By table: the partition key, the clustering columns, then the others by name."""
    order = ("partition_key", "clustering", "static", "regular")
    found: dict[str, list[_Declared]] = defaultdict(list)
    for row in _query(client, COLUMNS, keyspace):
        declared = _Declared(row["column_name"], row["type"], row["kind"], row["position"])
        found[row["table_name"]].append(declared)
    for columns in found.values():
        columns.sort(key=lambda c: (order.index(c.kind) if c.kind in order else 9, c.position, c.name))
    return found


def _resource(client: Client, table: tuple[str, str], kind: str, declared: Sequence[_Declared]) -> Resource:
    columns = tuple(Column(c.name, postgres_type(c.source_type), c.nullable, c.source_type) for c in declared)
    key = tuple(c.name for c in declared if c.kind in ("partition_key", "clustering"))
    name = table[1:] if table[0] == client.config.keyspace else table
    # No index helps: every run reads the table, and what is before the cursor is left out here.
    candidates = cursor_candidates(columns, (), ())
    return Resource(
        spelled(name, DIALECT), columns, key, "primary key in the source", None, None, candidates, kind
    )


def _table(client: Client, query: str) -> tuple[str, str] | None:
    """The (keyspace, table) that a query names, None for a SELECT. Raises ResourceMissing."""
    keyspaces = dict.fromkeys([client.config.keyspace, name_parts(query, DIALECT)[0]])
    known = [(keyspace, name) for keyspace in keyspaces for name in _tables(client, keyspace)]
    found = find_table(query, known, client.config.keyspace, DIALECT)
    if found is not None:
        return found[0], found[1]
    if is_select(query):
        return None
    names = [spelled([name], DIALECT) for keyspace, name in known if keyspace == client.config.keyspace]
    raise ResourceMissing(
        f"the keyspace '{client.config.keyspace}' has no table '{query}'.{nearest(query, names)}",
        hint="name a table or materialized view, or give a SELECT",
    )


# -- reading --------------------------------------------------------------------------------------------


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Stream a table or a SELECT in batches of about `batch_bytes`.

    CQL cannot ask for a range beside NULL, so all rows are read and those outside the cursor's range are
    left out here. Raises ResourceMissing, QueryFailed, SourceData for a value that cannot be decoded, and
    ConnectionFailed with layer `lost` when the connection breaks.
    """
    yield from _read(client, query, cursor, ())


def keys(client: Client, query: str, key: Sequence[str]) -> Iterator[IngestedItem]:
    """The columns of the key of every row, in batches of about `batch_bytes`. Raises as `read` does."""
    yield from _read(client, query, Cursor(), key)


@dataclass
class _Pages:
    """A result that is fetched page by page, each of a size that fits the batch."""

    client: Client
    cql: str
    rows: list[Sequence[bytes | None]]
    names: list[str]
    types: list[Any]
    state: bytes | None
    page: int = FIRST_PAGE

    def fetch(self, count: int) -> list[Sequence[bytes | None]]:
        """At most `count` rows, none at the end."""
        while not self.rows and self.state is not None:
            found = _page(self.client, self.cql, self.page, self.state)
            self.rows, self.state = list(found.current_rows), found.paging_state
            self._measure()
        taken, self.rows = self.rows[:count], self.rows[count:]
        return taken

    def _measure(self) -> None:
        if self.rows:
            size = sum(len(value or b"") + 8 for row in self.rows for value in row)
            fits = int(self.client.config.batch_bytes / 2 / max(size / len(self.rows), 1))
            self.page = max(1, min(LARGEST_PAGE, self.page * 2, fits))


def _page(client: Client, cql: str, size: int, state: bytes | None) -> Any:
    from cassandra.query import SimpleStatement

    return client.session.execute(SimpleStatement(cql, fetch_size=size), paging_state=state)


def _read(client: Client, query: str, cursor: Cursor, only: Sequence[str]) -> Iterator[IngestedItem]:
    from dwcli.connectors._rows import RowColumn, items

    config = client.config
    with _errors(client, query):
        table = _table(client, query)
        if table is None:
            cql = stripped(query)
        else:
            declared = picked(_columns(client, table[0])[table[1]], only)
            names = ", ".join(quoted(c.name, DIALECT) for c in declared)
            cql = f"SELECT {names} FROM {'.'.join(quoted(p, DIALECT) for p in table)}"  # noqa: S608
        found = _page(client, cql, FIRST_PAGE, None)
        pages = _Pages(
            client,
            cql,
            list(found.current_rows),
            list(found.column_names or ()),
            list(found.column_types or ()),
            found.paging_state,
        )
        if not pages.names:
            raise QueryFailed("the query returns no rows", hint="give a SELECT, or the name of a table")
        pages._measure()
        version = client.cluster.protocol_version
        columns = [
            RowColumn(name, _fill(name, kind, version))
            for name, kind in zip(pages.names, pages.types, strict=True)
        ]
        fetch = _filtered(pages, cursor, version)
        for item in items(fetch, columns, config.batch_bytes):
            frame = item.payload
            yield item if table or not only else _only(item, frame, only)


def _only(item: IngestedItem, frame: Any, only: Sequence[str]) -> IngestedItem:
    """The columns of a key, of a query that cannot be asked for them alone."""
    types = {name: kind for name, kind in item.types.items() if name in only}
    return IngestedItem(frame.select(only), types, metadata=item.metadata)


def _filtered(pages: _Pages, cursor: Cursor, version: int) -> Callable[[int], list[Sequence[bytes | None]]]:
    """`pages.fetch`, without the rows outside the cursor's range; those without a value stay."""
    if not cursor.column:
        return pages.fetch
    place = pages.names.index(find_column(cursor, pages.names))
    kind = pages.types[place]
    base = postgres_type(kind.cql_parameterized_type())
    if base not in ("bigint", "numeric", "double precision", "timestamptz", "date", "text"):
        raise QueryFailed(
            f"a column of type {kind.typename} cannot be a cursor",
            hint="of a timeuuid take its time: SELECT …, toTimestamp(id) AS at FROM …",
        )
    start, end = (_bound(text, base, cursor) for text in (cursor.start, cursor.end))
    if start is None and end is None:
        return pages.fetch
    decode = _comparable(kind, version)

    def within(row: Sequence[bytes | None]) -> bool:
        raw = row[place]
        value = None if raw is None else decode(raw)
        return value is None or ((start is None or value >= start) and (end is None or value < end))

    def fetch(count: int) -> list[Sequence[bytes | None]]:
        # An empty answer would be the end.
        while rows := pages.fetch(count):
            if kept := [row for row in rows if within(row)]:
                return kept
        return []

    return fetch


def _comparable(kind: Any, version: int) -> Callable[[bytes], Any]:
    """Values as they are compared: instants in milliseconds, dates in days, the rest as they are."""
    decode = _DECODERS.get(kind.typename)
    return decode if decode else lambda raw: kind.from_binary(raw, version)


def _bound(text: str | None, base: str, cursor: Cursor) -> Any:
    from dwcli.connectors._documents import instant_microseconds

    if text is None:
        return None
    if base not in ("timestamptz", "date"):
        return cursor_value(text, base, cursor)
    if text in ("infinity", "-infinity"):
        return float(text)
    micros = instant_microseconds(text)
    if micros is None:
        raise ConfigError(
            f"the cursor '{cursor.column}' stands at a value that is not a {base}",
            hint="read everything again: dw run NAME --full-refresh",
        )
    return micros / 1000 if base == "timestamptz" else micros // 86_400_000_000


# -- values ---------------------------------------------------------------------------------------------

_TYPES = {
    "ascii": "text", "text": "text", "varchar": "text", "bigint": "bigint", "counter": "bigint",
    "int": "bigint", "smallint": "bigint", "tinyint": "bigint", "varint": "numeric",
    "decimal": "numeric", "double": "double precision", "float": "double precision",
    "boolean": "boolean", "blob": "bytea", "timestamp": "timestamptz", "date": "date", "time": "time",
    "duration": "interval", "uuid": "uuid", "timeuuid": "uuid", "inet": "inet",
}  # fmt: skip


def postgres_type(cql: str) -> str:
    """The PostgreSQL type that holds this type of CQL; collections, tuples and UDTs are jsonb."""
    return _TYPES.get(cql, "jsonb")


class Milliseconds(int):
    """An instant, since 1970, that Python's datetime has not."""


class Days(int):
    """A date, since 1970, that Python's date has not."""


class Nanoseconds(int):
    """A time of day."""


class Address(str):
    """An address of the internet."""


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "big", signed=True)


def _days(raw: bytes) -> int:
    return int.from_bytes(raw, "big") - 2**31


def _decimal(raw: bytes) -> Decimal:
    """Raises ValueError for one that PostgreSQL's numeric has not."""
    scale, digits = _signed(raw[:4]), _signed(raw[4:])
    value = Decimal(f"{digits}E{-scale}")
    if digits and (value.adjusted() >= DIGITS_BEFORE or scale > DIGITS_AFTER):
        raise ValueError(f"a decimal of scale {scale}")
    return value if digits else Decimal(0)


_DECODERS: Mapping[str, Callable[[bytes], Any]] = {
    "timestamp": _signed,
    "date": _days,
    "varint": _signed,
    "decimal": _decimal,
}
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_PYTHON_DAYS = range(-719_162, 2_932_897)


def _instant(raw: bytes) -> Any:
    milliseconds = _signed(raw)
    if milliseconds // 86_400_000 in _PYTHON_DAYS:
        return _EPOCH + datetime.timedelta(milliseconds=milliseconds)
    return Milliseconds(milliseconds)


def _date(raw: bytes) -> Any:
    days = _days(raw)
    return datetime.date.fromordinal(days + 719_163) if days in _PYTHON_DAYS else Days(days)


_VALUES: Mapping[str, Callable[[bytes], Any]] = {
    "timestamp": _instant,
    "date": _date,
    "time": lambda raw: Nanoseconds(_signed(raw)),
    "varint": _signed,
    "decimal": _decimal,
}


def _fill(name: str, kind: Any, version: int) -> Fill:
    """How the values of a column, in the server's bytes, become a Series."""
    from dwcli.connectors._documents import fill_documents

    wanted = postgres_type(kind.cql_parameterized_type())
    forms = _forms()
    decode = _VALUES.get(kind.typename)
    texts = wanted in ("text", "bytea")

    def value(raw: bytes) -> Any:
        if not raw and not texts:
            return None  # Thrift clients could write a value of no bytes into any column.
        if decode is not None:
            return decode(raw)
        found = kind.from_binary(raw, version)
        if wanted == "jsonb":
            return _settled(found, kind)
        return Address(found) if wanted == "inet" else found

    def fill(values: Sequence[Any], running: str) -> Filled:
        try:
            decoded = [None if raw is None else value(raw) for raw in values]
        except (ValueError, OverflowError, ArithmeticError, struct.error) as error:
            raise SourceData(
                f"a value of column '{name}' cannot be decoded",
                why=f"{kind.cql_parameterized_type()}: {error}",
                hint=f"leave the column out: SELECT … instead of all, or CAST({name} AS text)",
            ) from None
        return fill_documents(decoded, running or wanted, forms)

    return fill


def _settled(value: Any, kind: Any) -> Any:
    """A nested value as dicts and lists; keys of a map and fields of a UDT as texts."""
    from dwcli.connectors._rows import as_text

    if value is None:
        return None
    if getattr(kind, "fieldnames", None):
        pairs = zip(kind.fieldnames, kind.subtypes, value, strict=False)
        return {name: _settled(item, inner) for name, inner, item in pairs}
    subtypes: Sequence[Any] = getattr(kind, "subtypes", None) or ()
    if kind.typename == "map":
        inner_key, inner = subtypes
        settled = ((_settled(key, inner_key), _settled(item, inner)) for key, item in value.items())
        return {key if isinstance(key, str) else str(as_text(key)): item for key, item in settled}
    if kind.typename in ("list", "set"):
        return [_settled(item, subtypes[0]) for item in value]
    if kind.typename == "tuple":
        return [_settled(item, inner) for item, inner in zip(value, subtypes, strict=False)]
    if kind.typename == "timestamp":
        return value.replace(tzinfo=datetime.UTC)
    return value if isinstance(value, str | int | float | Decimal | bytes | list) else _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if hasattr(value, "months"):
        return f"P{value.months}M{value.days}DT{Decimal(value.nanoseconds).scaleb(-9).normalize():f}S"
    return list(value) if type(value) is tuple else str(value)


def _forms() -> Forms:
    from uuid import UUID

    from cassandra.util import Duration  # type: ignore[import-untyped]

    from dwcli.connectors._documents import Forms, date_text, instant_text, json_form

    def date(value: Any, changed: Changed) -> str:
        if not FIRST_DAY <= value < END_OF_DAYS:
            changed["date outside PostgreSQL's range → infinity"] += 1
            return "infinity" if value > 0 else "-infinity"
        return date_text(int(value))

    def time(value: Any, changed: Changed) -> str:
        if value % 1000:
            changed["nanoseconds cut"] += 1
        seconds, rest = divmod(int(value), 1_000_000_000)
        return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest // 1000:06}"

    def duration(value: Any, changed: Changed) -> str:
        if value.nanoseconds % 1000:
            changed["nanoseconds cut"] += 1
        micros = abs(value.nanoseconds) // 1000
        sign = "-" if value.nanoseconds < 0 else ""
        clock = f"{sign}{micros // 1_000_000}.{micros % 1_000_000:06}"
        return f"{value.months} mons {value.days} days {clock} secs"

    known = (bool, int, float, str, bytes, Decimal, UUID, datetime.date, datetime.datetime)
    return Forms(
        native=dict.fromkeys(known),
        texts={
            Milliseconds: ("timestamptz", lambda value, changed: instant_text(int(value), changed)),
            Days: ("date", date),
            Nanoseconds: ("time", time),
            Address: ("inet", lambda value, changed: str(value)),
            Duration: ("interval", duration),
        },
        json=json_form(_plain),
    )

"""PostgreSQL as a source: a table, a view or a SELECT, read in one snapshot.

Rows come as binary COPY and are decoded a column at a time (`_pgcopy`). Types that polars has no exact
dtype for come as PostgreSQL's own text, made by the server, and keep their type in `types`. Nothing is
written: the session and the transaction are read only.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SecretStr, field_validator

from dwcli.connectors._catalog import cursor_candidates
from dwcli.connectors._probe import TIMEOUT_SECONDS, reach
from dwcli.contract import ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

    from dwcli.connectors._pgcatalog import Plan

    Session = psycopg.Connection[tuple[Any, ...]]

TITLE = "PostgreSQL"
ALIASES = ("postgresql", "pgsql")
TRIED = "PostgreSQL 15"
QUERY = "a table, or a SELECT"
INCREMENTAL = "a cursor column; late commits by transaction"
TYPING = "declared"
STREAMING = True

#: Types that a frame's dtype already says, so that `types` does not.
PLAIN = ("bigint", "boolean", "text", "bytea", "double precision")


class Config(ConnectorConfig):
    """A PostgreSQL database and the role that reads it."""

    host: str = Field("localhost", description="host name, or the folder of the server's socket")
    port: int = Field(5432, ge=1, le=65535, description="port")
    database: str = Field(description="database")
    username: str = Field(description="role that may read the tables")
    password: SecretStr | None = Field(None, description="password of that role")
    sslmode: Literal["prefer", "require", "verify-ca", "verify-full", "disable"] = Field(
        "prefer",
        description="how far to insist on TLS",
        json_schema_extra={"advanced": True},
    )
    sslrootcert: str | None = Field(
        None,
        description="file with the certificates to trust, for verify-ca and verify-full",
        json_schema_extra={"advanced": True},
    )
    timezone: str = Field(
        "UTC",
        description="time zone in which timestamps without one were written",
        json_schema_extra={"advanced": True},
    )

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            raise ValueError("no such time zone; use a name such as Europe/Paris") from None
        return name


@dataclass(frozen=True)
class Client:
    """A session for the catalogue, and those of the reads that are under way."""

    config: Config
    connection: Session
    reads: list[Session] = field(default_factory=list)


# -- connecting --------------------------------------------------------------------------------------

#: What a session needs, where the server knows the setting. A read takes as long as it takes.
SETTINGS: Mapping[str, str] = {
    "default_transaction_read_only": "on",
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "xmloption": "content",
    "extra_float_digits": "1",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
}


def connect(config: Config) -> Client:
    """Open a read-only session. Raises ConnectionFailed with the layer that failed."""
    return Client(config, _open_session(config))


def _open_session(config: Config) -> Session:
    import psycopg

    if not config.host.startswith(("/", "@")):
        reach(config.host, config.port)
    try:
        connection: Session = psycopg.connect(
            host=config.host,
            port=config.port,
            dbname=config.database,
            user=config.username,
            password=config.password.get_secret_value() if config.password else None,
            sslmode=config.sslmode,
            sslrootcert=config.sslrootcert,
            application_name="dw",
            client_encoding="UTF8",
            connect_timeout=int(TIMEOUT_SECONDS),
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            autocommit=True,
            prepare_threshold=None,
        )
    except psycopg.Error as error:
        raise _connection_failed(config, str(error)) from None
    try:
        connection.execute(
            "SELECT set_config(name, wanted, false) FROM unnest(%s::text[], %s::text[]) AS w(key, wanted)"
            " JOIN pg_catalog.pg_settings ON lower(name) = key",
            [list(SETTINGS), list(SETTINGS.values())],
        )
        _notice_lost_clients(connection)
    except psycopg.Error as error:
        connection.close()
        raise _connection_failed(config, str(error)) from None
    return connection


def _notice_lost_clients(connection: Session) -> None:
    """Let the server end a long query whose client is gone; old servers and some systems cannot."""
    import psycopg

    if connection.info.server_version >= 140000:
        try:
            connection.execute("SET client_connection_check_interval = '1s'")
        except psycopg.Error:
            return


#: What the server or libpq says when a session cannot begin, its layer, and what to do. First match.
_REFUSALS: Sequence[tuple[str, str, str]] = (
    (r"no pg_hba\.conf entry", "permission", "add a line for this client to the server's pg_hba.conf"),
    (r"SSL|TLS|certificate", "tls", "check sslmode and sslrootcert against what the server offers"),
    (r'database ".*" does not exist', "database", "check the database's name: psql -l lists them"),
    (r"permission denied for database", "permission", "GRANT CONNECT ON DATABASE … TO the role"),
    (r"starting up|shutting down|recovery", "database", "the server is not ready yet: try again"),
    (r"too many (clients|connections)|remaining connection slots", "database", "close other connections"),
    (r"not permitted to log in", "login", "ALTER ROLE … LOGIN"),
    (r"no password supplied", "login", "set the source's password"),
)


def _connection_failed(config: Config, message: str) -> ConnectionFailed:
    why = re.sub(r"\s+", " ", message).strip()
    why = re.split(r"\b(?:FATAL|ERROR):\s*", why)[-1]
    layer, hint = "login", "check username and password"
    for pattern, found_layer, found_hint in _REFUSALS:
        if re.search(pattern, message):
            layer, hint = found_layer, found_hint
            break
    where = f"{config.host}:{config.port}"
    what = {
        "tls": f"no TLS agreement with {where}",
        "login": f"{where} does not let '{config.username}' in",
        "database": f"the database '{config.database}' on {where} cannot be used",
        "permission": f"'{config.username}' may not use the database '{config.database}' on {where}",
    }[layer]
    return ConnectionFailed(what, layer=layer, why=why, hint=hint)


def close(client: Client) -> None:
    """End the session and every read that is under way. May be called twice, from any thread."""
    _end(client.connection)  # first: a read that begins meanwhile sees it, and does not go on
    for connection in list(client.reads):
        _interrupt(connection)


def _interrupt(connection: Session) -> None:
    """Break off what a session does. Whoever reads from it, perhaps in another thread, closes it then."""
    import psycopg

    with suppress(psycopg.Error):  # the server may be gone; else it will see the socket close
        connection.cancel_safe(timeout=2)
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def _end(connection: Session) -> None:
    """Close a session; a statement that still runs is cancelled first."""
    from psycopg.pq import TransactionStatus

    if connection.closed:
        return
    if connection.info.transaction_status != TransactionStatus.IDLE:
        _interrupt(connection)
    connection.close()


@contextmanager
def _our_errors(config: Config) -> Iterator[None]:
    """Turn the driver's errors into ours. The DETAIL of a server's error holds values: it stays out."""
    import psycopg

    try:
        yield
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise _translated(config, error) from None


def _translated(config: Config, error: Exception) -> DwError:
    import psycopg

    state = getattr(error, "sqlstate", None) or ""
    told = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    why = told or re.sub(r"\s+", " ", str(error)).strip()
    if state.startswith("22"):  # about a value, and quotes it
        why = re.sub(r'(?s)(: |\bvalue )".*"', r"\1…", why)
    if state.startswith(("08", "57P")) or (not state and isinstance(error, psycopg.OperationalError)):
        return ConnectionFailed(
            f"the connection to {config.host}:{config.port} was lost",
            layer="lost",
            why=why,
            hint="run again: nothing of this run was kept",
        )
    if state == "42501":
        return QueryFailed("the role may not read this", why=why, hint=f"GRANT SELECT … TO {config.username}")
    if state in ("42P01", "3F000"):
        return ResourceMissing("the query names a table that is not there", why=why)
    if state == "40001":
        return QueryFailed(
            "the server stopped the read in favour of its own replication",
            why=why,
            hint="run again, or raise max_standby_streaming_delay on the standby",
        )
    return QueryFailed("the server refused the query", why=why)


# -- what there is -----------------------------------------------------------------------------------


def discover(client: Client) -> Iterator[Resource]:
    """Every table, view and foreign table that the role may read, with keys, cursors and estimates."""
    from dwcli.connectors import _pgcatalog

    with _our_errors(client.config):
        found = _pgcatalog.resources(client.connection, None)
    yield from found


def describe(client: Client, query: str) -> Resource:
    """Columns, key, cursors and estimates of a table, or the columns of a SELECT, which is not run.

    Raises ResourceMissing with the nearest name, QueryFailed for SQL that the server does not accept.
    """
    from dwcli.connectors import _pgcatalog, _pgwire

    connection = client.connection
    with _our_errors(client.config):
        if not SELECT.match(query):
            oid, _, _ = _pgcatalog.find_table(connection, query)
            return _pgcatalog.resources(connection, oid)[0]
        described = _pgwire.describe_statement(connection, _alone(query))
        types = _pgcatalog.source_types(connection, {(oid, modifier) for _, oid, modifier in described})
    columns = tuple(
        _pgcatalog.column_of(name, types[oid, modifier], nullable=True) for name, oid, modifier in described
    )
    return Resource(query, columns, cursors=cursor_candidates(columns, (), ()), kind="query")


#: What begins a query rather than a name: a keyword and more, after blanks, comments and parentheses.
SELECT = re.compile(r"(?is)(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(?:select|with|values|table)[\s(*]")


def _alone(query: str) -> str:
    """A query without the semicolon that may end it."""
    return query.strip().rstrip(";").rstrip()


# -- reading -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Selection:
    """What to read from: a table or a subquery, under the alias `source`."""

    origin: sql.Composable
    columns: Mapping[str, Plan]
    #: the server's names of the columns' types, domains taken off
    type_names: Mapping[str, str]
    never_null: frozenset[str]
    #: whether each row says which transaction wrote it
    has_xmin: bool


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """The rows of a table or a SELECT, as one snapshot, in frames of about `config.batch_bytes`.

    It has a session of its own. At least one frame comes, so that an empty table has its columns too.

    Raises ResourceMissing, QueryFailed, ConnectionFailed with layer `lost`, also when the server's
    answer ends early.
    """
    yield from _read(client, query, cursor, ())


def keys(client: Client, query: str, key: Sequence[str]) -> Iterator[IngestedItem]:
    """The columns of the key of every row, in frames of about `config.batch_bytes`. Raises as `read` does."""
    yield from _read(client, query, Cursor(), key)


def _read(client: Client, query: str, cursor: Cursor, only: Sequence[str]) -> Iterator[IngestedItem]:
    """`only`: names of columns; none for all."""
    import psycopg

    from dwcli.connectors import _pgcopy, _pgsocket, _pgwire

    connection = _open_session(client.config)
    client.reads.append(connection)
    try:
        with _our_errors(client.config):
            if client.connection.closed:
                raise psycopg.OperationalError("the source has been closed")
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            selection = _select(connection, query)
            if only:
                selection = replace(selection, columns=_picked(selection.columns, only))
            statement = _copy_statement(selection, cursor, client.config.timezone).as_bytes(connection)
            position = _open_transactions(connection) if cursor.column and cursor.again else None
            copy_out = _pgsocket.copy_out if _pgsocket.is_plain(connection) else _pgwire.copy_out
            batches = copy_out(connection, statement, client.config.batch_bytes, _pgcopy.SLACK)
            fields = [
                _pgcopy.Field(name, plan.kind, plan.precision, plan.scale)
                for name, plan in selection.columns.items()
            ]
            types = {name: plan.type for name, plan in selection.columns.items() if plan.type not in PLAIN}

            def decoded(batch: _pgwire.Batch) -> IngestedItem:
                frame = _pgcopy.decode(*batch, fields, client.config.timezone)
                return IngestedItem(frame, types, position=position)

            # no name here for a batch: it would keep it in memory while the next one comes
            yield from map(decoded, batches)
            connection.rollback()
    finally:
        client.reads.remove(connection)
        _end(connection)


def _picked(columns: Mapping[str, Plan], names: Sequence[str]) -> dict[str, Plan]:
    missing = [name for name in names if name not in columns]
    if missing:
        raise QueryFailed(
            f"the source has no column {', '.join(missing)}", hint="correct key: in the source file"
        )
    return {name: columns[name] for name in names}


def _select(connection: Session, query: str) -> _Selection:
    """Look up what the query returns. The table stays as it is until the transaction ends."""
    from psycopg import sql

    from dwcli.connectors import _pgcatalog, _pgwire

    never_null: frozenset[str] = frozenset()
    has_xmin = False
    if SELECT.match(query):
        # A line of its own for the parenthesis: the query may end in a comment. Described alone first,
        # so that it cannot close the parenthesis itself.
        alone = _alone(query)
        described = _pgwire.describe_statement(connection, alone)
        origin: sql.Composable = sql.SQL("({}\n) AS source").format(sql.SQL(alone))
    else:
        oid, schema, name = _pgcatalog.find_table(connection, query)
        table = sql.Identifier(schema, name)
        described = _pgwire.describe_statement(
            connection, sql.SQL("SELECT * FROM {}").format(table).as_string(connection)
        )
        origin = sql.SQL("{} AS source").format(table)
        never_null = _pgcatalog.never_null(connection, oid)
        has_xmin = _has_xmin(connection, oid)
    types = _pgcatalog.source_types(connection, {(oid, modifier) for _, oid, modifier in described})
    names = [name for name, _, _ in described]
    if not names:
        raise QueryFailed("the query returns no columns", hint="give a table or a SELECT")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise QueryFailed(
            f"the query returns {len(doubled)} column names more than once: {', '.join(doubled)}",
            hint="give each a name of its own: SELECT a.id AS a_id, …",
        )
    sources = {name: types[oid, modifier] for name, oid, modifier in described}
    return _Selection(
        origin,
        {name: _pgcatalog.plan_of(source) for name, source in sources.items()},
        {name: source.name for name, source in sources.items()},
        never_null,
        has_xmin,
    )


def _has_xmin(connection: Session, oid: int) -> bool:
    """Whether it is a table: views and foreign tables have no xmin."""
    row = connection.execute(
        "SELECT relkind IN ('r', 'p', 'm') FROM pg_class WHERE oid = %s", [oid]
    ).fetchone()
    return bool(row and row[0])


#: The oldest transaction that may still write a row which this snapshot does not see, and whether there is
#: any: also one without a number yet may have fixed its now() long ago. Those in other databases, such as a
#: warehouse on the same server, write nothing here, and autovacuum writes no rows. Who may not see other
#: sessions must expect them; on a standby nobody can know.
OPEN_TRANSACTIONS = """
    WITH here AS (
        SELECT number FROM txid_snapshot_xip(txid_current_snapshot()) AS number
        WHERE NOT EXISTS (SELECT FROM pg_stat_activity
                          WHERE backend_xid::text::bigint = number % 4294967296
                            AND (datname <> current_database() OR backend_type = 'autovacuum worker'))
    )
    SELECT CASE WHEN pg_is_in_recovery() THEN txid_snapshot_xmin(txid_current_snapshot())
                ELSE coalesce(min(number), txid_snapshot_xmax(txid_current_snapshot())) END,
           pg_is_in_recovery()
           OR count(*) > 0
           OR EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database())
           OR EXISTS (SELECT FROM pg_stat_activity
                      WHERE pid <> pg_backend_pid() AND datname = current_database()
                        AND backend_type IS DISTINCT FROM 'autovacuum worker'
                        AND (xact_start IS NOT NULL OR query = '<insufficient privilege>'))
    FROM here
"""


def _open_transactions(connection: Session) -> dict[str, str]:
    """The place that a run leaves: the oldest open transaction, if there is one.

    Its rows, and those of all transactions after it, may be committed behind the cursor. The next run reads
    them by the number of the transaction that wrote them.
    """
    row = connection.execute(OPEN_TRANSACTIONS).fetchone()
    assert row is not None
    return {"xmin": str(row[0])} if row[1] else {}


def _copy_statement(selection: _Selection, cursor: Cursor, timezone: str) -> sql.Composed:
    from psycopg import sql

    expressions = [
        sql.SQL("source.{}::{}").format(sql.Identifier(name), sql.SQL(plan.cast))
        if plan.cast
        else sql.SQL("source.{}").format(sql.Identifier(name))
        for name, plan in selection.columns.items()
    ]
    return sql.SQL("COPY (SELECT {} FROM {} {}) TO STDOUT (FORMAT binary)").format(
        sql.SQL(", ").join(expressions), selection.origin, _condition(selection, cursor, timezone)
    )


def _condition(selection: _Selection, cursor: Cursor, timezone: str) -> sql.Composable:
    """The WHERE of an incremental read; rows whose cursor is NULL are always among them."""
    from psycopg import sql

    if not cursor.column or (cursor.start is None and cursor.end is None):
        return sql.SQL("")
    if cursor.column not in selection.columns:
        raise QueryFailed(
            f"the cursor column '{cursor.column}' is not in the source."
            + nearest(cursor.column, selection.columns),
        )
    name = sql.SQL("source.{}").format(sql.Identifier(cursor.column))
    value, bound = _comparable(name, selection.type_names[cursor.column], timezone)
    limits: list[sql.Composable] = []
    if cursor.start is not None:
        limits.append(sql.SQL("{} >= {}").format(value, bound(cursor.start)))
    if cursor.end is not None:
        limits.append(sql.SQL("{} < {}").format(value, bound(cursor.end)))
    within = sql.SQL(" AND ").join(limits)
    oldest = (cursor.position or {}).get("xmin") if isinstance(cursor.position, dict) else None
    if oldest is not None and cursor.again and cursor.end is None and selection.has_xmin:
        # xmin is the number without its epoch, and numbers wrap: age() compares them rightly
        late = sql.SQL("age(source.xmin) <= age({}::text::xid)").format(sql.Literal(int(oldest) % 2**32))
        return sql.SQL("WHERE {} OR {} OR {} IS NULL").format(within, late, name)
    if cursor.column in selection.never_null:  # without the OR, an index serves
        return sql.SQL("WHERE {}").format(within)
    return sql.SQL("WHERE ({}) OR {} IS NULL").format(within, name)


def _comparable(
    name: sql.Composable, type_name: str, timezone: str
) -> tuple[sql.Composable, Callable[[str], sql.Composable]]:
    """How a column of this type is compared with a bound in the text form of its warehouse type."""
    from psycopg import sql

    base = type_name.partition("(")[0].strip()
    if base in ("text", "character varying", "character", "name"):
        own = sql.SQL("bpchar" if base == "character" else "text")
        order = sql.SQL('{}::text COLLATE "C"')
        return order.format(name), lambda text: order.format(_cast(text, own))
    if base.startswith("timestamp") and "with time zone" not in type_name:
        return name, lambda text: sql.SQL("({} AT TIME ZONE {})").format(
            _cast(text, sql.SQL("timestamptz")), sql.Literal(timezone)
        )
    if base in ("smallint", "integer", "bigint", "oid"):
        return name, lambda text: _cast(text, sql.SQL("bigint" if _is_bigint(text) else "numeric"))
    if base in ("date", "timestamp with time zone") or base.startswith("timestamp"):
        return name, lambda text: _cast(text, sql.SQL("timestamptz"))
    return name, lambda text: _cast(text, sql.SQL(base))


def _is_bigint(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d{1,18}", text.strip()) is not None


def _cast(text: str, type_name: sql.Composable) -> sql.Composable:
    from psycopg import sql

    return sql.SQL("{}::{}").format(sql.Literal(text), type_name)

"""Connecting to the warehouse: which one, how, and what is wrong when it cannot be reached.

Every session that dw opens has the same settings, whatever the server's or the role's defaults are, so
that a value reads the same on every machine and a dead client's transaction does not outlive it long.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from dwcli.errors import ConfigError, ConnectionFailed, DwError
from dwcli.references import REFERENCE, redact, resolve

if TYPE_CHECKING:
    import psycopg
    import sqlalchemy

#: How long one attempt to connect may take.
CONNECT_SECONDS = 10
#: How long a server that says it is starting up or recovering is waited for.
PATIENCE_SECONDS = 60.0

#: Session settings, and the server version from which each exists.
SESSION = (
    ("TimeZone", "UTC", 0),
    ("DateStyle", "ISO, YMD", 0),
    ("IntervalStyle", "postgres", 0),
    ("bytea_output", "hex", 0),
    ("extra_float_digits", "1", 0),
    ("statement_timeout", "0", 0),
    # A run sits idle in its transaction while the source is slow, but not for ever.
    ("idle_in_transaction_session_timeout", "1d", 0),
    ("idle_session_timeout", "0", 14_00_00),
    ("transaction_timeout", "0", 17_00_00),
)

#: What libpq and the server say, what layer that is, and what to do about it. First match wins.
FAILURES = (
    (
        r"translate host name|failed to resolve|resolve host",
        "name",
        "check the host's spelling, or try its IP address",
    ),
    (
        r"no pg_hba\.conf entry.*(no encryption|SSL off)|rejects.*no encryption",
        "tls",
        "add ?sslmode=require to the URL, or allow this client in the server's pg_hba.conf",
    ),
    (
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        "login",
        "allow this client, user and database in the server's pg_hba.conf",
    ),
    (
        r"SSL|certificate|TLS",
        "tls",
        "check sslmode and sslrootcert in the URL, and that the certificate is the server's",
    ),
    (
        r"too many (clients|connections)|connection slots are reserved",
        "login",
        "end sessions that are not needed, or raise max_connections or the role's limit",
    ),
    (
        r"permission denied for database",
        "permission",
        "let a superuser run: GRANT CONNECT ON DATABASE … TO …",
    ),
    (
        r'database ".*" does not exist|not currently accepting connections',
        "database",
        "check the database's name in the URL, or create it: CREATE DATABASE …",
    ),
    (
        r"password|authentication|role .* (does not exist|is not permitted)",
        "login",
        "check user and password in the URL or in DW_USERNAME and DW_PASSWORD",
    ),
    (
        r"refused|timeout|timed out|unreachable|No route|No such file|closed the connection|reset by peer",
        "port",
        "check host and port, and that the server is running and listens there",
    ),
)
STARTING = re.compile(r"(starting up|shutting down|in recovery mode|not yet accepting connections)", re.I)


# -- which warehouse ---------------------------------------------------------------------------------


def resolve_url(
    explicit: str | None, env: Mapping[str, str], configured: str | None, base: Path | None = None
) -> str | Literal["embedded"]:
    """The warehouse's URL, or "embedded": what was typed, else the environment, else the config.

    explicit: the value of --warehouse.
    env: the process environment over `.env`: DW_URL, else DW_HOST with DW_PORT, DW_DATABASE,
        DW_USERNAME, DW_PASSWORD and DW_SSLMODE.
    configured: `warehouse` in dw.yaml; its ${env:…} and ${file:…} references are looked up. A reference
        before the @ is taken as it is, so a password needs no percent-encoding.
    base: folder that ${file:…} paths start from.

    Raises ConfigError when nothing says where the warehouse is, or what does is no PostgreSQL URL.
    """
    if explicit:
        return _checked(explicit, "--warehouse")
    if env.get("DW_URL"):
        return _checked(env["DW_URL"], "DW_URL")
    if env.get("DW_HOST"):
        return _url_from_parts(env)
    if configured:
        return _checked(_with_references(configured, env, base or Path()), "warehouse in dw.yaml")
    raise ConfigError(
        "no warehouse is given",
        hint="--warehouse postgresql://…, or set DW_URL, or make a project with its own: dw init",
    )


def _checked(url: str, subject: str) -> str:
    if url != "embedded" and not re.match(r"postgres(ql)?(\+\w+)?://", url):
        raise ConfigError(
            f"{subject} is neither 'embedded' nor a PostgreSQL URL",
            hint="postgresql://user:password@host:5432/database",
        )
    return url


def _url_from_parts(env: Mapping[str, str]) -> str:
    missing = [name for name in ("DW_DATABASE", "DW_USERNAME") if not env.get(name)]
    if missing:
        raise ConfigError(
            f"DW_HOST is set, but {' and '.join(missing)} not",
            hint=f"export {missing[0]}=…, or set DW_URL to the whole URL",
        )
    host, port = env["DW_HOST"], env.get("DW_PORT") or "5432"
    if not port.isdigit():
        raise ConfigError("DW_PORT is not a number", hint="export DW_PORT=5432")
    login = quote(env["DW_USERNAME"], safe="")
    if env.get("DW_PASSWORD"):
        login += ":" + quote(env["DW_PASSWORD"], safe="")
    database = quote(env["DW_DATABASE"], safe="")
    ssl = f"sslmode={quote(env['DW_SSLMODE'], safe='')}" if env.get("DW_SSLMODE") else ""
    if host.startswith("/"):
        query = "&".join(filter(None, [f"host={quote(host, safe='')}", f"port={port}", ssl]))
        return f"postgresql://{login}@/{database}?{query}"
    host = f"[{host}]" if ":" in host else quote(host, safe=",")
    return f"postgresql://{login}@{host}:{port}/{database}" + (f"?{ssl}" if ssl else "")


def _with_references(configured: str, env: Mapping[str, str], base: Path) -> str:
    """The configured URL with its references looked up; those before the @ are percent-encoded."""
    login, at, rest = configured.rpartition("@")

    def encoded(match: re.Match[str]) -> str:
        return quote(str(resolve(match[0], env, base, "warehouse in dw.yaml")), safe="")

    return REFERENCE.sub(encoded, login) + at + str(resolve(rest, env, base, "warehouse in dw.yaml"))


def mask_url(url: str) -> str:
    """The URL without its passwords, to be shown: postgresql://reader:***@host/db.

    A malformed URL loses rather more than less.
    """
    masked = re.sub(r"(://[^:@/]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    return re.sub(r"(?i)([?&](?:password|sslpassword)=)[^&#]*", r"\1***", masked)


# -- connecting --------------------------------------------------------------------------------------


def connect(
    url: str,
    *,
    autocommit: bool = False,
    application_name: str = "dw",
    patience: float = PATIENCE_SECONDS,
) -> psycopg.Connection:
    """Open a session in the warehouse, with the settings that every dw session has.

    url: postgresql://…, also postgres://… and postgresql+psycopg://…, and with ?host=/folder a socket.
    application_name: what pg_stat_activity shows; 63 bytes of it.
    patience: seconds to wait for a server that is starting up or recovering.

    `lock_timeout` is left to the caller. Raises ConnectionFailed, which names the layer that failed and
    never the password; ConfigError when the URL cannot be read.
    """
    import psycopg
    from psycopg.conninfo import make_conninfo

    parameters = _parameters(url)
    conninfo = make_conninfo("", **_defaults() | parameters | {"application_name": application_name})
    give_up = time.monotonic() + patience
    pause = 0.1
    while True:
        try:
            connection = psycopg.connect(conninfo, autocommit=True)
            break
        except psycopg.Error as error:
            if not STARTING.search(str(error)) or time.monotonic() + pause > give_up:
                raise _connection_failed(error, parameters) from None
        time.sleep(pause)
        pause = min(pause * 2, 2.0)
    try:
        _set_session(connection)
        connection.autocommit = autocommit
    except psycopg.Error as error:
        connection.close()
        raise _connection_failed(error, parameters) from None
    return connection


def make_engine(url: str, application_name: str = "dw") -> sqlalchemy.Engine:
    """A SQLAlchemy engine whose connections are `connect`'s. It keeps none open: each is new."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: connect(url, application_name=application_name),
        poolclass=NullPool,
    )


def _parameters(url: str) -> dict[str, Any]:
    """libpq's parameters of a URL. Its own complaint is not repeated: it may quote the password."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parameters = dict(conninfo_to_dict(re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)))
    except psycopg.Error:
        parameters = {}
    host, port, database = (str(parameters.get(name) or "") for name in ("host", "port", "dbname"))
    # A password with an @ or a / in it: libpq takes what follows for the host, port or database.
    if not parameters or "@" in host + database or not re.fullmatch(r"[\d,]*", port):
        raise ConfigError(
            "the warehouse's URL cannot be read",
            why=mask_url(url),
            hint="percent-encode special characters in user and password: @ is %40, / is %2F, : is %3A",
        )
    return parameters


def _defaults() -> dict[str, Any]:
    """Parameters that the URL may override. A connection that died silently is noticed in a minute."""
    return {
        "connect_timeout": CONNECT_SECONDS,
        "client_encoding": "UTF8",
        "keepalives": 1,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }


def _set_session(connection: psycopg.Connection) -> None:
    import psycopg

    version = connection.info.server_version
    known = [(name, value) for name, value, since in SESSION if version >= since]
    calls = ", ".join("set_config(%s, %s, false)" for _ in known)
    connection.execute(f"SELECT {calls}", [word for pair in known for word in pair])
    # The server looks every second whether a client is still there while a statement runs, so that a
    # killed run lets go of its locks. Not every server can.
    with suppress(psycopg.errors.UndefinedObject, psycopg.errors.InvalidParameterValue):
        connection.execute("SET client_connection_check_interval = '1s'")


def _connection_failed(error: Exception, parameters: Mapping[str, Any]) -> ConnectionFailed:
    """The error for a person: where it was going, how far it got, and what to do."""
    where = _where(parameters)
    said = redact(str(error), [str(parameters.get("password") or "")])
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    why = re.sub(r"^.*(FATAL|failed):\s+", "", lines[-1]) if lines else ""
    if STARTING.search(said):
        return ConnectionFailed(f"{where} is not ready yet", "database", why, "wait a moment and try again")
    for pattern, layer, hint in FAILURES:
        if re.search(pattern, said):
            return ConnectionFailed(_sentence(layer, where, parameters), layer, why, hint)
    return ConnectionFailed(f"{where} refused the connection", "login", why, "see the server's log")


def _sentence(layer: str, where: str, parameters: Mapping[str, Any]) -> str:
    user, database = parameters.get("user", ""), parameters.get("dbname") or parameters.get("user", "")
    return {
        "name": f"the name of {where} does not resolve",
        "port": f"{where} does not answer",
        "tls": f"no encrypted connection to {where}",
        "login": f"{where} rejected the login of '{user}'",
        "database": f"{where} has no database '{database}' to connect to",
        "permission": f"'{user}' may not use the database '{database}' on {where}",
    }[layer]


def _where(parameters: Mapping[str, Any]) -> str:
    host = str(parameters.get("host") or "localhost")
    port = str(parameters.get("port") or 5432)
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else f"{host}:{port}"


# -- checking, layer by layer ------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One layer of a connection: name, port, tls, login, database, permission, read or version.

    The layer `warning` is none: it says what a person should know of a connection that works.
    """

    layer: str
    ok: bool
    milliseconds: float
    #: a phrase for a person, such as "name resolves"
    detail: str
    hint: str = ""


def check(url: str, schema: str = "public") -> Iterator[Check]:
    """Try the warehouse layer by layer, each as it is found; ends after the first that fails.

    The last layers make a table in `schema` and roll that back.
    """
    parameters = _parameters(url)
    host = str(parameters.get("host") or "")
    if host and not host.startswith("/") and "," not in host:
        for test in (_check_name, _check_port):
            found = test(host, int(parameters.get("port") or 5432))
            yield found
            if not found.ok:
                return
    begun = time.perf_counter()
    try:
        connection = connect(url, application_name="dw check", patience=0)
    except ConnectionFailed as error:
        why = f" ({error.why})" if error.why else ""
        yield Check(error.layer, False, _since(begun), error.message + why, error.hint)
        return
    taken = _since(begun)
    with closing(connection):
        yield _check_encryption(connection, host)
        yield Check("login", True, taken, f"login '{connection.info.user}' accepted")
        yield Check("database", True, taken, f"database '{connection.info.dbname}' open")
        yield from _check_rights(connection, schema)


def _since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000


def _check_name(host: str, port: int) -> Check:
    begun = time.perf_counter()
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        detail = f"the name '{host}' does not resolve ({reason})"
        return Check("name", False, _since(begun), detail, FAILURES[0][2])
    return Check("name", True, _since(begun), "name resolves")


def _check_port(host: str, port: int) -> Check:
    begun = time.perf_counter()
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        detail = f"{host}:{port} does not answer ({error.strerror or error})"
        return Check("port", False, _since(begun), detail, FAILURES[-1][2])
    return Check("port", True, _since(begun), "port answers")


def _check_encryption(connection: psycopg.Connection, host: str) -> Check:
    begun = time.perf_counter()
    if connection.pgconn.ssl_in_use:
        return Check("tls", True, _since(begun), "encrypted")
    near = not host or host.startswith("/") or host in ("localhost", "127.0.0.1", "::1")
    hint = "" if near else "add ?sslmode=verify-full&sslrootcert=… to the URL"
    return Check("tls", True, _since(begun), "not encrypted" + (", but local" if near else ""), hint)


def _check_rights(connection: psycopg.Connection, schema: str) -> Iterator[Check]:
    import psycopg
    from psycopg.sql import SQL, Identifier

    begun = time.perf_counter()
    user = connection.info.user
    table = Identifier(schema, "dw_connection_check")
    try:
        connection.execute("SET LOCAL lock_timeout = '5s'")
        connection.execute(SQL("CREATE TABLE {} (checked int)").format(table))
        connection.rollback()
    except psycopg.Error as error:
        connection.rollback()
        reason = error.diag.message_primary or type(error).__name__
        hint = f'let its owner run: GRANT USAGE, CREATE ON SCHEMA "{schema}" TO "{user}"'
        if isinstance(error, psycopg.errors.InvalidSchemaName):
            hint = f'CREATE SCHEMA "{schema}" AUTHORIZATION "{user}"'
        detail = f"'{user}' cannot create tables in schema '{schema}' ({reason})"
        yield Check("permission", False, _since(begun), detail, hint)
        return
    yield Check("permission", True, _since(begun), f"can create tables in schema '{schema}'")
    version = connection.info.server_version
    old = version < 13_00_00
    hint = "PostgreSQL 13 or newer is needed" if old else ""
    yield Check("version", not old, 0.0, f"PostgreSQL {version // 10000}.{version % 10000}", hint)


@contextmanager
def lost_connections_named(url: str) -> Iterator[None]:
    """Turn a connection that breaks while it is used into ConnectionFailed with the layer `lost`."""
    import psycopg

    try:
        yield
    except DwError:
        raise
    except psycopg.OperationalError as error:
        if error.sqlstate not in (None, "57P01", "57P02", "57P03", "08006", "08003", "08000"):
            raise
        raise ConnectionFailed(
            f"the connection to {_where(_parameters(url))} was lost",
            "lost",
            why=error.diag.message_primary or "the server closed the connection",
            hint="run the same command again: nothing of the unfinished part was kept",
        ) from None

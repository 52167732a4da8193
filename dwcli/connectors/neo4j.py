"""Neo4j and other servers that speak Bolt: nodes of a label, relationships of a type, or a Cypher query.

Properties of nodes and relationships are columns, found while reading. What a query returns is a column
each; nodes, relationships and paths among it are jsonb. Records are streamed, `fetch_size` at a time.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from dwcli.connectors import driver_missing
from dwcli.connectors._catalog import cursor_candidates
from dwcli.connectors._probe import TIMEOUT_SECONDS, reach
from dwcli.connectors._sqltext import Dialect, quoted
from dwcli.contract import Column, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConfigError, ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData

if TYPE_CHECKING:
    from dwcli.connectors._documents import Changed, Forms

TITLE = "Neo4j"
ALIASES = ("bolt",)
EXTRA = "neo4j"
STAND_IN = "FalkorDB 1.4 (Bolt 5.7)"
QUERY = "a label, a relationship type, or Cypher"
INCREMENTAL = "cursor property"
TYPING = "inferred"
STREAMING = True

SCHEMES = ("bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc")
#: Nodes that tell the properties of a label
SAMPLE = 100
CYPHER = Dialect(quote="`")
_QUERY = re.compile(
    r"(?is)\A(?:\s+|//[^\n]*\n|/\*.*?\*/)*"
    r"(?:match|optional|call|return|unwind|with|show|profile|use|cypher|load|foreach)\b\s*\S"
)
_ADVANCED: Any = {"advanced": True}


class Config(ConnectorConfig):
    """A graph database that speaks Bolt."""

    uri: str = Field(description="address of the server, such as neo4j://graph.internal:7687")
    username: str = Field("neo4j", description="user that may read it; empty where the server asks for none")
    password: SecretStr = Field(
        SecretStr(""), description="the user's password", json_schema_extra={"needs": "username"}
    )
    database: str = Field("", description="name of the database; empty for the user's own")
    timezone: str = Field("UTC", description="time zone of local date-times", json_schema_extra=_ADVANCED)
    fetch_size: int = Field(
        1000, ge=1, le=100_000, description="records in one reply of the server", json_schema_extra=_ADVANCED
    )
    tls_ca: Path | None = Field(
        None, description="file with the certificate authority", json_schema_extra=_ADVANCED
    )

    @field_validator("uri")
    @classmethod
    def _uri_is_bolt(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in SCHEMES or not parts.hostname:
            raise ValueError(f"begins with one of {', '.join(s + '://' for s in SCHEMES)}")
        if parts.username or parts.password:
            raise ValueError("holds no user: set username and password")
        return value


@dataclass
class Client:
    """The driver, which keeps its own connections, and the sessions that are reading."""

    config: Config
    driver: Any
    reading: list[Any] = field(default_factory=list)

    @property
    def where(self) -> str:
        parts = urlsplit(self.config.uri)
        return f"{parts.hostname}:{parts.port or 7687}"

    def session(self) -> Any:
        """A session that may only read."""
        return self.driver.session(
            database=self.config.database or None,
            fetch_size=self.config.fetch_size,
            default_access_mode="READ",
        )


def connect(config: Config) -> Client:
    """Connect and log in. Raises ConnectionFailed with the layer that failed, DriverMissing."""
    try:
        import neo4j
    except ImportError as error:
        raise driver_missing("neo4j", error) from None
    # Without a handler of its own the driver's errors end up on the terminal.
    logging.getLogger("neo4j").addHandler(logging.NullHandler())
    parts = urlsplit(config.uri)
    reach(parts.hostname or "", parts.port or 7687)
    secret = config.password.get_secret_value()
    more: dict[str, Any] = {}
    if config.tls_ca:
        if not config.tls_ca.is_file():
            raise ConfigError(f"the certificate file {config.tls_ca} is not there", hint="check tls_ca")
        more = {"encrypted": True, "trusted_certificates": neo4j.TrustCustomCAs(str(config.tls_ca))}
    try:
        driver = neo4j.GraphDatabase.driver(
            config.uri,
            auth=(config.username, secret) if config.username else None,
            connection_timeout=TIMEOUT_SECONDS,
            connection_acquisition_timeout=TIMEOUT_SECONDS,
            user_agent="dw",
            **more,
        )
    except (neo4j.exceptions.ConfigurationError, ValueError) as error:
        hint = "tls_ca goes with bolt:// and neo4j://, not with +s"
        raise ConfigError(
            "the connection cannot be configured like this", why=str(error), hint=hint
        ) from None
    client = Client(config, driver)
    try:
        with client.session() as session:
            session.run("RETURN 1 AS one").consume()
    except (neo4j.exceptions.Neo4jError, neo4j.exceptions.DriverError, OSError) as error:
        close(client)
        raise _refused(client, error) from None
    return client


def close(client: Client) -> None:
    """Close the connections; a read that is under way ends with ConnectionFailed."""
    client.reading.clear()
    with contextlib.suppress(Exception):
        client.driver.close()


def _refused(client: Client, error: Exception) -> DwError:
    """Which layer a failed connection belongs to, with what to do about it."""
    import neo4j

    config, where = client.config, client.where
    code, why = getattr(error, "code", None) or "", _words(error)
    if "DatabaseNotFound" in code:
        hint = "SHOW DATABASES lists those there are"
        message = f"{where} has no database '{config.database}'"
        return ConnectionFailed(message, layer="database", why=why, hint=hint)
    if code.startswith("Neo.ClientError.Security.Forbidden"):
        hint = f"GRANT ACCESS ON DATABASE {config.database or '…'} TO …"
        return ConnectionFailed(
            f"'{config.username}' may not use the database", layer="permission", why=why, hint=hint
        )
    if isinstance(error, neo4j.exceptions.Neo4jError):
        # Servers other than Neo4j have no code of their own for this.
        message = f"{where} does not let '{config.username or 'a client without a user'}' in"
        return ConnectionFailed(
            message, layer="login", why=why, hint="check username and password; username '' sends none"
        )
    if "SSL" in _chain(error) or "certificate" in _chain(error):
        hint = "+s:// checks the certificate; set tls_ca, or take bolt:// where there is no TLS"
        return ConnectionFailed(f"no TLS with {where}", layer="tls", why=why, hint=hint)
    hint = "check that the port is Bolt's (7687, not the browser's 7474), and bolt:// or neo4j://"
    return ConnectionFailed(f"no Bolt server answers on {where}", layer="port", why=why, hint=hint)


def _chain(error: BaseException | None) -> str:
    return f"{error} {_chain(error.__cause__)}" if error is not None else ""


def _words(error: Exception) -> str:
    return str(getattr(error, "message", None) or error).split("\n")[0].rstrip(":")


@contextmanager
def _errors(client: Client, query: str) -> Iterator[None]:
    """The driver's errors in our words."""
    import neo4j

    try:
        yield
    except (neo4j.exceptions.Neo4jError, neo4j.exceptions.DriverError, OSError) as error:
        raise _failed(client, query, error) from None


def _failed(client: Client, query: str, error: Exception) -> DwError:
    import neo4j

    found = neo4j.exceptions
    code, why = getattr(error, "code", None) or "", _words(error)
    if isinstance(error, found.BrokenRecordError):
        cause = _words(error.__cause__) if isinstance(error.__cause__, Exception) else ""
        return SourceData(
            "a value cannot be decoded",
            why=" ".join(filter(None, [why, cause])),
            hint="return it as text: toString(n.at)",
        )
    if code.startswith("Neo.ClientError.Security"):
        return QueryFailed(
            f"'{client.config.username}' may not read {query}",
            why=why,
            hint="GRANT MATCH {*} ON GRAPH … TO …",
        )
    if code.startswith("Neo.TransientError"):
        return QueryFailed("the server could not run the query now", why=why, hint="run it again later")
    if isinstance(error, found.Neo4jError):
        return QueryFailed("the server refused the query", why=why, hint="check the query's Cypher")
    return ConnectionFailed(
        f"the connection to {client.where} broke while reading",
        layer="lost",
        why=why,
        hint="run it again: nothing was committed",
    )


# -- the catalogue --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What is read: nodes of a label, relationships of a type, or what a query returns."""

    name: str
    kind: str
    #: the pattern that binds `x`; "" for a query
    pattern: str = ""


def discover(client: Client) -> Iterator[Resource]:
    """Every label and relationship type, by name. Properties are those of the first ones."""
    with _errors(client, "the catalogue"):
        labels, types = _names(client)
    for source in [*map(_label, labels), *(_type(name) for name in types if name not in labels)]:
        with _errors(client, source.name):
            resource = _resource(client, source)
        yield resource


def describe(client: Client, query: str) -> Resource:
    """Properties of the first nodes or relationships, key, cursor candidates and count.

    Raises ResourceMissing, QueryFailed, ConnectionFailed.
    """
    with _errors(client, query):
        source = _source(client, query)
        if source.kind == "query":
            return Resource(query, _columns(client, source), kind="query")
        return _resource(client, source)


def _label(name: str) -> _Source:
    return _Source(name, "nodes", f"(x:{quoted(name, CYPHER)})")


def _type(name: str) -> _Source:
    return _Source(name, "relationships", f"()-[x:{quoted(name, CYPHER)}]->()")


def _names(client: Client) -> tuple[list[str], list[str]]:
    """Labels and relationship types."""
    labels = _rows(client, "CALL db.labels() YIELD label RETURN label")
    types = _rows(client, "CALL db.relationshipTypes() YIELD relationshipType RETURN relationshipType")
    return sorted(row[0] for row in labels), sorted(row[0] for row in types)


def _rows(client: Client, cypher: str) -> list[list[Any]]:
    with client.session() as session:
        return [record.values() for record in session.run(cypher)]


def _resource(client: Client, source: _Source) -> Resource:
    columns = _columns(client, source)
    count = _rows(client, f"MATCH {source.pattern} RETURN count(x)")[0][0]
    unique, indexed = _indexes(client, source.name)
    key, reason = (unique, "unique in the source") if unique else (("_id",), "the server's own id")
    candidates = cursor_candidates(columns, (), indexed)
    return Resource(source.name, columns, key, reason, int(count), None, candidates, source.kind)


def _columns(client: Client, source: _Source) -> tuple[Column, ...]:
    """Of a query, the names alone: running it may take long."""
    from dwcli.connectors._documents import chunked, document_items

    config = client.config
    if source.kind == "query":
        with client.session() as session:
            result = session.run(source.name, _parameters([(None, None)]))
            return tuple(Column(name, "text") for name in result.keys())  # noqa: SIM118
    with client.session() as session:
        result = session.run(f"MATCH {source.pattern} RETURN x LIMIT {SAMPLE}")
        rows = [_row(_entity_row(record[0])) for record in result]
    found: dict[str, str] = {}
    names: list[str] = []
    for item in document_items(
        chunked(rows, config.batch_bytes), _forms(config), config.batch_bytes, _first(source)
    ):
        found |= item.types
        names = list(getattr(item.payload, "columns", names))
    return tuple(Column(name, found.get(name, "text"), name not in _first(source)) for name in names)


def _indexes(client: Client, name: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """The shortest unique group of properties, and those that lead an index; none where none are told."""
    import neo4j

    try:
        rows = _rows(
            client,
            "SHOW INDEXES YIELD labelsOrTypes, properties, owningConstraint, type"
            " RETURN labelsOrTypes, properties, owningConstraint, type",
        )
    except (neo4j.exceptions.Neo4jError, neo4j.exceptions.ResultError):
        return (), frozenset()
    mine = [(tuple(p), c) for labels, p, c, kind in rows if p and name in (labels or ()) and kind == "RANGE"]
    unique = [properties for properties, constraint in mine if constraint]
    return min(unique, key=len, default=()), frozenset(properties[0] for properties, _ in mine)


def _source(client: Client, query: str) -> _Source:
    """What a query names. Raises ResourceMissing with the nearest name."""
    text = query.strip()
    if _QUERY.match(query):
        return _Source(query, "query")
    labels, types = _names(client)
    plain = re.sub(r"\A\(:(.*)\)\Z|\A\[:(.*)\]\Z|\A:(.*)\Z", r"\1\2\3", text)
    plain = plain[1:-1].replace("``", "`") if re.fullmatch(r"`.*`", plain) else plain
    for name in (query, text, plain):
        if name in labels and not text.startswith("["):
            return _label(name)
        if name in types and not text.startswith("("):
            return _type(name)
    raise ResourceMissing(
        f"there is no label and no relationship type '{plain}'.{nearest(plain, [*labels, *types])}",
        hint="name a label or a relationship type, or give Cypher that begins with MATCH",
    )


# -- reading --------------------------------------------------------------------------------------------


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Stream nodes, relationships or the records of a query, in batches of about `batch_bytes`.

    Rows whose cursor is null are always among them. A query gets `$start` and `$end`, for local
    date-times `$local_start` and `$local_end`; one that names neither start is run whole, and rows
    before it are left out here. Raises ResourceMissing, QueryFailed,
    SourceData, and ConnectionFailed with layer `lost` when the connection breaks.
    """
    from dwcli.connectors._documents import chunked, document_items, of_one_kind

    config = client.config
    with _errors(client, query):
        source = _source(client, query)
        bounds = _bounds(cursor, config)
        session = client.session()
        client.reading.append(session)
        try:
            result = session.run(_text(source, cursor, bounds), _parameters(bounds))
            names = list(result.keys())
            _check_names(source, names, cursor)
            rows = _records(result, source, names)
            if source.kind == "query" and cursor.column and "start" not in _parameter_names(query):
                rows = (row for row in rows if _is_within(row[cursor.column], bounds))
            chunks: Iterable[Sequence[Mapping[str, Any]]] = chunked(rows, config.batch_bytes)
            if cursor.column:
                asked = {_kind(value) for bound in bounds for value in bound} - {"null"}
                chunks = of_one_kind(chunks, cursor.column, _kind, asked)
            first = names if source.kind == "query" else _first(source)
            yield from document_items(chunks, _forms(config), config.batch_bytes, first)
        finally:
            _end(session)
            if session in client.reading:
                client.reading.remove(session)


def _end(session: Any) -> None:
    """Close a session in the middle of a result: what the server still has is dropped, not read."""
    with contextlib.suppress(Exception):
        session.close()


Bounds = Sequence[tuple[Any, Any]]


def _text(source: _Source, cursor: Cursor, bounds: Bounds) -> str:
    """The Cypher that reads a source. A comparison that has no answer (null, another type) is null."""
    if source.kind == "query":
        return source.name
    name = f"x.{quoted(cursor.column, CYPHER)}"
    within, unknown = [], []
    for side, (start, end) in zip(_SIDES, bounds, strict=False):
        conditions = [f"{name} >= ${side}start"] * (start is not None)
        conditions += [f"{name} < ${side}end"] * (end is not None)
        if conditions:
            within.append(f"({' AND '.join(conditions)})")
            unknown.append(f"({conditions[0]}) IS NULL")
    where = f" WHERE {' OR '.join(within)} OR ({' AND '.join(unknown)})" if within else ""
    return f"MATCH {source.pattern}{where} RETURN x"


#: What the names of the parameters begin with: those of the bounds, and of the same as local date-times
_SIDES = ("", "local_")


def _parameters(bounds: Bounds) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(f"{side}{bound}" for side in _SIDES for bound in ("start", "end"))
    for side, (start, end) in zip(_SIDES, bounds, strict=False):
        found |= {f"{side}start": start, f"{side}end": end}
    return found


def _parameter_names(query: str) -> set[str]:
    return {name.removeprefix("local_") for name in re.findall(r"\$(\w+)", query)}


def _check_names(source: _Source, names: Sequence[str], cursor: Cursor) -> None:
    if source.kind == "query" and cursor.column and cursor.column not in names:
        raise ResourceMissing(
            f"the query returns no cursor column '{cursor.column}'.{nearest(cursor.column, names)}",
            hint=f"columns: {', '.join(names)}",
        )


def _records(result: Any, source: _Source, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for record in result:
        values = record.values()
        if source.kind == "query":
            yield _row(dict(zip(names, values, strict=True)))
        else:
            yield _row(_entity_row(values[0]))


class OffsetTime(str):
    """A time with an offset, which the driver gives as the same type as one without."""


def _row(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if type(value).__name__ == "Time" and value.tzinfo is not None:
            values[name] = OffsetTime(value.iso_format())
    return values


def _first(source: _Source) -> tuple[str, ...]:
    return ("_id", "_labels") if source.kind == "nodes" else ("_id", "_start", "_end")


def _entity_row(entity: Any) -> dict[str, Any]:
    """A node or a relationship as a row; a property of the name `_id` stands behind the server's."""
    properties = dict(entity.items())
    if hasattr(entity, "labels"):
        return properties | {"_id": entity.element_id, "_labels": sorted(entity.labels)}
    return properties | {
        "_id": entity.element_id,
        # A node without properties counts as false.
        "_start": None if entity.start_node is None else entity.start_node.element_id,
        "_end": None if entity.end_node is None else entity.end_node.element_id,
    }


# -- the cursor -----------------------------------------------------------------------------------------


def _bounds(cursor: Cursor, config: Config) -> Bounds:
    """(start, end) as values of Cypher; of an instant, a second time as local date-times.

    Raises ConfigError for a text that is none of the cursor's type.
    """
    from zoneinfo import ZoneInfo

    if not cursor.column:
        return [(None, None)]
    found = [_bound(text, cursor) for text in (cursor.start, cursor.end)]
    pairs: list[tuple[Any, Any]] = [(found[0], found[1])]
    if any(_kind(value) == "date-time" for value in found):
        zone = ZoneInfo(config.timezone)
        start, end = (v if v is None else v.astimezone(zone).replace(tzinfo=None) for v in found)
        pairs.append((start, end))
    return pairs


def _bound(text: str | None, cursor: Cursor) -> Any:
    """A bound in PostgreSQL's text form as a value of Cypher."""
    from dwcli.connectors._sqltext import cursor_value

    value = cursor_value(text, cursor.type, cursor)
    if value in ("infinity", "-infinity"):
        raise ConfigError(
            f"the cursor '{cursor.column}' stands at {value}", hint="dw run NAME --full-refresh"
        )
    if cursor.type.startswith("numeric") and value is not None:
        return int(value) if value == int(value) else float(value)
    return value


_KINDS = {
    "int": "number", "float": "number", "str": "text", "bool": "boolean", "Date": "date", "date": "date",
    "Time": "time",
}  # fmt: skip


def _kind(value: Any) -> str:
    """The kind that a value is compared as; a local date-time has no place among those with a zone."""
    if value is None:
        return "null"
    name = type(value).__name__
    if name in ("DateTime", "datetime"):
        return "date-time" if value.tzinfo else "local date-time"
    return _KINDS.get(name, "other")


def _is_within(value: Any, bounds: Bounds) -> bool:
    """Whether a value is read; one that cannot be compared is, and is refused then."""
    kind = _kind(value)
    if hasattr(value, "to_native"):
        # Compared in microseconds, rounded down as the bound was.
        value = value.to_native()
    for start, end in bounds:
        if {_kind(start), _kind(end)} - {"null"} == {kind}:
            return (start is None or value >= start) and (end is None or value < end)
    return True


# -- values ---------------------------------------------------------------------------------------------


def _forms(config: Config) -> Forms:
    """What becomes of each type of Cypher."""
    from neo4j.time import Date, DateTime, Duration, Time

    from dwcli.connectors._documents import Forms, json_form

    def native(value: Any) -> Any:
        return value.to_native()

    def finer(value: Any) -> bool:
        return bool(value.nanosecond % 1000)

    def duration(value: Any, changed: Changed) -> str:
        if value.nanoseconds % 1000:
            changed["nanoseconds cut"] += 1
        return interval(value.months, value.days, value.seconds, value.nanoseconds)

    def clock(value: Any, changed: Changed) -> str:
        if finer(value):
            changed["nanoseconds cut"] += 1
        return str(value.to_native().isoformat())

    text = json_form(_plain)
    cut = "nanoseconds cut"
    return Forms(
        native={
            bool: None,
            int: None,
            float: None,
            str: None,
            bytes: None,
            bytearray: bytes,
            DateTime: native,
            Date: native,
        },
        texts={
            Duration: ("interval", duration),
            Time: ("time", clock),
            OffsetTime: ("timetz", lambda value, changed: str(value)),
        },
        json=lambda value, changed: text(_settled(value), changed),
        inexact={DateTime: (cut, finer)},
        zone=config.timezone,
    )


def interval(months: int, days: int, seconds: int, nanoseconds: int) -> str:
    """A duration as PostgreSQL writes an interval; nanoseconds are cut to microseconds."""
    total = seconds * 1_000_000 + int(nanoseconds / 1000)
    whole, micros = divmod(abs(total), 1_000_000)
    return f"{months} mons {days} days {'-' if total < 0 else ''}{whole}.{micros:06} secs"


def _settled(value: Any) -> Any:
    """A value without points and durations, which are tuples to an encoder."""
    if hasattr(value, "srid"):
        return {"srid": value.srid} | dict(zip("xyz", value, strict=False))
    if hasattr(value, "iso_format"):
        return value.iso_format()
    if type(value) is list:
        return [_settled(item) for item in value]
    return {key: _settled(item) for key, item in value.items()} if type(value) is dict else value


def _plain(value: Any) -> Any:
    """A value inside another, or an entity, as what JSON has."""
    if hasattr(value, "relationships"):
        return {"nodes": list(value.nodes), "relationships": list(value.relationships)}
    if not hasattr(value, "element_id"):
        return value.to_native() if type(value).__name__ == "Vector" else str(value)
    properties = _settled(dict(value.items()))
    if hasattr(value, "labels"):
        return {"id": value.element_id, "labels": sorted(value.labels), "properties": properties}
    ends = {"start": value.start_node, "end": value.end_node}
    ids = {side: None if node is None else node.element_id for side, node in ends.items()}
    return {"id": value.element_id, "type": value.type, **ids, "properties": properties}

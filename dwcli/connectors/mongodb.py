"""MongoDB: a collection, or the documents of one that a filter lets through, streamed from the server.

Each top-level field is a column; nested documents and arrays are jsonb. Documents come as BSON and are
decoded a part at a time, so that memory follows the batch and not the server's replies. A read is no
snapshot: documents that change while it runs are given as they are when the server comes to them.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SecretStr

from dwcli.connectors import driver_missing
from dwcli.connectors._catalog import cursor_candidates
from dwcli.connectors._probe import TIMEOUT_SECONDS, reach
from dwcli.contract import Column, ConnectorConfig, Cursor, CursorCandidate, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConfigError, ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData

if TYPE_CHECKING:
    from dwcli.connectors._documents import Changed, Forms

TITLE = "MongoDB"
ALIASES = ("mongo",)
EXTRA = "mongodb"
STAND_IN = "SecantusDB 0.7 (wire protocol of MongoDB 8.2)"
QUERY = "a collection, or its name and a filter in JSON"
INCREMENTAL = "cursor field"
TYPING = "inferred"
STREAMING = True

#: Documents that tell the fields of a collection.
SAMPLE = 100
#: MongoDB keeps the number of documents; what has to count them first is not waited for.
COUNT_MS = 200
GOODBYE_SECONDS = 1.0
#: Why an ObjectId serves as a cursor
GROWS = "an ObjectId begins with the time it was made: new documents are seen, changed ones are not"

# Error codes: github.com/mongodb/mongo, src/mongo/base/error_codes.yml
UNAUTHORIZED, AUTHENTICATION_FAILED, NAMESPACE_NOT_FOUND, CURSOR_NOT_FOUND = 13, 18, 26, 43
LOST = (6, 7, 89, 91, 175, 189, 237, CURSOR_NOT_FOUND, 9001, 11600, 11601, 11602, 13388, 13435, 13436)

_ADVANCED: Any = {"advanced": True}


class Config(ConnectorConfig):
    """A database of a MongoDB server."""

    host: str = Field("localhost", description="name or address of the server")
    port: int = Field(27017, ge=1, le=65535, description="port of the server")
    database: str = Field(min_length=1, description="name of the database")
    username: str = Field("", description="user that may read it; empty where the server asks for none")
    password: SecretStr = Field(
        SecretStr(""), description="the user's password", json_schema_extra={"needs": "username"}
    )
    auth_source: str = Field("admin", description="database that knows the user", json_schema_extra=_ADVANCED)
    uri: SecretStr = Field(
        SecretStr(""),
        description="connection string, in place of host, port and user",
        json_schema_extra=_ADVANCED,
    )
    tls: bool = Field(False, description="whether TLS is used", json_schema_extra=_ADVANCED)
    tls_ca: Path | None = Field(
        None, description="file with the certificate authority", json_schema_extra=_ADVANCED
    )
    expand: bool = Field(
        True,
        description="whether each top-level field is a column, or all of them one jsonb",
        json_schema_extra=_ADVANCED,
    )
    uuid_representation: Literal["standard", "pythonLegacy", "javaLegacy", "csharpLegacy"] = Field(
        "standard",
        description="how UUIDs were written by old drivers",
        json_schema_extra=_ADVANCED,
    )


@dataclass
class Client:
    """The driver's client, which keeps its own connections, and the database in it."""

    config: Config
    mongo: Any

    @property
    def database(self) -> Any:
        return self.mongo[self.config.database]

    @property
    def where(self) -> str:
        """The server in a message; never its password."""
        config = self.config
        if not config.uri.get_secret_value():
            return f"{config.host}:{config.port}"
        return ", ".join(f"{host}:{port}" for host, port in _nodes(config)) or "the server of uri"


def connect(config: Config) -> Client:
    """Connect and log in. Raises ConnectionFailed with the layer that failed, DriverMissing, ConfigError."""
    try:
        import pymongo
    except ImportError as error:
        raise driver_missing("mongodb", error) from None
    _reach_one(_nodes(config))
    client = Client(config, pymongo.MongoClient(**_arguments(config)))
    try:
        client.mongo.admin.command("ping")
        names = client.database.list_collection_names(authorizedCollections=True)
        if not names:
            _refuse_unknown_database(client)
    except pymongo.errors.PyMongoError as error:
        close(client)
        raise _refused(client, error) from None
    except DwError:
        close(client)
        raise
    return client


def close(client: Client) -> None:
    """Close the connections; a read that is under way ends with ConnectionFailed."""
    import pymongo

    # The driver says goodbye to the server, and looks for it if it has gone.
    with contextlib.suppress(pymongo.errors.PyMongoError), pymongo.timeout(GOODBYE_SECONDS):
        client.mongo.close()


def _nodes(config: Config) -> list[tuple[str, int]]:
    """The servers that the config names. Raises ConfigError, ConnectionFailed where DNS has no answer."""
    import pymongo
    from pymongo.uri_parser import parse_uri

    uri = config.uri.get_secret_value()
    if not uri:
        return [(config.host, config.port)]
    try:
        # The driver's own words quote the string, and the password in it.
        return [(host, port or 27017) for host, port in parse_uri(uri)["nodelist"]]
    except (pymongo.errors.ConfigurationError, OSError) as error:
        if uri.startswith("mongodb+srv://") and not isinstance(error, pymongo.errors.InvalidURI):
            raise ConnectionFailed(
                "the name in uri does not resolve", layer="name", hint="check the spelling of the host in uri"
            ) from None
        raise ConfigError(
            "uri is not a connection string of MongoDB",
            hint="such as mongodb://reader:password@host:27017/; write @ : / in a password as %40 %3A %2F",
        ) from None


def _reach_one(nodes: Sequence[tuple[str, int]]) -> None:
    """See that one of the servers answers; the driver finds the others."""
    failed: ConnectionFailed | None = None
    for host, port in nodes:
        if host.endswith(".sock"):
            return
        try:
            return reach(host, port)
        except ConnectionFailed as error:
            failed = failed or error
    if failed:
        raise failed


def _arguments(config: Config) -> dict[str, Any]:
    milliseconds = int(TIMEOUT_SECONDS * 1000)
    given: dict[str, Any] = {
        "appname": "dw",
        "serverSelectionTimeoutMS": milliseconds,
        "connectTimeoutMS": milliseconds,
    }
    if uri := config.uri.get_secret_value():
        given["host"] = uri
    else:
        given |= {"host": config.host, "port": config.port}
    if config.username:
        given |= {"username": config.username, "password": config.password.get_secret_value()}
        given["authSource"] = config.auth_source
    if config.tls or config.tls_ca:
        given["tls"] = True
        if config.tls_ca:
            if not config.tls_ca.is_file():
                raise ConfigError(f"the certificate file {config.tls_ca} is not there", hint="check tls_ca")
            given["tlsCAFile"] = str(config.tls_ca)
    return given


def _refuse_unknown_database(client: Client) -> None:
    """A database exists from its first document on, so one without collections is a wrong name."""
    import pymongo

    name, known = client.config.database, []
    with contextlib.suppress(pymongo.errors.PyMongoError):
        known = client.mongo.list_database_names()
    if name not in known:
        raise ConnectionFailed(
            f"{client.where} has no database '{name}' that this user may read.{nearest(name, known)}",
            layer="database",
            hint=f"databases: {', '.join(known)}" if known else "check the name and the user's roles",
        )


def _refused(client: Client, error: Exception) -> DwError:
    """Which layer a failed connection belongs to, with what to do about it."""
    import pymongo

    config, where = client.config, client.where
    code = getattr(error, "code", None)
    if code == AUTHENTICATION_FAILED or "uthentication failed" in str(error):
        return ConnectionFailed(
            f"{where} does not let '{config.username or 'the user of uri'}' in",
            layer="login",
            hint="check username, password and auth_source (the database where the user was made)",
        )
    if code == UNAUTHORIZED:
        asked = not config.username and not config.uri.get_secret_value()
        return ConnectionFailed(
            f"{where} shows nothing to a client without a user"
            if asked
            else f"the user may not read '{config.database}'",
            layer="login" if asked else "permission",
            hint="set username and password"
            if asked
            else f"db.grantRolesToUser(…, [{{role: 'read', db: '{config.database}'}}])",
        )
    if isinstance(error, pymongo.errors.ServerSelectionTimeoutError):
        why = str(error).split(", Timeout:")[0]
        if "ssl" in why.lower() or "certificate" in why.lower():
            hint = "set tls_ca to the server's authority"
            return ConnectionFailed(f"no TLS with {where}", layer="tls", why=why, hint=hint)
        if "internal hostnames" in why:
            hint = "a tunnel or NAT: give uri with ?directConnection=true"
            return ConnectionFailed(
                f"{where} names servers that cannot be reached from here", layer="port", why=why, hint=hint
            )
        hint = "check that the port is MongoDB's, and tls: a server with TLS closes plain connections"
        return ConnectionFailed(f"no MongoDB answers on {where}", layer="port", why=why, hint=hint)
    if isinstance(error, pymongo.errors.ConfigurationError):
        return ConfigError("the connection cannot be configured like this", why=str(error))
    return _failed(client, "the catalogue", error)


@contextmanager
def _errors(client: Client, query: str) -> Iterator[None]:
    """The driver's errors in our words."""
    import pymongo

    try:
        yield
    except (pymongo.errors.PyMongoError, OSError) as error:
        raise _failed(client, query, error) from None


def _failed(client: Client, query: str, error: Exception) -> DwError:
    import pymongo

    code = getattr(error, "code", None)
    lost = (pymongo.errors.ConnectionFailure, pymongo.errors.InvalidOperation, OSError)
    if isinstance(error, lost) or code in LOST:
        why = "the server has closed the cursor" if code == CURSOR_NOT_FOUND else _words(error)
        return ConnectionFailed(
            f"the connection to {client.where} broke while reading",
            layer="lost",
            why=why,
            hint="run it again: nothing was committed",
        )
    if code == UNAUTHORIZED:
        return QueryFailed(
            f"the user may not read {query}",
            hint=f"db.grantRolesToUser(…, [{{role: 'read', db: '{client.config.database}'}}])",
        )
    return QueryFailed("the server refused the query", why=_words(error), hint="check the filter in query")


def _words(error: Exception) -> str:
    """The server's words, without the reply that the driver puts behind them."""
    return str(error).split(", full error:")[0]


# -- the catalogue --------------------------------------------------------------------------------------


def discover(client: Client) -> Iterator[Resource]:
    """Every collection and view, by name. Fields are those of the first documents."""
    with _errors(client, "the catalogue"):
        entries = _collections(client)
    for name, kind in sorted(entries.items()):
        with _errors(client, name):
            resource = _resource(client, name, kind)
        yield resource


def describe(client: Client, query: str) -> Resource:
    """Fields of the first documents, key, cursor candidates and estimates.

    Raises ResourceMissing, QueryFailed, ConnectionFailed.
    """
    with _errors(client, query):
        source = _source(client, query)
        if not source.filter:
            return _resource(client, source.name, _collections(client)[source.name])
        columns, _ = _sampled(client, source)
        return Resource(query, columns, ("_id",), "unique in MongoDB", kind="query")


def estimate(client: Client, query: str) -> tuple[int | None, None]:
    """How many documents the collection has by the server's own count. Raises as `describe` does."""
    import pymongo

    with _errors(client, query):
        source = _source(client, query)
        if source.filter or _collections(client)[source.name] != "table":
            return None, None
        try:
            return client.database[source.name].estimated_document_count(maxTimeMS=COUNT_MS), None
        except pymongo.errors.ExecutionTimeout:
            return None, None


def _collections(client: Client) -> dict[str, str]:
    """Names and kinds; `system.` collections are the server's own."""
    found = client.database.list_collections(authorizedCollections=True, nameOnly=True)
    return {
        entry["name"]: "view" if entry.get("type") == "view" else "table"
        for entry in found
        if not entry["name"].startswith("system.")
    }


def _resource(client: Client, name: str, kind: str) -> Resource:
    columns, ids = _sampled(client, _Source(name, {}))
    rows, size = _statistics(client, name) if kind == "table" else (None, None)
    indexed = _leading_fields(client, name) if kind == "table" else frozenset[str]()
    key = ("_id",) if kind == "table" or any(c.name == "_id" for c in columns) else ()
    candidates = list(cursor_candidates(columns, (), indexed))
    if ids == {"ObjectId"}:
        candidates.append(CursorCandidate("_id", GROWS, append_only=True))
    reason = "unique in MongoDB" if kind == "table" else "named _id in the view"
    return Resource(name, columns, key, reason if key else "", rows, size, tuple(candidates), kind)


def _sampled(client: Client, source: _Source) -> tuple[tuple[Column, ...], set[str]]:
    """The fields of the first documents as columns, and the types of their `_id`."""
    from dwcli.connectors._documents import document_items

    config = client.config
    changed: Changed = Counter()
    replies = _found(client, source, {}, None).limit(SAMPLE)
    documents = [d for chunk in _decoded(replies, config, changed) for d in chunk]
    ids = {type(document.get("_id")).__name__ for document in documents}
    rows = [_as_one(document) for document in documents] if not config.expand else documents
    types: dict[str, str] = {}
    names: list[str] = []
    for item in document_items([rows] if rows else [], _forms(config), config.batch_bytes, ("_id",)):
        types |= item.types
        names = list(getattr(item.payload, "columns", names))
    return tuple(Column(name, types.get(name, "text"), name != "_id") for name in names), ids


def _statistics(client: Client, name: str) -> tuple[int | None, int | None]:
    """Documents and bytes, where the server tells them."""
    import pymongo

    try:
        found = client.database.command("collStats", name)
    except pymongo.errors.OperationFailure:
        return None, None
    rows, size = found.get("count"), found.get("size")
    return int(rows) if rows is not None else None, int(size) if size is not None else None


def _leading_fields(client: Client, name: str) -> frozenset[str]:
    """Fields by which an index finds every document; a partial or sparse one leaves some out."""
    import pymongo

    try:
        indexes = client.database[name].index_information().values()
    except pymongo.errors.OperationFailure:
        return frozenset()
    return frozenset(
        index["key"][0][0]
        for index in indexes
        if not index.get("sparse") and "partialFilterExpression" not in index
    )


# -- reading --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What is read: a collection, and the filter that its documents pass."""

    name: str
    filter: Mapping[str, Any]


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Stream a collection in batches of about `batch_bytes`.

    query: the name of a collection, or the name and a filter in extended JSON. Documents without the
    cursor field, or with null in it, are always among them. Raises ResourceMissing, QueryFailed,
    SourceData for a cursor field of several types, and ConnectionFailed with layer `lost` when the
    connection or the server's cursor is lost.
    """
    yield from _read(client, query, cursor, ())


def keys(client: Client, query: str, key: Sequence[str]) -> Iterator[IngestedItem]:
    """The fields of the key of every document, in batches of about `batch_bytes`. Raises as `read` does."""
    yield from _read(client, query, Cursor(), key)


def _read(client: Client, query: str, cursor: Cursor, only: Sequence[str]) -> Iterator[IngestedItem]:
    import pymongo

    from dwcli.connectors._documents import document_items, of_one_kind

    config = client.config
    changed: Changed = Counter()
    with _errors(client, query):
        source = _source(client, query)
        within, asked = _within(client, source, cursor)
        replies = _found(client, source, within, _projection(only))
        documents: Iterable[Sequence[Mapping[str, Any]]] = _decoded(replies, config, changed)
        if cursor.column:
            documents = of_one_kind(documents, cursor.column, _kind, asked)
        if only:
            documents = ([{n: d.get(n) for n in only} for d in chunk] for chunk in documents)
        elif not config.expand:
            documents = ([_as_one(d, cursor.column) for d in chunk] for chunk in documents)
        first = only or (("_id",) if config.expand else ("_id", "document"))
        hint = "set expand: false, so that each document is one jsonb"
        try:
            yield from document_items(documents, _forms(config), config.batch_bytes, first, changed, hint)
        finally:
            with contextlib.suppress(pymongo.errors.PyMongoError), pymongo.timeout(GOODBYE_SECONDS):
                replies.close()


def _as_one(document: Mapping[str, Any], cursor: str = "") -> dict[str, Any]:
    row = {"_id": document.get("_id"), "document": document}
    if cursor and cursor not in row:
        row[cursor] = document.get(cursor)
    return row


def _source(client: Client, query: str) -> _Source:
    """The collection and the filter. Raises ResourceMissing, QueryFailed for what is no JSON."""
    known = _collections(client)
    name = query if query in known else query.strip()
    given: Mapping[str, Any] = {}
    if name not in known and "{" in query:
        name, brace, text = query.partition("{")
        name, given = name.strip(), _filter(brace + text)
    if name not in known:
        raise ResourceMissing(
            f"the database '{client.config.database}' has no collection '{name}'.{nearest(name, known)}",
            hint='name a collection, or a collection and a filter: orders {"status": "paid"}',
        )
    return _Source(name, given)


def _filter(text: str) -> Mapping[str, Any]:
    """A filter in extended JSON. Raises QueryFailed."""
    from bson import json_util
    from bson.errors import BSONError

    try:
        found = json_util.loads(text)
    except json.JSONDecodeError as error:
        raise QueryFailed(
            "the filter in query is not JSON",
            why=f"{error.msg} at character {error.pos + 1} of the filter",
            hint='names and texts stand in double quotes: orders {"status": "paid"}',
        ) from None
    except (BSONError, TypeError, ValueError) as error:
        raise QueryFailed(
            "the filter in query is no extended JSON",
            why=str(error),
            hint='dates are written {"$date": "2024-01-01T00:00:00Z"}, ids {"$oid": "…"}',
        ) from None
    if not isinstance(found, Mapping):
        raise QueryFailed("the filter in query is not one document", hint='orders {"status": "paid"}')
    return found


def _projection(only: Sequence[str]) -> dict[str, int] | None:
    """Fields that the server sends; a name with a dot or a dollar would mean something else to it."""
    if not only or any("." in name or name.startswith("$") for name in only):
        return None
    return dict.fromkeys(only, 1) | ({} if "_id" in only else {"_id": 0})


def _found(client: Client, source: _Source, within: Mapping[str, Any], projection: Any) -> Any:
    """The server's replies, each the BSON of at most 16 MB of documents."""
    parts = [part for part in (source.filter, within) if part]
    return client.database[source.name].find_raw_batches(
        {"$and": parts} if len(parts) > 1 else dict(*parts), projection
    )


def _decoded(replies: Iterable[bytes], config: Config, changed: Changed) -> Iterator[list[dict[str, Any]]]:
    """Documents in chunks of some bytes. Raises SourceData for what is no BSON."""
    import bson
    from bson.binary import UuidRepresentation
    from bson.codec_options import CodecOptions, DatetimeConversion

    from dwcli.connectors._documents import CHUNK_ROWS

    # A date that Python has not comes as DatetimeMS.
    options: CodecOptions[dict[str, Any]] = CodecOptions(
        tz_aware=True,
        uuid_representation=getattr(
            UuidRepresentation, config.uuid_representation.replace("Legacy", "_LEGACY").upper()
        ),
        datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    )
    lenient = options.with_options(unicode_decode_error_handler="replace")
    limit = config.batch_bytes // 4
    for reply in replies:
        start = end = count = 0
        while end < len(reply):
            end += int.from_bytes(reply[end : end + 4], "little")
            count += 1
            if count < CHUNK_ROWS and end - start < limit and end < len(reply):
                continue
            part = reply[start:end]
            start, count = end, 0
            try:
                yield bson.decode_all(part, options)
            except bson.errors.InvalidBSON:
                yield _mended(part, options, lenient, changed)


def _mended(part: bytes, options: Any, lenient: Any, changed: Changed) -> list[dict[str, Any]]:
    """Documents of which one holds a text that is no UTF-8, as old drivers let through."""
    import bson

    found: list[dict[str, Any]] = []
    start = 0
    while start < len(part):
        end = start + int.from_bytes(part[start : start + 4], "little")
        try:
            found += bson.decode_all(part[start:end], options)
        except bson.errors.InvalidBSON:
            try:
                found += bson.decode_all(part[start:end], lenient)
            except bson.errors.InvalidBSON as error:
                raise SourceData("a document cannot be decoded", why=str(error)) from None
            changed["document: text that is no UTF-8 → U+FFFD"] += 1
        start = end
    return found


# -- the cursor -----------------------------------------------------------------------------------------

#: Types that MongoDB compares with one another; a range finds values of its bound's kind alone.
_ALIASES = {
    "number": ("int", "long", "double", "decimal"),
    "string": ("string",),
    "objectId": ("objectId",),
    "date": ("date",),
    "binData": ("binData",),
    "bool": ("bool",),
    "other": ("object", "array", "regex", "javascript", "timestamp", "minKey", "maxKey"),
}


def _kind(value: Any) -> str:
    """The kind that a value is compared as; `null` for one that has none."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    name = type(value).__name__
    kinds = {
        "int": "number", "Int64": "number", "float": "number", "Decimal128": "number", "str": "string",
        "ObjectId": "objectId", "datetime": "date", "DatetimeMS": "date", "UUID": "binData",
        "bytes": "binData", "Binary": "binData",
    }  # fmt: skip
    return kinds.get(name, "other")


def _within(client: Client, source: _Source, cursor: Cursor) -> tuple[dict[str, Any], set[str]]:
    """The filter from `start` (inclusive) to `end` (exclusive), and documents without a value.

    Second, the kinds of value that the range finds.

    Documents whose value is of another kind come as well: `of_one_kind` refuses them, where a range
    would leave them out without a word. Each part of the filter can use the field's index.
    """
    if not cursor.column or (cursor.start is None and cursor.end is None):
        return {}, set()
    column = cursor.column
    parts: list[dict[str, Any]] = []
    if "." in column or column.startswith("$"):
        raise QueryFailed(
            f"'{column}' cannot be a cursor: MongoDB reads its name as a path",
            hint="choose a field without a dot or dollar in its name",
        )
    bounds = _bounds(client, source, cursor)
    for lowest, end in bounds:
        limits = {"$gte": lowest, "$lt": end}
        parts.append({column: {operator: v for operator, v in limits.items() if v is not None}})
    asked = {_kind(value) for bound in bounds for value in bound} - {"null"}
    parts.append({column: None})
    others = [alias for kind, aliases in _ALIASES.items() if kind not in asked for alias in aliases]
    parts.append({column: {"$type": others}})
    return {"$or": parts}, asked


def _bounds(client: Client, source: _Source, cursor: Cursor) -> list[tuple[Any, Any]]:
    """Pairs of (start, end) as values of MongoDB; two where a text may be an ObjectId or a string."""
    kind = cursor.type.split("(")[0] or _sampled_kind(client, source, cursor.column)
    start, end = cursor.start, cursor.end
    if kind == "text":
        from bson import ObjectId

        texts = [text for text in (start, end) if text is not None]
        pairs: list[tuple[Any, Any]] = [(start, end)]
        if all(ObjectId.is_valid(text) and len(text) == 24 for text in texts):
            pairs.append((start and ObjectId(start), end and ObjectId(end)))
        return pairs
    try:
        return [(_bound(start, kind, False), _bound(end, kind, True))]
    except (ValueError, ArithmeticError):
        raise ConfigError(
            f"the cursor '{cursor.column}' stands at a value that is not a {kind}",
            hint="read everything again: dw run NAME --full-refresh",
        ) from None


def _sampled_kind(client: Client, source: _Source, column: str) -> str:
    """The PostgreSQL type of a field, by the first document that has it."""
    for found in _sampled(client, _Source(source.name, {"$and": [source.filter, {column: {"$ne": None}}]}))[
        0
    ]:
        if found.name == column:
            return found.type
    return "text"


def _bound(text: str | None, kind: str, up: bool) -> Any:
    """A bound in PostgreSQL's text form as MongoDB's value. up: dates are rounded up, not down."""
    from bson.binary import Binary
    from bson.datetime_ms import DatetimeMS
    from bson.decimal128 import Decimal128, create_decimal128_context

    from dwcli.connectors._documents import instant_microseconds

    if text is None:
        return None
    match kind:
        case "timestamptz" | "timestamp" | "date":
            if text in ("infinity", "-infinity"):
                return DatetimeMS(2**63 - 1 if text == "infinity" else -(2**63))
            micros = instant_microseconds(text)
            if micros is None:
                raise ValueError(text)
            return DatetimeMS(-(-micros // 1000) if up else micros // 1000)
        case "bigint" if -(2**63) <= int(text) < 2**63:
            from bson.int64 import Int64

            return Int64(text)
        case "double precision":
            return float(text)
        case "numeric" | "bigint":
            # A double that PostgreSQL shows as 0.3 is a little less than 0.3: the lesser of both finds it.
            value = Decimal(text)
            nearest_double = float(value)
            if value.is_finite() and abs(value) < 2**1023 and Decimal(nearest_double) < value:
                return nearest_double
            with localcontext(create_decimal128_context()):
                return Decimal128(+value)
        case "uuid":
            from uuid import UUID

            return Binary.from_uuid(UUID(text))
        case "boolean":
            return text in ("true", "t")
    raise ConfigError(
        f"a field of type {kind} cannot be a cursor", hint="choose a date, a number, a text or _id"
    )


# -- values ---------------------------------------------------------------------------------------------


def _forms(config: Config) -> Forms:
    """What becomes of each type of BSON."""
    import datetime
    from uuid import UUID

    from bson.binary import Binary
    from bson.datetime_ms import DatetimeMS
    from bson.decimal128 import Decimal128
    from bson.int64 import Int64
    from bson.objectid import ObjectId

    from dwcli.connectors._documents import Forms, instant_text, json_form

    def instant(value: Any, changed: Changed) -> str:
        return instant_text(int(value), changed)

    return Forms(
        native={
            bool: None,
            int: None,
            Int64: int,
            float: None,
            str: None,
            datetime.datetime: None,
            UUID: None,
            bytes: None,
            Binary: bytes,
            ObjectId: str,
            Decimal128: _decimal,
        },
        texts={DatetimeMS: ("timestamptz", instant)},
        json=json_form(_plain),
    )


def _decimal(value: Any) -> Decimal:
    """A Decimal128 with every digit; the driver's own way takes ten times as long.

    The 16 bytes are a sign, 14 bits of exponent and 113 of coefficient (IEEE 754-2008, binary integer
    decimal); two bits set at the exponent's head mark what is no plain number.
    """
    low, high = struct.unpack("<QQ", value.bid)
    coefficient = (high & (1 << 49) - 1) << 64 | low
    if high >> 61 & 3 == 3 or coefficient >= 10**34:
        found: Decimal = value.to_decimal()
        return Decimal("NaN") if found.is_nan() else found
    return Decimal(f"{'-' if high >> 63 else ''}{coefficient}E{(high >> 49 & 0x3FFF) - 6176}")


def _plain(value: Any) -> Any:
    """A value inside a document in the form that JSON has for it; the rest in MongoDB's extended JSON."""
    match type(value).__name__:
        case "ObjectId":
            return str(value)
        case "Int64":
            return int(value)
        case "Decimal128":
            return _decimal(value)
        case "DatetimeMS":
            return _iso(int(value))
        case "Binary":
            return bytes(value)
        case "DBRef":
            return dict(value.as_doc())
        case "Regex":
            flags = "".join(letter for letter, flag in _REGEX_FLAGS if value.flags & flag)
            return {"$regularExpression": {"pattern": value.pattern, "options": flags}}
        case "Timestamp":
            return {"$timestamp": {"t": value.time, "i": value.inc}}
        case "Code":
            scope = {} if value.scope is None else {"$scope": value.scope}
            return {"$code": str(value)} | scope
        case "MinKey" | "MaxKey":
            return {f"${type(value).__name__[0].lower()}{type(value).__name__[1:]}": 1}
    return str(value)


_REGEX_FLAGS = (("i", 2), ("l", 4), ("m", 8), ("s", 16), ("u", 32), ("x", 64))


def _iso(milliseconds: int) -> str:
    """An instant that Python has not, as in JSON: ISO 8601 with a signed year where it must."""
    from dwcli.connectors._documents import OUT_OF_RANGE, instant_text

    changed: Changed = Counter()
    text = instant_text(milliseconds, changed)
    return str(milliseconds) if changed[OUT_OF_RANGE] else text

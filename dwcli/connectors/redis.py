"""Redis streams: entries after the last one that was committed, in order.

The id of an entry is its place in the stream, so what was committed is never read again, and nothing is
left behind: entries that were trimmed before they were read are an error. With a consumer group the
group's other members are given other entries, and what was read is acknowledged after the COMMIT.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr

from dwcli.connectors import driver_missing
from dwcli.connectors._messages import (
    Message,
    MessageFields,
    Shape,
    assembled,
    item_of,
    plain_metadata,
    read_entries,
    resource_of,
    text_fields,
    times_of,
)
from dwcli.connectors._probe import reach
from dwcli.connectors._rows import Filled
from dwcli.contract import LOCAL_PATH, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData
from dwcli.log import get_logger

TITLE = "Redis streams"
ALIASES = ("redis_streams", "valkey")
TRIED = "Redis 7.0"
QUERY = "the key of a stream"
INCREMENTAL = "entry id"
TYPING = "inferred"
STREAMING = True
#: With this field set, what has been acknowledged is not given again.
FORGETS = "group"

TIMEOUT_SECONDS = 30.0
#: Entries that are read or acknowledged with one command.
PAGE = 1000
#: Entries of the first reply; the number doubles, so that a few wide ones are noticed before many.
FIRST_ENTRIES = 8
#: What the server's clock may differ from itself between two commands, in milliseconds.
CLOCK_MS = 5

#: Memory of one entry beside its fields' bytes.
ENTRY_BYTES = 300

Place = tuple[int, int]
#: An entry as the server sends it: its id; names and values of its fields in turn.
Entry = tuple[bytes, list[bytes]]
log = get_logger(__name__)


class Config(MessageFields, ConnectorConfig):
    """Streams of a Redis server."""

    host: str = Field(description="name or address of the server")
    port: int = Field(6379, ge=1, le=65535, description="port of the server")
    database: int = Field(0, ge=0, description="number of the database")
    username: str = Field("", description="user that may read the streams, where the server has users")
    password: SecretStr = Field(SecretStr(""), description="the user's password, or the server's")
    group: str = Field(
        "",
        description="consumer group to read as; without one every entry is read",
        json_schema_extra={"advanced": True},
    )
    consumer: str = Field(
        "dw", description="name within the consumer group", json_schema_extra={"advanced": True}
    )
    on_gap: Literal["stop", "continue"] = Field(
        "stop",
        description="what happens when entries were trimmed before they were read",
        json_schema_extra={"advanced": True},
    )
    tls: bool = Field(False, description="whether to connect with TLS", json_schema_extra={"advanced": True})
    tls_ca: Path | None = Field(
        None,
        description="file with the certificate authority",
        json_schema_extra={"advanced": True, **LOCAL_PATH},
    )


@dataclass
class Client:
    """A connection. It is used by one thread at a time: the read, then the acknowledgement."""

    config: Config
    server: Any


def connect(config: Config) -> Client:
    """Connect and log in. Raises ConnectionFailed with the layer that failed, DriverMissing."""
    reach(config.host, config.port)
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise driver_missing("redis", error) from None
    server = redis.Redis(
        host=config.host,
        port=config.port,
        db=config.database,
        username=config.username or None,
        password=config.password.get_secret_value() or None,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        # A command that is sent again on its own would take entries of a group that nobody reads.
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        ssl=config.tls,
        ssl_ca_certs=str(config.tls_ca) if config.tls_ca else None,
        client_name="dw",
    )
    # The driver makes a dict of each entry; columns are made of the fields as they come.
    for command in ("XRANGE", "XREADGROUP"):
        server.set_response_callback(command, lambda answer: answer)
    try:
        server.ping()
    except (redis.RedisError, OSError) as error:
        server.close()
        raise _refused(config, error) from None
    return Client(config, server)


def close(client: Client) -> None:
    """Close the connection; a read that is under way ends with ConnectionFailed."""
    with contextlib.suppress(Exception):
        client.server.connection_pool.disconnect(inuse_connections=True)
        client.server.close()


def _refused(config: Config, error: Exception) -> ConnectionFailed:
    """Which layer a failed login belongs to, with what to do about it."""
    import redis

    where, why = f"{config.host}:{config.port}", str(error)
    if "SSL" in why or "certificate" in why.lower() or (config.tls and isinstance(error, redis.TimeoutError)):
        hint = "set tls_ca to the server's authority, or tls: false where it speaks plain text"
        return ConnectionFailed(f"no TLS with {where}", layer="tls", why=why, hint=hint)
    if isinstance(error, redis.AuthenticationError) or why.startswith(("WRONGPASS", "NOAUTH")):
        hint = "check username and password"
        return ConnectionFailed(f"{where} does not let you in", layer="login", why=why, hint=hint)
    if isinstance(error, redis.exceptions.NoPermissionError) or why.startswith("NOPERM"):
        hint = "ACL SETUSER … +ping +info +scan +type +xinfo +xrange +multi +exec"
        message = f"'{config.username}' may not use {where}"
        return ConnectionFailed(message, layer="permission", why=why, hint=hint)
    if "DB index" in why:
        hint = "check the number of the database: most servers have 0 to 15"
        message = f"{where} has no database {config.database}"
        return ConnectionFailed(message, layer="database", why=why, hint=hint)
    return ConnectionFailed(
        f"no Redis answers on {where}", layer="port", why=why, hint="check that the port is Redis's"
    )


@contextmanager
def _errors(client: Client, stream: str) -> Iterator[None]:
    """The driver's errors in our words."""
    import redis

    config = client.config
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        raise ConnectionFailed(
            f"the connection to {config.host}:{config.port} broke while reading {stream}",
            layer="lost",
            why=str(error),
            hint="run it again: nothing was committed",
        ) from None
    except redis.RedisError as error:
        raise _failed(config, stream, error) from None


def _failed(config: Config, stream: str, error: Exception) -> DwError:
    why = str(error)
    if why.startswith("NOGROUP"):
        message = f"'{stream}' has no consumer group '{config.group}'"
        return ResourceMissing(message, hint=f"XGROUP CREATE {stream} {config.group} 0")
    if "NOPERM" in why or "no permissions" in why:
        hint = f"ACL SETUSER {config.username or 'default'} ~{stream} +type +xinfo +xrange +multi +exec"
        return QueryFailed(f"the user may not read '{stream}'", why=why, hint=hint)
    return QueryFailed(f"the server refused to read '{stream}'", why=why)


# -- what there is --------------------------------------------------------------------------------------


def discover(client: Client) -> Iterator[Resource]:
    """Every stream of the database, by name."""
    with _errors(client, "the list of streams"):
        names = sorted({_text(name) for name in client.server.scan_iter(count=1000, _type="stream")})
    for name in names:
        yield describe(client, name)


def describe(client: Client, query: str) -> Resource:
    """One stream: how many entries it holds. Raises ResourceMissing."""
    length = _stream(client, query).length
    return resource_of(_shape(client.config, query), "stream", "the id of an entry in its stream", length)


def _shape(config: Config, stream: str) -> Shape:
    return Shape("redis", stream, {"entry_id": "text"}, expand=config.expand)


@dataclass(frozen=True)
class _Stream:
    """What XINFO STREAM tells. Ids are (milliseconds, number)."""

    length: int
    first: Place
    last: Place
    #: entries that were ever added; None before Redis 7
    added: int | None


def _stream(client: Client, name: str) -> _Stream:
    """What the server tells of a stream. Raises ResourceMissing."""
    with _errors(client, name):
        kind = _text(client.server.type(name))
        if kind != "stream":
            raise _missing(client, name, kind)
        return _told(client.server.xinfo_stream(name))


def _told(info: dict[str, Any]) -> _Stream:
    first = info.get("first-entry")
    return _Stream(
        length=int(info["length"]),
        first=_place(first[0]) if first else (0, 0),
        last=_place(info["last-generated-id"]),
        added=int(info["entries-added"]) if "entries-added" in info else None,
    )


def _missing(client: Client, name: str, kind: str) -> ResourceMissing:
    if kind != "none":
        return ResourceMissing(f"'{name}' is a {kind}, no stream", hint="name a stream")
    known = [_text(key) for key in client.server.scan_iter(count=1000, _type="stream")]
    return ResourceMissing(
        f"database {client.config.database} has no stream '{name}'.{nearest(name, known)}",
        hint="dw add-source lists the streams there are",
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _place(id: Any) -> Place:
    """`1526919030474-55` as numbers, which compare as the server compares."""
    milliseconds, _, number = _text(id).partition("-")
    return int(milliseconds), int(number or 0)


def _id(place: Place) -> str:
    return f"{place[0]}-{place[1]}"


# -- reading --------------------------------------------------------------------------------------------


@dataclass
class _Reading:
    """How far a read has come. `added`: entries of the stream up to `last`, where that is known."""

    client: Client
    stream: str
    end: Place
    last: Place = (0, 0)
    added: int | None = None
    #: group: what an earlier run was given and did not commit is given first, up to here
    owed: Place | None = (0, 0)
    #: group: the last new entry
    new: Place = (0, 0)
    #: the most that is asked for at once
    most: int = FIRST_ENTRIES


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Entries behind the position, up to the last one there is now.

    Raises ResourceMissing, SourceData where entries were trimmed unread, ConnectionFailed (lost).
    """
    config = client.config
    stream = _stream(client, query)
    before = cursor.position if isinstance(cursor.position, dict) else {}
    if (before.get("stream"), before.get("group", "")) != (query, config.group):
        before = {}
    reading = _Reading(client, query, stream.last)
    if before:
        reading.last, reading.added = _place(before["id"]), before.get("added")
        if stream.last < reading.last:
            raise SourceData(
                f"'{query}' ends at {_id(stream.last)}, before {before['id']}, which has been loaded",
                why="the stream was deleted and made again, or the server was restored from a backup",
                hint="give the stream another pipeline, or read it anew with --full-refresh",
            )
    elif stream.added is not None:
        reading.added = stream.added - stream.length
    fetch = _next_of_group if config.group else _next
    if config.group and before:
        with _errors(client, query):
            _confirm(client, before)
    shape = _shape(config, query)
    yield from read_entries(
        query,
        config,
        lambda wanted, seconds: fetch(reading, _bounded(reading, wanted)),
        _weight,
        lambda entries, position: _item(shape, entries, position),
        lambda: _position(reading),
        config.batch_bytes,
        first=not before,
    )


def _position(reading: _Reading) -> dict[str, Any] | None:
    if reading.last == (0, 0):
        return None
    place: dict[str, Any] = {"stream": reading.stream, "id": _id(reading.last), "added": reading.added}
    group = reading.client.config.group
    if group:
        with _errors(reading.client, reading.stream):
            now = _now(reading.client.server.time())
        upto = reading.last if reading.owed is None else reading.owed
        place |= {"group": group, "read_ms": now, "acknowledge": _id(upto)}
    return place


def _bounded(reading: _Reading, wanted: int) -> int:
    """How many entries to ask for: the protocol bounds a reply by their number alone."""
    most, reading.most = reading.most, min(2 * reading.most, PAGE)
    return min(wanted, most)


def _now(time: Sequence[int]) -> int:
    """The server's TIME in milliseconds."""
    return int(time[0]) * 1000 + int(time[1]) // 1000


def _next(reading: _Reading, wanted: int) -> list[Entry] | None:
    """The next entries, and in the same moment a look whether any before them are gone."""
    if reading.last >= reading.end:
        return None
    with _errors(reading.client, reading.stream):
        both = reading.client.server.pipeline(transaction=True)
        both.xinfo_stream(reading.stream)
        both.xrange(reading.stream, f"({_id(reading.last)}", _id(reading.end), count=wanted)
        info, entries = both.execute()
    stream = _told(info)
    _check_gap(reading, stream)
    if not entries:
        reading.last = reading.end
        reading.added = stream.added if stream.last == reading.end else None
        return None
    reading.last = _place(entries[-1][0])
    if reading.last == stream.last:
        reading.added = stream.added
    elif reading.added is not None:
        reading.added += len(entries)
    found: list[Entry] = entries
    return found


def _check_gap(reading: _Reading, stream: _Stream) -> None:
    """Raise SourceData where entries behind `reading.last` were trimmed.

    Trimming takes the oldest entries. As long as one that was read is still there, none behind it can
    be gone. Else it is counted: what was added since, less what is there.
    """
    if reading.last == (0, 0) or stream.last == reading.last:
        return
    if stream.length and stream.first <= reading.last:
        return
    missing = None
    if stream.added is not None and reading.added is not None:
        missing = stream.added - reading.added - stream.length
        if missing <= 0:
            return
    many = f"{missing:,}" if missing is not None else "an unknown number of"
    told = f"'{reading.stream}': {many} entries behind {_id(reading.last)} were trimmed or deleted unread"
    if reading.client.config.on_gap == "stop":
        raise SourceData(
            told,
            why=f"the oldest entry that is left is {_id(stream.first)}" if stream.length else "",
            hint="on_gap: continue goes on with what is left; a larger MAXLEN prevents it",
        )
    log.warning("%s; on_gap: continue goes on behind them", told)
    reading.added = None if stream.added is None else stream.added - stream.length


def _next_of_group(reading: _Reading, wanted: int) -> list[Entry] | None:
    """Entries that an earlier run was given and did not commit, then new ones."""
    config, server = reading.client.config, reading.client.server
    while True:
        if reading.owed is None and reading.new >= reading.end:
            return None
        start = ">" if reading.owed is None else _id(reading.owed)
        with _errors(reading.client, reading.stream):
            answer = server.xreadgroup(config.group, config.consumer, {reading.stream: start}, count=wanted)
            entries = answer[0][1] if answer else []
            gone = [id for id, fields in entries if not fields]
            if gone:
                # Deleted after they had been given to a run that did not commit them.
                server.xack(reading.stream, config.group, *gone)
        if entries:
            reached = _place(entries[-1][0])
            reading.last = max(reading.last, reached)
            if reading.owed is None:
                reading.new = reached
            else:
                reading.owed = reached
            found = [entry for entry in entries if entry[1]]
            if found:
                return found
        elif reading.owed is not None:
            reading.owed = None
        else:
            return None


def _weight(entries: Sequence[Entry]) -> int:
    """About how many bytes entries take as rows: in the payload, and in a column for each field."""
    content = sum(map(len, chain.from_iterable(fields for _, fields in entries)))
    return 2 * content + ENTRY_BYTES * len(entries)


def _item(shape: Shape, entries: Sequence[Entry], position: Any) -> IngestedItem:
    return _alike(shape, entries, position) or item_of(shape, list(map(_message, entries)), position)


def _alike(shape: Shape, entries: Sequence[Entry], position: Any) -> IngestedItem | None:
    """Entries with the same fields, all of them text, column by column. None for any other."""
    import polars as pl
    import pyarrow as pa

    if not entries:
        return None
    names = entries[0][1][::2]
    if len(set(names)) < len(names) or any(fields[::2] != names for _, fields in entries):
        return None
    values = list(zip(*(fields for _, fields in entries), strict=True))[1::2]
    try:
        keys = list(map(_name, names))
        texts = [pa.array(column, pa.binary()).cast(pa.string()) for column in values]
        ids = pl.Series(values=[id for id, _ in entries], dtype=pl.Binary).cast(pl.String)
        milliseconds = ids.str.split_exact("-", 1).struct.field("field_0").cast(pl.Int64)
    except (UnicodeDecodeError, pa.ArrowInvalid, pl.exceptions.PolarsError):
        return None
    times = times_of(milliseconds)
    decoded = text_fields(shape, dict(zip(keys, texts, strict=True)))
    if times is None or decoded is None:
        return None
    identity = {"entry_id": Filled(ids, "text")}
    return assembled(shape, len(entries), identity, times, plain_metadata(len(entries)), decoded, position)


def _message(entry: Entry) -> Message:
    id, fields = entry[0].decode(), dict(zip(entry[1][::2], entry[1][1::2], strict=True))
    try:
        texts = dict(zip(map(_name, fields), map(bytes.decode, fields.values()), strict=True))
        binary: list[str] = []
    except UnicodeDecodeError:
        texts, binary = _with_base64(fields)
    told = {"base64": binary} if binary else {}
    milliseconds = int(id.partition("-")[0])
    return Message(_encoder().encode(texts), (id,), event_time=milliseconds * 1000, metadata=told)


def _with_base64(fields: dict[bytes, bytes]) -> tuple[dict[str, str], list[str]]:
    """The fields as texts, and the names of those that are no UTF-8."""
    texts: dict[str, str] = {}
    binary: list[str] = []
    for name, value in fields.items():
        key = _text(name)
        try:
            texts[key] = value.decode()
        except UnicodeDecodeError:
            texts[key] = base64.b64encode(value).decode()
            binary.append(key)
    return texts, binary


@lru_cache(1_000)
def _name(name: bytes) -> str:
    """A field's name: entries of a stream have the same ones."""
    return name.decode()


@cache
def _encoder() -> Any:
    import msgspec

    return msgspec.json.Encoder()


# -- acknowledging --------------------------------------------------------------------------------------


def acknowledge(client: Client, position: Any) -> None:
    """Tell the consumer group that what was read is committed. Without a group there is nothing to tell.

    An error is logged alone: the next run acknowledges again, by the same position.
    """
    if not isinstance(position, dict) or not position.get("group"):
        return
    try:
        with _errors(client, position["stream"]):
            _confirm(client, position)
    except DwError as error:
        log.warning("not acknowledged, the next run will do it: %s", error)


def _confirm(client: Client, position: dict[str, Any]) -> None:
    """XACK the entries that this consumer had been given when the read of `position` ended."""
    stream, group, server = position["stream"], position.get("group"), client.server
    if group != client.config.group:
        return
    start = "-"
    while True:
        both = server.pipeline(transaction=True)
        both.time()
        both.xpending_range(
            stream,
            group,
            min=start,
            max=position["acknowledge"],
            count=PAGE,
            consumername=client.config.consumer,
        )
        time, entries = both.execute()
        # One that was claimed from another consumer since then was not read: it stays.
        latest = position["read_ms"] + CLOCK_MS
        read = [
            entry["message_id"] for entry in entries if _now(time) - entry["time_since_delivered"] <= latest
        ]
        if read:
            server.xack(stream, group, *read)
        if len(entries) < PAGE:
            return
        start = f"({_text(entries[-1]['message_id'])}"

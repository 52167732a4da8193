"""NATS JetStream: messages behind the last sequence that was committed, in order.

A stream numbers its messages, so the number of the last one is the whole position, and what retention
took before it was read is noticed. With a durable consumer the server keeps the place instead: messages
are acknowledged after the COMMIT, and those of a run that died come again.

The driver is asyncio's. It runs in a thread of its own, which also answers the server's pings while a
load takes long.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from dwcli.connectors import driver_missing
from dwcli.connectors._messages import (
    Message,
    MessageFields,
    Shape,
    ValueFormat,
    header_text,
    read_messages,
    resource_of,
)
from dwcli.connectors._probe import reach
from dwcli.contract import LOCAL_PATH, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData
from dwcli.log import get_logger

TITLE = "NATS JetStream"
ALIASES = ("jetstream",)
TRIED = "NATS Server 2.9"
QUERY = "a subject, * and > are wildcards, or a stream"
INCREMENTAL = "stream sequence"
TYPING = "inferred"
STREAMING = True
#: With this field set, what has been acknowledged is not given again.
FORGETS = "durable"

DEFAULT_PORT = 4222
CONNECT_SECONDS = 10
REQUEST_SECONDS = 30.0
#: A consumer of one read that stands still for so long is dropped by the server, and made again.
IDLE_SECONDS = 600.0
#: Messages that a durable consumer gives before they are acknowledged: each costs memory here.
MOST_UNACKNOWLEDGED = 100_000

Answer = TypeVar("Answer")
log = get_logger(__name__)


class Config(MessageFields, ConnectorConfig):
    """Streams of a NATS server with JetStream."""

    servers: str = Field(description="address of the server, several with commas, such as nats://host:4222")
    subject: str = Field(
        "", description="subject that is offered, * and > are wildcards; those of all streams if empty"
    )
    stream: str = Field(
        "",
        description="name of the stream, if the subject does not tell it",
        json_schema_extra={"advanced": True},
    )
    durable: str = Field(
        "",
        description="durable consumer to read as; without one the warehouse keeps the place",
        json_schema_extra={"advanced": True},
    )
    username: str = Field("", description="user that may read the streams, where the server has users")
    password: SecretStr = Field(
        SecretStr(""), description="the user's password", json_schema_extra={"needs": "username"}
    )
    token: SecretStr = Field(
        SecretStr(""), description="token in place of a user", json_schema_extra={"advanced": True}
    )
    credentials: Path | None = Field(
        None,
        description="file with a user's credentials (.creds)",
        json_schema_extra={"advanced": True, **LOCAL_PATH},
    )
    value_format: ValueFormat = Field("json", description="what the bytes of a message are")
    on_gap: Literal["stop", "continue"] = Field(
        "stop",
        description="what happens when messages were dropped before they were read",
        json_schema_extra={"advanced": True},
    )
    acknowledge_seconds: float = Field(
        600.0,
        gt=0,
        description="seconds after which a new durable consumer gives an unacknowledged message again",
        json_schema_extra={"advanced": True},
    )
    tls_ca: Path | None = Field(
        None,
        description="file with the certificate authority",
        json_schema_extra={"advanced": True, **LOCAL_PATH},
    )


@dataclass
class Client:
    """A connection, and the event loop that serves it."""

    config: Config
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    server: Any
    #: durable: stream sequence → where to acknowledge it
    unacknowledged: dict[int, str] = field(default_factory=dict)


def connect(config: Config) -> Client:
    """Connect and log in. Raises ConnectionFailed with the layer that failed, DriverMissing."""
    try:
        from nats.aio.client import Client as Server
    except ImportError as error:
        raise driver_missing("nats", error) from None
    _reach_one(config)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="dw-nats")
    thread.start()
    client = Client(config, loop, thread, Server())
    try:
        _wait(client, client.server.connect(**_options(config)), 2 * CONNECT_SECONDS)
        _wait(client, client.server.jetstream().account_info())
    except Exception as error:
        close(client)
        raise error if isinstance(error, DwError) else _refused(config, error) from None
    return client


def close(client: Client) -> None:
    """Close the connection; a read that is under way ends with ConnectionFailed.

    What a durable consumer gave and nobody acknowledged is given back.
    """
    if client.loop.is_closed():
        return
    with contextlib.suppress(Exception):
        _wait(client, _answer_all(client, b"-NAK"), 5)
    with contextlib.suppress(Exception):
        _wait(client, _hang_up(client), 5)
    client.loop.call_soon_threadsafe(client.loop.stop)
    client.thread.join(10)
    if not client.thread.is_alive():
        client.loop.close()


async def _hang_up(client: Client) -> None:
    """Close the connection. One that was refused is closed as well: the driver leaves it open."""
    await client.server.close()
    transport = client.server._transport
    if transport is not None:
        transport.close()
        await transport.wait_closed()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _addresses(config: Config) -> list[str]:
    given = [address.strip() for address in config.servers.split(",") if address.strip()]
    return [address if "://" in address else f"nats://{address}" for address in given]


def _reach_one(config: Config) -> None:
    """Raise ConnectionFailed unless one of the servers answers."""
    problem: ConnectionFailed | None = None
    for address in _addresses(config):
        parts = urlsplit(address)
        try:
            reach(parts.hostname or "", parts.port or DEFAULT_PORT, CONNECT_SECONDS)
            return
        except ConnectionFailed as error:
            problem = problem or error
    raise problem or ConnectionFailed("no server is given", layer="name", hint="servers: nats://host:4222")


def _options(config: Config) -> dict[str, Any]:
    options: dict[str, Any] = {
        "servers": _addresses(config),
        "name": "dw",
        # A read goes on by the position, in the next run; a silent reconnection would hide what is lost.
        "allow_reconnect": False,
        "connect_timeout": CONNECT_SECONDS,
        "error_cb": _note,
    }
    if config.username:
        options |= {"user": config.username, "password": config.password.get_secret_value()}
    if config.token.get_secret_value():
        options["token"] = config.token.get_secret_value()
    if config.credentials:
        options["user_credentials"] = str(config.credentials)
    if config.tls_ca:
        try:
            options["tls"] = ssl.create_default_context(cafile=str(config.tls_ca))
        except OSError as error:
            raise ConnectionFailed(
                f"the certificate file {config.tls_ca} cannot be read",
                layer="tls",
                why=error.strerror or str(error),
                hint="check tls_ca: it is a PEM file",
            ) from None
    return options


async def _note(error: Exception) -> None:
    """The driver's own reports, in the log file: what matters is raised where it is waited for."""
    log.debug("nats: %s", error)


def _wait(client: Client, work: Coroutine[Any, Any, Answer], seconds: float = REQUEST_SECONDS) -> Answer:
    """The result of a coroutine in the client's loop. Raises what it raises, TimeoutError."""
    if client.loop.is_closed() or not client.thread.is_alive():
        work.close()
        raise ConnectionError("the connection is closed")
    running = asyncio.run_coroutine_threadsafe(work, client.loop)
    try:
        return running.result(seconds)
    except (TimeoutError, concurrent.futures.TimeoutError):
        running.cancel()
        raise


def _refused(config: Config, error: Exception) -> ConnectionFailed:
    """Which layer a failed login belongs to, with what to do about it."""
    import nats.errors
    import nats.js.errors

    where, why = ", ".join(_hosts(config)), str(error)
    if isinstance(error, (ssl.SSLError, nats.errors.SecureConnRequiredError)) or "tls" in why.lower():
        hint = "set tls_ca to the server's authority"
        return ConnectionFailed(f"no TLS with {where}", layer="tls", why=why, hint=hint)
    if isinstance(error, nats.errors.AuthorizationError) or "authorization" in why.lower():
        hint = "check username and password, the token or the credentials file"
        return ConnectionFailed(f"{where} does not let you in", layer="login", why=why, hint=hint)
    if isinstance(error, (nats.js.errors.APIError, nats.errors.NoRespondersError)):
        hint = "start the server with JetStream (-js), and allow it for this account"
        return ConnectionFailed(f"{where} has no JetStream", layer="database", why=why, hint=hint)
    return ConnectionFailed(
        f"no NATS answers on {where}", layer="port", why=why, hint="check that the port is NATS's"
    )


def _hosts(config: Config) -> list[str]:
    parts = [urlsplit(address) for address in _addresses(config)]
    return [f"{part.hostname}:{part.port or DEFAULT_PORT}" for part in parts]


@contextmanager
def _errors(client: Client, query: str) -> Iterator[None]:
    """The driver's errors in our words."""
    import nats.errors
    import nats.js.errors

    try:
        yield
    except nats.js.errors.NotFoundError as error:
        raise ResourceMissing(f"'{query}' is gone", why=error.description or "") from None
    except nats.js.errors.APIError as error:
        raise QueryFailed(f"the server refused to read '{query}'", why=error.description or "") from None
    except (nats.errors.Error, OSError, asyncio.CancelledError, concurrent.futures.CancelledError) as error:
        raise ConnectionFailed(
            f"the connection to {', '.join(_hosts(client.config))} broke while reading '{query}'",
            layer="lost",
            why=str(error),
            hint="run it again: nothing was committed",
        ) from None


# -- what there is --------------------------------------------------------------------------------------


def discover(client: Client) -> Iterator[Resource]:
    """The subjects of every stream, or the configured one."""
    if client.config.subject:
        yield describe(client, client.config.subject)
        return
    for stream in sorted(_streams(client), key=lambda stream: str(stream.config.name)):
        subjects = stream.config.subjects or []
        for subject in subjects if len(subjects) > 1 else [*subjects, stream.config.name][:1]:
            messages = stream.state.messages if len(subjects) < 2 else None
            yield _resource(client.config, subject, str(stream.config.name), messages)


def describe(client: Client, query: str) -> Resource:
    """One subject or stream: how many messages it holds. Raises ResourceMissing."""
    stream, subject = _find(client, query)
    messages = stream.state.messages
    if subject:
        with _errors(client, query):
            told = _wait(client, _manager(client).stream_info(stream.config.name, subjects_filter=subject))
        messages = sum((told.state.subjects or {}).values())
    return _resource(client.config, query, stream.config.name, messages)


def _resource(config: Config, query: str, stream: str, messages: int | None) -> Resource:
    found = resource_of(_shape(config, stream), "subject", "the number of a message in its stream", messages)
    return replace(found, name=query)


def _shape(config: Config, stream: str) -> Shape:
    return Shape("nats", stream, {"stream_sequence": "bigint"}, config.value_format, config.expand)


def _manager(client: Client) -> Any:
    return client.server.jetstream(timeout=REQUEST_SECONDS)


def _streams(client: Client) -> list[Any]:
    found: list[Any] = []
    with _errors(client, "the list of streams"):
        while True:
            page = _wait(client, _manager(client).streams_info(offset=len(found)))
            found.extend(page)
            if len(page) < 256:
                return found


def _find(client: Client, query: str) -> tuple[Any, str]:
    """The stream that a query means, and the subject to filter it by ("" for all of it).

    query: a subject, or the name of a stream. Raises ResourceMissing.
    """
    streams = {str(stream.config.name): stream for stream in _streams(client)}
    if client.config.stream:
        if client.config.stream not in streams:
            raise ResourceMissing(
                f"there is no stream '{client.config.stream}'.{nearest(client.config.stream, list(streams))}"
            )
        stream = streams[client.config.stream]
    elif query in streams:
        stream = streams[query]
    else:
        holding = [
            s for s in streams.values() if any(covers(mine, query) for mine in s.config.subjects or [])
        ]
        if not holding:
            known = [subject for s in streams.values() for subject in s.config.subjects or []]
            raise ResourceMissing(
                f"no stream keeps the subject '{query}'.{nearest(query, [*known, *streams])}",
                why="what is published to a subject without a stream is not kept",
                hint="nats stream add, or give the name of a stream",
            )
        stream = holding[0]
    whole = query == stream.config.name or query in (">", "") or [query] == stream.config.subjects
    return stream, "" if whole else query


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject that `subject` can mean is one that `pattern` means: orders.* in orders.>"""
    wanted, given = pattern.split("."), subject.split(".")
    for number, token in enumerate(wanted):
        if token == ">":
            return len(given) > number
        if number >= len(given) or given[number] == ">":
            return False
        if token != "*" and token != given[number]:
            return False
    return len(given) == len(wanted)


# -- reading --------------------------------------------------------------------------------------------


@dataclass
class _Reading:
    """How far a read has come in its stream."""

    client: Client
    query: str
    stream: str
    subject: str
    #: the last sequence there was at the start, and the last that has been read
    end: int
    last: int
    #: whether messages in the middle go by the stream's own rules, so that one missing tells nothing
    sparse: bool
    consumer: str = ""
    inbox: str = ""
    messages: Any = None
    #: what the server has answered to the last request, and whether that is all
    arrived: list[Any] = field(default_factory=list)
    awaited: int = 0
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    #: messages that are still to come, up to `end`
    remaining: int = 0
    #: the consumer's own count of what it has given, and when it was last asked (monotonic seconds)
    given: int = 0
    asked: float = 0.0


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Messages behind the position, up to the last one there is now.

    Raises ResourceMissing, SourceData where messages were dropped unread, ConnectionFailed (lost).
    """
    config = client.config
    stream, subject = _find(client, query)
    name, state = str(stream.config.name), stream.state
    before = cursor.position if isinstance(cursor.position, dict) else {}
    if before.get("stream") != name or before.get("durable") or config.durable:
        before = {}
    if stream.config.retention == "workqueue" and not config.durable:
        raise QueryFailed(
            f"'{name}' is a work queue, which gives messages to durable consumers alone", hint="durable: dw"
        )
    sparse = (stream.config.max_msgs_per_subject or -1) > 0 or stream.config.retention != "limits"
    last = int(before["sequence"]) if before else state.first_seq - 1
    reading = _Reading(client, query, name, subject, state.last_seq, max(last, 0), sparse)
    if before and state.last_seq < reading.last:
        raise SourceData(
            f"'{name}' ends at {state.last_seq:,}, before {reading.last:,}, which has been loaded",
            why="the stream was deleted and made again, or the server was restored from a backup",
            hint="give the stream another pipeline, or read it anew with --full-refresh",
        )
    if before:
        _check_gap(reading, reading.last, state.first_seq)
    with _errors(client, query):
        _wait(client, _subscribe(reading))
    try:
        yield from read_messages(
            _shape(config, name),
            config,
            lambda wanted, seconds: _next(reading, wanted, seconds),
            lambda: _position(reading),
            config.batch_bytes,
            first=not before,
        )
    finally:
        with contextlib.suppress(Exception):
            _wait(client, _unsubscribe(reading), 5)


def _position(reading: _Reading) -> dict[str, Any]:
    """A durable consumer may leave messages behind that are lower: its place is marked as its own."""
    durable = reading.client.config.durable
    mark = {"durable": durable} if durable else {}
    return {"stream": reading.stream, "sequence": reading.last, **mark}


async def _subscribe(reading: _Reading) -> None:
    """Make a consumer behind `last`, or find the durable one."""
    from nats.js import api

    client, config = reading.client, reading.client.config
    manager = _manager(client)
    if config.durable:
        told = await _durable(reading, manager)
        reading.remaining = told.num_pending + told.num_ack_pending
    else:
        told = await manager.add_consumer(
            reading.stream,
            api.ConsumerConfig(
                deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=reading.last + 1,
                ack_policy=api.AckPolicy.NONE,
                filter_subject=reading.subject or None,
                inactive_threshold=IDLE_SECONDS,
                mem_storage=True,
                num_replicas=1,
            ),
        )
        reading.remaining = told.num_pending
    reading.consumer, reading.given, reading.asked = told.name, 0, time.monotonic()
    if reading.messages is None:
        reading.inbox = client.server.new_inbox()
        reading.messages = await client.server.subscribe(reading.inbox, cb=partial(_arrived, reading))


async def _durable(reading: _Reading, manager: Any) -> Any:
    """The durable consumer, made if it is not there."""
    import nats.js.errors
    from nats.js import api

    config = reading.client.config
    try:
        return await manager.consumer_info(reading.stream, config.durable)
    except nats.js.errors.NotFoundError:
        return await manager.add_consumer(
            reading.stream,
            api.ConsumerConfig(
                name=config.durable,
                durable_name=config.durable,
                ack_policy=api.AckPolicy.EXPLICIT,
                ack_wait=config.acknowledge_seconds,
                max_ack_pending=MOST_UNACKNOWLEDGED,
                filter_subject=reading.subject or None,
            ),
        )


async def _made_again(reading: _Reading) -> None:
    """Make the consumer again, behind `last`, if the server has dropped it for standing still."""
    import nats.js.errors

    try:
        await _manager(reading.client).consumer_info(reading.stream, reading.consumer)
    except nats.js.errors.NotFoundError:
        await _subscribe(reading)


async def _unsubscribe(reading: _Reading) -> None:
    if reading.messages is not None:
        await reading.messages.unsubscribe()
    if not reading.client.config.durable:
        await _manager(reading.client).delete_consumer(reading.stream, reading.consumer)


def _next(reading: _Reading, wanted: int, seconds: float) -> list[Message] | None:
    """The next messages; None at the end as of the start of the run."""
    if reading.remaining <= 0:
        _caught_up(reading)
        return None
    client, durable = reading.client, bool(reading.client.config.durable)
    with _errors(client, reading.query):
        if time.monotonic() - reading.asked > IDLE_SECONDS / 2 and not durable:
            _wait(client, _made_again(reading))
        reading.asked = time.monotonic()
        found, status = _wait(client, _pull(reading, wanted), REQUEST_SECONDS + 5)
        messages = _taken(reading, found)
        if found:
            return messages
        if not status and not durable:
            _wait(client, _made_again(reading))
        if status in ("404", "408", "409"):
            told = _wait(client, _manager(client).consumer_info(reading.stream, reading.consumer))
            if durable or not told.num_pending:
                _caught_up(reading)
                return None
    return []


def _caught_up(reading: _Reading) -> None:
    """The end. What lies before it and was not given is of other subjects: it will not be missed."""
    if not reading.client.config.durable:
        reading.last = max(reading.last, reading.end)


def _taken(reading: _Reading, found: Sequence[Any]) -> list[Message]:
    """The messages that were not given before; checks that none is missing between them."""
    taken: list[Message] = []
    unacknowledged = reading.client.unacknowledged
    jump: int | None = None
    for message in found:
        sequence, given, nanoseconds = _place(message.reply)
        if reading.client.config.durable:
            again = sequence in unacknowledged
            unacknowledged[sequence] = message.reply
            if again:
                continue
        else:
            reading.given += 1
            if given != reading.given:
                raise ConnectionError(f"message {reading.given} of the consumer is missing")
            if sequence != reading.last + 1 and jump is None:
                jump = reading.last
        reading.remaining -= 1
        reading.last = max(reading.last, sequence)
        metadata = _metadata(message.headers)
        taken.append(Message(message.data, (sequence,), message.subject, nanoseconds // 1000, metadata))
    if jump is not None and not reading.sparse:
        state = _wait(reading.client, _manager(reading.client).stream_info(reading.stream)).state
        _check_gap(reading, jump, state.first_seq)
    return taken


def _place(reply: str) -> tuple[int, int, int]:
    """Sequence in the stream, count of the consumer, and when the stream took it, in nanoseconds.

    They are in the address for the acknowledgement, `$JS.ACK.stream.consumer.delivered.sequence.count.time
    .pending`; newer servers put two more in front of the stream.
    """
    tokens = reply.split(".")
    first = 5 if len(tokens) == 9 else 7
    return int(tokens[first]), int(tokens[first + 1]), int(tokens[first + 2])


def _metadata(headers: Mapping[str, str] | None) -> dict[str, Any]:
    return {"headers": {name: header_text(value) for name, value in headers.items()}} if headers else {}


def _check_gap(reading: _Reading, last: int, first: int) -> None:
    """Raise SourceData where retention has taken messages behind `last`."""
    if first <= last + 1 or reading.sparse:
        return
    some = "up to " if reading.subject else ""
    told = f"'{reading.stream}': {some}{first - last - 1:,} messages behind {last:,} were dropped unread"
    if reading.client.config.on_gap == "stop":
        raise SourceData(
            told,
            why=f"the stream now begins at {first:,}",
            hint="on_gap: continue goes on with what is left; larger limits of the stream prevent it",
        )
    log.warning("%s; on_gap: continue goes on behind them", told)


async def _pull(reading: _Reading, wanted: int) -> tuple[list[Any], str]:
    """At most so many messages, and the status with which the server ended the request, "" for none.

    The request bounds the bytes as well; a single message that is larger is then asked for alone.
    """
    found, status = await _request(
        reading, {"batch": wanted, "max_bytes": reading.client.config.batch_bytes // 3}
    )
    if not found and status == "409":
        found, status = await _request(reading, {"batch": 1})
    return found, status


async def _request(reading: _Reading, limits: Mapping[str, int]) -> tuple[list[Any], str]:
    import nats.errors

    server = reading.client.server
    if not server.is_connected:
        raise nats.errors.ConnectionClosedError
    address = f"$JS.API.CONSUMER.MSG.NEXT.{reading.stream}.{reading.consumer}"
    reading.complete.clear()
    reading.arrived, reading.awaited, so_far = [], limits["batch"], 0
    await server.publish(address, json.dumps({**limits, "no_wait": True}).encode(), reply=reading.inbox)
    while not await _all_arrived(reading):
        if not server.is_connected:
            raise nats.errors.ConnectionClosedError
        if len(reading.arrived) == so_far:
            break
        so_far = len(reading.arrived)
    found, reading.arrived = reading.arrived, []
    status = _status(found[-1]) if found else ""
    return (found[:-1], status) if status else (found, "")


async def _all_arrived(reading: _Reading) -> bool:
    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
        await asyncio.wait_for(reading.complete.wait(), REQUEST_SECONDS / 3)
    return reading.complete.is_set()


async def _arrived(reading: _Reading, message: Any) -> None:
    """Note one answer. The driver's way to wait for each by itself takes several times as long."""
    reading.arrived.append(message)
    if len(reading.arrived) >= reading.awaited or _status(message):
        reading.complete.set()


def _status(message: Any) -> str:
    """What the server says in place of a message, "" for a message."""
    return "" if message.data else str((message.headers or {}).get("Status", ""))


# -- acknowledging --------------------------------------------------------------------------------------


def acknowledge(client: Client, position: Any) -> None:
    """Tell the durable consumer that what was read is committed. Without one there is nothing to tell.

    An error is logged alone: what is not acknowledged is given again, and merged by its sequence.
    """
    if position is None or not client.unacknowledged:
        return
    try:
        with _errors(client, "the durable consumer"):
            _wait(client, _answer_all(client, b"+ACK"), 600)
    except DwError as error:
        log.warning("not acknowledged, the messages will come again: %s", error)


async def _answer_all(client: Client, answer: bytes) -> None:
    if not client.unacknowledged:
        return
    for reply in client.unacknowledged.values():
        await client.server.publish(reply, answer)
    await client.server.flush(REQUEST_SECONDS)
    client.unacknowledged.clear()

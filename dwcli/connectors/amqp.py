"""RabbitMQ and other brokers of AMQP 0-9-1: the messages that wait in a queue.

A queue has no places to go back to: it gives a message to one consumer and drops it when that is
acknowledged. So everything is acknowledged after the warehouse's COMMIT, and what a failed run was given
goes back to the queue. The connection has a thread of its own, which fetches ahead while a batch is at
work, and answers the broker's heartbeats while a load takes long.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

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
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing
from dwcli.log import get_logger

TITLE = "RabbitMQ (AMQP 0-9-1)"
ALIASES = ("rabbitmq",)
TRIED = "RabbitMQ 3.10"
QUERY = "a queue"
INCREMENTAL = "acknowledged messages"
TYPING = "inferred"
STREAMING = True
#: What has been acknowledged is gone from the queue.
FORGETS = True

TIMEOUT_SECONDS = 15.0
#: How often a connection that nobody uses is looked after, far below any heartbeat.
SERVE_SECONDS = 0.5
#: Messages of the first window, whose size is not known yet, and the most that the protocol can ask for.
FIRST_MESSAGES, MOST_MESSAGES = 8, 65_535
#: Memory of one message beside its bytes, while it waits to be taken.
MESSAGE_BYTES = 300

Answer = TypeVar("Answer")
Work = tuple[Callable[[], Any], "Future[Any]"]
log = get_logger(__name__)


class Config(MessageFields, ConnectorConfig):
    """Queues of RabbitMQ, or of another broker of AMQP 0-9-1."""

    host: str = Field(description="name or address of the broker")
    port: int = Field(5672, ge=1, le=65535, description="port of the broker; 5671 is usual for TLS")
    virtual_host: str = Field("/", description="virtual host that the queue is in")
    username: str = Field("guest", description="user that may read the queue")
    password: SecretStr = Field(SecretStr("guest"), description="the user's password")
    queue: str = Field(description="name of the queue")
    value_format: ValueFormat = Field("json", description="what the bytes of a message are")
    heartbeat_seconds: int = Field(
        60,
        ge=0,
        description="seconds between two heartbeats of the connection, 0 for none",
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
    """A connection, which only its own thread uses, and what that thread is asked to do."""

    config: Config
    connection: Any
    thread: threading.Thread | None = None
    #: None asks it to look again at what there is to do
    work: queue.SimpleQueue[Work | None] = field(default_factory=queue.SimpleQueue)
    closing: bool = False
    reading: _Reading | None = None
    #: the channel of the last read: acknowledgements go where the messages came from
    channel: Any = None
    #: tells this connection's delivery tags from those of another
    session: str = ""


def connect(config: Config) -> Client:
    """Connect and log in. Raises ConnectionFailed with the layer that failed, DriverMissing."""
    try:
        import pika  # type: ignore[import-untyped]
        import pika.exceptions  # type: ignore[import-untyped]
    except ImportError as error:
        raise driver_missing("amqp", error) from None
    reach(config.host, config.port)
    # What the driver would print is raised where it is waited for.
    logging.getLogger("pika").addHandler(logging.NullHandler())
    logging.getLogger("pika").propagate = False
    parameters = pika.ConnectionParameters(
        host=config.host,
        port=config.port,
        virtual_host=config.virtual_host,
        credentials=pika.PlainCredentials(config.username, config.password.get_secret_value()),
        heartbeat=config.heartbeat_seconds,
        socket_timeout=TIMEOUT_SECONDS,
        stack_timeout=TIMEOUT_SECONDS,
        ssl_options=_tls(config),
        client_properties={"connection_name": "dw"},
    )
    try:
        connection = pika.BlockingConnection(parameters)
    except (pika.exceptions.AMQPError, OSError) as error:
        raise _refused(config, error) from None
    client = Client(config, connection, session=secrets.token_hex(4))
    client.thread = threading.Thread(target=_serve, args=(client,), daemon=True, name="dw-amqp")
    client.thread.start()
    return client


def close(client: Client) -> None:
    """Close the connection; a read that is under way ends with ConnectionFailed.

    The broker puts back into the queue what was not acknowledged.
    """
    client.closing = True
    client.work.put(None)
    if client.thread is not None:
        client.thread.join(TIMEOUT_SECONDS)


def _tls(config: Config) -> Any:
    if not config.tls:
        return None
    import pika

    try:
        context = ssl.create_default_context(cafile=str(config.tls_ca) if config.tls_ca else None)
    except OSError as error:
        raise ConnectionFailed(
            f"the certificate file {config.tls_ca} cannot be read",
            layer="tls",
            why=error.strerror or str(error),
            hint="check tls_ca: it is a PEM file",
        ) from None
    return pika.SSLOptions(context, config.host)


def _refused(config: Config, error: Exception) -> ConnectionFailed:
    """Which layer a failed login belongs to, with what to do about it."""
    from pika import exceptions

    where, why = f"{config.host}:{config.port}", _told(error)
    if config.tls and (isinstance(error, OSError) or "SSL" in why or "TLS" in why):
        hint = "set tls_ca to the broker's authority, and the port to its TLS port"
        return ConnectionFailed(f"no TLS with {where}", layer="tls", why=why, hint=hint)
    if isinstance(error, (exceptions.AuthenticationError, exceptions.ProbableAuthenticationError)):
        hint = "check username and password; guest may log in from the broker's own machine alone"
        return ConnectionFailed(
            f"{where} does not let '{config.username}' in", layer="login", why=why, hint=hint
        )
    if isinstance(error, exceptions.ProbableAccessDeniedError) or "NOT_ALLOWED" in why:
        hint = f"rabbitmqctl set_permissions -p {config.virtual_host} {config.username} '^$' '^$' '.*'"
        message = f"'{config.username}' may not use the virtual host '{config.virtual_host}'"
        if "not found" in why:
            hint = "check virtual_host; rabbitmqctl list_vhosts lists those there are"
            message = f"{where} has no virtual host '{config.virtual_host}'"
        return ConnectionFailed(message, layer="database", why=why, hint=hint)
    hint = "check that the port is the one for AMQP, not the web console's"
    return ConnectionFailed(f"no AMQP broker answers on {where}", layer="port", why=why, hint=hint)


def _told(error: BaseException) -> str:
    """The broker's own words, which the driver hides in its errors' arguments."""
    text = getattr(error, "reply_text", "") or str(error)
    inner = [arg for arg in error.args if isinstance(arg, BaseException)]
    return text or (_told(inner[0]) if inner else repr(error))


@contextmanager
def _errors(client: Client, name: str) -> Iterator[None]:
    """The driver's errors in our words."""
    from pika import exceptions

    config = client.config
    try:
        yield
    except exceptions.ChannelClosedByBroker as error:
        if error.reply_code == 404:
            raise ResourceMissing(
                f"the virtual host '{config.virtual_host}' has no queue '{name}'",
                hint="check the queue's spelling; rabbitmqctl list_queues lists those there are",
            ) from None
        if error.reply_code == 403:
            raise QueryFailed(
                f"'{config.username}' may not read the queue '{name}'",
                why=error.reply_text,
                hint=f"rabbitmqctl set_permissions -p {config.virtual_host} {config.username} '^$' '^$' '.*'",
            ) from None
        raise QueryFailed(f"the broker refused to read '{name}'", why=error.reply_text) from None
    except (exceptions.AMQPError, OSError) as error:
        raise ConnectionFailed(
            f"the connection to {config.host}:{config.port} broke while reading '{name}'",
            layer="lost",
            why=_told(error),
            hint="run it again: nothing was committed, and the broker gives the messages again",
        ) from None


# -- the thread that has the connection -----------------------------------------------------------------


def _serve(client: Client) -> None:
    """Do what is asked, and fetch ahead for who reads; in between, answer heartbeats.

    A connection that breaks is told to who asks next.
    """
    while not client.closing:
        reading = client.reading
        busy = reading is not None and _has_room(reading)
        try:
            work = client.work.get(not busy, SERVE_SECONDS)
        except queue.Empty:
            if reading is not None and busy:
                _fill(reading)
            else:
                with contextlib.suppress(Exception):
                    client.connection.process_data_events(0)
            continue
        if work is None:
            continue
        function, answer = work
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)
    with contextlib.suppress(Exception):
        client.connection.close()
    with contextlib.suppress(queue.Empty):
        while True:
            left = client.work.get_nowait()
            if left is not None:
                left[1].set_exception(ConnectionError("the connection is closed"))


def _ask(client: Client, function: Callable[[], Answer]) -> Answer:
    """What the function gives in the connection's thread. Raises what it raises."""
    if client.closing:
        raise ConnectionError("the connection is closed")
    answer: Future[Answer] = Future()
    client.work.put((function, answer))
    while True:
        try:
            return answer.result(1.0)
        except TimeoutError:
            if answer.done():
                raise
            if client.thread is None or not client.thread.is_alive():
                raise ConnectionError("the connection is closed") from None


# -- what there is --------------------------------------------------------------------------------------


def discover(client: Client) -> Iterator[Resource]:
    """The configured queue: the protocol has no list of queues."""
    yield describe(client, client.config.queue)


def describe(client: Client, query: str) -> Resource:
    """One queue: how many messages wait in it. Raises ResourceMissing."""
    with _errors(client, query):
        waiting = _ask(client, lambda: _waiting(client.connection, query))
    return resource_of(_shape(client.config, query), "queue", "where every message has an id", waiting)


def _shape(config: Config, name: str) -> Shape:
    return Shape("amqp", name, {"message_id": "text"}, config.value_format, config.expand)


def _waiting(connection: Any, name: str) -> int:
    """How many messages a queue would give. A channel is closed by a question about no queue."""
    channel = connection.channel()
    try:
        return int(channel.queue_declare(name, passive=True).method.message_count)
    finally:
        if channel.is_open:
            channel.close()


# -- reading --------------------------------------------------------------------------------------------


@dataclass
class _Reading:
    """A read of one queue, which is given its messages in windows.

    The broker sends a consumer no more than it may have unacknowledged, and nothing is acknowledged before
    the COMMIT: so each window is a consumer of its own, which is given so many messages and no more.

    The connection's thread alone opens windows and closes them.
    """

    client: Client
    queue: str
    #: messages that waited when it began, and that no window was opened for
    ahead: int
    #: the open window, how many messages are still to come in it, and how many bytes have come
    window: Iterator[Any] | None = None
    due: int = 0
    came: int = 0
    #: messages of the last window; each has at most twice as many, until it is known how wide they are
    size: int = FIRST_MESSAGES // 2
    #: what has come and was not taken, with the delivery tags; `changed` guards it and what follows
    buffer: deque[tuple[int, Message]] = field(default_factory=deque)
    changed: threading.Condition = field(default_factory=threading.Condition)
    held_bytes: int = 0
    #: how many messages are waited for
    wanted: int = 1
    error: BaseException | None = None
    #: the delivery that was taken last
    tag: int = 0


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """The messages that wait in the queue now. Those that come meanwhile are left to the next run.

    Raises ResourceMissing, ConnectionFailed (lost).
    """
    name, most = query or client.config.queue, client.config.max_messages
    with _errors(client, name):
        waiting = _ask(client, lambda: _waiting(client.connection, name))
        reading = _Reading(client, name, waiting if most is None else min(waiting, most))
        _ask(client, lambda: _begin(reading))
    try:
        yield from read_messages(
            _shape(client.config, name),
            client.config,
            lambda wanted, seconds: _next(reading, wanted, seconds),
            lambda: _position(reading),
            client.config.batch_bytes,
            first=cursor.position is None,
        )
    finally:
        # Not waited for: this may run wherever a read that was given up is collected.
        client.work.put((lambda: _stop(reading), Future()))


def _position(reading: _Reading) -> dict[str, Any] | None:
    """Which delivery of which connection was the last. It means nothing to another connection."""
    if not reading.tag:
        return None
    return {"queue": reading.queue, "session": reading.client.session, "tag": reading.tag}


def _next(reading: _Reading, wanted: int, seconds: float) -> list[Message] | None:
    with _errors(reading.client, reading.queue), reading.changed:
        reading.wanted = wanted
        reading.changed.wait_for(lambda: _is_ready(reading), seconds)
        if reading.client.closing:
            raise ConnectionError("the connection is closed")
        if reading.error is not None:
            raise reading.error
        had_room = _has_room(reading)
        if not reading.buffer:
            return [] if had_room else None
        taken = [reading.buffer.popleft() for _ in range(min(wanted, len(reading.buffer)))]
        found = [message for _, message in taken]
        reading.tag = taken[-1][0]
        reading.held_bytes -= _bytes_of(found)
    if not had_room:
        reading.client.work.put(None)
    return found


def _is_ready(reading: _Reading) -> bool:
    """Whether there is as much as is wanted, or no more comes before that is taken."""
    return len(reading.buffer) >= reading.wanted or not _has_room(reading)


def _has_room(reading: _Reading) -> bool:
    """Whether more is to come and may come. It always may where nothing waits to be taken.

    A window that turns out wider than those before it is left in the broker's hands in the middle.
    """
    if reading.window is not None:
        return reading.held_bytes < 2 * _window_bytes(reading)
    return reading.ahead > 0 and 2 * len(reading.buffer) < reading.size


def _window_bytes(reading: _Reading) -> int:
    return reading.client.config.batch_bytes // 3


def _bytes_of(messages: list[Message]) -> int:
    return sum(len(message.value or b"") for message in messages) + MESSAGE_BYTES * len(messages)


# -- windows, in the connection's thread ----------------------------------------------------------------


def _begin(reading: _Reading) -> None:
    client = reading.client
    if client.reading is not None:  # its tags would mean messages of the new channel
        client.reading.error = ConnectionError("another read has begun on it")
        _stop(client.reading)
    client.channel = client.connection.channel()
    client.reading = reading


def _stop(reading: _Reading) -> None:
    """No more messages for this read: an acknowledgement would make room for more in an open window."""
    client = reading.client
    if client.reading is not reading:
        return
    client.reading = None
    opened, reading.window, reading.ahead = reading.window, None, 0
    if opened is not None:
        client.channel.cancel()


def _fill(reading: _Reading) -> None:
    """Take what comes of the window, after at most SERVE_SECONDS, and open it where there is none.

    An error is kept for who reads.
    """
    try:
        if reading.window is None:
            _open(reading)
        _take(reading)
        if reading.window is not None and not reading.due:
            reading.client.channel.cancel()
            reading.window = None
    except BaseException as error:
        reading.error, reading.window, reading.ahead = error, None, 0
        reading.client.reading = None
    with reading.changed:
        if _is_ready(reading):
            reading.changed.notify()


def _open(reading: _Reading) -> None:
    channel, size = reading.client.channel, min(2 * reading.size, MOST_MESSAGES, reading.ahead)
    if reading.came:
        size = max(1, min(size, _window_bytes(reading) * reading.size // reading.came))
    channel.basic_qos(prefetch_count=size)
    reading.window = channel.consume(reading.queue, inactivity_timeout=SERVE_SECONDS)
    reading.ahead -= size
    reading.due, reading.size, reading.came = size, size, 0


def _take(reading: _Reading) -> None:
    client, found = reading.client, []
    for delivery, properties, body in reading.window or ():
        if delivery is None:
            break
        found.append((delivery.delivery_tag, _message(delivery, properties, body)))
        if len(found) == reading.due or not client.channel.get_waiting_message_count():
            break
    else:
        reading.window = None  # the broker has ended the consumer, as it does when the queue is deleted
    size = _bytes_of([message for _, message in found])
    reading.due -= len(found)
    reading.came += size
    with reading.changed:
        reading.buffer.extend(found)
        reading.held_bytes += size
    if reading.window is None:
        reading.ahead, reading.due = reading.ahead + reading.due, 0
    if not found and not _waiting(client.connection, reading.queue):
        reading.due = client.channel.get_waiting_message_count()
        reading.ahead = 0  # other consumers have taken the rest


def _message(delivery: Any, properties: Any, body: bytes) -> Message:
    told: dict[str, Any] = {"exchange": delivery.exchange} if delivery.exchange else {}
    if delivery.redelivered:
        told["redelivered"] = True
    for name in ("content_type", "content_encoding", "correlation_id", "reply_to", "type", "app_id"):
        if value := getattr(properties, name):
            told[name] = value
    if properties.headers:
        told["headers"] = _plain(properties.headers)
    seconds = properties.timestamp
    return Message(
        body,
        (properties.message_id or None,),
        delivery.routing_key,
        None if seconds is None else int(seconds) * 1_000_000,
        told,
    )


def _plain(value: Any) -> Any:
    """A header's value as JSON can hold it."""
    match value:
        case Mapping():
            return {str(name): _plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case datetime():
            return value.isoformat()
        case Decimal():
            return str(value)
    return header_text(value)


# -- acknowledging --------------------------------------------------------------------------------------


def acknowledge(client: Client, position: Any) -> None:
    """Tell the broker that everything up to `position` is committed, so that it drops it.

    An error is logged alone: what is not acknowledged is given again.
    """
    if not isinstance(position, dict) or position.get("session") != client.session:
        return
    try:
        with _errors(client, position["queue"]):
            _ask(client, lambda: _acknowledge(client, int(position["tag"])))
    except DwError as error:
        log.warning("not acknowledged, the messages will come again: %s (%s)", error, error.why)


def _acknowledge(client: Client, tag: int) -> None:
    client.channel.basic_ack(tag, multiple=True)
    # The answer to a question that follows is the sign that the broker has the acknowledgement.
    client.channel.basic_qos(prefetch_count=1)

"""MQTT 5: what a broker keeps for a session of ours while we are away.

The session has a fixed client id and outlives the connection; the broker keeps for it what is published
with QoS 1 or 2 to its topics. Each message is acknowledged after the warehouse's COMMIT. Nothing tells
one message from another, so one that was loaded and not acknowledged comes again: at least once.

**Memory.** Packets are read from the socket one at a time and only when there is room for them, so what
waits stays with the broker. The broker may send as many as `Receive Maximum` says before the first is
acknowledged, which is at most 65,535: one run reads no more.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import socket
import ssl
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr

from dwcli.connectors import driver_missing
from dwcli.connectors._messages import (
    Message,
    MessageFields,
    Shape,
    ValueFormat,
    read_messages,
    resource_of,
)
from dwcli.connectors._probe import reach
from dwcli.contract import LOCAL_PATH, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, SourceData
from dwcli.log import get_logger

TITLE = "MQTT"
ALIASES = ("mosquitto",)
TRIED = "Mosquitto 2.0"
QUERY = "a topic, + and # are wildcards"
INCREMENTAL = "acknowledged messages"
TYPING = "inferred"
STREAMING = True
#: What has been acknowledged is gone from the session.
FORGETS = True

TIMEOUT_SECONDS = 15.0
#: No single wait for the socket is longer, so that Ctrl-C and `close` are noticed.
TURN_SECONDS = 0.2
#: The most that MQTT lets a broker send before the first acknowledgement.
MOST_UNACKNOWLEDGED = 65_535
#: Long, since nothing is read while a batch is being loaded: a broker waits one and a half times so long.
KEEPALIVE_SECONDS = 600

log = get_logger(__name__)


class Config(MessageFields, ConnectorConfig):
    """Topics of an MQTT broker."""

    host: str = Field(description="name or address of the broker")
    port: int = Field(1883, ge=1, le=65535, description="port of the broker; 8883 is usual for TLS")
    username: str = Field("", description="user that may read the topic, where the broker has users")
    password: SecretStr = Field(
        SecretStr(""), description="the user's password", json_schema_extra={"needs": "username"}
    )
    topic: str = Field(min_length=1, description="topic to read, + and # are wildcards")
    client_id: str = Field(
        min_length=1,
        description="name under which the broker keeps messages for dw; no other reader may have it",
    )
    value_format: ValueFormat = Field("json", description="what the bytes of a message are")
    session_expiry_seconds: int = Field(
        7 * 24 * 3600,
        ge=0,
        le=0xFFFFFFFF,
        description="seconds for which the broker keeps messages while dw does not run",
        json_schema_extra={"advanced": True},
    )
    on_gap: Literal["stop", "continue"] = Field(
        "stop",
        description="what happens when the broker has not kept the session since the last run",
        json_schema_extra={"advanced": True},
    )
    tls: bool = Field(False, description="whether to connect with TLS", json_schema_extra={"advanced": True})
    tls_ca: Path | None = Field(
        None,
        description="file with the certificate authority",
        json_schema_extra={"advanced": True, **LOCAL_PATH},
    )


@dataclass
class Session:
    """A connection, and the messages it has brought that are not yet rows."""

    name: str
    mqtt: Any
    #: tells this connection's packet ids from those of another
    token: str = ""
    #: the broker's answers: to CONNECT, to SUBSCRIBE, and why it hung up
    answer: Any = None
    kept: bool = False
    subscribed: Any = None
    reason: str = ""
    found: list[Message] = field(default_factory=list)
    found_bytes: int = 0
    #: packet ids that are to be acknowledged, in order; 0 for a message that needs none
    packets: array[int] = field(default_factory=lambda: array("H"))
    #: how many of them the read has given
    given: int = 0
    #: whether what comes now is left to the next run
    dropping: bool = False


@dataclass
class Client:
    """A broker that has let us in, and the session of the read."""

    config: Config
    session: Session | None = None
    #: keeps the connection alive from the end of the read to the COMMIT
    keeper: threading.Thread | None = None
    closing: bool = False


def connect(config: Config) -> Client:
    """See whether the broker lets us in. Raises ConnectionFailed with the layer that failed, DriverMissing.

    The session is opened by the read, since it belongs to one topic.
    """
    reach(config.host, config.port)
    if config.tls:
        _shake_hands(config)
    checked = _open(config, f"{config.client_id}-check", 1, keep=False)
    _hang_up(checked)
    return Client(config)


def close(client: Client) -> None:
    """Close the connection; a read that is under way ends with ConnectionFailed.

    The broker gives again what was not acknowledged.
    """
    client.closing = True
    _stop_keeping(client)
    session, client.session = client.session, None
    if session is not None:
        _hang_up(session)


# -- the connection -------------------------------------------------------------------------------------


def _open(config: Config, name: str, most: int, keep: bool = True) -> Session:
    """Connect under this client id. most: messages that may come before the first is acknowledged."""
    try:
        from paho.mqtt import client as paho
        from paho.mqtt.enums import CallbackAPIVersion
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties
    except ImportError as error:
        raise driver_missing("mqtt", error) from None
    mqtt = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5, manual_ack=True)
    mqtt.connect_timeout = TIMEOUT_SECONDS
    if config.username:
        mqtt.username_pw_set(config.username, config.password.get_secret_value())
    if config.tls:
        mqtt.tls_set_context(_tls(config))
    session = Session(name, mqtt, secrets.token_hex(4))
    _listen(session)
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.ReceiveMaximum = most
    properties.SessionExpiryInterval = config.session_expiry_seconds if keep else 0
    try:
        mqtt.connect(config.host, config.port, KEEPALIVE_SECONDS, clean_start=not keep, properties=properties)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while session.answer is None:
            _turn(session)
            if time.monotonic() > deadline:
                raise TimeoutError("no answer to CONNECT")
    except (OSError, ValueError) as error:
        _hang_up(session)
        raise _refused(config, session, error) from None
    if session.answer.is_failure:
        _hang_up(session)
        raise _refused(config, session, None)
    return session


def _tls(config: Config) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(config.tls_ca) if config.tls_ca else None)
    except OSError as error:
        raise ConnectionFailed(
            f"the certificate file {config.tls_ca} cannot be read",
            layer="tls",
            why=error.strerror or str(error),
            hint="check tls_ca: it is a PEM file",
        ) from None


def _shake_hands(config: Config) -> None:
    """Raise ConnectionFailed (tls) here: the driver leaves its socket open where TLS fails."""
    address = (config.host, config.port)
    try:
        with (
            socket.create_connection(address, TIMEOUT_SECONDS) as plain,
            _tls(config).wrap_socket(plain, server_hostname=config.host),
        ):
            return
    except OSError as error:
        raise ConnectionFailed(
            f"no TLS with {config.host}:{config.port}",
            layer="tls",
            why=str(error),
            hint="set tls_ca to the broker's authority, and the port to its TLS port",
        ) from None


def _listen(session: Session) -> None:
    """Note what the broker says."""

    def on_connect(_: Any, __: Any, flags: Any, reason: Any, ___: Any) -> None:
        session.answer, session.kept = reason, bool(flags.session_present)

    def on_subscribe(_: Any, __: Any, ___: int, reasons: Any, ____: Any) -> None:
        session.subscribed = reasons[0]

    def on_disconnect(_: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        session.reason = str(reason)

    def on_message(_: Any, __: Any, message: Any) -> None:
        if not session.dropping:
            session.packets.append(message.mid if message.qos else 0)
            session.found.append(_message(message))
            session.found_bytes += len(message.payload)

    session.mqtt.on_connect = on_connect
    session.mqtt.on_subscribe = on_subscribe
    session.mqtt.on_disconnect = on_disconnect
    session.mqtt.on_message = on_message


def _turn(session: Session, seconds: float = TURN_SECONDS) -> None:
    """Read at most one packet, and write what is to be written. Raises ConnectionError."""
    from paho.mqtt.client import error_string

    code = session.mqtt.loop(seconds)
    # A refusal is told by the answer, not by the broker's hanging up after it.
    refused = session.answer is not None and session.answer.is_failure
    if code and not refused:
        raise ConnectionError(session.reason or error_string(code))


def _hang_up(session: Session, forget: bool = False) -> None:
    """End the connection, and see it ended by the broker.

    The driver closes the socket at once. With messages in it that nobody has read, the system then resets
    the connection, and the broker may lose our last acknowledgements: so a second handle stays open, and
    is read until the broker has hung up.
    forget: the broker drops the session as well.
    """
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    with contextlib.suppress(OSError, ValueError, AttributeError):
        properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
        if forget:
            properties.SessionExpiryInterval = 0
        handle = session.mqtt.socket()
        if handle is None:
            return
        with socket.socket(fileno=os.dup(handle.fileno())) as rest:
            session.mqtt.disconnect(properties=properties)
            while session.mqtt.want_write() and not session.mqtt.loop_write():
                pass
            rest.settimeout(2.0)
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while rest.recv(65536) and time.monotonic() < deadline:
                pass


def _refused(config: Config, session: Session, error: Exception | None) -> ConnectionFailed:
    """Which layer a failed connection belongs to, with what to do about it."""
    where = f"{config.host}:{config.port}"
    why = str(error) if error is not None else str(session.answer)
    if error is not None:
        hint = "check that the port is the one for MQTT, and that the broker speaks MQTT 5"
        return ConnectionFailed(f"no MQTT broker answers on {where}", layer="port", why=why, hint=hint)
    if session.answer.value in (134, 135):
        hint = "check username and password, and whether the broker lets this client_id in"
        return ConnectionFailed(f"{where} does not let you in", layer="login", why=why, hint=hint)
    if session.answer.value in (1, 132):
        hint = "the broker has to speak MQTT 5"
        return ConnectionFailed(f"{where} does not speak MQTT 5", layer="database", why=why, hint=hint)
    return ConnectionFailed(f"{where} refuses the connection", layer="login", why=why)


@contextmanager
def _errors(client: Client, topic: str) -> Iterator[None]:
    """The driver's errors in our words."""
    config = client.config
    try:
        yield
    except (OSError, ValueError) as error:
        raise ConnectionFailed(
            f"the connection to {config.host}:{config.port} broke while reading '{topic}'",
            layer="lost",
            why=str(error),
            hint="run it again: nothing was committed, and the broker gives the messages again",
        ) from None


# -- what there is --------------------------------------------------------------------------------------


def discover(client: Client) -> Iterator[Resource]:
    """The configured topic: the protocol has no list of topics."""
    yield describe(client, client.config.topic)


def describe(client: Client, query: str) -> Resource:
    """One topic, or all that its wildcards mean. What waits for us, the broker does not tell."""
    return resource_of(_shape(client.config, query), "topic", "")


def _shape(config: Config, topic: str) -> Shape:
    return Shape("mqtt", topic, {}, config.value_format, config.expand)


def session_name(config: Config, topic: str) -> str:
    """The client id of a topic's session: each topic has its own, so that pipelines do not mix."""
    return f"{config.client_id}-{hashlib.sha256(topic.encode()).hexdigest()[:8]}"


# -- reading --------------------------------------------------------------------------------------------


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """What the broker has kept, until nothing has come for `poll_timeout_seconds`.

    The first read makes the session: what was published before was kept for nobody.
    Raises QueryFailed for a topic that may not be read, SourceData where the broker has dropped the
    session since the last run, ConnectionFailed (lost).
    """
    config = client.config
    topic = query or config.topic
    name = session_name(config, topic)
    most = min(MOST_UNACKNOWLEDGED, config.max_messages or MOST_UNACKNOWLEDGED)
    before = cursor.position if isinstance(cursor.position, dict) else {}
    first = before.get("session") != name
    session = _open(config, name, most)
    if not first and not session.kept:
        _refuse_gap(client, session, topic)
    client.session = session
    with _errors(client, topic):
        _subscribe(client, session, topic)
    yield from read_messages(
        _shape(config, topic),
        config,
        lambda wanted, seconds: _next(client, session, topic, min(wanted, most - session.given), seconds),
        lambda: {"session": name, "connection": session.token, "count": session.given},
        config.batch_bytes,
        has_end=False,
        first=first,
    )
    _keep(client, session)


def _refuse_gap(client: Client, session: Session, topic: str) -> None:
    """Raise SourceData: what was published since the last run is gone.

    The session that has just been made is dropped, or the next run would take it for the old one.
    """
    told = f"the broker has not kept the session '{session.name}', nor what came for '{topic}' since then"
    if client.config.on_gap == "continue":
        log.warning("%s; on_gap: continue begins anew", told)
        return
    _hang_up(session, forget=True)
    raise SourceData(
        told,
        why="it expired, or the broker was restarted without persistence",
        hint="on_gap: continue begins anew; a larger session_expiry_seconds prevents it",
    )


def _subscribe(client: Client, session: Session, topic: str) -> None:
    """Subscribe, also where the session has done so: the broker then changes nothing.

    Retained messages come with a new subscription alone, or each run would load them again.
    """
    from paho.mqtt.subscribeoptions import SubscribeOptions

    try:
        session.mqtt.subscribe(topic, options=SubscribeOptions(qos=1, retainHandling=1))
    except ValueError as error:
        hint = "+ stands for one level, # for all that follow, at the end"
        raise QueryFailed(f"'{topic}' is no topic", why=str(error), hint=hint) from None
    deadline = time.monotonic() + TIMEOUT_SECONDS
    # Of a session that was kept, the answer is behind all that waits: reading to it would fill the memory.
    while session.subscribed is None and not session.kept:
        _turn(session)
        if time.monotonic() > deadline:
            raise TimeoutError("no answer to SUBSCRIBE")
    _refuse_subscription(session, topic)


def _refuse_subscription(session: Session, topic: str) -> None:
    """Raise QueryFailed where the broker has refused the topic."""
    if session.subscribed is not None and session.subscribed.is_failure:
        raise QueryFailed(
            f"the broker does not let you read '{topic}'",
            why=str(session.subscribed),
            hint="check the topic, and the user's rights in the broker",
        )


def _next(client: Client, session: Session, topic: str, wanted: int, seconds: float) -> list[Message] | None:
    """At most so many messages; None when the broker may send no more before an acknowledgement."""
    if wanted <= 0:
        return None
    deadline = time.monotonic() + seconds
    most_bytes = client.config.batch_bytes // 3
    with _errors(client, topic):
        while len(session.found) < wanted and session.found_bytes < most_bytes:
            left = deadline - time.monotonic()
            if client.closing:
                raise ConnectionError("the connection is closed")
            if left <= 0:
                break
            _turn(session, min(left, TURN_SECONDS))
    _refuse_subscription(session, topic)
    found, session.found = session.found[:wanted], session.found[wanted:]
    session.found_bytes = sum(len(message.value or b"") for message in session.found)
    session.given += len(found)
    return found


def _message(message: Any) -> Message:
    told: dict[str, Any] = {"qos": message.qos}
    if message.retain:
        told["retained"] = True
    if message.dup:
        told["redelivered"] = True
    properties = message.properties
    for name in ("ContentType", "ResponseTopic"):
        if (value := getattr(properties, name, None)) is not None:
            told[name] = value
    if (value := getattr(properties, "CorrelationData", None)) is not None:
        told["CorrelationData"] = {"base64": base64.b64encode(value).decode()}
    if pairs := getattr(properties, "UserProperty", None):
        told["UserProperty"] = [list(pair) for pair in pairs]
    return Message(bytes(message.payload), (), message.topic, None, told)


# -- from the end of the read to the acknowledgement ----------------------------------------------------


def _keep(client: Client, session: Session) -> None:
    """Keep the connection alive while the load takes long. What comes now is left to the next run."""
    session.dropping = True

    def keep() -> None:
        with contextlib.suppress(OSError, ValueError):
            while not client.closing and session.dropping:
                _turn(session)

    client.keeper = threading.Thread(target=keep, daemon=True, name="dw-mqtt")
    client.keeper.start()


def _stop_keeping(client: Client) -> None:
    if client.session is not None:
        client.session.dropping = False
    if client.keeper is not None:
        client.keeper.join(TIMEOUT_SECONDS)
        client.keeper = None


def acknowledge(client: Client, position: Any) -> None:
    """Tell the broker that everything up to `position` is committed, so that it drops it.

    An error is logged alone: what is not acknowledged is given again.
    """
    session = client.session
    if session is None or not isinstance(position, dict) or position.get("connection") != session.token:
        return
    _stop_keeping(client)
    session.dropping = True
    try:
        with _errors(client, session.name):
            for packet in session.packets[: int(position["count"])]:
                if packet and session.mqtt.ack(packet, 1):
                    raise ConnectionError(session.reason or "the connection is closed")
            while session.mqtt.want_write():
                _turn(session)
    except DwError as error:
        log.warning("not acknowledged, the messages will come again: %s (%s)", error, error.why)

"""Kafka: topics, read by offsets that commit with the rows.

No group decides what is read: partitions are assigned from the place that the warehouse has reached, up to
each partition's end as of the start of the run. So a run that fails leaves nothing behind, and the next
one reads the same messages. With `group_id` the offsets are committed to that group as well, after the
warehouse's COMMIT, for those who watch the lag.

**The end of a partition.** Where messages were compacted away or the last ones are markers of transactions,
no message ever has the last offset. librdkafka says "end of partition" there, which ends it too.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr, field_validator, model_validator

from dwcli.connectors import _avro, driver_missing
from dwcli.connectors._messages import (
    Message,
    MessageFields,
    Shape,
    ValueFormat,
    header_text,
    read_messages,
    refuse_cursor,
    resource_of,
)
from dwcli.connectors._probe import reach
from dwcli.contract import LOCAL_PATH, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData

TITLE = "Kafka"
ALIASES = ("redpanda", "confluent")
STAND_IN = "the mock cluster of librdkafka 2.16"
QUERY = "a topic"
INCREMENTAL = "its own place: offsets per partition"
TYPING = "inferred"
STREAMING = True

DEFAULT_PORT = 9092
#: For an answer about topics or offsets.
PATIENCE_SECONDS = 10.0
#: One call into the driver, so that Ctrl-C is noticed.
_CALL_SECONDS = 1.0
#: `consume` waits until all messages that it was asked for are there, or for so long.
_CONSUME_SECONDS = 0.1
_SASL: dict[str, Any] = {"needs": {"security_protocol": ["sasl_plaintext", "sasl_ssl"]}}
IDENTITY = {"partition": "bigint", "offset": "bigint"}

Answer = TypeVar("Answer")


class Config(ConnectorConfig, MessageFields):
    """A topic in a Kafka cluster."""

    bootstrap_servers: str = Field(description="brokers to begin with, as host:port, with commas between")
    topic: str = Field(min_length=1, description="name of the topic")
    value_format: Literal["json", "avro", "text", "bytes"] = Field("json", description="what the values are")
    schema_registry_url: str = Field(
        "",
        description="address of the schema registry, for Avro",
        json_schema_extra={"needs": {"value_format": ["avro"]}},
    )
    schema_registry_username: str = Field(
        "", description="user or API key of the schema registry", json_schema_extra={"advanced": True}
    )
    schema_registry_password: SecretStr = Field(
        SecretStr(""),
        description="password or API secret of the schema registry",
        json_schema_extra={"advanced": True},
    )
    key_format: Literal["text", "avro"] = Field(
        "text", description="what the keys are", json_schema_extra={"advanced": True}
    )
    group_id: str = Field(
        "",
        description="consumer group that shows how far dw has come",
        json_schema_extra={"advanced": True},
    )
    security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        "plaintext", description="whether TLS and a login are used"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="way of logging in", json_schema_extra={"advanced": True}
    )
    sasl_username: str = Field("", description="user that may read the topic", json_schema_extra=_SASL)
    sasl_password: SecretStr = Field(
        SecretStr(""), description="the user's password", json_schema_extra=_SASL
    )
    ssl_ca: Path | None = Field(
        None,
        description="file with the certificate authority",
        json_schema_extra={"advanced": True, **LOCAL_PATH},
    )
    ssl_certificate: Path | None = Field(
        None,
        description="file with the client's certificate",
        json_schema_extra={"advanced": True, **LOCAL_PATH},
    )
    ssl_key: Path | None = Field(
        None,
        description="file with the client's private key",
        json_schema_extra={"advanced": True, **LOCAL_PATH},
    )
    ssl_key_password: SecretStr = Field(
        SecretStr(""), description="password of the private key", json_schema_extra={"advanced": True}
    )
    isolation: Literal["read_committed", "read_uncommitted"] = Field(
        "read_committed",
        description="whether messages of open and aborted transactions are left out",
        json_schema_extra={"advanced": True},
    )
    on_gap: Literal["stop", "continue"] = Field(
        "stop",
        description="what happens when the topic has deleted messages before they were read",
        json_schema_extra={"advanced": True},
    )

    @field_validator("security_protocol", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _avro_needs_a_registry(self) -> Config:
        if "avro" in (self.value_format, self.key_format) and not self.schema_registry_url:
            raise ValueError("schema_registry_url is needed to read Avro")
        return self


@dataclass
class Client:
    """A consumer that answers questions; every read has one of its own."""

    config: Config
    catalogue: Consumer
    closed: threading.Event
    #: None where nothing is Avro
    registry: _avro.Registry | None = None


@dataclass
class Consumer:
    """librdkafka's consumer, and the errors that it told beside its answers."""

    driver: Any
    errors: list[Any]
    closed: threading.Event
    lock: threading.Lock = field(default_factory=threading.Lock)


def connect(config: Config) -> Client:
    """Reach a broker, log in, and ask for its topics; reach the schema registry if there is one.

    Raises ConnectionFailed with the layer that failed, DriverMissing.
    """
    _reach_any(config)
    closed = threading.Event()
    client = Client(config, _open(config, closed), closed, _registry(config))
    try:
        _hello(client)
        if client.registry is not None:
            _avro.check(client.registry)
    except BaseException:
        close(client)
        raise
    return client


def close(client: Client) -> None:
    """Close the connection; a read that is under way ends with ConnectionFailed within a second."""
    if not client.closed.is_set():
        client.closed.set()
        with client.catalogue.lock:
            client.catalogue.driver.close()


def discover(client: Client) -> Iterator[Resource]:
    """The configured topic, then the others that may be seen. Raises ResourceMissing without the first."""
    topics = _topics(client)
    yield describe(client, client.config.topic)
    for name in sorted(topics):
        if name != client.config.topic and not name.startswith("__"):
            yield resource_of(_shape(client, name), "topic", _KEY_REASON)


_KEY_REASON = "the place of a message in its topic"


def describe(client: Client, query: str) -> Resource:
    """The columns of a topic, and about how many messages it holds. Raises ResourceMissing."""
    topic = query or client.config.topic
    ends = _ends(client.catalogue, topic, _partitions(client, topic))
    messages = sum(end - low for low, end in ends.values())
    return resource_of(_shape(client, topic), "topic", _KEY_REASON, messages)


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """The messages of a topic from `cursor.position` on, in batches of about `batch_bytes`.

    query: the topic, "" for the configured one. A new partition is read from its beginning. Raises
    ResourceMissing, SourceData for a place that the topic does not hold (any more), ConnectionFailed.
    """
    refuse_cursor(cursor, "a topic")
    config = client.config
    topic = query or config.topic
    partitions = _partitions(client, topic)
    consumer = _open(config, client.closed)
    try:
        places, lost = _places(consumer, config, topic, partitions, cursor.position)
        _assign(consumer, topic, {place.partition: place.next for place in places.values() if not place.done})
        items = read_messages(
            _shape(client, topic),
            config,
            lambda count, seconds: _fetch(client, consumer, topic, places, count, seconds),
            lambda: {"topic": topic, "offsets": {str(p): place.next for p, place in places.items()}},
            config.batch_bytes,
            first=cursor.position is None,
        )
        for item in items:
            yield _with_losses(item, lost)
            lost = {}
    finally:
        consumer.driver.close()


def acknowledge(client: Client, position: Any) -> None:
    """Commit the offsets to `group_id`, if there is one. They are for monitoring: nothing depends on them.

    Raises QueryFailed.
    """
    config = client.config
    if not config.group_id or not position:
        return
    from confluent_kafka import KafkaException, TopicPartition

    offsets = [TopicPartition(position["topic"], int(p), o) for p, o in position["offsets"].items()]
    try:
        client.catalogue.driver.commit(offsets=offsets, asynchronous=False)
    except KafkaException as error:
        raise QueryFailed(
            f"the offsets could not be committed to the group '{config.group_id}'",
            why=_reason(str(error.args[0].str())),
            hint="allow READ on the group, or take the line 'group_id' out of the source file",
        ) from None


# -- connecting ------------------------------------------------------------------------------------------


def _reach_any(config: Config) -> None:
    """Open a TCP connection to one of the brokers. Raises ConnectionFailed for the last of them."""
    failed: ConnectionFailed | None = None
    for host, port in _addresses(config.bootstrap_servers):
        try:
            reach(host, port)
        except ConnectionFailed as error:
            failed = error
        else:
            return
    if failed is not None:
        raise failed


def _addresses(servers: str) -> list[tuple[str, int]]:
    """(host, port) of `kafka1:9092,kafka2`, with or without a protocol in front. Raises QueryFailed."""
    found = []
    for server in servers.split(","):
        match = re.fullmatch(r"\s*(?:\w+://)?(\[[^]]+\]|[^:\s]+)(?::(\d{1,5}))?\s*", server)
        if match is None:
            raise ConnectionFailed(
                f"'{server.strip()}' is no address of a broker",
                layer="name",
                hint="bootstrap_servers: host:9092, with commas between several",
            )
        found.append((match[1].strip("[]"), int(match[2] or DEFAULT_PORT)))
    return found


def _open(config: Config, closed: threading.Event) -> Consumer:
    try:
        import confluent_kafka
    except ImportError as error:
        raise driver_missing("kafka", error) from None
    errors: list[Any] = []
    try:
        driver = confluent_kafka.Consumer(_settings(config) | {"error_cb": errors.append})
    except confluent_kafka.KafkaException as error:
        raise _refused_settings(config, str(error.args[0].str())) from None
    return Consumer(driver, errors, closed)


def _settings(config: Config) -> dict[str, Any]:
    """librdkafka's settings (github.com/confluentinc/librdkafka, CONFIGURATION.md)."""
    settings: dict[str, Any] = {
        "bootstrap.servers": config.bootstrap_servers,
        "security.protocol": config.security_protocol,
        "client.id": "dw",
        # needed by the driver; without group_id nothing is ever committed to it
        "group.id": config.group_id or "dw",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
        "allow.auto.create.topics": False,
        "isolation.level": config.isolation,
        "queued.max.messages.kbytes": max(1024, config.batch_bytes // 1024),
        "fetch.max.bytes": max(1_000_000, config.batch_bytes),
        # how long it does not fetch once its queue was full
        "fetch.queue.backoff.ms": 10,
        "max.poll.interval.ms": 86_400_000,
        "log_level": 0,
    }
    if config.security_protocol.startswith("sasl"):
        settings |= {
            "sasl.mechanism": config.sasl_mechanism,
            "sasl.username": config.sasl_username,
            "sasl.password": config.sasl_password.get_secret_value(),
        }
    files = {
        "ssl.ca.location": config.ssl_ca,
        "ssl.certificate.location": config.ssl_certificate,
        "ssl.key.location": config.ssl_key,
    }
    settings |= {name: str(path) for name, path in files.items() if path}
    if config.ssl_key_password.get_secret_value():
        settings["ssl.key.password"] = config.ssl_key_password.get_secret_value()
    return settings


def _refused_settings(config: Config, why: str) -> ConnectionFailed:
    layer = "tls" if "ssl" in why.lower() else "login" if "sasl" in why.lower() else "port"
    hints = {
        "tls": "check ssl_ca, ssl_certificate and ssl_key: they are PEM files",
        "login": "check sasl_mechanism, sasl_username and sasl_password",
    }
    return ConnectionFailed(
        f"a connection to {config.bootstrap_servers} cannot be prepared", layer, why, hints.get(layer, "")
    )


def _hello(client: Client) -> None:
    """The first question. Raises ConnectionFailed with the layer that failed."""
    try:
        _topics(client)
    except ConnectionFailed as error:
        if error.layer != "lost" or client.config.security_protocol.endswith("ssl"):
            raise
        raise ConnectionFailed(
            f"{client.config.bootstrap_servers} does not speak Kafka without TLS",
            layer="tls",
            why=error.why,
            hint="check security_protocol: ssl or sasl_ssl where the brokers want TLS",
        ) from None


def _registry(config: Config) -> _avro.Registry | None:
    if "avro" not in (config.value_format, config.key_format):
        return None
    return _avro.Registry(
        config.schema_registry_url,
        config.schema_registry_username,
        config.schema_registry_password.get_secret_value(),
        config.ssl_ca,
    )


# -- questions about topics ------------------------------------------------------------------------------


def _topics(client: Client) -> dict[str, Any]:
    """Name → metadata of every topic that may be seen."""
    metadata = _asked(
        client.catalogue, client.config, lambda driver: driver.list_topics(timeout=_CALL_SECONDS)
    )
    return dict(metadata.topics)


def _partitions(client: Client, topic: str) -> list[int]:
    """The partitions of a topic. Raises ResourceMissing, with the nearest name, ConnectionFailed."""
    metadata = _asked(
        client.catalogue, client.config, lambda driver: driver.list_topics(topic, timeout=_CALL_SECONDS)
    )
    found = metadata.topics.get(topic)
    if found is not None and found.error is None and found.partitions:
        return sorted(found.partitions)
    if found is not None and found.error is not None and "AUTHORIZATION" in found.error.name():
        raise _not_allowed(client.config, topic)
    raise _missing(topic, list(_topics(client)))


def _missing(topic: str, known: Sequence[str] = ()) -> ResourceMissing:
    return ResourceMissing(
        f"there is no topic '{topic}'.{nearest(topic, known)}",
        hint="check the topic's name; names differ in upper and lower case",
    )


def _ends(consumer: Consumer, topic: str, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Partition → (first offset that is kept, offset behind the last message)."""
    from confluent_kafka import TopicPartition

    def ask(partition: int) -> tuple[int, int]:
        answer: tuple[int, int] = _asked(
            consumer,
            None,
            lambda driver: driver.get_watermark_offsets(
                TopicPartition(topic, partition), timeout=_CALL_SECONDS
            ),
            topic,
        )
        return answer

    return {partition: ask(partition) for partition in partitions}


def _asked(
    consumer: Consumer, config: Config | None, call: Callable[[Any], Answer | None], topic: str = ""
) -> Answer:
    """The answer to a question that a broker may need some seconds for.

    Raises ConnectionFailed as soon as the driver has told of an error that does not pass.
    """
    from confluent_kafka import KafkaException

    until = time.monotonic() + PATIENCE_SECONDS
    why: Any = None
    while True:
        _refuse_closed(consumer)
        try:
            with consumer.lock:
                answer = call(consumer.driver)
            if answer is not None:
                return answer
        except KafkaException as error:
            why = error.args[0]
            if why.name() not in _PASSING:
                raise _error(why, topic) from None
        with consumer.lock:
            if not consumer.closed.is_set():
                consumer.driver.poll(0)  # hands over what went wrong meanwhile
        _refuse_told(consumer, topic)
        if time.monotonic() >= until:
            elsewhere = next((e for e in reversed(consumer.errors) if e.name() in _UNREACHED), why)
            raise _error(elsewhere, topic) from None


_PASSING = (
    "_TRANSPORT",
    "_TIMED_OUT",
    "_ALL_BROKERS_DOWN",
    "LEADER_NOT_AVAILABLE",
    "NOT_LEADER_FOR_PARTITION",
    "_WAIT_CACHE",
    "_WAIT_COORD",
)
_UNREACHED = ("_RESOLVE", "_TRANSPORT")
_TLS_FAILED = "SSL handshake failed"


def _refuse_closed(consumer: Consumer) -> None:
    if consumer.closed.is_set():
        raise ConnectionFailed("the connection was closed while it was in use", layer="lost")


def _refuse_told(consumer: Consumer, topic: str) -> None:
    """Raise for an error that the driver has told of and that does not pass by waiting."""
    for error in consumer.errors:
        if error.name() in ("_AUTHENTICATION", "_SSL") or _TLS_FAILED in str(error.str()):
            raise _error(error, topic)


def _error(error: Any, topic: str = "") -> DwError:
    """dw's error for one of librdkafka's (rdkafka.h, rd_kafka_resp_err_t; kafka.apache.org/protocol)."""
    name, why = str(error.name()), _reason(str(error.str()))
    if name in ("_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED"):
        return ConnectionFailed(
            "Kafka refuses the login",
            layer="login",
            why=why,
            hint="check sasl_mechanism, sasl_username and sasl_password",
        )
    if name == "_SSL" or _TLS_FAILED in why:
        return ConnectionFailed(
            "no TLS connection to Kafka",
            layer="tls",
            why=why,
            hint="set ssl_ca to the authority of the brokers' certificates, or check security_protocol",
        )
    if "AUTHORIZATION" in name:
        return _not_allowed(None, topic, why)
    if name == "_RESOLVE":
        return ConnectionFailed(
            "the name that a broker gives as its own does not resolve",
            layer="name",
            why=why,
            hint="the brokers' advertised.listeners have to be names that this machine can reach",
        )
    if name in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "UNKNOWN_TOPIC_ID"):
        return _missing(topic)
    if name in (*_PASSING, "_DESTROY", "_STATE"):
        return ConnectionFailed(
            "Kafka does not answer",
            layer="lost",
            why=why,
            hint="check security_protocol, the brokers' advertised.listeners, and that they run",
        )
    return QueryFailed(f"Kafka refused to give {topic or 'its topics'}", why=f"{why} ({name})")


def _reason(text: str) -> str:
    """librdkafka's words without the address and times in front and behind."""
    return re.sub(r"\s*\(after \d+ms.*?\)", "", text).strip()


def _not_allowed(config: Config | None, topic: str, why: str = "") -> ConnectionFailed:
    user = f" to {config.sasl_username}" if config and config.sasl_username else " to this user"
    return ConnectionFailed(
        f"the topic '{topic}' may not be read",
        layer="permission",
        why=why or "the user has no right to it",
        hint=f"allow READ and DESCRIBE on the topic{user}: kafka-acls --add --operation Read --topic {topic}",
    )


# -- where to begin and to end ---------------------------------------------------------------------------


@dataclass
class _Place:
    """How far a partition has been read, and where this run stops."""

    partition: int
    next: int
    end: int

    @property
    def done(self) -> bool:
        return self.next >= self.end


def _places(
    consumer: Consumer, config: Config, topic: str, partitions: Sequence[int], position: Any
) -> tuple[dict[int, _Place], dict[str, int]]:
    """Where each partition begins and ends, and what was lost before it could be read.

    Raises SourceData for a place that a partition does not hold.
    """
    reached = _reached(topic, position)
    gone = sorted(set(reached) - set(partitions))
    if gone:
        raise _recreated(topic, f"partition {gone[0]} is gone")
    places, lost = {}, {}
    for partition, (low, end) in _ends(consumer, topic, partitions).items():
        begin = reached.get(partition, low)
        if begin > end:
            raise _recreated(
                topic, f"partition {partition} was read up to offset {begin:,}, and ends at {end:,}"
            )
        if begin < low:
            if config.on_gap == "stop":
                raise _gap(topic, f"partition {partition}: offsets {begin:,} to {low - 1:,}", low - begin)
            lost[f"partition {partition}: deleted by the topic before it was read"] = low - begin
        places[partition] = _Place(partition, max(begin, low), end)
    return places, lost


def _reached(topic: str, position: Any) -> dict[int, int]:
    """Partition → next offset to read. Another topic's position is none."""
    if not isinstance(position, dict) or position.get("topic") != topic:
        return {}
    return {int(partition): int(offset) for partition, offset in position.get("offsets", {}).items()}


def _recreated(topic: str, why: str) -> SourceData:
    return SourceData(
        f"the topic '{topic}' does not hold the place that was reached",
        why=f"{why}: it was deleted and made again, or has lost messages",
        hint="load what it holds now in place of the old rows: dw run --full-refresh; "
        "to keep those, give the pipeline another name and target",
    )


def _gap(topic: str, what: str, count: int) -> SourceData:
    return SourceData(
        f"the topic '{topic}' has deleted messages before they were read",
        why=f"{what}: at most {count:,} messages that retention has removed",
        hint="go on with what is left: on_gap: continue in the source file; and run more often",
    )


def _with_losses(item: IngestedItem, lost: Mapping[str, int]) -> IngestedItem:
    if not lost:
        return item
    from dataclasses import replace

    changed = {**item.metadata.get("changed", {}), **lost}
    return replace(item, metadata={**item.metadata, "changed": changed})


def _assign(consumer: Consumer, topic: str, offsets: Mapping[int, int]) -> None:
    from confluent_kafka import TopicPartition

    consumer.driver.assign([TopicPartition(topic, partition, at) for partition, at in offsets.items()])


# -- messages --------------------------------------------------------------------------------------------


def _shape(client: Client, topic: str) -> Shape:
    config, registry = client.config, client.registry
    if config.value_format != "avro" or registry is None:
        form: ValueFormat = "json" if config.value_format == "avro" else config.value_format
        return Shape("kafka", topic, IDENTITY, form, config.expand)
    shape, seen = Shape("kafka", topic, IDENTITY, "json", config.expand), dict[str, str]()
    shape.decode = lambda values: _avro.decode_avro(shape, registry, seen, values)
    return shape


def _fetch(
    client: Client,
    consumer: Consumer,
    topic: str,
    places: Mapping[int, _Place],
    count: int,
    seconds: float,
) -> list[Message] | None:
    """The next messages before the end, None when every partition is at its end."""
    _refuse_closed(consumer)
    if all(place.done for place in places.values()):
        return None
    found = []
    config = client.config
    keys = client.registry if config.key_format == "avro" else None
    for message in consumer.driver.consume(count, min(seconds, _CONSUME_SECONDS)):
        error = message.error()
        if error is not None:
            _note(error, message, topic, places)
            continue
        place = places[message.partition()]
        offset = message.offset()
        if offset >= place.end:
            place.next = place.end
            continue
        if offset < place.next:
            continue  # given before the driver began again at another broker
        place.next = offset + 1
        one = _message(message, place.partition, offset, config.value_format == "json")
        found.append(one._replace(key=_avro.key_of(keys, message.key())) if keys is not None else one)
        if place.done:
            _pause(consumer, topic, place)
    if not found:
        _refuse_told(consumer, topic)
    return found


def _pause(consumer: Consumer, topic: str, place: _Place) -> None:
    """Fetch no more of a partition that is read to its end."""
    from confluent_kafka import KafkaException, TopicPartition

    with suppress(KafkaException):
        consumer.driver.incremental_unassign([TopicPartition(topic, place.partition)])


def _note(error: Any, message: Any, topic: str, places: Mapping[int, _Place]) -> None:
    """The end of a partition, or an error in place of a message. Raises what stops the read."""
    name = error.name()
    place = places.get(message.partition())
    if name == "_PARTITION_EOF" and place is not None:
        # An open transaction may hold back messages before `end`: the next run reads on from here.
        place.next = min(place.end, max(place.next, message.offset()))
        place.end = place.next
    elif name in ("_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE"):
        where = f"partition {message.partition()}: offset {place.next if place else 0:,} and later"
        raise SourceData(
            f"the topic '{topic}' deleted messages while they were read",
            why=where,
            hint="run again; if that says what was deleted: on_gap: continue in the source file",
        )
    elif name not in _PASSING:
        raise _error(error, topic)


def _message(message: Any, partition: int, offset: int, json: bool) -> Message:
    value, key = message.value(), message.key()
    kind, milliseconds = message.timestamp()
    metadata: dict[str, Any] = {}
    headers = message.headers()
    if headers:
        metadata["headers"] = _headers(headers)
    if kind == 2:
        metadata["timestamp_type"] = "log append time"
    if json and value and value[0] == 0 and len(value) > 5 and value[5] in b'{["0123456789-tfn':
        # Serializers that use a schema registry put a zero and the schema's number in front of the JSON.
        metadata["schema_id"] = int.from_bytes(value[1:5])
        value = value[5:]
    return Message(value, (partition, offset), key, milliseconds * 1000 if kind else None, metadata)


def _headers(headers: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Name → value; values of a name that comes more than once as a list."""
    found: dict[str, list[Any]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(header_text(value))
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}

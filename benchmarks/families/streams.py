"""Streams filled with the same rows, each message one row as JSON. Each is gone when its context ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from benchmarks.families.rows import NAME, PAGE_ROWS, Filled, row
from benchmarks.measure import free_port, wait_for_port

#: MQTT lets a broker send no more before the first acknowledgement.
MQTT_MOST = 65_535
#: How long both wait for another message where nothing tells the end.
QUIET_SECONDS = 1.0
#: Messages that are under way to NATS at once.
NATS_PENDING = 4_000


def message(number: int) -> bytes:
    return json.dumps(row(number)).encode()


@contextlib.contextmanager
def kafka(rows: int, folder: Path) -> Iterator[Filled]:
    """The mock cluster that comes with librdkafka.

    Messages are compressed, as most producers do: the cluster keeps 5 MB of a partition.
    """
    from confluent_kafka import Producer

    producer = Producer(
        {"test.mock.num.brokers": 1, "log_level": 0, "compression.type": "lz4", "linger.ms": 50}
    )
    brokers = producer.list_topics(timeout=10).brokers.values()
    address = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    producer.list_topics(NAME, timeout=10)  # makes it
    for number in range(1, rows + 1):
        producer.produce(NAME, message(number), key=str(number))
        if number % PAGE_ROWS == 0:
            producer.flush(30)
    producer.flush(30)
    config = {"bootstrap_servers": address, "topic": NAME}
    yield Filled(config, NAME, {"KAFKA": address, "KAFKA_TOPIC": NAME})


@contextlib.contextmanager
def amqp(rows: int, folder: Path) -> Iterator[Filled]:
    """RabbitMQ. A queue is empty when it has been read, so it is filled before each round."""
    import pika

    url = urlsplit(os.environ.get("BENCH_AMQP", "amqp://guest:guest@127.0.0.1:5672"))
    parameters = pika.URLParameters(url._replace(path="/%2F").geturl())

    def channel_of(connection: Any) -> Any:
        channel = connection.channel()
        channel.queue_declare(NAME)
        return channel

    def refill() -> None:
        with pika.BlockingConnection(parameters) as connection:
            channel = channel_of(connection)
            channel.queue_purge(NAME)
            for number in range(1, rows + 1):
                channel.basic_publish("", NAME, message(number))
            channel.queue_declare(NAME, passive=True)  # the broker has all of them when it answers

    config = {
        "host": url.hostname,
        "port": url.port or 5672,
        "username": unquote(url.username or "guest"),
        "password": unquote(url.password or "guest"),
        "queue": NAME,
    }
    try:
        yield Filled(config, NAME, {"AMQP_URL": parameters_url(url), "AMQP_QUEUE": NAME}, refill)
    finally:
        with pika.BlockingConnection(parameters) as connection:
            channel_of(connection).queue_delete(NAME)


def parameters_url(url: Any) -> str:
    return str(url._replace(path="/%2F").geturl())


@contextlib.contextmanager
def nats(rows: int, folder: Path) -> Iterator[Filled]:
    """NATS JetStream, a stream in memory."""
    import nats as driver

    url = os.environ.get("BENCH_NATS", "nats://127.0.0.1:4222")

    async def fill() -> None:
        client = await driver.connect(url)
        stream = client.jetstream(publish_async_max_pending=NATS_PENDING)
        await stream.add_stream(name=NAME, subjects=[f"{NAME}.>"], storage="memory")
        for number in range(1, rows + 1):
            await stream.publish_async(f"{NAME}.new", message(number), wait_stall=30)
        await stream.publish_async_completed()
        await client.close()

    async def remove() -> None:
        client = await driver.connect(url)
        await client.jetstream().delete_stream(NAME)
        await client.close()

    asyncio.run(fill())
    try:
        yield Filled({"servers": url}, NAME, {"NATS_URL": url, "NATS_STREAM": NAME})
    finally:
        asyncio.run(remove())


@contextlib.contextmanager
def mqtt(rows: int, folder: Path) -> Iterator[Filled]:
    """A Mosquitto of its own, since one as it is set up keeps 1,000 messages for a session.

    Each of the two has its own session, which is filled before each round.
    """
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    from dwcli.connectors.mqtt import Config, session_name

    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        raise OSError("no mosquitto on the PATH")
    port, settings = free_port(), folder / "mosquitto.conf"
    settings.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n"
    )
    config = {
        "host": "127.0.0.1",
        "port": port,
        "topic": NAME,
        "client_id": NAME,
        "poll_timeout_seconds": QUIET_SECONDS,
    }
    sessions = [session_name(Config(**config), NAME), f"{NAME}_plain"]

    def client(name: str = "") -> Any:
        made = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5)
        made.max_inflight_messages_set(1_000)
        return made

    def refill() -> None:
        for name in sessions:
            subscribe(client(name), port)
        publisher = client()
        publisher.connect("127.0.0.1", port)
        publisher.loop_start()
        sent = [publisher.publish(NAME, message(number), qos=1) for number in range(1, rows + 1)]
        for one in sent:
            one.wait_for_publish(60)
        publisher.disconnect()
        publisher.loop_stop()

    process = subprocess.Popen([program, "-c", settings], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        told = {"MQTT_PORT": str(port), "MQTT_TOPIC": NAME, "MQTT_CLIENT": sessions[1]}
        yield Filled(config, NAME, {**told, "QUIET": str(QUIET_SECONDS)}, refill)
    finally:
        process.terminate()
        process.wait()


def subscribe(client: Any, port: int) -> None:
    """Make the session anew, so that the broker keeps what comes for it."""
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    for clean in (True, False):
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0 if clean else 3600
        answered: list[Any] = []
        client.on_subscribe = lambda *told, answered=answered: answered.append(told)
        client.connect("127.0.0.1", port, clean_start=clean, properties=properties)
        deadline, asked = time.monotonic() + 20, False
        while not answered:
            client.loop(0.1)
            if client.is_connected() and not asked:
                client.subscribe(NAME, qos=1)
                asked = True
            if time.monotonic() > deadline:
                raise OSError("Mosquitto does not answer")
        client.disconnect()


@contextlib.contextmanager
def redis(rows: int, folder: Path) -> Iterator[Filled]:
    import redis as driver

    url = os.environ.get("BENCH_REDIS", "redis://127.0.0.1:6379")
    parts = urlsplit(url)
    with contextlib.closing(driver.Redis.from_url(url)) as client:
        client.delete(NAME)
        try:
            for first in range(1, rows + 1, PAGE_ROWS):
                pipe = client.pipeline(transaction=False)
                for number in range(first, min(first + PAGE_ROWS, rows + 1)):
                    pipe.xadd(NAME, row(number))
                pipe.execute()
            config = {"host": parts.hostname, "port": parts.port or 6379}
            yield Filled(config, NAME, {"REDIS_URL": url, "REDIS_STREAM": NAME})
        finally:
            client.delete(NAME)

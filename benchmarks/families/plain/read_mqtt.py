# paho, on_message
from __future__ import annotations

import json
import os
import queue
from collections.abc import Iterator
from typing import Any

import paho.mqtt.client as paho
from _copy import load
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

found: queue.Queue[Any] = queue.Queue()
client = paho.Client(
    CallbackAPIVersion.VERSION2, os.environ["MQTT_CLIENT"], protocol=paho.MQTTv5, manual_ack=True
)
client.on_message = lambda client, data, message: found.put(message)
taken: list[Any] = []


def rows() -> Iterator[tuple[object, ...]]:
    while True:
        try:
            message = found.get(timeout=float(os.environ["QUIET"]))
        except queue.Empty:
            return
        taken.append(message.mid)
        row = json.loads(message.payload)
        yield tuple(row[name] for name in ("id", "name", "total", "at", "note"))


properties = Properties(PacketTypes.CONNECT)
properties.SessionExpiryInterval = 3600
properties.ReceiveMaximum = 65_535
client.connect("127.0.0.1", int(os.environ["MQTT_PORT"]), clean_start=False, properties=properties)
client.loop_start()
load(rows())
for mid in taken:
    client.ack(mid, 1)
client.disconnect()
client.loop_stop()

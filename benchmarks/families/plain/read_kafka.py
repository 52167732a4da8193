# confluent_kafka, consume
from __future__ import annotations

import json
import os
from collections.abc import Iterator

from _copy import load
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition


def rows() -> Iterator[tuple[object, ...]]:
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["KAFKA"],
            "group.id": "plain",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    topic = os.environ["KAFKA_TOPIC"]
    partitions = consumer.list_topics(topic).topics[topic].partitions
    left = len(partitions)
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    while left:
        for message in consumer.consume(1000, 1):
            if message.error() is None:
                row = json.loads(message.value())
                yield tuple(row[name] for name in ("id", "name", "total", "at", "note"))
            elif message.error().code() == KafkaError._PARTITION_EOF:
                left -= 1
    consumer.close()


load(rows())

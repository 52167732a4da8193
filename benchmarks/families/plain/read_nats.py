# nats-py, pull_subscribe
from __future__ import annotations

import asyncio
import json
import os

import nats
import psycopg


async def main() -> None:
    client = await nats.connect(os.environ["NATS_URL"])
    stream = client.jetstream()
    left = (await stream.stream_info(os.environ["NATS_STREAM"])).state.messages
    consumer = await stream.pull_subscribe("", stream=os.environ["NATS_STREAM"])
    with psycopg.connect(os.environ["TARGET_URL"]) as connection:
        connection.execute(
            "CREATE TABLE orders (id bigint, name text, total numeric(12,2), at timestamptz, note text)"
        )
        with connection.cursor().copy("COPY orders FROM STDIN") as copy:
            while left:
                for message in await consumer.fetch(min(1000, left)):
                    row = json.loads(message.data)
                    copy.write_row([row[name] for name in ("id", "name", "total", "at", "note")])
                    await message.ack()
                    left -= 1
    await client.close()


asyncio.run(main())

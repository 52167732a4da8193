# redis, XREAD
from __future__ import annotations

import os
from collections.abc import Iterator

import redis
from _copy import load


def rows() -> Iterator[tuple[object, ...]]:
    client = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, protocol=2)
    stream, last = os.environ["REDIS_STREAM"], "0"
    while found := client.xread({stream: last}, count=1000):
        entries = found[0][1]
        for _, fields in entries:
            yield tuple(fields[name] for name in ("id", "name", "total", "at", "note"))
        last = entries[-1][0]


load(rows())

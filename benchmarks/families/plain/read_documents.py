# pymongo, find
from __future__ import annotations

import os
from collections.abc import Iterator

import pymongo
from _copy import load


def rows() -> Iterator[tuple[object, ...]]:
    with pymongo.MongoClient(os.environ["MONGODB_URL"]) as client:
        for document in client[os.environ["MONGODB_DATABASE"]].orders.find():
            yield tuple(document[name] for name in ("id", "name", "total", "at", "note"))


load(rows())

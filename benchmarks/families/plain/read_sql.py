# pymysql, fetchmany
from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import pymysql
from _copy import load


def rows() -> Iterator[tuple[object, ...]]:
    url = urlsplit(os.environ["MYSQL_URL"])
    with pymysql.connect(
        host=url.hostname,
        port=url.port or 3306,
        user=url.username,
        password=unquote(url.password or ""),
        database=os.environ["MYSQL_DATABASE"],
        cursorclass=pymysql.cursors.SSCursor,
    ) as session:
        cursor = session.cursor()
        cursor.execute("SELECT id, name, total, at, note FROM orders")
        while found := cursor.fetchmany(1000):
            yield from found


load(rows())

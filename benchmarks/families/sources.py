"""A source of each family, filled with the same rows. Each is gone when its context ends."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from benchmarks.families import streams
from benchmarks.families.rows import COLUMNS, NAME, PAGE_ROWS, Filled, row
from benchmarks.measure import free_port, wait_for_port

#: How long an API thinks before it gives a page.
PAGE_SECONDS = 0.005


@dataclass(frozen=True)
class Family:
    title: str
    protocol: str
    fill: Callable[[int, Path], AbstractContextManager[Filled]]
    #: rows that one run can read, or that the server can hold and give in a time one waits for
    most: int | None = None


@contextlib.contextmanager
def mysql(rows: int, folder: Path) -> Iterator[Filled]:
    import pymysql

    url = os.environ.get("BENCH_MARIADB", "mysql://root@127.0.0.1:3306")
    parts = urlsplit(url)
    login = {"host": parts.hostname, "port": parts.port or 3306, "password": unquote(parts.password or "")}
    with (
        pymysql.connect(**login, user=parts.username, autocommit=True) as session,
        session.cursor() as cursor,
    ):
        cursor.execute(f"DROP DATABASE IF EXISTS {NAME}")
        cursor.execute(f"CREATE DATABASE {NAME}")
        try:
            cursor.execute(
                f"CREATE TABLE {NAME}.orders (id BIGINT PRIMARY KEY, name VARCHAR(50), total DECIMAL(12,2),"
                " at DATETIME, note TEXT)"
            )
            for first in range(1, rows + 1, PAGE_ROWS):
                given = [row(number) for number in range(first, min(first + PAGE_ROWS, rows + 1))]
                cursor.executemany(
                    f"INSERT INTO {NAME}.orders VALUES (%s, %s, %s, %s, %s)",
                    [[str(one[name]).replace("+00:00", "") for name in COLUMNS] for one in given],
                )
            config = {**login, "username": parts.username, "database": NAME}
            yield Filled(config, "orders", {"MYSQL_URL": url, "MYSQL_DATABASE": NAME})
        finally:
            cursor.execute(f"DROP DATABASE {NAME}")


@contextlib.contextmanager
def csv_file(rows: int, folder: Path) -> Iterator[Filled]:
    path = folder / "orders.csv"
    with path.open("w", encoding="utf-8") as out:
        out.write(",".join(COLUMNS) + "\n")
        for number in range(1, rows + 1):
            out.write(
                ",".join(
                    f'"{value}"' if isinstance(value, str) and "," in value else str(value)
                    for value in row(number).values()
                )
                + "\n"
            )
    yield Filled({"path": str(path)}, path.name, {"CSV": str(path)})


@contextlib.contextmanager
def http_pages(rows: int, folder: Path) -> Iterator[Filled]:
    """Pages that are made beforehand, so that the server takes next to nothing of the processor."""
    bodies: list[bytes] = []

    class Pages(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = bodies[int(parse_qs(urlsplit(self.path).query).get("page", ["1"])[0]) - 1]
            time.sleep(PAGE_SECONDS)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        base = f"http://127.0.0.1:{server.server_port}"
        for first in range(1, rows + 1, PAGE_ROWS):
            last = min(first + PAGE_ROWS, rows + 1)
            page: dict[str, Any] = {"data": [row(number) for number in range(first, last)]}
            if last <= rows:
                page["next"] = f"{base}/orders?page={len(bodies) + 2}"
            bodies.append(json.dumps(page).encode())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = {"base_url": base, "data_path": "data", "pagination": "next_url", "next_path": "next"}
        yield Filled(config, "orders", {"API": f"{base}/orders"})
        server.shutdown()


@contextlib.contextmanager
def mongodb(rows: int, folder: Path) -> Iterator[Filled]:
    import pymongo

    port = free_port()
    server = subprocess.Popen(
        [Path(sys.executable).parent / "secantusd-py", "--port", str(port), "--storage-path", ":memory:"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port)
        url = f"mongodb://127.0.0.1:{port}"
        with pymongo.MongoClient(url) as client:
            orders = client[NAME].orders
            for first in range(1, rows + 1, PAGE_ROWS):
                orders.insert_many([row(number) for number in range(first, min(first + PAGE_ROWS, rows + 1))])
        config = {"host": "127.0.0.1", "port": port, "database": NAME}
        yield Filled(config, "orders", {"MONGODB_URL": url, "MONGODB_DATABASE": NAME})
    finally:
        server.terminate()
        server.wait()


FAMILIES = {
    "sql": Family("SQL", "mysql", mysql, 2_000_000),
    "files": Family("files", "files", csv_file),
    "http": Family("HTTP", "http", http_pages, 2_000_000),
    "documents": Family("documents", "mongodb", mongodb, 500_000),
    "kafka": Family("streams", "kafka", streams.kafka, 500_000),
    "amqp": Family("streams", "amqp", streams.amqp, 500_000),
    "nats": Family("streams", "nats", streams.nats, 1_000_000),
    "mqtt": Family("streams", "mqtt", streams.mqtt, streams.MQTT_MOST),
    "redis": Family("streams", "redis", streams.redis, 2_000_000),
}

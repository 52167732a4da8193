"""A project that has sources and a real warehouse, for the commands that run, look and ask."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

SOURCES = """\
protocol: sqlite
database_path: {database}
pipelines:
  orders: {{query: orders, write: merge, key: [id], cursor: updated_at, every: 1h}}
  customers: {{query: customers, write: replace}}
"""
BROKEN = """\
protocol: sqlite
database_path: {database}
pipelines:
  missing: {{query: nowhere, every: 1d}}
"""
NOTES = ("größe 日本語", "[red]x[/]", "tab\there\nnew \x1b[31mline", None, "")


def make_project(root: Path, warehouse_url: str) -> Path:
    """A project `shop` with 100 orders, 2 customers, and a source whose table is not there."""
    (root / "sources").mkdir(parents=True)
    (root / "dw.yaml").write_text(f"name: shop\nwarehouse: {warehouse_url}\n", "utf-8")
    database = root / "shop.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executescript(
            """
            CREATE TABLE customers (id INTEGER PRIMARY KEY NOT NULL, name TEXT NOT NULL);
            CREATE TABLE orders (id INTEGER PRIMARY KEY NOT NULL, total NUMERIC(12,2), note TEXT,
                                 updated_at DATETIME NOT NULL);
            INSERT INTO customers VALUES (1, 'Ada'), (2, 'Grace');
            """
        )
        connection.executemany(
            "INSERT INTO orders VALUES (?, ?, ?, ?)",
            [(n, n / 4, NOTES[n % 5], f"2026-01-01 10:{n // 60:02}:{n % 60:02}") for n in range(1, 101)],
        )
    (root / "sources" / "shop.yaml").write_text(SOURCES.format(database=database), "utf-8")
    (root / "sources" / "broken.yaml").write_text(BROKEN.format(database=database), "utf-8")
    return root

"""Rows into PostgreSQL, as every script here does it: one COPY, row by row."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import psycopg


def load(rows: Iterable[Sequence[object]]) -> None:
    """Make `orders` and fill it."""
    with psycopg.connect(os.environ["TARGET_URL"]) as connection:
        connection.execute(
            "CREATE TABLE orders (id bigint, name text, total numeric(12,2), at timestamptz, note text)"
        )
        with connection.cursor().copy("COPY orders FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

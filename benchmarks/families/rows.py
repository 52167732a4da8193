"""The rows that every family has, and what a source says of itself when they are in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

#: Of everything that is made on a server; two may measure at the same time.
NAME = f"dw_bench_{os.getpid()}"
COLUMNS = ("id", "name", "total", "at", "note")
PAGE_ROWS = 1000


@dataclass(frozen=True)
class Filled:
    """A source with the rows in it: what `dw` and the plain script are told about it."""

    config: Mapping[str, object]
    query: str
    variables: Mapping[str, str] = field(default_factory=dict)
    #: fills it anew before each round, where reading empties it
    refill: Callable[[], None] = lambda: None


def row(number: int) -> dict[str, object]:
    """A row by its number, from 1: some 120 bytes of text."""
    return {
        "id": number,
        "name": f"customer {number % 9973}",
        "total": f"{number * 37 % 1_000_000 / 100:.2f}",
        "at": f"2024-{number % 12 + 1:02}-{number % 28 + 1:02}T{number % 24:02}:{number % 60:02}:00+00:00",
        "note": "a note as long as people write them, " * 2,
    }


def total(rows: int) -> float:
    """What `total` comes to, for the comparison at the end."""
    return sum(number * 37 % 1_000_000 for number in range(1, rows + 1)) / 100

"""Arrow batches that a driver streams, gathered to the size that a connector hands on at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def gather(batches: Iterable[Any], batch_bytes: int) -> Iterator[list[Any]]:
    """Record batches until they are `batch_bytes` large; empty ones are left out."""
    found, size = [], 0
    for batch in batches:
        if not batch.num_rows:
            continue
        found.append(batch)
        size += batch.nbytes
        if size >= batch_bytes:
            yield found
            found, size = [], 0
    if found:
        yield found

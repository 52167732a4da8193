"""Arrow batches from SQL Server's driver into frames; what the server printed is parsed here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from dwcli.connectors._rows import Filled, decimal_dtype, localized, slices
from dwcli.contract import IngestedItem

_CASTS: dict[str, pl.DataType] = {
    "bigint": pl.Int64(),
    "double precision": pl.Float64(),
    "boolean": pl.Boolean(),
    "bytea": pl.Binary(),
}


def items(
    columns: Sequence[tuple[str, str]],
    schema: pa.Schema,
    batches: Sequence[Any],
    zone: str,
    batch_bytes: int,
) -> Iterator[IngestedItem]:
    """The batches as one item, or as several where they turned out too large.

    columns: name and PostgreSQL type of each. zone: what times without a zone mean.
    """
    table = pa.Table.from_batches(batches, schema)
    changed: dict[str, int] = {}
    filled = []
    for place, (name, type) in enumerate(columns):
        column = parsed(pl.Series(values=pl.from_arrow(table.column(place))), type, zone)
        filled.append(column.series.alias(name))
        changed |= {f"{name}: {what}": count for what, count in column.changed.items()}
    types = dict(columns)
    metadata: dict[str, Any] = {"changed": changed} if changed else {}
    for part in slices(pl.DataFrame(filled), batch_bytes):
        yield IngestedItem(part, types, metadata=metadata)
        metadata = {}


def parsed(series: pl.Series, type: str, zone: str) -> Filled:
    """One column as the PostgreSQL type that it will have."""
    if type == "timestamptz":
        return _instants(series, type, zone)
    if type == "time":
        return _clock(series, type)
    if type == "date":
        return Filled(series if series.dtype == pl.Date else series.str.to_date("%Y-%m-%d"), type)
    dtype = _CASTS.get(type) or decimal_dtype(type)
    return Filled(series if dtype is None else series.cast(dtype), type)


def _instants(series: pl.Series, type: str, zone: str) -> Filled:
    """`2024-01-02T03:04:05.1234567` in `zone`. The seventh digit is cut, and counted where it is not 0."""
    text = series.cast(pl.String)
    local = text.str.slice(0, 26).str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us")
    times, changed = localized(local, zone)
    return Filled(times, type, changed | _cut(text, 26))


def _clock(series: pl.Series, type: str) -> Filled:
    text = series.cast(pl.String)
    return Filled(text.str.slice(0, 15).str.to_time("%H:%M:%S%.f"), type, _cut(text, 15))


def _cut(text: pl.Series, at: int) -> dict[str, int]:
    finer = int((~text.str.slice(at).is_in(["", "0"])).sum())
    return {"100 nanoseconds cut to microseconds": finer} if finer else {}

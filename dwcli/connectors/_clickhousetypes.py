"""Arrow batches from ClickHouse into frames, with what cannot be held as it is counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from dwcli.connectors._rows import UTC_MICROSECONDS, Filled, decimal_dtype, slices
from dwcli.contract import IngestedItem


def items(
    columns: Sequence[tuple[str, str, str]], schema: pa.Schema, batches: Sequence[Any], batch_bytes: int
) -> Iterator[IngestedItem]:
    """The batches as one item, or as several where they turned out too large.

    columns: name, PostgreSQL type and ClickHouse type of each.
    """
    table = pa.Table.from_batches(batches, schema)
    changed: dict[str, int] = {}
    filled = []
    for place, (name, type, kind) in enumerate(columns):
        column = _column(table.column(place), type, kind)
        filled.append(column.series.alias(name))
        changed |= {f"{name}: {what}": count for what, count in column.changed.items()}
    types = {name: type for name, type, _ in columns}
    metadata: dict[str, Any] = {"changed": changed} if changed else {}
    for part in slices(pl.DataFrame(filled), batch_bytes):
        yield IngestedItem(part, types, metadata=metadata)
        metadata = {}


def _column(values: pa.ChunkedArray, type: str, kind: str) -> Filled:
    arrow = values.type
    if pa.types.is_string(arrow) or pa.types.is_fixed_size_binary(arrow):
        values = values.cast(pa.binary())
    series = pl.Series(values=pl.from_arrow(values))
    if type == "bytea":
        return Filled(series.cast(pl.Binary), type)
    if type == "timestamptz":
        return _instants(series, type)
    if type == "double precision" and series.dtype == pl.Binary:
        # A BFloat16, printed with as many digits as tell it from other Float32.
        return Filled(series.cast(pl.String).cast(pl.Float32).cast(pl.Float64), type)
    if series.dtype == pl.Binary:
        return _texts(series, type, "Float" in kind)
    if type == "bigint":
        return Filled(series.cast(pl.Int64), type)
    if type == "double precision":
        return Filled(series.cast(pl.Float64), type)
    dtype = decimal_dtype(type)
    if dtype is not None and type != "numeric(20,0)":
        return Filled(series.cast(dtype), type)
    return Filled(series, type)


def _instants(series: pl.Series, type: str) -> Filled:
    """Nanoseconds cut to microseconds, downwards, and counted."""
    ticks = series.to_physical()
    changed = {}
    if series.dtype == pl.Datetime("ns", getattr(series.dtype, "time_zone", None)):
        finer = int((ticks % 1000 != 0).sum())
        changed = {"nanoseconds cut to microseconds": finer} if finer else {}
        ticks = ticks // 1000
    elif getattr(series.dtype, "time_unit", "us") == "ms":
        ticks = ticks * 1000
    return Filled(ticks.cast(pl.Datetime("us")).cast(UTC_MICROSECONDS), type, changed)


def _texts(series: pl.Series, type: str, floats: bool) -> Filled:
    """Bytes as text. What is not UTF-8 becomes hex text, inside JSON U+FFFD; both are counted."""
    changed = {}
    try:
        text = series.cast(pl.String)
    except pl.exceptions.PolarsError:
        values = [None if raw is None else _decoded(raw, type) for raw in series]
        text = pl.Series(values=[v and v[0] for v in values], dtype=pl.String)
        count = sum(v is not None and v[1] for v in values)
        to = "U+FFFD" if type == "jsonb" else "hex text"
        changed[f"bytes that are not UTF-8 → {to}"] = count
    if type == "jsonb" and floats:
        # Only a column that holds floats as well: the server writes them as these strings.
        count = int(text.str.count_matches(r'[\[:,]"(?:nan|inf|-inf)"').sum() or 0)
        if count:
            changed["NaN or infinity in JSON → string"] = count
    return Filled(text, type, changed)


def _decoded(raw: bytes, type: str) -> tuple[str, bool]:
    """The text, and whether it had to be mended."""
    try:
        return raw.decode(), False
    except UnicodeDecodeError:
        return (raw.decode(errors="replace") if type == "jsonb" else "\\x" + raw.hex()), True

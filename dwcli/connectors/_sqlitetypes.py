"""Values of SQLite columns as the types that they declare, or as the types that they have."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from typing import Any

import polars as pl

from dwcli.connectors._rows import UTC_MICROSECONDS, Fill, Filled, fill_values, localized, typed

_PLAIN_TIME = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?$"
_ISO_TIME = r"^\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?: ?(?:Z|[+-]\d\d:?\d\d))?)?$"


def fill_for(declared: str, zone: str) -> Fill:
    """The fill for a column that asks for the PostgreSQL type `declared`, "" for none.

    zone: what times without an offset mean.
    """
    match declared:
        case "boolean":
            return _booleans
        case "date":
            return _dates
        case "timestamptz":
            return functools.partial(_times, zone)
    return typed(declared)


def between(
    name: str, start: datetime.date | None, end: datetime.date | None, frame: pl.DataFrame
) -> pl.DataFrame:
    """The rows between the bounds; a batch that did not turn out to be times is kept whole."""
    dtype = frame.schema[name]
    if dtype not in (pl.Date, UTC_MICROSECONDS):
        return frame
    column = pl.col(name)
    within = pl.lit(True)
    if start is not None:
        within = within & (column >= pl.lit(start))
    if end is not None:
        within = within & (column < pl.lit(end))
    return frame.filter(within | column.is_null())


def _booleans(values: Sequence[Any], running: str) -> Filled:
    if running in ("", "boolean") and set(values) <= {0, 1, None}:
        ready = [None if v is None else bool(v) for v in values]
        return Filled(pl.Series(values=ready, dtype=pl.Boolean), "boolean")
    return fill_values(values, "text" if running == "boolean" else running)


def _dates(values: Sequence[Any], running: str) -> Filled:
    if running in ("", "date") and _all_text(values):
        text = pl.Series(values=values, dtype=pl.String)
        if text.str.contains(r"^\d{4}-\d\d-\d\d$").all():
            dates = text.str.to_date("%Y-%m-%d", strict=False)
            if dates.null_count() == text.null_count():
                return Filled(dates, "date")
    return fill_values(values, "text" if running == "date" else running)


def _times(zone: str, values: Sequence[Any], running: str) -> Filled:
    if running in ("", "timestamptz") and _all_text(values):
        text = pl.Series(values=values, dtype=pl.String)
        if (times := _parsed(text, zone)) is not None:
            return times
    return fill_values(values, "text" if running == "timestamptz" else running)


def _all_text(values: Sequence[Any]) -> bool:
    return set(map(type, values)) <= {str, type(None)}


def _parsed(text: pl.Series, zone: str) -> Filled | None:
    """ISO times as UTC: those with an offset by it, the others in `zone`. None when one is no time."""
    if text.str.contains(_PLAIN_TIME).all():
        return _parsed_in_zone(text, text, zone)
    if not text.str.contains(_ISO_TIME).all():
        return None
    parts = pl.select(
        offset=pl.lit(text).str.extract(r":\d\d(?:\.\d+)? ?(Z|[+-]\d\d:?\d\d)$"),
        clock=pl.lit(text)
        .str.replace("T", " ", literal=True)
        .str.replace(r" ?(?:Z|[+-]\d\d:?\d\d)$", "")
        .str.replace(r"^(.{10})$", "${1} 00:00:00")
        .str.replace(r"^(.{16})$", "${1}:00"),
    )
    naive = parts["offset"].is_null()
    if naive.all():
        return _parsed_in_zone(text, parts["clock"], zone)
    local = _read_clock(parts["clock"])
    if local.null_count() != text.null_count():
        return None
    in_zone, changed = localized(pl.select(pl.when(pl.lit(naive)).then(pl.lit(local))).to_series(), zone)
    digits = parts["offset"].str.replace("Z", "+0000", literal=True).str.replace(":", "", literal=True)
    signed = digits.cast(pl.Int64)
    shift = pl.lit(signed.abs() // 100 * 60 + signed.abs() % 100) * pl.lit(signed.sign())
    by_offset = (pl.lit(local) - pl.duration(minutes=shift)).dt.replace_time_zone("UTC")
    utc = pl.select(pl.coalesce(pl.lit(in_zone), by_offset).alias("")).to_series()
    return Filled(utc.cast(UTC_MICROSECONDS), "timestamptz", changed)


def _parsed_in_zone(text: pl.Series, clock: pl.Series, zone: str) -> Filled | None:
    local = _read_clock(clock)
    if local.null_count() != text.null_count():
        return None
    times, changed = localized(local, zone)
    return Filled(times, "timestamptz", changed)


def _read_clock(clock: pl.Series) -> pl.Series:
    return clock.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)

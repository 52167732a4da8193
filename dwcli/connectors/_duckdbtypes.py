"""Arrow batches from DuckDB as frames: infinity, nanoseconds, 24:00 and JSON are what is left to do."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl

from dwcli.connectors._rows import Filled, localized, slices
from dwcli.contract import IngestedItem


def items(
    columns: Sequence[tuple[str, str, str]], schema: Any, batches: Sequence[Any], zone: str, batch_bytes: int
) -> Iterator[IngestedItem]:
    """Record batches as one item, or several; no batch gives an empty item with its columns.

    columns: name, DuckDB's type and PostgreSQL's type of each. zone: what its TIMESTAMPs mean.
    """
    import pyarrow as pa

    table = pa.Table.from_batches(batches, schema=schema)
    filled = [
        _finish(source_type, type, zone)(_series(arrow))
        for (_, source_type, type), arrow in zip(columns, table.columns, strict=True)
    ]
    frame = pl.DataFrame([f.series.alias(name) for (name, _, _), f in zip(columns, filled, strict=True)])
    types = {name: f.type for (name, _, _), f in zip(columns, filled, strict=True)}
    changed: Counter[str] = Counter()
    for (name, _, _), one in zip(columns, filled, strict=True):
        changed.update({f"{name}: {what}": count for what, count in one.changed.items()})
    metadata: dict[str, Any] = {"changed": dict(changed)} if changed else {}
    for part in slices(frame, batch_bytes):
        yield IngestedItem(part, types, metadata=metadata)
        metadata = {}


def _series(column: Any) -> pl.Series:
    series = pl.from_arrow(column)
    assert isinstance(series, pl.Series)
    return series


def _finish(source_type: str, type: str, zone: str) -> Callable[[pl.Series], Filled]:
    """What is left to do with a column once polars has it."""
    match source_type:
        case "DATE":
            return _dates
        case "TIMESTAMP" | "TIMESTAMP_S" | "TIMESTAMP_MS":
            return functools.partial(_timestamps, zone)
        case "TIMESTAMP_NS":
            return functools.partial(_nanoseconds, zone)
        case "TIMESTAMP WITH TIME ZONE":
            return functools.partial(_timestamps, "UTC")
        case "TIME" | "TIME_NS":
            return _clock
    return _json if type == "jsonb" else lambda series: Filled(series, type)


#: How DuckDB writes infinity in a TIMESTAMP (64 bits) and in a DATE (32 bits)
_ENDLESS, _ENDLESS_DAY = 2**63 - 1, 2**31 - 1
_DAY, _DAYS_IN_400_YEARS = 86_400_000_000, 146_097


def _dates(series: pl.Series) -> Filled:
    days = series.to_physical().cast(pl.Int64)
    if not (days.abs() == _ENDLESS_DAY).any():
        return Filled(series, "date")
    return Filled(_as_text(days, days, _ENDLESS_DAY, pl.lit("")), "date")


def _timestamps(zone: str, series: pl.Series) -> Filled:
    """UTC; a batch that holds infinity comes as text, for no Arrow timestamp can hold that."""
    ticks = series.to_physical()
    endless = ticks.is_in([_ENDLESS, -_ENDLESS])
    finite = pl.when(~pl.lit(endless)).then(pl.lit(ticks)).cast(pl.Datetime("us"))
    times, changed = localized(pl.select(finite).to_series(), zone)
    if not endless.any():
        return Filled(times, "timestamptz", changed)
    micros = times.to_physical()
    clock = pl.lit((micros % _DAY).cast(pl.Datetime("us"))).dt.strftime(" %H:%M:%S%.6f+00")
    return Filled(_as_text(micros // _DAY, ticks, _ENDLESS, clock), "timestamptz", changed)


def _nanoseconds(zone: str, series: pl.Series) -> Filled:
    """PostgreSQL counts microseconds: what is finer is cut off, and counted."""
    ticks = series.to_physical()
    endless = ticks.is_in([_ENDLESS, -_ENDLESS])
    finer = int(((ticks % 1000 != 0) & ~endless).sum())
    whole = pl.select(
        pl.when(pl.lit(endless)).then(pl.lit(ticks)).otherwise(pl.lit(ticks) // 1000)
    ).to_series()
    done = _timestamps(zone, whole.cast(pl.Datetime("us")))
    changed = {"nanoseconds cut to microseconds": finer} if finer else {}
    return Filled(done.series, done.type, {**done.changed, **changed})


def _as_text(days: pl.Series, ticks: pl.Series, endless: int, clock: pl.Expr) -> pl.Series:
    """Days since 1970 and a clock in PostgreSQL's text form, with `infinity` where the ticks say so.

    The calendar repeats after 400 years: years beyond those that polars can print are counted from
    the same day in the cycle that begins in 1970.
    """
    endless_day = pl.lit(ticks).abs() == endless
    day = pl.when(~endless_day).then(pl.lit(days))
    in_cycle = (day % _DAYS_IN_400_YEARS).cast(pl.Date)
    year = in_cycle.dt.year() + day // _DAYS_IN_400_YEARS * 400
    digits = pl.when(year > 0).then(year).otherwise(1 - year).cast(pl.String).str.zfill(4)
    era = pl.when(year > 0).then(pl.lit("")).otherwise(pl.lit(" BC"))
    plain = pl.concat_str([digits, in_cycle.dt.strftime("-%m-%d"), clock, era])
    infinity = pl.when(pl.lit(ticks) > 0).then(pl.lit("infinity")).otherwise(pl.lit("-infinity"))
    return pl.select(pl.when(endless_day).then(infinity).otherwise(plain).alias("")).to_series()


def _clock(series: pl.Series) -> Filled:
    """24:00:00 is a time to DuckDB and to PostgreSQL; polars ends a day before it."""
    if series.str.starts_with("24").any():
        return Filled(series, "time")
    return Filled(series.str.to_time("%H:%M:%S%.f"), "time")


_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')


def _json(series: pl.Series) -> Filled:
    """JSON has no NaN and no infinity: they become the strings "NaN" and "Infinity", and are counted."""
    if not series.str.contains(r"NaN|Infinity").any():
        return Filled(series, "jsonb")
    count = 0

    def quote(match: re.Match[str]) -> str:
        nonlocal count
        if match[0].startswith('"'):
            return match[0]
        count += 1
        return f'"{match[0]}"'

    values = [None if v is None else _JSON_TOKEN.sub(quote, v) for v in series]
    changed = {"NaN or Infinity in JSON → string": count} if count else {}
    return Filled(pl.Series(values=values, dtype=pl.String), "jsonb", changed)

"""Rows from a driver's cursor into frames of bounded bytes, with every value exact.

A driver that gives Python tuples is read like this:

    columns = [RowColumn("id", typed("bigint")), RowColumn("at", typed("timestamptz", zone))]
    yield from items(cursor.fetchmany, columns, config.batch_bytes)

Each column is built by its `fill`, chunk by chunk. A chunk whose values contradict the column's type
comes in the wider type (bigint → numeric → text, anything → text), and from then on the column stays
wide; the batch that was gathered until then goes out as it is. No value takes a detour through float.
"""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from types import NoneType
from typing import Any
from uuid import UUID

import polars as pl

from dwcli.contract import IngestedItem

#: Rows of the first chunk, and of any chunk: few enough that a sudden run of wide rows does not fill the
#: memory before it is noticed, enough that the cost per chunk does not show.
FIRST_ROWS = 64
MOST_ROWS = 1024

UTC_MICROSECONDS = pl.Datetime("us", "UTC")
DTYPES: Mapping[str, pl.DataType] = {
    "bigint": pl.Int64(),
    "double precision": pl.Float64(),
    "boolean": pl.Boolean(),
    "date": pl.Date(),
    "timestamptz": UTC_MICROSECONDS,
    "bytea": pl.Binary(),
}
#: Python types that a PostgreSQL type takes without changing a value
TAKES: Mapping[str, frozenset[type]] = {
    "bigint": frozenset({int}),
    "numeric": frozenset({int, float, Decimal}),
    "double precision": frozenset({float}),
    "boolean": frozenset({bool}),
    "date": frozenset({datetime.date}),
    "timestamptz": frozenset({datetime.datetime}),
    "time": frozenset({datetime.time}),
    "interval": frozenset({datetime.timedelta}),
    "bytea": frozenset({bytes, bytearray, memoryview}),
    "uuid": frozenset({UUID}),
    "jsonb": frozenset({dict, list}),
    "text": frozenset({str}),
}
NUMBERS = frozenset({int, float, Decimal})
WHOLE_IN_A_DOUBLE = 2**53


@dataclass(frozen=True)
class Filled:
    """One column of one chunk: its values, its PostgreSQL type, and how many values were changed."""

    series: pl.Series
    type: str
    #: what was done → to how many values, such as {"zero date → NULL": 3}
    changed: Mapping[str, int] = field(default_factory=dict)


#: (values, the type so far or "" in the first chunk) → the column. No values give an empty column.
Fill = Callable[[Sequence[Any], str], Filled]


@dataclass(frozen=True)
class RowColumn:
    """A column of a result and the way its values become a Series."""

    name: str
    fill: Fill


def items(
    fetch: Callable[[int], Sequence[Sequence[Any]]],
    columns: Sequence[RowColumn],
    batch_bytes: int,
    keep: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
) -> Iterator[IngestedItem]:
    """Batches of about `batch_bytes` from a cursor; one empty batch, with its columns, when there is no row.

    fetch: takes a number of rows and gives at most so many, none at the end (`cursor.fetchmany`).
    keep: filters each batch before it leaves.

    Changed values are counted in the item's `metadata["changed"]`, by "column: what was done".
    """
    gathered: list[list[Filled]] = []
    types = [""] * len(columns)
    size: float = 0
    wanted, sent = FIRST_ROWS, False

    while rows := fetch(wanted):
        values_by_column = zip(*rows, strict=True)
        chunk = [c.fill(v, t) for c, v, t in zip(columns, values_by_column, types, strict=True)]
        types = [f.type for f in chunk]
        if gathered and _shape(chunk) != _shape(gathered[0]):
            for item in _items_of(columns, gathered, batch_bytes, keep):
                yield item
                sent = True
            gathered, size = [], 0
        gathered.append(chunk)
        chunk_bytes = sum(f.series.estimated_size() for f in chunk)
        size += chunk_bytes
        if size >= batch_bytes:
            for item in _items_of(columns, gathered, batch_bytes, keep):
                yield item
                sent = True
            gathered, size = [], 0
        wanted = _rows_worth(batch_bytes // 4, chunk_bytes / len(rows), wanted)

    for item in _items_of(columns, gathered, batch_bytes, keep):
        yield item
        sent = True
    if not sent:
        yield empty_item(columns, types)


def empty_item(columns: Sequence[RowColumn], types: Sequence[str] = ()) -> IngestedItem:
    """A batch without rows that still tells every column and its type."""
    empty = [c.fill((), t) for c, t in zip(columns, types or [""] * len(columns), strict=True)]
    return IngestedItem(_frame(columns, empty), _types(columns, empty))


def _rows_worth(allowed: int, row_bytes: float, last: int) -> int:
    """How many rows to ask for next: no more than fit, and growing slowly."""
    return max(1, min(MOST_ROWS, last * 2, int(allowed / max(row_bytes, 1))))


def _shape(chunk: Sequence[Filled]) -> list[tuple[str, pl.DataType]]:
    return [(f.type, f.series.dtype) for f in chunk]


def _items_of(
    columns: Sequence[RowColumn],
    gathered: Sequence[Sequence[Filled]],
    batch_bytes: int,
    keep: Callable[[pl.DataFrame], pl.DataFrame] | None,
) -> Iterator[IngestedItem]:
    """The chunks as one item, or as several where a chunk turned out far larger than those before."""
    if not gathered:
        return
    frame = pl.concat([_frame(columns, chunk) for chunk in gathered], rechunk=True)
    frame = keep(frame) if keep else frame
    if not frame.height:
        return
    changed: Counter[str] = Counter()
    for chunk in gathered:
        for column, filled in zip(columns, chunk, strict=True):
            for what, count in filled.changed.items():
                changed[f"{column.name}: {what}"] += count
    metadata: dict[str, Any] = {"changed": dict(changed)} if changed else {}
    for part in slices(frame, batch_bytes):
        yield IngestedItem(part, _types(columns, gathered[0]), metadata=metadata)
        metadata = {}


def slices(frame: pl.DataFrame, batch_bytes: int) -> Iterator[pl.DataFrame]:
    """The frame itself, or halves of halves, so that none is more than twice `batch_bytes` large."""
    if frame.height < 2 or frame.estimated_size() <= 2 * batch_bytes:
        yield frame
    else:
        half = frame.height // 2
        yield from slices(frame.slice(0, half), batch_bytes)
        yield from slices(frame.slice(half), batch_bytes)


def _frame(columns: Sequence[RowColumn], chunk: Sequence[Filled]) -> pl.DataFrame:
    frame = pl.DataFrame([f.series.alias(str(place)) for place, f in enumerate(chunk)])
    frame.columns = [c.name for c in columns]  # polars would give a column without a name another one
    return frame


def _types(columns: Sequence[RowColumn], chunk: Sequence[Filled]) -> dict[str, str]:
    return {c.name: f.type for c, f in zip(columns, chunk, strict=True) if f.type}


# -- one column of Python values -----------------------------------------------------------------------


def typed(wanted: str = "", zone: str = "UTC") -> Fill:
    """A fill for Python values of a column whose PostgreSQL type is `wanted`; "" lets the values decide.

    zone: what naive datetimes mean.
    """

    def fill(values: Sequence[Any], running: str) -> Filled:
        return fill_values(values, running or wanted, zone)

    return fill


def fill_values(values: Sequence[Any], type: str, zone: str = "UTC") -> Filled:
    """Python values as a column of the PostgreSQL type `type`, or of a wider one that holds them all."""
    kinds = frozenset(map(_kind, set(map(_type, values)) - {NoneType}))
    if not kinds:
        return Filled(_nulls(len(values), type), type)
    if kinds == {int} and type in ("", "bigint"):
        return _whole_numbers(values)
    type = type if type and _fits(type, kinds, values) else _wider(type, kinds)
    base = base_type(type)
    if base == "numeric":
        return Filled(_numeric(values, type, kinds), type)
    if base == "timestamptz":
        return _timestamps(values, type, zone)
    if base in DTYPES:
        ready = [None if v is None else bytes(v) for v in values] if base == "bytea" else values
        return Filled(pl.Series(values=ready, dtype=DTYPES[base], strict=True), type)
    if kinds == {str}:
        return Filled(pl.Series(values=values, dtype=pl.String, strict=True), type)
    changed = {}
    if base == "text" and bytes in kinds:
        changed = {"bytes → hex text": sum(isinstance(v, (bytes, bytearray, memoryview)) for v in values)}
    return Filled(pl.Series(values=[as_text(v) for v in values], dtype=pl.String), type, changed)


_type = type


def _kind(python: type) -> type:
    """The built-in type that a driver's own subclass stands for."""
    known = (bool, int, float, Decimal, str, datetime.datetime, datetime.date)
    return next((k for k in known if issubclass(python, k)), python)


def base_type(type: str) -> str:
    """`numeric` for `numeric(12,2)`."""
    return type.split("(", 1)[0].strip()


def _fits(type: str, kinds: frozenset[type], values: Sequence[Any]) -> bool:
    base = base_type(type)
    if base == "double precision" and int in kinds and kinds <= {int, float}:
        return all(not isinstance(v, int) or abs(v) <= WHOLE_IN_A_DOUBLE for v in values)
    takes = TAKES.get(base)
    return kinds == {str} if takes is None else kinds <= takes


def _wider(type: str, kinds: frozenset[type]) -> str:
    """The narrowest type that holds these values and, where `type` is known, those before them."""
    if kinds <= NUMBERS and base_type(type) in ("", "bigint", "double precision", "numeric"):
        return "double precision" if not type and kinds == {float} else "numeric"
    if type:
        return "text"
    return next((name for name, takes in TAKES.items() if kinds <= takes), "text")


def _whole_numbers(values: Sequence[Any]) -> Filled:
    """As bigint; numbers beyond 64 bits make the column numeric."""
    try:
        return Filled(pl.Series(values=values, dtype=pl.Int64, strict=True), "bigint")
    except (TypeError, OverflowError):
        return Filled(_numeric(values, "numeric", frozenset({int})), "numeric")


def _nulls(count: int, type: str) -> pl.Series:
    dtype = DTYPES.get(base_type(type)) or (decimal_dtype(type) or pl.String() if type else pl.Null())
    return pl.Series(values=[None] * count, dtype=dtype)


def decimal_dtype(type: str) -> pl.DataType | None:
    """The polars Decimal for `numeric(p,s)`, where it can hold it."""
    match = re.fullmatch(r"numeric\((\d+),(\d+)\)", type)
    if match is None or int(match[1]) > 38 or int(match[2]) > int(match[1]):
        return None
    return pl.Decimal(int(match[1]), int(match[2]))


def _numeric(values: Sequence[Any], type: str, kinds: frozenset[type]) -> pl.Series:
    """A Decimal column where the declared precision holds every value, else text.

    Asked first, because polars rounds a Decimal that has more places than the dtype without a word.
    """
    dtype = decimal_dtype(type)
    if dtype is not None and kinds == {Decimal} and all(v is None or _within(v, dtype) for v in values):
        return pl.Series(values=values, dtype=dtype)
    if Decimal in kinds:
        return pl.Series(values=[as_text(v) for v in values], dtype=pl.String)
    text = pl.Series(values=[None if v is None else repr(v) for v in values], dtype=pl.String)
    if text.str.contains("n", literal=True).any():
        text = text.str.replace("inf", "Infinity", literal=True).str.replace("nan", "NaN", literal=True)
    return text


def _within(value: Decimal, dtype: pl.DataType) -> bool:
    assert isinstance(dtype, pl.Decimal)
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int) or -exponent > dtype.scale:
        return False
    return len(digits) + exponent <= (dtype.precision or 38) - dtype.scale


def _timestamps(values: Sequence[Any], type: str, zone: str) -> Filled:
    """Aware values as UTC; naive ones in the source's zone."""
    if all(v is None or v.tzinfo is None for v in values):
        local = pl.Series(values=values, dtype=pl.Datetime("us"))
        series, changed = localized(local, zone)
        return Filled(series, type, changed)
    if all(v is None or v.tzinfo is not None for v in values):
        utc = [None if v is None else v.astimezone(datetime.UTC) for v in values]
        return Filled(pl.Series(values=utc, dtype=UTC_MICROSECONDS), type)
    parts = [_timestamps([v], type, zone) for v in values]
    changed = sum((Counter(part.changed) for part in parts), Counter[str]())
    return Filled(pl.concat([part.series for part in parts]), type, dict(changed))


def localized(local: pl.Series, zone: str) -> tuple[pl.Series, dict[str, int]]:
    """Naive times of `zone` as UTC, as PostgreSQL reads them, and how many had no single meaning.

    An hour that the clock skips is read with the offset before the change; an hour that comes twice
    is the later one.
    """
    if zone == "UTC":
        return local.cast(pl.Datetime("us")).dt.replace_time_zone("UTC"), {}
    late = local.dt.replace_time_zone(zone, ambiguous="latest", non_existent="null")
    early = local.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    skipped = late.is_null() & local.is_not_null()
    twice = int((late != early).sum())
    changed = {f"local time that {zone} has twice → the later": twice} if twice else {}
    if skipped.any():
        # The day before has the offset that held until the clock was moved.
        day = pl.duration(hours=24)
        before = (pl.lit(local) - day).dt.replace_time_zone(
            zone, ambiguous="latest", non_existent="null"
        ) + day
        late = pl.select(pl.coalesce(pl.lit(late), before).alias(local.name)).to_series()
        changed[f"local time that {zone} skips → shifted"] = int(skipped.sum())
    return late.dt.convert_time_zone("UTC").cast(UTC_MICROSECONDS), changed


# -- PostgreSQL's own text form -------------------------------------------------------------------------


def as_text(value: Any) -> str | None:
    """A Python value in the text form in which PostgreSQL reads its type."""
    match value:
        case None:
            return None
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | UUID():
            return str(value)
        case float():
            return _float_text(value)
        case Decimal():
            return format(value, "f") if value.is_finite() else _float_text(float(value))
        case bytes() | bytearray() | memoryview():
            return "\\x" + bytes(value).hex()
        case datetime.datetime() | datetime.time():
            return value.isoformat(*([" "] if isinstance(value, datetime.datetime) else []))
        case datetime.timedelta():
            return interval_text(value)
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, default=as_text)
    return str(value)


def _float_text(value: float) -> str:
    return repr(value).replace("inf", "Infinity").replace("nan", "NaN")


def interval_text(value: datetime.timedelta) -> str:
    """`-12:30:00.000001`, with hours beyond 24 where needed."""
    micros = value // datetime.timedelta(microseconds=1)
    seconds, fraction = divmod(abs(micros), 1_000_000)
    sign = "-" if micros < 0 else ""
    clock = f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{clock}.{fraction:06}" if fraction else clock

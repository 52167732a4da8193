"""Rows in any shape, as a frame that the lake and the warehouse both hold exactly."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from dwcli.contract import IngestedItem

#: Above this, a whole number is not exact as a double.
EXACT_DOUBLE = 2**53
INT64 = range(-(2**63), 2**63)

Types = dict[str, str]


def item_frame(item: IngestedItem) -> tuple[pl.DataFrame, Types]:
    """The rows of an item as (frame, PostgreSQL types that the frame's dtypes do not say)."""
    payload = item.payload
    if isinstance(payload, pl.DataFrame):
        return settle(payload, dict(item.types))
    rows = [payload] if isinstance(payload, Mapping) else list(payload or [])
    frame, types = rows_frame(rows)
    return settle(frame, types | dict(item.types))


def settle(frame: pl.DataFrame, types: Types) -> tuple[pl.DataFrame, Types]:
    """Replace the dtypes that Parquet or COPY have no exact form for.

    Naive timestamps are UTC; categories are text; nested values are jsonb; 128-bit integers are
    numeric, in PostgreSQL's text form.
    """
    settled: list[pl.Expr] = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        if isinstance(dtype, pl.Datetime) and dtype.time_zone != "UTC":
            zoned = (
                column.dt.convert_time_zone("UTC") if dtype.time_zone else column.dt.replace_time_zone("UTC")
            )
            settled.append(zoned)
        elif dtype.base_type() in (pl.Categorical, pl.Enum):
            settled.append(column.cast(pl.String))
        elif dtype.base_type() in (pl.Int128, pl.UInt128):
            settled.append(column.cast(pl.String))
            types = {name: "numeric"} | types
        elif dtype.is_nested() or dtype == pl.Object:
            settled.append(_json_text(frame[name]))
            types = {name: "jsonb"} | types
    return (frame.with_columns(settled) if settled else frame), types


def _json_text(series: pl.Series) -> pl.Expr:
    texts = [None if value is None else json_text(value) for value in series.to_list()]
    return pl.lit(pl.Series(series.name, texts, dtype=pl.String))


def json_text(value: Any) -> str:
    """A value as JSON that PostgreSQL takes: NaN and infinities, which JSON has not, become strings."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value


# -- dicts to columns ---------------------------------------------------------------------------------


def rows_frame(rows: Sequence[Mapping[str, Any]]) -> tuple[pl.DataFrame, Types]:
    """Dicts as a frame: a column for each key, in the order they were first seen, typed by all values.

    A column takes the narrowest type that holds every value exactly; one whose values have nothing in
    common is text.
    """
    names = list(dict.fromkeys(str(key) for row in rows for key in row))
    series: list[pl.Series] = []
    types: Types = {}
    for name in names:
        column, declared = values_series(name, [row.get(name) for row in rows])
        series.append(column)
        if declared:
            types[name] = declared
    return pl.DataFrame(series), types


def values_series(name: str, values: list[Any]) -> tuple[pl.Series, str | None]:
    """Python values as one typed column, and its PostgreSQL type where the dtype does not say it."""
    kinds = {type(value) for value in values if value is not None}
    for accepted, build in _BUILDERS:
        if kinds <= accepted and kinds:
            return build(name, values)
    if not kinds:
        return pl.Series(name, values, dtype=pl.Null), None
    if kinds & {dict, list, tuple}:
        return _mapped(name, values, json_text), "jsonb"
    return _mapped(name, values, _text), None


def _mapped(
    name: str, values: Iterable[Any], form: Callable[[Any], Any], dtype: Any = pl.String
) -> pl.Series:
    return pl.Series(name, [None if value is None else form(value) for value in values], dtype=dtype)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(_plain(value))


def _integers(name: str, values: list[Any]) -> tuple[pl.Series, str | None]:
    if all(value is None or value in INT64 for value in values):
        return pl.Series(name, values, dtype=pl.Int64), None
    return _mapped(name, values, str), "numeric"


def _floats(name: str, values: list[Any]) -> tuple[pl.Series, str | None]:
    whole = [value for value in values if isinstance(value, int)]
    if all(abs(value) <= EXACT_DOUBLE for value in whole):
        return _mapped(name, values, float, pl.Float64), None
    return _mapped(name, values, lambda value: str(value).replace("nan", "NaN")), "numeric"


def _decimals(name: str, values: list[Any]) -> tuple[pl.Series, str | None]:
    def exact(value: Any) -> str:
        if isinstance(value, decimal.Decimal) and not value.is_finite():
            return "NaN" if value.is_nan() else ("Infinity" if value > 0 else "-Infinity")
        return format(value, "f") if isinstance(value, decimal.Decimal) else str(value)

    return _mapped(name, values, exact), "numeric"


def _moments(name: str, values: list[Any]) -> tuple[pl.Series, str | None]:
    def utc(value: dt.date) -> dt.datetime:
        moment = value if isinstance(value, dt.datetime) else dt.datetime(value.year, value.month, value.day)
        return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)

    return _mapped(name, values, utc, pl.Datetime("us", "UTC")), None


def _plainly(dtype: Any) -> Callable[[str, list[Any]], tuple[pl.Series, str | None]]:
    return lambda name, values: (pl.Series(name, values, dtype=dtype), None)


_BUILDERS: tuple[tuple[set[type], Callable[[str, list[Any]], tuple[pl.Series, str | None]]], ...] = (
    ({bool}, _plainly(pl.Boolean)),
    ({int}, _integers),
    ({int, float}, _floats),
    ({int, decimal.Decimal}, _decimals),
    ({str}, _plainly(pl.String)),
    ({bytes}, _plainly(pl.Binary)),
    ({dt.date}, _plainly(pl.Date)),
    ({dt.date, dt.datetime}, _moments),
    ({dt.time}, _plainly(pl.Time)),
    ({dt.timedelta}, _plainly(pl.Duration("us"))),
    ({uuid.UUID}, lambda name, values: (_mapped(name, values, str), "uuid")),
)

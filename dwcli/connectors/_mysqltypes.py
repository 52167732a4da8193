"""Values as MySQL prints them, parsed a column at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import polars as pl

from dwcli.connectors._rows import Fill, Filled, decimal_dtype, localized


def fill_for(type: str, zone: str, unsigned: bool, bits: int) -> Fill:
    """How the bytes that the server sends for a column of this PostgreSQL type become a Series.

    zone: what its times mean. unsigned: whether it is a whole number of 64 bits without a sign.
    bits: the width of a BIT.
    """
    match type:
        case "bytea":
            return functools.partial(_binary, type)
        case "boolean":
            return functools.partial(_boolean, type)
        case "date":
            return functools.partial(_date, type)
        case "timestamptz":
            return functools.partial(_timestamp, type, zone)
        case "bit varying":
            return functools.partial(_bits, type, bits)
        case "bigint":
            return functools.partial(_cast, type, pl.Int64())
        case "numeric(20,0)" if unsigned:
            return functools.partial(_cast, type, pl.UInt64())
        case "double precision":
            return functools.partial(_cast, type, pl.Float64())
    return functools.partial(_cast, type, decimal_dtype(type) or pl.String())


def _text(values: Sequence[bytes | None]) -> pl.Series:
    return pl.Series(values=values, dtype=pl.Binary).cast(pl.String)


def _cast(type: str, dtype: pl.DataType, values: Sequence[bytes | None], running: str) -> Filled:
    return Filled(_text(values).cast(dtype), type)


def _binary(type: str, values: Sequence[bytes | None], running: str) -> Filled:
    return Filled(pl.Series(values=values, dtype=pl.Binary), type)


def _boolean(type: str, values: Sequence[bytes | None], running: str) -> Filled:
    return Filled(_text(values).cast(pl.Int64).cast(pl.Boolean), type)


def _bits(type: str, size: int, values: Sequence[bytes | None], running: str) -> Filled:
    bits = [None if v is None else f"{int.from_bytes(v, 'big'):0{size}b}" for v in values]
    return Filled(pl.Series(values=bits, dtype=pl.String), type)


def _date(type: str, values: Sequence[bytes | None], running: str) -> Filled:
    text = _text(values)
    dates = text.str.to_date("%Y-%m-%d", strict=False)
    return Filled(dates, type, _nulled(text, dates))


def _timestamp(type: str, zone: str, values: Sequence[bytes | None], running: str) -> Filled:
    text = _text(values)
    local = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    times, changed = localized(local, zone)
    return Filled(times, type, _nulled(text, local) | changed)


def _nulled(text: pl.Series, parsed: pl.Series) -> dict[str, int]:
    """How many dates had no meaning: `0000-00-00`, a month or a day 00, a 30th of February."""
    lost = parsed.null_count() - text.null_count()
    return {"zero date → NULL": lost} if lost else {}

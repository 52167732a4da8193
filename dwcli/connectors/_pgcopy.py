"""PostgreSQL's binary COPY format → polars, a column at a time.

A row is `int16 fields`, then for each field `int32 length` (-1 is NULL) and its bytes, big-endian. Rows
differ in length, so no column stands at a fixed place; but all rows of a batch can take the same step
together. `decode` keeps one position per row and moves them field by field: gather the lengths, gather
the values, advance. Python runs once per column and batch, never per value.

Text is not copied: an Arrow string view is a length and a place in the batch's own buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from dwcli.errors import SourceData

Kind = Literal[
    "int2",
    "int4",
    "int8",
    "oid",
    "float4",
    "float8",
    "bool",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "uuid",
    "numeric",
    "text",
    "jsonb",
    "bytea",
]

#: Bytes that must follow the last row in a buffer, so that a gather never leaves it.
SLACK = 64

DTYPES: Mapping[Kind, Any] = {
    "int2": pl.Int16,
    "int4": pl.Int32,
    "int8": pl.Int64,
    "oid": pl.Int64,
    "float4": pl.Float32,
    "float8": pl.Float64,
    "bool": pl.Boolean,
    "date": pl.Date,
    "time": pl.Time,
    "timestamp": pl.Datetime("us", "UTC"),
    "timestamptz": pl.Datetime("us", "UTC"),
    "uuid": pl.String,
    "numeric": pl.String,
    "text": pl.String,
    "jsonb": pl.String,
    "bytea": pl.Binary,
}

#: How the fixed-width kinds stand on the wire.
FIXED: Mapping[Kind, str] = {
    "int2": ">i2",
    "int4": ">i4",
    "int8": ">i8",
    "oid": ">u4",
    "float4": ">f4",
    "float8": ">f8",
    "bool": "u1",
    "date": ">i4",
    "time": ">i8",
    "timestamp": ">i8",
    "timestamptz": ">i8",
    "uuid": "V16",
}

Ints = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Field:
    """One column of the COPY. precision and scale: of a declared `numeric(p,s)` with 0 ≤ s ≤ p ≤ 38."""

    name: str
    kind: Kind
    precision: int | None = None
    scale: int | None = None


def _dtype(field: Field) -> Any:
    if field.kind == "numeric" and field.precision is not None:
        return pl.Decimal(field.precision, field.scale or 0)
    return DTYPES[field.kind]


def decode(
    buffer: bytearray, starts: Ints, ends: Ints, fields: Sequence[Field], timezone: str = "UTC"
) -> pl.DataFrame:
    """The rows that stand in `buffer[starts[i]:ends[i]]`, as a frame with one column per field.

    buffer: must have SLACK bytes after the last row. String columns refer to it: do not change it.
    starts, ends: int64, ascending.
    timezone: where naive timestamps were written; they become UTC.

    A date, time, timestamp or numeric column is String, in PostgreSQL's text form, when a value of this
    batch does not fit the dtype. Raises SourceData when the rows do not add up to these fields.
    """
    if not len(starts):
        return pl.DataFrame(schema={field.name: _dtype(field) for field in fields})
    if not (_gather(buffer, starts, ">i2") == len(fields)).all():
        raise SourceData("the server sent rows with another number of columns than the query has")
    at = starts + 2
    columns: list[pl.Series] = []
    try:
        for field in fields:
            series, at = _column(buffer, at, field, timezone)
            columns.append(series)
    except IndexError:  # a length that leads out of the buffer
        at = starts
    if not (at == ends).all():
        raise SourceData("the server sent rows that do not add up to their columns")
    return pl.DataFrame(columns)


def _gather(buffer: bytearray, at: Ints, dtype: Any) -> Ints:
    """What stands at each of these byte positions, which need not be aligned.

    It is moved as plain bytes and named afterwards: numpy would take typed values off an odd place singly.
    """
    kind = np.dtype(dtype)
    places = np.ndarray((len(buffer) - kind.itemsize + 1,), f"V{kind.itemsize}", buffer, 0, (1,))
    return places[at].view(kind)


def _octets(buffer: bytearray, at: Ints, count: int) -> Ints:
    """The 8 · count bytes that begin at each of these positions: uint64[positions, count]."""
    return _gather(buffer, at, f"V{8 * count}").view("<u8").reshape(-1, count)


def _column(buffer: bytearray, at: Ints, field: Field, timezone: str) -> tuple[pl.Series, Ints]:
    """The column whose fields begin at these positions, and where the next fields begin."""
    if field.kind in FIXED:
        record = _gather(buffer, at, [("length", ">i4"), ("value", FIXED[field.kind])])
        width = record.dtype["value"].itemsize
        valid = _valid(record["length"])
        after = at + (4 + width) if valid is None else at + 4 + width * valid
        return _fixed(field, record["value"], valid, timezone), after
    if field.kind == "numeric":
        header = _gather(buffer, at, _HEADER)
        length = header["length"].astype(np.int64)
        valid = _valid(length)
        if valid is not None:
            header[~valid] = 0  # what stands there belongs to the next field
            length *= valid
        return _numeric(buffer, at, header, field, valid), at + 4 + length
    views = _octets(buffer, at, 2).view(np.uint32)
    length = views[:, 0].byteswap().view(np.int32)
    valid = _valid(length)
    if valid is not None:
        length *= valid
    after = at + 4 + length
    if field.kind == "jsonb":  # one version byte stands before the text
        views = _octets(buffer, at + 1, 2).view(np.uint32)
        length = np.maximum(length - 1, 0)
        return _views(buffer, field, views, length, at + 5, valid), after
    return _views(buffer, field, views, length, at + 4, valid), after


def _valid(length: Ints) -> Mask | None:
    """Which rows are not NULL; None when all are."""
    valid: Mask = length >= 0
    return None if valid.all() else valid


def _arrow(name: str, kind: pa.DataType, rows: int, valid: Mask | None, *data: Any) -> pl.Series:
    """A series over these buffers, not copied. NULL rows may hold anything."""
    bitmap = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    array = pa.Array.from_buffers(kind, rows, [bitmap, *(pa.py_buffer(part) for part in data)])
    # By Arrow's own protocol: of its Array, polars imports pyarrow.compute, which takes 20 ms.
    return pl.Series(values=SimpleNamespace(__arrow_c_array__=array.__arrow_c_array__)).alias(name)


# -- text and bytes ----------------------------------------------------------------------------------

#: A view holds its length, then up to 12 bytes; this is what to keep of the 16 that were gathered, by
#: length. Longer values (the last row) keep their first four bytes, then buffer 0 and the place in it.
_KEEP = np.zeros((14, 16), np.uint8)
for _length in range(13):
    _KEEP[_length, 4 : 4 + _length] = 0xFF
_KEEP[13, 4:8] = 0xFF
_KEEP = _KEEP.view(np.uint32)


def _views(
    buffer: bytearray, field: Field, views: Ints, length: Ints, at: Ints, valid: Mask | None
) -> pl.Series:
    """Strings or bytes that stay where they are: length and first bytes in `views`, the rest in `buffer`."""
    long = length > 12
    if long.all():
        views[:, 2] = 0
        views[:, 3] = at
    else:
        views &= _KEEP.take(np.minimum(length, 13), axis=0)
        views[:, 3] |= (at * long).astype(np.uint32)
    views[:, 0] = length
    kind = pa.binary_view() if field.kind == "bytea" else pa.string_view()
    return _arrow(field.name, kind, len(views), valid, views, buffer)


# -- fixed width -------------------------------------------------------------------------------------


def _fixed(field: Field, raw: Ints, valid: Mask | None, timezone: str) -> pl.Series:
    name, rows = field.name, len(raw)
    match field.kind:
        case "int2":
            return _arrow(name, pa.int16(), rows, valid, raw.astype(np.int16))
        case "int4":
            return _arrow(name, pa.int32(), rows, valid, raw.astype(np.int32))
        case "int8" | "oid":
            return _arrow(name, pa.int64(), rows, valid, raw.astype(np.int64))
        case "float4":
            return _arrow(name, pa.float32(), rows, valid, raw.astype(np.float32))
        case "float8":
            return _arrow(name, pa.float64(), rows, valid, raw.astype(np.float64))
        case "bool":
            return _arrow(name, pa.bool_(), rows, valid, np.packbits(raw == 1, bitorder="little"))
        case "date":
            return _date(name, raw.astype(np.int64), valid)
        case "time":
            return _time(name, raw.astype(np.int64), valid)
        case "uuid":
            return _uuid(name, raw, valid)
        case _:
            zone = timezone if field.kind == "timestamp" else "UTC"
            return _timestamp(name, raw.astype(np.int64), valid, zone)


_HEX = np.array([f"{byte:02x}".encode() for byte in range(256)], dtype="S2")


def _uuid(name: str, raw: Ints, valid: Mask | None) -> pl.Series:
    digits = _HEX[np.ascontiguousarray(raw).view(np.uint8)].view(np.uint8).reshape(-1, 32)
    text = np.full((len(raw), 36), ord("-"), np.uint8)
    for start, end, place in ((0, 8, 0), (8, 12, 9), (12, 16, 14), (16, 20, 19), (20, 32, 24)):
        text[:, place : place + end - start] = digits[:, start:end]
    return _arrow(name, pa.large_string(), len(raw), valid, np.arange(len(raw) + 1) * 36, text)


# -- dates and times ---------------------------------------------------------------------------------

DAY = 86_400_000_000
#: 2000-01-01, PostgreSQL's zero, in days since 1970-01-01
EPOCH_DAYS = 10_957
#: 0001-01-01 and 10000-01-01, in days since 1970-01-01
FIRST_DAY, LAST_DAY = -719_162, 2_932_897
#: The Gregorian calendar repeats itself after 400 years.
CYCLE_DAYS = 146_097


def _date(name: str, days: Ints, valid: Mask | None) -> pl.Series:
    """days: since 2000-01-01; the ends of int32 are the infinities."""
    unix = days + EPOCH_DAYS
    odd = _outside(unix, FIRST_DAY, LAST_DAY, valid)
    if odd is None:
        return _arrow(name, pa.date32(), len(days), valid, unix.astype(np.int32))
    plain = _arrow(name, pa.date32(), len(days), valid, np.where(odd, 0, unix).astype(np.int32))
    limits = np.iinfo(np.int32)
    texts = [_infinity(int(days[row]), limits) or _date_text(int(unix[row])) for row in np.flatnonzero(odd)]
    return _with_texts(plain.dt.strftime("%Y-%m-%d"), odd, texts)


def _time(name: str, microseconds: Ints, valid: Mask | None) -> pl.Series:
    odd = _outside(microseconds, 0, DAY, valid)
    plain = microseconds if odd is None else np.where(odd, 0, microseconds)
    series = _arrow(name, pa.time64("us"), len(plain), valid, plain)
    if odd is None:
        return series
    return _with_texts(_without_zeros(series.dt.strftime("%H:%M:%S.%6f")), odd, ["24:00:00"] * int(odd.sum()))


def _timestamp(name: str, microseconds: Ints, valid: Mask | None, timezone: str) -> pl.Series:
    """microseconds: since 2000-01-01 in `timezone`; the ends of int64 are the infinities."""
    days = microseconds // DAY + EPOCH_DAYS
    # a day of room at both ends: the time zone may move a value over the limit
    odd = _outside(days, FIRST_DAY + 1, LAST_DAY - 1, valid)
    usual = microseconds if odd is None else np.where(odd, 0, microseconds)
    plain = _to_utc(name, usual + EPOCH_DAYS * DAY, valid, timezone)
    if odd is None:
        return plain
    limits = np.iinfo(np.int64)
    text = _without_zeros(plain.dt.strftime("%Y-%m-%d %H:%M:%S.%6f")) + "+00"
    texts = [
        _infinity(int(microseconds[row]), limits) or _timestamp_text(int(microseconds[row]), timezone)
        for row in np.flatnonzero(odd)
    ]
    return _with_texts(text, odd, texts)


def _to_utc(name: str, unix: Ints, valid: Mask | None, timezone: str) -> pl.Series:
    """Wall clock microseconds of a time zone, as UTC.

    A time that the clock showed twice is the first of the two. One that it skipped is read as if the
    clock had not yet been changed, as PostgreSQL does.
    """
    if timezone == "UTC":
        return _arrow(name, pa.timestamp("us", "UTC"), len(unix), valid, unix)
    wall = _arrow(name, pa.timestamp("us"), len(unix), valid, unix)
    read = wall.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")
    if read.null_count() > wall.null_count():
        day = pl.duration(days=1)
        before = (pl.col(name) - day).dt.replace_time_zone(
            timezone, ambiguous="earliest", non_existent="null"
        )
        shifted = wall.to_frame().select(before.dt.convert_time_zone("UTC") + day).to_series()
        return read.dt.convert_time_zone("UTC").zip_with(read.is_not_null(), shifted)
    return read.dt.convert_time_zone("UTC")


def _outside(values: Ints, first: int, end: int, valid: Mask | None) -> Mask | None:
    """Which values lie outside [first, end) and are not NULL; None when none does."""
    odd: Mask = (values < first) | (values >= end)
    if valid is not None:
        odd &= valid
    return odd if odd.any() else None


def _with_texts(series: pl.Series, rows: Mask, texts: Sequence[str]) -> pl.Series:
    return series.scatter(np.flatnonzero(rows), texts)


def _without_zeros(series: pl.Series) -> pl.Series:
    return series.str.strip_chars_end("0").str.strip_chars_end(".")


def _infinity(value: int, limits: Any) -> str:
    return {limits.max: "infinity", limits.min: "-infinity"}.get(value, "")


def _date_text(days: int) -> str:
    """A day of any year as PostgreSQL writes it. days: since 1970-01-01."""
    from datetime import date, timedelta

    cycles = (days - FIRST_DAY) // CYCLE_DAYS
    day = date(1, 1, 1) + timedelta(days=days - FIRST_DAY - cycles * CYCLE_DAYS)
    year = day.year + 400 * cycles
    return f"{year if year > 0 else 1 - year:04d}-{day:%m-%d}" + (" BC" if year <= 0 else "")


def _timestamp_text(microseconds: int, timezone: str) -> str:
    """A moment of any year in UTC, as PostgreSQL writes it. microseconds: since 2000-01-01 in `timezone`."""
    unix = microseconds + EPOCH_DAYS * DAY
    # the same day of a year that every time zone knows, and back
    cycles = (unix // DAY - FIRST_DAY) // CYCLE_DAYS - (0 if unix < 0 else 5)
    moved = unix - cycles * CYCLE_DAYS * DAY
    utc = _to_utc("", np.array([moved]), None, timezone).to_physical()[0] + cycles * CYCLE_DAYS * DAY
    days, rest = divmod(utc, DAY)
    seconds, fraction = divmod(rest, 1_000_000)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    if fraction:
        clock += f".{fraction:06d}".rstrip("0")
    date, _, era = _date_text(days).partition(" ")
    return f"{date} {clock}+00" + (f" {era}" if era else "")


# -- numeric -----------------------------------------------------------------------------------------

_HEADER = [("length", ">i4"), ("groups", ">u2"), ("weight", ">i2"), ("sign", ">u2"), ("scale", ">u2")]
_HEADER_BYTES = 12
_NEGATIVE = 0x4000
_SPECIALS = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}
#: Groups of four digits that one 64-bit number surely holds.
_LIMB = 4


def _numeric(buffer: bytearray, at: Ints, header: Ints, field: Field, valid: Mask | None) -> pl.Series:
    """Digits in groups of four, base 10,000 → Decimal, or String where Decimal cannot say the same."""
    precision, scale, scales = field.precision, field.scale, header["scale"]
    if precision is None or scale is None:
        present = scales if valid is None else scales[valid]
        scale = int(present[0]) if len(present) else 0
        fits = scale <= 38 and 4 * (int(header["weight"].max()) + 1) + scale <= 38
        precision = 38 if fits else None
    exact = scales == scale if valid is None else (scales == scale) | ~valid
    if precision is not None and bool(exact.all()) and bool((header["sign"] <= _NEGATIVE).all()):
        return _decimal(buffer, at, header, field.name, precision, scale, valid)
    return _numeric_text(buffer, at, header, field.name, valid)


def _decimal(
    buffer: bytearray, at: Ints, header: Ints, name: str, precision: int, scale: int, valid: Mask | None
) -> pl.Series:
    """Finite numbers that have `scale` decimal places and at most `precision` digits."""
    negative = header["sign"] == _NEGATIVE
    limbs, low = _limbs(buffer, at, header, scale)
    if precision <= 18:
        small = limbs[0] if len(limbs) == 1 else limbs[0] + limbs[1] * low
        if negative.any():
            np.negative(small, out=small, where=negative)
        words = np.empty((len(at), 2), np.int64)
        words[:, 0] = small
        words[:, 1] = small >> 63
    else:
        words = _words(limbs, low, negative)
    return _arrow(name, pa.decimal128(precision, scale), len(words), valid, words)


def _limbs(buffer: bytearray, at: Ints, header: Ints, scale: int) -> tuple[list[Ints], int]:
    """The number × 10^scale in limbs, lowest first. The lowest holds values below the returned bound,
    the others below 10^16.

    A group stands for d × 10000^(weight - i). Its factor is looked up in a table by weight and number of
    groups, so that groups that a row does not have count nothing.
    """
    groups, weight = header["groups"], header["weight"]
    below = -(-scale // 4)  # groups after the decimal point
    excess = 4 * below - scale  # zeros that the last of them has too many
    most, lowest, highest = int(groups.max()), int(weight.min()), int(weight.max())
    row = (weight.astype(np.intp) - lowest) * (most + 1) + groups
    digits = _octets(buffer, at + _HEADER_BYTES, -(-max(most, 1) // 4)).view(">u2")
    limbs: list[Ints] = []
    for limb in range(max(highest + below, 0) // _LIMB + 1):
        total = np.zeros(len(at), np.int64)
        for i in range(most):
            factors = np.zeros((highest - lowest + 1, most + 1), np.int64)
            for w in range(lowest, highest + 1):
                place = w - i + below - limb * _LIMB
                if 0 <= place < _LIMB:
                    factors[w - lowest, i + 1 :] = 10_000**place
            total += digits[:, i] * factors.ravel().take(row)
        limbs.append(total if limb or not excess else total // 10**excess)
    return limbs, 10 ** (4 * _LIMB - excess)


def _words(limbs: Sequence[Ints], low: int, negative: Mask) -> Ints:
    """limbs → 128-bit two's complement: an (n, 2) array of low and high words."""
    lower, upper = limbs[-1].astype(np.uint64), np.zeros(len(negative), np.uint64)
    for i in reversed(range(len(limbs) - 1)):
        lower, upper = _times(lower, upper, 10 ** (4 * _LIMB) if i else low)
        total = lower + limbs[i].astype(np.uint64)
        upper += total < lower
        lower = total
    flip = np.where(negative, np.uint64(0xFFFF_FFFF_FFFF_FFFF), np.uint64(0))
    lower, upper = (lower ^ flip) + negative, upper ^ flip
    upper += negative & (lower == 0)
    return np.stack([lower, upper], axis=1)


def _times(lower: Ints, upper: Ints, factor: int) -> tuple[Ints, Ints]:
    """A 128-bit number × a 64-bit factor, by halves of 32 bits."""
    half, mask = np.uint64(32), np.uint64(0xFFFF_FFFF)
    f0, f1 = np.uint64(factor & 0xFFFF_FFFF), np.uint64(factor >> 32)
    a0, a1 = lower & mask, lower >> half
    middle = a1 * f0 + (a0 * f0 >> half)
    cross = a0 * f1 + (middle & mask)
    return lower * np.uint64(factor), upper * np.uint64(factor) + a1 * f1 + (middle >> half) + (cross >> half)


def _numeric_text(buffer: bytearray, at: Ints, header: Ints, name: str, valid: Mask | None) -> pl.Series:
    """Numbers of different scales, NaN, infinities, more than 38 digits: as PostgreSQL writes them."""
    parts: list[pl.Series] = []
    places: list[Ints] = []
    scales, weight = header["scale"].astype(np.int64), header["weight"].astype(np.int64)
    there = np.ones(len(at), bool) if valid is None else valid
    fits = there & (header["sign"] <= _NEGATIVE) & (4 * (weight + 1) + scales <= 38) & (scales <= 38)
    for scale in np.unique(scales[fits]).tolist():
        rows = np.flatnonzero(fits & (scales == scale))
        part = _decimal(buffer, at[rows], header[rows], name, 38, scale, None)
        parts.append(part.cast(pl.String))
        places.append(rows)
    rest = np.flatnonzero(~fits)
    texts = [_one_numeric(buffer, int(at[row])) if there[row] else None for row in rest]
    parts.append(pl.Series(name, texts, dtype=pl.String))
    order = np.argsort(np.concatenate([*places, rest]), kind="stable")
    return pl.concat(parts)[order].rename(name)


def _one_numeric(buffer: bytearray, at: int) -> str:
    _, groups, weight, sign, scale = np.frombuffer(buffer, _HEADER, 1, at)[0].tolist()
    if sign in _SPECIALS:
        return _SPECIALS[sign]
    digits = [f"{group:04d}" for group in np.frombuffer(buffer, ">u2", groups, at + _HEADER_BYTES).tolist()]
    whole = "".join(digits[: max(weight + 1, 0)]).ljust(4 * (weight + 1), "0").lstrip("0") or "0"
    fraction = "0" * (4 * max(-weight - 1, 0)) + "".join(digits[max(weight + 1, 0) :])
    text = whole + ("." + fraction[:scale].ljust(scale, "0") if scale else "")
    return f"-{text}" if sign == _NEGATIVE else text

"""Python values from Oracle's driver into columns; what the server had to print is parsed here."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Sequence
from typing import Any

import polars as pl

from dwcli.connectors._rows import Fill, Filled, fill_values, interval_text, localized, typed

_INTERVAL = re.compile(r"([+-]?)(\d+) (\d+):(\d+):(\d+)(?:\.(\d+))?")


def fill_for(kind: str, type: str, zone: str) -> Fill:
    """How the values of a column of this Oracle type become a Series of this PostgreSQL type."""
    if kind.startswith("TIMESTAMP") or kind == "DATE":
        return functools.partial(_times, type, zone)
    if kind.startswith("INTERVAL"):
        return functools.partial(_intervals, type)
    if type == "jsonb":
        return functools.partial(_printed, type)
    return typed(type, zone)


def _printed(type: str, values: Sequence[Any], running: str) -> Filled:
    """Text that is of this type already."""
    return Filled(pl.Series(values=values, dtype=pl.String), type)


def _times(type: str, zone: str, values: Sequence[Any], running: str) -> Filled:
    """Datetimes as they are; text, which has nine digits of the second, cut to six and counted."""
    if not any(isinstance(value, str) for value in values):
        return fill_values(values, running or type, zone)
    text = pl.Series(values=values, dtype=pl.String)
    local = text.str.slice(0, 26).str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us")
    times, changed = localized(local, zone)
    finer = int((text.str.slice(26).str.strip_chars("0") != "").sum())
    return Filled(times, type, changed | _cut(finer))


def _intervals(type: str, values: Sequence[Any], running: str) -> Filled:
    """Days and seconds as a clock, years and months by name, in PostgreSQL's text form."""
    finer = 0
    texts: list[str | None] = []
    for value in values:
        if value is None:
            texts.append(None)
        elif isinstance(value, datetime.timedelta):
            texts.append(interval_text(value))
        elif isinstance(value, str):
            micros, cut = _micros(value)
            finer += cut
            texts.append(interval_text(datetime.timedelta(microseconds=micros)))
        else:
            texts.append(f"{value.years} years {value.months} mons")
    return Filled(pl.Series(values=texts, dtype=pl.String), type, _cut(finer))


def _micros(text: str) -> tuple[int, bool]:
    """`-02 03:04:05.123456789` in microseconds, towards zero, and whether digits were cut."""
    match = _INTERVAL.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not an interval of days and seconds: {text!r}")
    sign, days, hours, minutes, seconds, fraction = match.groups()
    digits = (fraction or "").ljust(9, "0")
    whole = ((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds)
    micros = whole * 1_000_000 + int(digits[:6])
    return (-micros if sign == "-" else micros), digits[6:].strip("0") != ""


def _cut(finer: int) -> dict[str, int]:
    return {"nanoseconds cut to microseconds": finer} if finer else {}

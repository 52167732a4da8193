"""What a column of texts holds, decided so that no value is altered.

CSV has no types, and JSON has fewer than PostgreSQL. Each batch of a column is looked at as a whole and
becomes the narrowest kind that holds *every* value exactly as it is spelled:

    boolean      true, false (any case); not t, yes or 1
    bigint       canonical integers that fit 64 bits; '007', '+5', ' 5', '-0' and '1_000' stay text
    numeric      '12.50', and integers of any size; '007.5', '.5' and '5.' stay text
    double       numbers with an exponent that a double gives back exactly, where all of a column are
                 such; '1e5' and '2E10' stay text, they may be product codes. Among other numbers they
                 are numeric, which holds them exactly
    date         2024-02-29
    zoned        timestamps with an offset or Z
    naive        timestamps without; read in the source's time zone
    text         everything else

`Kind` is the running state of a column: a later batch is never narrower than an earlier one, so what the
warehouse widened stays wide. `""` is a column in which no value has been seen.

A value that is read as a number or a time and only later turns out to stand in a column of text is then
spelled as PostgreSQL prints it: '1.5' beside '1.25' may read '1.50', a timestamp gets its offset.
"""

from __future__ import annotations

import re
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Kind = str

#: The PostgreSQL type of each kind, where the frame's dtype alone does not say it.
POSTGRES = {
    "boolean": "boolean",
    "bigint": "bigint",
    "numeric": "numeric",
    "double": "double precision",
    "date": "date",
    "zoned": "timestamptz",
    "naive": "timestamptz",
    "text": "text",
    "jsonb": "jsonb",
}

_SPELLINGS = (
    ("boolean", re.compile(r"(?i:true|false)")),
    ("bigint", re.compile(r"0|-?[1-9][0-9]*")),
    ("numeric", re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")),
    ("double", re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+[eE][+-]?|[eE][+-])[0-9]+")),
    ("date", re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")),
    ("zoned", re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}.*(Z|[+-][0-9]{2}(:?[0-9]{2})?)")),
    ("naive", re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}[0-9:.]*")),
)
_NUMBERS = ("bigint", "numeric", "double")
#: The next kind to try when a value contradicts one; text when there is none.
_WIDER = {"bigint": "numeric", "double": "numeric", "date": "naive"}
_SAMPLE = 50
_DECIMAL_DIGITS = 38
#: PostgreSQL's numeric ends there (131,072 digits before the point, 16,383 after it).
_NUMERIC_DIGITS = (131_072, 16_383)


class ImpossibleTime(ValueError):
    """A local time that the time zone skips: the zone is not the one the data was written in."""


def kind_of(text: str) -> Kind:
    """The kind of one value, by its spelling alone."""
    return next((kind for kind, spelling in _SPELLINGS if spelling.fullmatch(text)), "text")


def join(one: Kind, other: Kind, timezone: str) -> Kind:
    """The narrowest kind that holds values of both."""
    if one == other or not other:
        return one
    if not one:
        return other
    pair = {one, other}
    if pair <= set(_NUMBERS):
        return "numeric"
    if pair == {"date", "naive"} and timezone == "UTC":
        return "naive"  # in another zone, dates that were loaded before would mean UTC midnights
    return "text"


def type_texts(texts: pa.Array, so_far: Kind, timezone: str = "UTC") -> tuple[pa.Array, Kind]:
    """Give one batch of a column its type.

    texts: a string array; NULL is NULL, an empty string is a value.
    so_far: the kind that earlier batches of this column had.
    timezone: where naive timestamps were written.

    Returns the values and the kind; a `numeric` column whose values no Arrow decimal holds stays text in
    PostgreSQL's form. Raises ImpossibleTime for a naive timestamp that falls into a skipped hour.
    """
    import pyarrow as pa

    if so_far == "text":
        return texts, "text"
    if texts.null_count == len(texts):
        return pa.nulls(len(texts), arrow_type(so_far)), so_far
    values = texts.drop_null() if texts.null_count else texts
    kind = so_far
    # a known kind is tried at once: what it does not hold goes to the next wider one below
    for value in values[:_SAMPLE].to_pylist() if so_far in ("", "naive") else ():
        kind = join(kind, kind_of(value), timezone)
    while kind != "text":
        typed = _parse(texts, values, kind, timezone)
        if typed is not None:
            return typed, kind
        # doubles that are loaded stay what they are: their cast to numeric would lose digits
        kind = "text" if so_far == "double" else _WIDER.get(kind, "text")
        kind = join(kind, so_far, timezone)
    return texts, "text"


def arrow_type(kind: Kind) -> pa.DataType:
    """The Arrow type that a column of nothing but NULLs takes."""
    import pyarrow as pa

    if kind in ("zoned", "naive"):
        return pa.timestamp("us", "UTC")
    return {
        "": pa.null(),
        "boolean": pa.bool_(),
        "bigint": pa.int64(),
        "numeric": pa.decimal128(38, 0),
        "double": pa.float64(),
        "date": pa.date32(),
    }.get(kind, pa.string())


def _parse(texts: pa.Array, values: pa.Array, kind: Kind, timezone: str) -> pa.Array | None:
    """The values as `kind`, or None when one of them is not exactly that. `values` has no NULLs."""
    import pyarrow as pa

    try:
        if kind == "boolean":
            return _booleans(texts, values)
        if kind == "bigint":
            return texts.cast(pa.int64()) if _canonical(values, whole=True) else None
        if kind == "numeric":
            return _numerics(texts, values)
        if kind == "double":
            return texts.cast(pa.float64()) if _exact_doubles(values) else None
        if kind == "date":
            return _dates(texts, values)
        return _timestamps(texts, values, kind, timezone)
    except pa.ArrowInvalid:
        return None


def _buffers(values: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start and length of each text in the bytes that hold them all. No NULLs, no empty texts."""
    import numpy as np

    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
    return offsets[:-1], np.diff(offsets), np.frombuffer(values.buffers()[2], np.uint8)


def _shortest(values: pa.Array) -> int:
    import pyarrow.compute as pc

    return int(pc.min(pc.binary_length(values)).as_py())


def _canonical(values: pa.Array, whole: bool) -> bool:
    """Whether no number has a sign or a zero in front, or an end, that its type would not print.

    Only the ends are looked at: the cast that follows refuses what is no number at all.
    """
    import numpy as np

    if not _shortest(values):
        return False
    starts, lengths, data = _buffers(values)
    negative = data[starts] == ord("-")
    if np.any(lengths == negative):
        return False
    lead = data[starts + negative]
    if np.any((lead < ord("0")) | (lead > ord("9"))):
        return False
    zero = lead == ord("0")
    digits = lengths - negative
    if whole:
        return not np.any(zero & ((digits > 1) | negative))
    last = data[starts + lengths - 1]
    if np.any((last < ord("0")) | (last > ord("9"))):
        return False
    led = zero & (digits > 1)
    return not np.any(data[(starts + negative + 1)[led]] != ord(".")) and not np.any(
        zero & negative & (digits == 1)
    )


def _numerics(texts: pa.Array, values: pa.Array) -> pa.Array | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not _shortest(values):
        return None
    if _has_exponent(values):
        written = _written_out(values)
        if written is None:
            return None
        values, texts = written, _put_back(texts, written)
    if not _canonical(values, whole=False) or _has_negative_zero(values):
        return None
    whole, scale = _digits(values)
    # Arrow reads a number that needs more digits than its decimal has as a wrong one, without a word
    if whole + scale <= _DECIMAL_DIGITS:
        with suppress(pa.ArrowInvalid):
            return texts.cast(pa.decimal128(_DECIMAL_DIGITS, scale))
    # no number, or more digits than an Arrow decimal has: PostgreSQL's numeric takes them from the text
    spelled = pc.match_substring_regex(values, r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$")
    return texts if pc.all(spelled).as_py() and _all_fit_numeric(values) else None


def _has_exponent(values: pa.Array) -> bool:
    starts, lengths, data = _buffers(values)
    used = data[int(starts[0]) : int(starts[-1] + lengths[-1])]
    return bool(((used | 0x20) == ord("e")).any())


def _digits(values: pa.Array) -> tuple[int, int]:
    """The largest numbers of digits before and after a point; signs may be counted as digits before it."""
    import numpy as np

    starts, lengths, data = _buffers(values)
    first, end = int(starts[0]), int(starts[-1] + lengths[-1])
    points = np.flatnonzero(data[first:end] == ord(".")) + first
    if not len(points):
        return int(lengths.max()), 0
    if len(points) == len(values):
        rows: Any = slice(None)
    else:
        rows = np.searchsorted(starts, points, side="right") - 1
    fractions = np.zeros(len(values), np.int32)
    fractions[rows] = starts[rows] + lengths[rows] - points
    return int((lengths - fractions).max()), max(0, int(fractions.max()) - 1)


def _has_negative_zero(values: pa.Array) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    starts, lengths, data = _buffers(values)
    negative = (data[starts] == ord("-")) & (data[starts + (lengths > 1)] == ord("0"))
    if not negative.any():
        return False
    return bool(pc.any(pc.match_substring_regex(values.filter(pa.array(negative)), r"^-[0.]+$")).as_py())


def _written_out(values: pa.Array) -> pa.Array | None:
    """Numbers with an exponent written without one ('1.5e-7' → '0.00000015'); None if one may be a code."""
    import pyarrow as pa

    double = dict(_SPELLINGS)["double"]
    found = []
    for text in values.to_pylist():
        if "e" in text or "E" in text:
            if not double.fullmatch(text):
                return None
            number = Decimal(text)
            if not fits_numeric(number):
                return None
            text = format(number, "f")
        found.append(text)
    return pa.array(found, pa.string())


def _put_back(texts: pa.Array, values: pa.Array) -> pa.Array:
    """`values` at the places where `texts` is not NULL."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not texts.null_count:
        return values
    return pc.replace_with_mask(pa.nulls(len(texts), pa.string()), pc.is_valid(texts), values)


def fits_numeric(number: Decimal) -> bool:
    """Whether PostgreSQL's numeric has enough digits for it."""
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    return number.adjusted() < _NUMERIC_DIGITS[0] and -exponent <= _NUMERIC_DIGITS[1]


def _all_fit_numeric(values: pa.Array) -> bool:
    import pyarrow.compute as pc

    if pc.max(pc.binary_length(values)).as_py() < _NUMERIC_DIGITS[1]:
        return True
    return all(fits_numeric(Decimal(text)) for text in values.to_pylist())


def _exact_doubles(values: pa.Array) -> bool:
    """Whether a double keeps every one of these numbers to the last digit."""
    for text in values.to_pylist():
        if kind_of(text) not in _NUMBERS:
            return False
        number = float(text)
        if number in (float("inf"), float("-inf")) or Decimal(repr(number)) != Decimal(text):
            return False
        if number == 0 and text.startswith("-") and kind_of(text) == "bigint":
            return False
    return True


def _booleans(texts: pa.Array, values: pa.Array) -> pa.Array | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pc.all(pc.is_in(pc.ascii_lower(values), pa.array(["true", "false"]))).as_py():
        return None
    return pc.equal(pc.ascii_lower(texts), "true")


def _dates(texts: pa.Array, values: pa.Array) -> pa.Array | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.min_max(pc.binary_length(values)).as_py()
    if lengths != {"min": 10, "max": 10} or _begins_in_year_zero(values):
        return None
    return texts.cast(pa.date32())


def _begins_in_year_zero(values: pa.Array) -> bool:
    """PostgreSQL has no year 0."""
    import pyarrow.compute as pc

    return bool(pc.any(pc.starts_with(values, "0000")).as_py())


def _timestamps(texts: pa.Array, values: pa.Array, kind: Kind, timezone: str) -> pa.Array | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    dated = pc.equal(pc.binary_length(values), 10)
    if kind == "zoned" or not pc.any(dated).as_py():
        if _shortest(values) < 16:
            return None
    elif pc.any(pc.and_(pc.less(pc.binary_length(values), 16), pc.invert(dated))).as_py():
        return None
    if _begins_in_year_zero(values):
        return None
    zone = "UTC" if kind == "zoned" else None
    try:
        moments = texts.cast(pa.timestamp("us", zone))
    except pa.ArrowInvalid:
        moments = texts.cast(pa.timestamp("ns", zone))  # more than six digits of a second
    return moments if zone else localize(moments, timezone)


def localize(moments: pa.Array, timezone: str) -> pa.Array:
    """Naive timestamps as moments in UTC. An hour that happens twice is the later one, as in PostgreSQL.

    Raises ImpossibleTime for one in an hour that the zone skips.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        local = pc.assume_timezone(moments, timezone, ambiguous="latest", nonexistent="raise")
    except pa.ArrowInvalid as error:
        if "exist" not in str(error):
            raise
        raise ImpossibleTime(f"a local time that {timezone} skips") from None
    return local.cast(pa.timestamp(moments.type.unit, "UTC"))

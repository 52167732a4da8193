"""The decoder against values made by hand: rows are packed here as the server packs them."""

from __future__ import annotations

import struct
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcli.connectors._pgcopy import SLACK, Field, decode
from dwcli.errors import SourceData


def pack(*fields):
    """One row of a binary COPY."""
    return struct.pack(">h", len(fields)) + b"".join(
        struct.pack(">i", -1) if field is None else struct.pack(">i", len(field)) + field for field in fields
    )


def read(rows, fields, timezone="UTC"):
    lengths = np.array([len(row) for row in rows], np.int64)
    ends = np.cumsum(lengths)
    return decode(bytearray(b"".join(rows) + bytes(SLACK)), ends - lengths, ends, fields, timezone)


def pack_numeric(text):
    """A finite number as `numeric_send` packs it: groups of four digits, zeros at both ends left out."""
    digits = text.lstrip("-")
    whole, _, fraction = digits.partition(".")
    padded = whole.rjust(-(-len(whole) // 4) * 4, "0") + fraction.ljust(-(-len(fraction) // 4) * 4, "0")
    groups = [int(padded[i : i + 4]) for i in range(0, len(padded), 4)]
    weight = -(-len(whole) // 4) - 1
    while groups and groups[0] == 0:
        groups.pop(0)
        weight -= 1
    while groups and groups[-1] == 0:
        groups.pop()
    sign = 0x4000 if text.startswith("-") and groups else 0
    header = struct.pack(">HhHH", len(groups), weight if groups else 0, sign, len(fraction))
    return header + b"".join(struct.pack(">H", group) for group in groups)


@st.composite
def declared_numerics(draw):
    """(precision, scale, numbers of that type, some of them NULL)."""
    precision = draw(st.integers(1, 38))
    scale = draw(st.integers(0, precision))
    numbers = st.integers(-(10**precision) + 1, 10**precision - 1)
    short = st.integers(-9999, 9999).map(lambda n: n % 10**precision)
    return precision, scale, draw(st.lists(st.one_of(st.none(), numbers, short), min_size=1, max_size=30))


def spell(number, scale):
    """An integer as a decimal text with `scale` places."""
    digits = str(abs(number)).rjust(scale + 1, "0")
    text = digits[: len(digits) - scale] + (f".{digits[len(digits) - scale :]}" if scale else "")
    return f"-{text}" if number < 0 else text


@given(declared_numerics())
def test_every_declared_numeric_is_the_same_decimal(case):
    precision, scale, numbers = case
    texts = [None if number is None else spell(number, scale) for number in numbers]
    rows = [pack(None if text is None else pack_numeric(text), b"next") for text in texts]
    frame = read(rows, [Field("n", "numeric", precision, scale), Field("after", "text")])
    assert frame.schema["n"] == pl.Decimal(precision, scale)
    assert frame["n"].to_list() == [None if text is None else Decimal(text) for text in texts]
    assert set(frame["after"]) == {"next"}


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.tuples(st.integers(-(10**60), 10**60), st.integers(0, 60)),
            st.tuples(st.integers(-(10**6), 10**6), st.integers(0, 4)),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_a_numeric_without_precision_keeps_every_digit_it_was_written_with(numbers):
    texts = [None if number is None else spell(*number) for number in numbers]
    rows = [pack(None if text is None else pack_numeric(text)) for text in texts]
    column = read(rows, [Field("n", "numeric")])["n"].cast(pl.String)
    assert column.to_list() == texts


def test_numbers_with_one_scale_are_decimals_also_without_precision():
    frame = read([pack(pack_numeric("1.50")), pack(pack_numeric("-20000.25"))], [Field("n", "numeric")])
    assert frame.schema["n"] == pl.Decimal(38, 2)


@given(st.lists(st.one_of(st.none(), st.text(max_size=30)), min_size=1, max_size=50))
def test_texts_of_every_length_arrive_unchanged(texts):
    rows = [pack(None if text is None else text.encode(), b"\0\0\0\1") for text in texts]
    frame = read(rows, [Field("text", "text"), Field("number", "int4")])
    assert frame["text"].to_list() == texts
    assert frame["number"].to_list() == [1] * len(texts)


@given(st.lists(st.one_of(st.none(), st.binary(max_size=30)), min_size=1, max_size=50))
def test_bytes_of_every_length_arrive_unchanged(values):
    rows = [pack(value) for value in values]
    assert read(rows, [Field("bytes", "bytea")])["bytes"].to_list() == values


@given(
    st.lists(
        st.lists(st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)), min_size=4, max_size=4), min_size=1
    )
)
def test_a_null_anywhere_moves_no_other_value(table):
    rows = [pack(*(None if value is None else struct.pack(">i", value) for value in row)) for row in table]
    frame = read(rows, [Field(name, "int4") for name in "abcd"])
    assert [list(row) for row in frame.rows()] == table


def test_rows_with_another_number_of_columns_are_refused():
    with pytest.raises(SourceData, match="number of columns"):
        read([pack(b"a", b"b")], [Field("a", "text")])


def test_rows_that_do_not_add_up_are_refused():
    with pytest.raises(SourceData, match="add up"):
        read([pack(b"a") + b"more"], [Field("a", "text")])


def test_values_of_another_width_are_refused():
    with pytest.raises(SourceData):
        read([pack(b"\0\0\0\0\0\0\0\1")], [Field("a", "int4")])


def test_no_rows_still_have_their_columns():
    frame = read([], [Field("n", "numeric", 5, 2), Field("at", "timestamptz"), Field("text", "text")])
    assert frame.schema == {"n": pl.Decimal(5, 2), "at": pl.Datetime("us", "UTC"), "text": pl.String}

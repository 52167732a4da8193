"""What a column of texts becomes: never another value than the one that is written."""

from __future__ import annotations

import datetime
from decimal import Decimal, localcontext

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcli.connectors._formats.texts import ImpossibleTime, join, type_texts


def typed(values: list[str | None], so_far: str = "", timezone: str = "UTC") -> tuple[list, str]:
    array, kind = type_texts(pa.array(values, pa.string()), so_far, timezone)
    return array.to_pylist(), kind


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["0", "-1", "9223372036854775807", "-9223372036854775808"], "bigint"),
        (["9223372036854775808"], "numeric"),
        (["1" * 100], "numeric"),
        (["1", "2.50"], "numeric"),
        (["0.5", "1.5e-7", "1"], "numeric"),
        (["1.5E+3", "2e-7"], "double"),
        (["1.23456789012345678901e+5"], "numeric"),
        (["true", "False", "TRUE"], "boolean"),
        (["2024-01-31", "2024-02-29"], "date"),
        (["2024-01-31 10:00", "2024-01-31T10:00:00.5"], "naive"),
        (["2024-01-31", "2024-01-31 10:00:00"], "naive"),
        (["2024-01-31 10:00:00Z", "2024-01-31 10:00:00+05:30", "2024-01-31 10:00:00-03"], "zoned"),
    ],
)
def test_values_that_a_type_holds_exactly_get_it(values, kind):
    assert typed(values)[1] == kind


@pytest.mark.parametrize(
    "values",
    [
        ["007"],
        ["+5"],
        ["1_000"],
        ["1,000"],
        [" 5"],
        ["5 "],
        ["-0"],
        ["-0.00"],
        ["007.5"],
        [".5"],
        ["5."],
        ["0x1F"],
        ["1e5"],
        ["2E10"],
        ["1.5e-7", "1e5"],
        ["1", ""],
        ["1", "N/A"],
        ["NaN", "1.5"],
        ["t", "f"],
        ["yes", "no"],
        ["2023-02-29"],
        ["0000-01-01"],
        ["24-01-01"],
        ["01/02/2024"],
        ["2024-01-01 10"],
        ["2024-01-01 24:00:00"],
        ["2024-06-30 23:59:60"],
        ["2024-01-01 10:00:00Z", "2024-01-01 10:00:00"],
        ["12:30:00"],
        ["1.2.3"],
        ["-"],
        ["--1"],
        ["٣"],
        ["1\x00"],
    ],
)
def test_values_that_a_type_would_change_stay_text(values):
    assert typed(values) == (values, "text")


def test_null_decides_nothing():
    assert typed([None, None]) == ([None, None], "")
    assert typed([None, "1"]) == ([None, 1], "bigint")
    assert typed([None], "date") == ([None], "date")


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        ("bigint", "1.5", "numeric"),
        ("numeric", "7", "numeric"),
        ("numeric", "1.5e-7", "numeric"),
        ("double", "0.25", "double"),
        ("double", "0.1234567890123456789", "text"),
        ("boolean", "1", "text"),
        ("bigint", "N/A", "text"),
        ("date", "2024-01-01 10:00:00", "naive"),
        ("naive", "2024-01-01", "naive"),
        ("zoned", "2024-01-01", "text"),
        ("text", "5", "text"),
    ],
)
def test_a_column_is_never_narrower_than_it_was(before, value, after):
    assert typed([value], before)[1] == after


def test_dates_and_timestamps_of_another_zone_do_not_mix():
    assert join("date", "naive", "Europe/Berlin") == "text"


def test_times_without_offset_are_read_in_the_zone_that_is_given():
    values, _ = typed(["2024-07-01 12:00:00"], timezone="Europe/Berlin")
    assert values == [datetime.datetime(2024, 7, 1, 10, tzinfo=datetime.UTC)]


def test_an_hour_that_happens_twice_is_the_later_as_in_postgresql():
    values, _ = typed(["2024-10-27 02:30:00"], timezone="Europe/Berlin")
    assert values == [datetime.datetime(2024, 10, 27, 1, 30, tzinfo=datetime.UTC)]


def test_an_hour_that_never_happened_is_refused():
    with pytest.raises(ImpossibleTime):
        typed(["2024-03-31 02:30:00"], timezone="Europe/Berlin")


def test_nanoseconds_are_kept():
    array, kind = type_texts(pa.array(["2024-01-01 00:00:00.123456789Z"]), "")
    assert (str(array.type), kind) == ("timestamp[ns, tz=UTC]", "zoned")


digits = st.text("0123456789", min_size=1, max_size=45)
numbers = st.builds(
    lambda sign, whole, fraction, exponent: sign + whole + fraction + exponent,
    st.sampled_from(["", "-", "+"]),
    st.one_of(digits, st.sampled_from(["0", "9" * 38, "9" * 39, "00"])),
    st.one_of(st.just(""), digits.map(lambda text: f".{text}")),
    st.sampled_from(["", "", "", "", "e5", "e-7", "E+30"]),
)


@settings(max_examples=600, deadline=None)
@given(st.lists(st.one_of(st.none(), numbers), max_size=6))
def test_no_number_changes_whatever_is_beside_it(values):
    read, kind = typed(values)
    with localcontext() as context:
        context.prec = 500
        for value, found in zip(values, read, strict=True):
            if value is None or kind == "text":
                assert found == value
            else:
                assert Decimal(repr(found) if kind == "double" else str(found)) == Decimal(value)
                assert not value.startswith("+")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=12)), max_size=6))
def test_any_text_is_kept_or_is_a_number_or_time_spelled_as_it_was(values):
    read, kind = typed(values)
    if kind == "bigint":
        assert [None if value is None else str(value) for value in read] == values
    elif kind == "text":
        assert read == values

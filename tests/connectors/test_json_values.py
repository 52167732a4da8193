"""Columns of JSON values: read together, they come out as they do when each is looked at by itself."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcli.connectors._formats.json_file import type_values
from dwcli.connectors._formats.texts import arrow_type, fits_numeric, type_texts

NUMBERS = st.one_of(
    st.integers().map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map("{:f}".format),
    st.floats(allow_nan=False, allow_infinity=False).map(json.dumps),
    st.sampled_from(["-0", "1.0", "1e3", "-0.0", "0.10", "0e5", "-0e1", "1E400", "1e200000", "1e-20000"]),
    st.sampled_from(["9223372036854775807", "9223372036854775808", "-9223372036854775808", "9" * 39 + ".5"]),
)
STRINGS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=5).map(json.dumps),
    st.text(st.characters(codec="utf-8"), max_size=5).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(['"2024-01-01"', '"2024-01-01T10:00:00Z"', '"null"', '"true"', '"0000-01-01"', '"\\/"']),
    st.sampled_from(['""', '"2024-01-01T10:00:00.123456789+02:00"']),
)
BOOLEANS = st.sampled_from(["true", "false"])
NESTED = st.sampled_from(
    ["[]", "{}", "[1, 2]", '{"a": "x y"}', '{"a":1e5}', '[ "\\n" ]', "[null]", "[" * 1500 + " 1" + "]" * 1500]
)
VALUES = (NUMBERS, STRINGS, BOOLEANS, NESTED)
COLUMNS = st.lists(st.sampled_from(VALUES), max_size=3, unique_by=id).flatmap(
    lambda some: st.lists(st.one_of(st.just("null"), *some), max_size=8)
)
KINDS = st.sampled_from(["", "boolean", "bigint", "numeric", "date", "zoned", "text", "jsonb"])


def one_by_one(values: list[bytes], so_far: str) -> tuple[pa.Array, str]:
    """What `type_values` is to give."""
    forms = {form(value) for value in values} - {"null"}
    if not forms:
        return pa.nulls(len(values), arrow_type(so_far)), so_far
    if so_far == "jsonb" or ("nested" in forms and not so_far):
        return pa.array([None if v == b"null" else compact(v) for v in values], pa.string()), "jsonb"
    texts = pa.array([None if v == b"null" else text(v) for v in values], pa.string())
    if forms == {"number"} and so_far in ("", "bigint", "numeric"):
        plain = pa.array([None if v == b"null" else plain_number(v) for v in values], pa.string())
        typed, kind = type_texts(plain, so_far)
        return (typed, kind) if kind != "text" else (texts, "text")
    if forms == {"boolean"} and so_far in ("", "boolean"):
        return type_texts(texts, so_far)
    if forms == {"string"} and so_far in ("", "date", "zoned"):
        typed, kind = type_texts(texts, so_far)
        return (typed, kind) if kind in ("date", "zoned") else (texts, "text")
    return texts, "text"


def form(value: bytes) -> str:
    names = {"n": "null", "t": "boolean", "f": "boolean", '"': "string", "[": "nested", "{": "nested"}
    return names.get(chr(value[0]), "number")


def text(value: bytes) -> str:
    match form(value):
        case "string":
            return str(json.loads(value))
        case "nested":
            return compact(value)
    return value.decode()


def compact(value: bytes) -> str:
    try:
        return msgspec.json.format(value, indent=-1).decode() if re.search(rb"\s", value) else value.decode()
    except RecursionError:
        return value.decode()


def plain_number(value: bytes) -> str:
    spelled = value.decode()
    if "e" in spelled or "E" in spelled:
        number = Decimal(spelled)
        spelled = format(number, "f") if fits_numeric(number) else spelled
    return spelled[1:] if spelled.startswith("-0") and not spelled.strip("-0.") else spelled


def shown(found: tuple[pa.Array, str]) -> tuple[str, list[Any], str]:
    array, kind = found
    array.validate(full=True)
    return str(array.type), array.to_pylist(), kind


@settings(max_examples=400, deadline=None)
@given(COLUMNS, KINDS)
def test_a_column_is_read_as_its_values_are_one_by_one(texts, kind):
    values = [text.encode() for text in texts]
    wanted = shown(one_by_one(values, kind))
    assert shown(type_values(values, kind)) == wanted
    assert shown(type_values([msgspec.Raw(value) for value in values], kind)) == wanted

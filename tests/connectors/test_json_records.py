"""Objects like those before them are decoded into records: nobody can tell from what comes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcli.connectors._formats import json_file, json_records
from dwcli.connectors._formats.json_records import Known, Piece, decode
from dwcli.connectors._formats.streams import Source
from dwcli.errors import SourceData

KEYS = st.sampled_from(["id", "name", "", " ", "name_2", "é", 'q"', "Name", "n\\u0061me", "_source_path"])
STRINGS = st.sampled_from(
    ['"a"', '""', '"2024-01-02"', '"2024-01-02T03:04:05Z"', '"\\u00e9 \\n"', '"\\ud83d\\ude00"']
)
NUMBERS = st.sampled_from(["1", "-0", "1.0", "1e3", "9223372036854775807", "9223372036854775808", "-1.25"])
OTHERS = st.sampled_from(
    ["null", "true", "[]", '{"a": [1, "}"]}', '[{"b": null}]', '"half \\ud800"', "[" * 900 + "]" * 900]
)
#: What an object has, mostly: the first shapes are drawn most often.
VALUES = st.one_of(STRINGS, STRINGS, NUMBERS, NUMBERS, OTHERS)
SPACE = st.sampled_from(["", "", " ", "\t"])


@st.composite
def a_shape(draw: st.DrawFn) -> list[tuple[str, st.SearchStrategy[str]]]:
    """Fields with the values that they usually have."""
    keys = draw(st.lists(KEYS, max_size=5))
    usual = st.sampled_from([STRINGS, STRINGS, NUMBERS, OTHERS, VALUES, st.just("null"), st.just('"one"')])
    return [(key, draw(usual)) for key in keys]


@st.composite
def an_object(draw: st.DrawFn, shape: list[tuple[str, st.SearchStrategy[str]]]) -> str:
    parts = []
    for key, values in shape:
        how = draw(st.integers(0, 9))
        if how:  # else the field is missing
            value = "null" if how == 1 else draw(VALUES) if how == 2 else draw(values)
            quoted = json.dumps(key) if "\\" not in key else f'"{key}"'
            parts.append(f"{quoted}{draw(SPACE)}:{draw(SPACE)}{value}")
    if draw(st.integers(0, 19)) == 19:
        parts.append(f'"{draw(st.text("xyz", min_size=1, max_size=2))}":{draw(VALUES)}')
    if draw(st.integers(0, 9)) == 9:
        parts = draw(st.permutations(parts))
    return "{" + ",".join(parts) + "}"


@st.composite
def texts(draw: st.DrawFn) -> list[list[bytes]]:
    """Pieces of objects, most of which are alike for a while, and a few that are broken."""
    pieces: list[list[bytes]] = []
    for _ in range(draw(st.integers(1, 2))):
        shape = draw(a_shape())
        for _ in range(draw(st.integers(1, 4))):
            pieces.append([text.encode() for text in draw(st.lists(an_object(shape), max_size=4))])
    if draw(st.integers(0, 5)) == 5:
        place = draw(st.integers(0, len(pieces) - 1))
        pieces[place].append(
            draw(st.sampled_from([b"1", b"[]", b'"a"', b"{", b'{"id":"\xff"}', b'{"\xff":1}', b"{]}"]))
        )
    return pieces


Shown = list[Any]


def shown(pieces: Sequence[list[bytes]], commas: bool) -> Shown:
    """Frames, errors and the kinds that are known in the end, in a form that can be compared."""
    source, known, seen = Source("t.json", lambda: pytest.fail("read again"), None, 0), Known(), {}
    found: Shown = []
    for elements in pieces:
        text = (b"," if commas else b"\n").join(elements)
        try:
            frame = json_file._frame(source, Piece(text, 7, commas), known, seen)
        except (SourceData, UnicodeDecodeError) as error:
            found.append((type(error), getattr(error, "message", ""), getattr(error, "why", "")))
            break
        if frame is None:
            found.append(None)
        else:
            found.append((list(frame.data.schema.items()), frame.data.rows(), frame.types, frame.changed))
    return [*found, seen]


def generally(pieces: Sequence[list[bytes]], commas: bool) -> Shown:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_file, "decode", lambda known, piece: None)
        return shown(pieces, commas)


@settings(max_examples=600, deadline=None)
@given(texts(), st.booleans())
def test_records_give_what_the_general_way_gives(pieces, commas):
    assert shown(pieces, commas) == generally(pieces, commas)


ALIKE = [b'{"id":1,"name":"a","at":"2024-01-01T00:00:00Z"}', b'{"id":2,"name":null}', b'{"name":"b"}']


def quick(pieces: Sequence[list[bytes]]) -> list[bool]:
    """For each piece, whether it was decoded into records."""
    taken: list[bool] = []

    def noting(known: Known, piece: Piece) -> list[Any] | None:
        found = decode(known, piece)
        taken.append(found is not None)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_file, "decode", noting)
        shown(pieces, commas=True)
    return taken


def test_from_the_second_piece_on_objects_are_records():
    assert quick([ALIKE, ALIKE, ALIKE[1:]]) == [False, True, True]


def test_a_new_field_is_part_of_the_records_behind_it():
    wider = [*ALIKE, b'{"id":3,"new":true}']
    assert quick([ALIKE, wider, wider, ALIKE]) == [False, False, True, True]
    assert shown([ALIKE, wider, wider, ALIKE], True) == generally([ALIKE, wider, wider, ALIKE], True)


def test_a_field_of_strings_and_others_stays_as_it_is_written():
    mixed = [b'{"id":"one","name":2}']
    assert quick([ALIKE, mixed, mixed, ALIKE]) == [False, False, True, True]


def test_fields_that_turn_up_late_in_a_piece_keep_their_order():
    first, late = [b'{"a":"1","b":2,"c":"3","d":[4]}'], [b'{"b":1}', b'{"d":1,"c":"x"}', b'{"c":"y"}']
    assert quick([first, late]) == [False, True]
    names = [name for name, _ in shown([first, late], True)[1][0]]
    assert names == ["b", "d", "c", "_source_path"]  # and no `a`, which no row has


def test_objects_that_are_never_alike_are_soon_left_alone(monkeypatch):
    pieces = [[b'{"k%d":1}' % number] for number in range(30)]
    tried = []
    real = json_records._decoder
    monkeypatch.setattr(json_records, "_decoder", lambda *given: tried.append(1) or real(*given))
    shown(pieces, commas=True)
    assert len(tried) == json_records.MAX_MISSES + 1


def test_an_object_with_many_braces_at_the_front_is_found_whole():
    nested = b'{"a":[' + b",".join([b"{}"] * 100) + b'],"b":"x"}'
    assert quick([[nested], [nested] * 3]) == [False, True]
    assert shown([[nested], [nested] * 3], True) == generally([[nested], [nested] * 3], True)

"""Pages whose rows are like those before are decoded into records: nobody can tell from what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcli.connectors import _http_body as body_of
from dwcli.connectors import http
from dwcli.connectors._http_paging import Page
from dwcli.connectors._http_send import Client
from dwcli.errors import SourceData
from tests.connectors.test_json_records import texts

#: Bytes that a page is made longer by: three pages of these make a frame.
A_THIRD = 30_000
A_WHOLE = 70_000


def page_of(elements: list[bytes], node: str, padding: int) -> Page:
    inside = [b'{"cursor":"x","node":' + element + b"}" if node else element for element in elements]
    text = b"[" + b",".join(inside) + b" " * padding + b"]"
    return Page(Mock(), None, msgspec.Raw(text), len(elements), node=node)


def shown(pages: list[Page], parents: list[dict[str, Any]], flatten: bool = False) -> list[Any]:
    """Frames, the error and the kinds that are known in the end, in a form that can be compared."""

    def arriving() -> Iterator[tuple[Page, dict[str, Any]]]:
        yield from zip(pages, parents, strict=True)

    client = Client(http.Config(base_url="http://api.example.com", flatten=flatten), Mock())
    seen: dict[str, str] = {}
    found: list[Any] = []
    try:
        for frame in http._frames(client, "/rows", arriving(), 1, seen):
            found.append(
                (list(frame.data.schema.items()), frame.data.rows(), frame.types, dict(frame.changed))
            )
    except SourceData as error:
        found.append((error.message, error.why, error.hint))
    except UnicodeDecodeError as error:  # a field's name, which is not looked at before
        found.append(str(error))
    return [*found, seen]


def generally(pages: list[Page], parents: list[dict[str, Any]]) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "decode", lambda known, piece, node: None)
        return shown(pages, parents)


def whole(elements: list[bytes]) -> bool:
    """Whether these can stand in an answer: what is no JSON is refused before."""
    try:
        body_of.checked(b"[" + b",".join(elements) + b"]", "")
    except SourceData:
        return False
    return True


PADDINGS = st.lists(st.sampled_from([0, A_THIRD, A_WHOLE, A_WHOLE]), min_size=16, max_size=16)


@settings(max_examples=300, deadline=None)
@given(texts(), st.booleans(), st.booleans(), PADDINGS)
def test_records_give_what_the_general_way_gives(pieces, nodes, children, paddings):
    twice = [elements for elements in pieces * 2 if whole(elements)]
    node = "node" if nodes else ""
    pages = [page_of(elements, node, padding) for elements, padding in zip(twice, paddings, strict=False)]
    parents = [{"parent_id": msgspec.Raw(b"%d" % at)} if children else {} for at in range(len(pages))]
    assert shown(pages, parents) == generally(pages, parents)


def alike(at: int) -> list[bytes]:
    return [b'{"id":%d,"name":"a","tags":["x"]}' % at, b'{"id":null,"name":"b"}']


def quick(pages: list[Page], parents: list[dict[str, Any]]) -> list[bool]:
    """For each frame, whether it was made of records."""
    made: list[bool] = []
    real: Callable[..., Any] = http._columns_of_records

    def noting(*given: Any) -> Any:
        columns = real(*given)
        made.append(columns is not None)
        return columns

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "_columns_of_records", noting)
        shown(pages, parents)
    return made


@pytest.mark.parametrize("node", ["", "node"])
@pytest.mark.parametrize("parent", [{}, {"parent_id": msgspec.Raw(b'"p"')}], ids=["rows", "children"])
def test_from_the_second_frame_on_rows_are_records(node, parent):
    pages = [page_of(alike(at), node, A_THIRD) for at in range(9)]
    assert quick(pages, [parent] * 9) == [False, True, True]


def test_one_page_of_a_frame_that_is_not_alike_is_read_with_the_others():
    pages = [page_of(alike(at), "", A_THIRD) for at in range(9)]
    pages[4] = page_of([b'{"id":"x","new":1}'], "", A_THIRD)
    assert quick(pages, [{}] * 9) == [False, False, True]
    assert shown(pages, [{}] * 9) == generally(pages, [{}] * 9)


def test_a_childs_field_of_its_parents_name_is_refused_behind_records_too():
    pages = [page_of(alike(at), "", A_THIRD) for at in range(4)] + [
        page_of([b'{"parent_id":1}'], "", A_THIRD)
    ]
    refused, _ = shown(pages, [{"parent_id": msgspec.Raw(b"1")}] * 5)[1:]
    assert refused[0] == "/rows: a row has a field 'parent_id', which is the parent's"


def test_nested_objects_that_become_columns_are_no_records():
    pages = [page_of([b'{"a":{"b":%d}}' % at], "", A_THIRD) for at in range(6)]
    frames = shown(pages, [{}] * 6, flatten=True)[:-1]
    assert [frame[1] for frame in frames] == [
        [(0, "/rows"), (1, "/rows"), (2, "/rows")], [(3, "/rows"), (4, "/rows"), (5, "/rows")]
    ]  # fmt: skip


def test_the_fields_of_a_large_body_are_found_once(monkeypatch):
    body = msgspec.Raw(b'{"data":[' + b"1," * A_THIRD + b'1],"next":"/2"}')
    looks = []
    real = body_of._decoded
    monkeypatch.setattr(body_of, "_decoded", lambda *given: looks.append(1) or real(*given))
    assert body_of.scalar(body_of.at(body, "next")) == "/2"
    assert [*body_of.fields(body)] == ["data", "next"]
    assert len(looks) == 1
    assert [*body_of.fields(msgspec.Raw(bytes(body)))] == ["data", "next"]
    assert len(looks) == 2

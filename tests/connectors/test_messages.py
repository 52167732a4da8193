"""What all message sources share: when a read ends, and how a message becomes a row."""

from __future__ import annotations

import datetime
from decimal import Decimal

import polars as pl
import pytest

from dwcli.connectors import _messages
from dwcli.connectors._messages import (
    Message,
    MessageFields,
    Shape,
    field_name,
    header_text,
    item_of,
    read_messages,
    resource_of,
)
from dwcli.errors import ConnectionFailed


def shape(**more) -> Shape:
    return Shape("kafka", "orders", {"partition": "bigint", "offset": "bigint"}, **more)


def messages(*values: bytes | None) -> list[Message]:
    return [Message(value, (0, number)) for number, value in enumerate(values)]


def rows(shape: Shape, *values: bytes | None) -> tuple[list[dict], dict[str, str], dict[str, int]]:
    item = item_of(shape, messages(*values))
    assert isinstance(item.payload, pl.DataFrame)
    return item.payload.to_dicts(), dict(item.types), dict(item.metadata.get("changed", {}))


def fetcher(waiting: list[Message], ends: bool = True):
    """A fetch function over a list, and the place it has come to."""
    place = [0]

    def fetch(count: int, seconds: float):
        assert seconds >= 0
        taken = waiting[place[0] : place[0] + count]
        place[0] += len(taken)
        return taken or (None if ends else [])

    return fetch, lambda: place[0]


def test_a_message_becomes_a_row_with_its_fields():
    payload = '{"id": 7, "total": 12345678901234567890.10, "at": "2024-02-29T10:00:00Z", "tags": ["a"]}'
    item = item_of(
        shape(),
        [
            Message(
                payload.encode(),
                (3, 2**40),
                b"k\xc3\xa9y",
                1_700_000_000_123_456,
                {"headers": {"trace": "x"}},
            )
        ],
        {"3": 5},
    )
    frame = item.payload
    assert isinstance(frame, pl.DataFrame)
    assert frame.to_dicts() == [
        {
            "protocol": "kafka",
            "stream": "orders",
            "partition": 3,
            "offset": 2**40,
            "event_time": datetime.datetime(2023, 11, 14, 22, 13, 20, 123456, datetime.UTC),
            "message_key": "kéy",
            "metadata": '{"headers":{"trace":"x"}}',
            "payload": payload,
            "id": 7,
            "total": Decimal("12345678901234567890.10"),
            "at": datetime.datetime(2024, 2, 29, 10, tzinfo=datetime.UTC),
            "tags": '["a"]',
        }
    ]
    assert item.position == {"3": 5}
    assert item.types["payload"] == item.types["tags"] == item.types["metadata"] == "jsonb"
    assert item.types["id"] == "bigint" and item.types["total"] == "numeric"
    assert not item.metadata


@pytest.mark.parametrize(
    "broken",
    [
        b"not json",
        b'{"a": 1',
        b"\xff\xfe",
        b"",
        b'{"a": NaN}',
        b'{"a": 1e999999}',
        b'{"b": [1e-99999]}',
        b"[0." + b"1" * 17_000 + b"]",
        b'"\\ud800"',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a": "\xff"}',
    ],
)
def test_what_is_no_json_is_kept_byte_for_byte_and_counted(broken):
    found, types, changed = rows(shape(), b'{"a": 1}', broken, None)
    assert [row["payload"] for row in found] == ['{"a": 1}', None, None]
    assert [row["payload_raw"] for row in found] == [None, broken, None]
    assert [row["a"] for row in found] == [1, None, None]
    assert types["payload"] == "jsonb" and types["payload_raw"] == "bytea"
    assert changed == {"payload: not JSON → payload_raw": 1}


def test_what_only_looks_odd_is_json():
    values = [b'{"hash": "abe12345"}', b'{"a": 1e1000}', b'["' + b"1" * 20_000 + b'"]', b'"\\uD83E\\uDD86"']
    found, _, changed = rows(shape(), *values)
    assert [row["payload"] for row in found] == [value.decode() for value in values] and not changed


def test_json_that_is_no_object_is_a_payload_without_fields():
    found, _, changed = rows(shape(), b"[1, 2]", b"42", b'"\\ud83e\\udd86"', b"null", b'{"a": null}')
    assert [row["payload"] for row in found] == ["[1, 2]", "42", '"\\ud83e\\udd86"', "null", '{"a": null}']
    assert [row["a"] for row in found] == [None] * 5
    assert not changed


def test_fields_get_no_name_that_is_taken():
    one = shape()
    found, _, _ = rows(one, b'{"stream": 1, "Offset": 2, "payload_stream": 3, "payload": 4, "": 5, "raw": 6}')
    assert found[0]["stream"] == "orders" and found[0]["offset"] == 0
    assert found[0]["payload_payload"] == 4 and found[0]["payload_"] == 5 and found[0]["raw"] == 6
    assert found[0]["payload_stream"] == 1 and found[0]["payload_payload_stream"] == 3
    keys = ["stream", "Offset", "payload_stream", "payload", "", "payload_", "raw", "payload_raw", "id", "ID"]
    assert len({field_name(one, key) for key in keys}) == len(keys)
    assert not {field_name(one, key).lower() for key in keys} & {"payload_raw", "stream", "offset"}


def test_without_expand_there_are_no_fields():
    found, _, _ = rows(shape(expand=False), b'{"a": 1}')
    assert "a" not in found[0] and found[0]["payload"] == '{"a": 1}'


def test_a_field_keeps_its_wider_type_in_later_batches():
    one = shape()
    assert rows(one, b'{"a": 1.5}')[1]["a"] == "numeric"
    assert rows(one, b'{"a": 1}')[1]["a"] == "numeric"


def test_only_so_many_fields_become_columns(monkeypatch):
    monkeypatch.setattr(_messages, "MAX_FIELDS", 2)
    found, _, changed = rows(shape(), b'{"a": 1, "b": 2, "c": 3}', b'{"c": 3}')
    assert "b" in found[0] and "c" not in found[0]
    assert sum(changed.values()) == 2


def test_text_and_bytes():
    found, types, changed = rows(shape(value_format="text"), b"gr\xc3\xbcn", b"\xff", None)
    assert [row["payload"] for row in found] == ["grün", None, None]
    assert [row["payload_raw"] for row in found] == [None, b"\xff", None]
    assert types["payload"] == "text" and changed == {"payload: not UTF-8 → payload_raw": 1}
    found, types, changed = rows(shape(value_format="bytes"), b"\xff\x00", None)
    assert [row["payload"] for row in found] == [b"\xff\x00", None]
    assert types["payload"] == "bytea" and not changed and "payload_raw" not in found[0]


def test_keys_and_times_that_have_no_place():
    item = item_of(shape(), [Message(None, (0, 1), b"\xff", 2**62), Message(None, (0, 2), "k", 0)])
    frame = item.payload
    assert isinstance(frame, pl.DataFrame)
    assert frame["message_key"].to_list() == [None, "k"] and frame["message_key_raw"].to_list() == [
        b"\xff",
        None,
    ]
    assert frame["event_time"].to_list() == [None, datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)]
    assert sum(item.metadata["changed"].values()) == 2
    assert header_text(b"\xff") == {"base64": "/w=="} and header_text("x") == "x"


def test_the_identity_is_the_primary_key():
    resource = resource_of(shape(), "topic", "partition and offset", 12)
    assert resource.primary_key == ("stream", "partition", "offset")
    assert [c.type for c in resource.columns if c.name == "payload"] == ["jsonb"]


# -- when a read ends ------------------------------------------------------------------------------------


def read(waiting, fields=None, batch_bytes=64 * 1024, **more):
    fetch, position = fetcher(waiting, more.get("has_end", True))
    return list(read_messages(shape(), fields or MessageFields(), fetch, position, batch_bytes, **more))


def test_batches_are_bounded_and_carry_the_place_of_their_last_message():
    waiting = messages(*(b'{"text": "%s"}' % (b"x" * 1000) for _ in range(1000)))
    items = read(waiting, batch_bytes=256 * 1024)
    frames = [item.payload for item in items]
    assert sum(frame.height for frame in frames) == 1000 and len(items) > 5
    assert max(frame.estimated_size() for frame in frames) < 2 * 256 * 1024
    heights = [frame.height for frame in frames]
    assert [item.position for item in items] == [sum(heights[: n + 1]) for n in range(len(heights))]


def test_max_messages_is_exact():
    items = read(messages(*[b"{}"] * 100), MessageFields(max_messages=33))
    assert sum(item.payload.height for item in items) == 33 and items[-1].position == 33


def test_a_stream_without_messages_gives_its_columns_once():
    [item] = read([])
    assert item.payload.height == 0 and "payload" in item.payload.columns and item.position == 0
    [item] = read([], first=False)
    assert item.payload is None and item.position == 0


def test_silence_ends_a_source_that_cannot_tell_its_end():
    items = read(messages(b"1", b"2"), MessageFields(poll_timeout_seconds=0.05), has_end=False)
    assert sum(item.payload.height for item in items) == 2


def test_the_longest_wait_ends_a_read():
    fetch, position = fetcher([], ends=False)
    fields = MessageFields(max_wait_seconds=0.05)
    items = list(read_messages(shape(), fields, fetch, position, 65536))
    assert items[0].payload.height == 0


def test_silence_before_a_known_end_is_a_lost_connection(monkeypatch):
    monkeypatch.setattr(_messages, "STALLED_SECONDS", 0.05)
    fetch, position = fetcher(messages(b"1"), ends=False)
    fields = MessageFields(poll_timeout_seconds=0.01)
    with pytest.raises(ConnectionFailed) as caught:
        list(read_messages(shape(), fields, fetch, position, 65536))
    assert caught.value.layer == "lost"


ALIKE = [b'{"n": 1, "s": "a", "t": "2024-02-29T10:00:00Z", "x": null}', b'{"s": "b"}', None, b'{"n": 2.50}']


@pytest.mark.parametrize(
    "later",
    [
        [],
        [b'{"n": 3, "s": null, "t": "2024-03-01T10:00:00Z"}'],
        [b'{"n": 1e3, "s": "\\u00e9\\n\\"", "x": {"a": [1]}}'],
        [b'{"s": 7}'],
        [b'{"new": 1}'],
        [b'{"t": "tomorrow"}'],
        [b'{"s": "e1234"}', b'{"s": "\\ud800"}'],
        [b'{"n": 1e999999}'],
        [b'{"s": "\xff"}'],
        [b"[1]", b"no json", b'{"s": "a", "s": "b"}'],
        [b'{"n": -0, "x": "' + b"1" * 20_000 + b'"}'],
    ],
)
def test_objects_like_those_before_are_read_the_same_in_one_piece(later):
    one, other = shape(), shape()
    for values in (ALIKE, [*ALIKE, *later], ALIKE, later[::-1], [*later, *ALIKE]):
        quick = _messages.decode_json(one, values)
        plain = _messages._decode_any(other, values)
        assert quick.changed == plain.changed and one.kinds == other.kinds
        for name, column in plain.columns.items():
            assert quick.columns[name].dtype == column.dtype
            assert quick.columns[name].to_list() == column.to_list()
            assert quick.types.get(name) == plain.types.get(name)
        for name in quick.columns.keys() - plain.columns.keys():
            assert quick.columns[name].null_count() == len(values)


def test_objects_like_those_before_are_read_by_their_form():
    one = shape()
    assert _messages._decode_alike(one, ALIKE) is None
    _messages.decode_json(one, ALIKE)
    assert _messages._decode_alike(one, ALIKE) is not None
    assert _messages._decode_alike(one, [b'{"s": 1}']) is None

"""What all message sources share: how many messages one run takes, and how a message becomes a row.

**The row.** `protocol`, `stream`, the identity (offset, sequence, message id: whatever tells one message
from all others), `event_time`, `message_key`, `payload`, `metadata`, and the fields of a payload that is
a JSON object, typed exactly as those of a JSON file. The identity is offered as the primary key, so that
a merge keeps a message that is delivered twice once.

**Nothing is lost.** A payload that is not what `value_format` says stands in `payload_raw`, byte for byte,
and is counted in the item's `metadata["changed"]`. That column, and `message_key_raw`, are there only
when they are needed.

**Positions.** Each item carries the place of its last message. It is committed with the rows; only then
does the runner call the connector's `acknowledge`.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import polars as pl
from pydantic import BaseModel, Field

from dwcli.connectors._formats.json_file import type_strings, type_values
from dwcli.connectors._formats.texts import POSTGRES, Kind, fits_numeric
from dwcli.connectors._rows import Filled, fill_values
from dwcli.contract import Column, Cursor, IngestedItem, Resource
from dwcli.errors import ConfigError, ConnectionFailed

if TYPE_CHECKING:
    import pyarrow as pa

#: What the bytes of a message are.
ValueFormat = Literal["json", "text", "bytes"]

#: No answer at all for so long, from a source that has more to give, is a lost connection.
STALLED_SECONDS = 60.0
#: No single wait is longer, so that Ctrl-C and `close` are noticed.
SLICE_SECONDS = 0.5
#: Fields of JSON objects that get a column; PostgreSQL has room for 1,600 columns. All are in `payload`.
MAX_FIELDS = 1_000
#: Memory of one message beside its bytes.
_MESSAGE_BYTES = 300
#: Messages of the first fetch, whose size is not known yet, and of any fetch.
_FIRST, _MOST_AT_ONCE = 64, 5_000
#: Years 1 to 9999, in microseconds since 1970.
_TIMES = range(-62_135_596_800_000_000, 253_402_300_800_000_000)
#: JSON in which something may be that PostgreSQL's jsonb does not hold: a number with a large exponent, half
#: a surrogate pair. It may as well stand in a string, or be whole.
_SUSPECT_TEXT = r"[eE][+-]?0*[1-9][0-9]{3}|\\u[dD][89a-fA-F]"
_SUSPECT = re.compile(_SUSPECT_TEXT.encode())
#: How strings and nulls begin.
_OF_STRINGS = set(b'"n')
#: Longer JSON may hold a number with more digits than numeric has.
_LONG = 16_000


class MessageFields(BaseModel):
    """Config fields of every message source, to stand beside ConnectorConfig."""

    max_messages: int | None = Field(
        None,
        ge=1,
        description="most messages that one run takes, all that wait if empty",
        json_schema_extra={"advanced": True},
    )
    max_wait_seconds: float | None = Field(
        None,
        gt=0,
        description="longest time that one run reads, in seconds",
        json_schema_extra={"advanced": True},
    )
    poll_timeout_seconds: float = Field(
        5.0,
        gt=0,
        description="seconds without a message after which a source that cannot tell its end is read to it",
        json_schema_extra={"advanced": True},
    )
    expand: bool = Field(
        True,
        description="whether fields of JSON objects become columns",
        json_schema_extra={"advanced": True},
    )


class Message(NamedTuple):
    """One message as it was delivered.

    value: None where there is none (a tombstone).
    identity: values of the shape's identity columns, in their order.
    event_time: microseconds since 1970 in UTC.
    metadata: JSON-able; headers and what else the broker says; {} is NULL.
    """

    value: bytes | None
    identity: tuple[Any, ...]
    key: bytes | str | None = None
    event_time: int | None = None
    metadata: Mapping[str, Any] = {}


class Decoded(NamedTuple):
    """Columns made from the values of some messages. changed: "column: what was done" → count."""

    columns: dict[str, pl.Series]
    types: dict[str, str]
    changed: Mapping[str, int] = {}


Entry = TypeVar("Entry")

_OWN = {"message_key": "text", "message_key_raw": "bytea", "metadata": "jsonb"}

#: Values of messages → their columns: `payload`, `payload_raw` where needed, and fields.
Decode = Callable[[Sequence[bytes | None]], Decoded]


@dataclass
class Shape:
    """What the rows of one read look like, and the kinds of fields that have been seen.

    stream: name of the topic, queue or subject.
    identity: column → PostgreSQL type; together they tell a message from all others of the stream.
    decode: in place of `value_format`, for values that only the connector can read.
    """

    protocol: str
    stream: str
    identity: Mapping[str, str]
    value_format: ValueFormat = "json"
    expand: bool = True
    decode: Decode | None = None
    #: column of a field → what it has held so far
    kinds: dict[str, Kind] = field(default_factory=dict)
    #: keys of the fields that have a column → whether they have held nothing but strings
    strings: dict[str, bool] = field(default_factory=dict)
    #: reads objects that have no other fields, and those that hold strings no other values
    form: _Form | None = None
    #: column names that no field of a payload may take
    reserved: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.reserved = {column.name for column in columns_of(self)} | {"payload_raw", "message_key_raw"}


def columns_of(shape: Shape) -> tuple[Column, ...]:
    """The columns that every row has."""
    payload = {"json": "jsonb", "text": "text", "bytes": "bytea"}[shape.value_format]
    return (
        Column("protocol", "text", nullable=False),
        Column("stream", "text", nullable=False),
        *(Column(name, kind) for name, kind in shape.identity.items()),
        Column("event_time", "timestamptz"),
        Column("message_key", "text"),
        Column("payload", payload),
        Column("metadata", "jsonb"),
    )


def resource_of(shape: Shape, kind: str, key_reason: str, messages: int | None = None) -> Resource:
    """What `discover` and `describe` give: the identity is the primary key.

    kind: topic, queue, subject or stream.
    """
    return Resource(
        shape.stream,
        columns_of(shape),
        primary_key=("stream", *shape.identity) if shape.identity else (),
        key_reason=key_reason if shape.identity else "",
        row_estimate=messages,
        kind=kind,
    )


# -- reading ---------------------------------------------------------------------------------------------


def read_messages(
    shape: Shape,
    fields: MessageFields,
    fetch: Callable[[int, float], Sequence[Message] | None],
    position: Callable[[], Any],
    batch_bytes: int,
    has_end: bool = True,
    first: bool = True,
) -> Iterator[IngestedItem]:
    """Batches of messages until `max_messages`, `max_wait_seconds`, or the end as of the start of the run.

    fetch: takes a number of messages and seconds; gives at most so many messages, none if none came in
        that time, None when the end is reached. It raises what its source raises.
    position: the place behind the last message that `fetch` has given, JSON-able.
    has_end: whether `fetch` can tell the end. If not, `poll_timeout_seconds` without a message is the end;
        if it can, STALLED_SECONDS without anything raise ConnectionFailed (lost).
    first: whether the target may not exist yet, so that a stream without messages gives its columns.
    """
    make = partial(item_of, shape)
    yield from read_entries(
        shape.stream, fields, fetch, weight, make, position, batch_bytes, has_end=has_end, first=first
    )


def weight(messages: Sequence[Message]) -> int:
    """About how many bytes messages take as rows, where what is in a payload has a column of its own too."""
    content = sum(len(m.value or b"") + len(m.key or b"") for m in messages)
    return 2 * content + _MESSAGE_BYTES * len(messages)


def read_entries(
    stream: str,
    fields: MessageFields,
    fetch: Callable[[int, float], Sequence[Entry] | None],
    weigh: Callable[[Sequence[Entry]], int],
    make: Callable[[Sequence[Entry], Any], IngestedItem],
    position: Callable[[], Any],
    batch_bytes: int,
    has_end: bool = True,
    first: bool = True,
) -> Iterator[IngestedItem]:
    """`read_messages` for entries of any form.

    weigh: about how many bytes some of them take. make: some of them as one item, with the position behind.
    """
    began = quiet_since = time.monotonic()
    left = fields.max_messages
    gathered: list[Entry] = []
    size, average, given = 0, float(_MESSAGE_BYTES), False
    most = _FIRST

    while left is None or left > 0:
        now = time.monotonic()
        if fields.max_wait_seconds is not None and now - began >= fields.max_wait_seconds:
            break
        wanted = max(1, min(most, int((batch_bytes - size) / average), left or most))
        messages = fetch(wanted, _patience(fields, began, now))
        if messages is None:
            break
        if not messages:
            if _ended(stream, fields, time.monotonic() - quiet_since, has_end):
                break
            continue
        quiet_since, most = time.monotonic(), min(2 * most, _MOST_AT_ONCE)
        fetched = weigh(messages)
        average = max(average, fetched / len(messages)) if size else fetched / len(messages)
        size += fetched
        gathered.extend(messages)
        left = None if left is None else left - len(messages)
        if size + average >= batch_bytes:  # the next one may not fit
            yield make(gathered, position())
            gathered, size, given = [], 0, True

    if gathered or (first and not given):
        yield make(gathered, position())
    elif not given:
        yield IngestedItem(position=position())


def _patience(fields: MessageFields, began: float, now: float) -> float:
    """How long the next fetch may wait, in seconds."""
    patience = min(SLICE_SECONDS, fields.poll_timeout_seconds)
    if fields.max_wait_seconds is not None:
        patience = min(patience, began + fields.max_wait_seconds - now)
    return max(0.0, patience)


def _ended(stream: str, fields: MessageFields, quiet: float, has_end: bool) -> bool:
    """Whether silence is the end. Raises ConnectionFailed where it cannot be."""
    if not has_end:
        return quiet >= fields.poll_timeout_seconds
    if quiet >= max(STALLED_SECONDS, fields.poll_timeout_seconds):
        raise ConnectionFailed(
            f"{stream}: nothing has come for {quiet:.0f} s, though there are more messages",
            layer="lost",
            hint="nothing was committed; run again when the server answers",
        )
    return False


# -- messages as rows ------------------------------------------------------------------------------------


def item_of(shape: Shape, messages: Sequence[Message], position: Any = None) -> IngestedItem:
    """These messages as one item; without messages, its columns."""
    decoded = (shape.decode or _decoder(shape))([message.value for message in messages])
    changed = Counter(decoded.changed)
    identities = list(zip(*(message.identity for message in messages), strict=True))
    identity = {
        name: fill_values(identities[number] if messages else (), kind)
        for number, (name, kind) in enumerate(shape.identity.items())
    }
    times = _times([message.event_time for message in messages], changed)
    keys, raw_keys = texts_of([message.key for message in messages])
    if raw_keys is not None:
        changed["message_key: not UTF-8 → message_key_raw"] += raw_keys.len() - raw_keys.null_count()
    own = {"message_key": keys, "message_key_raw": raw_keys, "metadata": _metadata(messages)}
    return assembled(shape, len(messages), identity, times, own, decoded._replace(changed=changed), position)


def assembled(
    shape: Shape,
    count: int,
    identity: Mapping[str, Filled],
    times: pl.Series,
    own: Mapping[str, pl.Series | None],
    decoded: Decoded,
    position: Any,
) -> IngestedItem:
    """So many messages, whose columns are made, as one item.

    own: message_key, message_key_raw and metadata; None where that column is not needed.
    """
    columns = {
        "protocol": _constant(shape.protocol, count),
        "stream": _constant(shape.stream, count),
        **{name: filled.series for name, filled in identity.items()},
        "event_time": times,
        **{name: series for name, series in own.items() if series is not None},
        **decoded.columns,
    }
    types = {"protocol": "text", "stream": "text", "event_time": "timestamptz"}
    types |= {name: filled.type for name, filled in identity.items()}
    types |= {name: _OWN[name] for name in own if name in columns}
    frame = pl.DataFrame([series.alias(name) for name, series in columns.items()])
    told = {"changed": dict(decoded.changed)} if decoded.changed else {}
    return IngestedItem(frame, types | decoded.types, position=position, metadata=told)


def _constant(text: str, count: int) -> pl.Series:
    return pl.Series(values=[text], dtype=pl.String).new_from_index(0, count)


def _times(times: Sequence[int | None], changed: Counter[str]) -> pl.Series:
    odd = sum(time is not None and time not in _TIMES for time in times)
    if odd:
        changed["event_time: outside of the years 1 to 9999 → NULL"] += odd
        times = [time if time is not None and time in _TIMES else None for time in times]
    return pl.Series(values=times, dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))


def times_of(milliseconds: pl.Series) -> pl.Series | None:
    """Event times from milliseconds since 1970; None where one lies outside of the years 1 to 9999."""
    first, last = milliseconds.min(), milliseconds.max()
    assert isinstance(first, int) and isinstance(last, int)
    if first * 1000 not in _TIMES or last * 1000 not in _TIMES:
        return None
    return milliseconds.cast(pl.Datetime("ms", "UTC")).cast(pl.Datetime("us", "UTC"))


def plain_metadata(count: int) -> dict[str, pl.Series | None]:
    """What stands beside the payload of so many messages that have neither keys nor headers."""
    nothing = pl.Series(values=[None], dtype=pl.String).new_from_index(0, count)
    return {"message_key": nothing, "message_key_raw": None, "metadata": nothing}


def texts_of(values: Sequence[bytes | str | None]) -> tuple[pl.Series, pl.Series | None]:
    """UTF-8 as text, and the bytes of those that are none, or None where all are."""
    texts: list[str | None] = []
    raw: dict[int, bytes] = {}
    for number, value in enumerate(values):
        if isinstance(value, bytes):
            try:
                texts.append(value.decode())
            except UnicodeDecodeError:
                raw[number] = value
                texts.append(None)
        else:
            texts.append(value)
    return pl.Series(values=texts, dtype=pl.String), raw_series(raw, len(texts))


def raw_series(raw: Mapping[int, bytes], count: int) -> pl.Series | None:
    """Bytes by row number as a column, or None where there are none."""
    return pl.Series(values=[raw.get(n) for n in range(count)], dtype=pl.Binary) if raw else None


@cache
def _json_encoder() -> Any:
    import msgspec

    return msgspec.json.Encoder()


def _metadata(messages: Sequence[Message]) -> pl.Series:
    encode = _json_encoder().encode
    texts = [encode(message.metadata).decode() if message.metadata else None for message in messages]
    return pl.Series(values=texts, dtype=pl.String)


def header_text(value: Any) -> Any:
    """A header's value for `metadata`: text where it is UTF-8, else {"base64": …}."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        import base64

        content = bytes(value)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(content).decode()}
    return value


# -- payloads --------------------------------------------------------------------------------------------


def _decoder(shape: Shape) -> Decode:
    if shape.value_format == "bytes":
        return _decode_bytes
    if shape.value_format == "text":
        return _decode_text
    return lambda values: decode_json(shape, values)


def _decode_bytes(values: Sequence[bytes | None]) -> Decoded:
    return Decoded({"payload": pl.Series(values=values, dtype=pl.Binary)}, {"payload": "bytea"})


def _decode_text(values: Sequence[bytes | None]) -> Decoded:
    texts, raw = texts_of(values)
    return with_raw(texts, "text", raw, "not UTF-8")


def with_raw(payload: pl.Series, kind: str, raw: pl.Series | None, why: str) -> Decoded:
    """A payload column, and beside it the bytes of what could not be decoded, counted."""
    if raw is None:
        return Decoded({"payload": payload}, {"payload": kind})
    count = raw.len() - raw.null_count()
    return Decoded(
        {"payload": payload, "payload_raw": raw},
        {"payload": kind, "payload_raw": "bytea"},
        {f"payload: {why} → payload_raw": count},
    )


@cache
def _json_decoders() -> tuple[Any, Any]:
    import msgspec

    return msgspec.json.Decoder(dict[str, msgspec.Raw]), msgspec.json.Decoder(msgspec.Raw)


def decode_json(shape: Shape, values: Sequence[bytes | None]) -> Decoded:
    """JSON texts as `payload`, and the fields of objects as columns of their own.

    What is no JSON that PostgreSQL's jsonb takes is left to `payload_raw`.
    """
    return _decode_alike(shape, values) or _decode_any(shape, values)


def _decode_any(shape: Shape, values: Sequence[bytes | None]) -> Decoded:
    """Any values, looked at one by one."""
    texts: list[str | None] = []
    rows: list[dict[str, Any]] = []
    raw: dict[int, bytes] = {}
    suspect = _SUSPECT.search(b" ".join(value for value in values if value)) is not None
    for number, value in enumerate(values):
        text, row = (None, {}) if value is None else _json(value, suspect)
        if value is not None and text is None:
            raw[number] = value
        texts.append(text)
        rows.append(row)
    payload = pl.Series(values=texts, dtype=pl.String)
    decoded = with_raw(payload, "jsonb", raw_series(raw, len(texts)), "not JSON")
    if not shape.expand:
        return decoded
    columns, types, changed = _fields(shape, rows)
    return Decoded(decoded.columns | columns, decoded.types | types, {**decoded.changed, **changed})


@dataclass(frozen=True)
class _Form:
    """Objects with the fields that have been seen. decode: one as a record with an attribute for each."""

    decode: Callable[[bytes], Any]
    attributes: Mapping[str, str]


def _form(strings: Mapping[str, bool]) -> _Form | None:
    """Strings come decoded, anything else as it is written. None for names that a record cannot have."""
    import msgspec

    attributes = {key: f"f{number}" for number, key in enumerate(strings)}
    null = msgspec.Raw(b"null")
    fields = [
        (attributes[key], str | None, msgspec.field(name=key, default=None))
        if texts
        else (attributes[key], msgspec.Raw, msgspec.field(name=key, default=null))
        for key, texts in strings.items()
    ]
    try:
        record = msgspec.defstruct("Record", fields, forbid_unknown_fields=True, gc=False)
    except ValueError:
        return None
    return _Form(msgspec.json.Decoder(record).decode, attributes)


def _decode_alike(shape: Shape, values: Sequence[bytes | None]) -> Decoded | None:
    """The same as `_decode_any`, several times as fast: objects like those before. None for any other."""
    import msgspec

    form = shape.form
    if form is None or not shape.expand:
        return None
    try:
        rows = [form.decode(b"{}" if value is None else value) for value in values]
        payload = pl.Series(values=values, dtype=pl.Binary).cast(pl.String)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, pl.exceptions.PolarsError):
        return None
    odd = payload.filter(payload.str.contains(_SUSPECT_TEXT) | (payload.str.len_bytes() > _LONG))
    if not all(_fits_jsonb(text.encode()) for text in odd):
        return None
    columns, types = {"payload": payload}, {"payload": "jsonb"}
    for key, attribute in form.attributes.items():
        name = field_name(shape, key)
        found = list(map(attrgetter(attribute), rows))
        strings = shape.strings[key]
        columns[name] = _column(shape, name, found if strings else list(map(bytes, found)), strings)
        if (kind := shape.kinds[name]) and kind != "text":
            types[name] = POSTGRES[kind]
    return Decoded(columns, types)


def text_fields(shape: Shape, fields: Mapping[str, pa.Array]) -> Decoded | None:
    """Objects whose fields hold strings alone, as columns: the same as `decode_json` of their JSON.

    fields: by key, strings without a NULL. None for more fields than get a column.
    """
    names = {key: field_name(shape, key) for key in fields}
    if len(shape.kinds.keys() | set(names.values())) > MAX_FIELDS:
        return None
    texts = {key: pl.Series(key, values) for key, values in fields.items()}
    payload = pl.DataFrame(texts).select(pl.struct(pl.all()).struct.json_encode()).to_series()
    columns, types = {"payload": payload}, {"payload": "jsonb"}
    for key, values in fields.items() if shape.expand else ():
        name = names[key]
        columns[name] = _column(shape, name, values, strings=True)
        if (kind := shape.kinds[name]) and kind != "text":
            types[name] = POSTGRES[kind]
    return Decoded(columns, types)


def _column(shape: Shape, name: str, values: Any, strings: bool = False) -> pl.Series:
    """A field's values, JSON as it is written or decoded strings, as a column; notes its kind."""
    read = type_strings if strings else type_values
    array, shape.kinds[name] = read(values, shape.kinds.get(name, ""))
    series = pl.from_arrow(array)
    assert isinstance(series, pl.Series)
    return series


def _json(value: bytes, suspect: bool) -> tuple[str | None, dict[str, Any]]:
    """The text of a JSON value and its fields, None and {} where it is none.

    suspect: whether it may hold something that jsonb does not.
    """
    import msgspec

    objects, any_value = _json_decoders()
    row: dict[str, Any] = {}
    try:
        text = value.decode()
        try:
            row = objects.decode(value)
        except msgspec.ValidationError:
            any_value.decode(value)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return None, {}
    if (suspect or len(value) > _LONG) and not _fits_jsonb(value):
        return None, {}
    return text, row


def _fits_jsonb(value: bytes) -> bool:
    """Whether PostgreSQL takes valid JSON: no half surrogate pair, no number that numeric does not hold."""
    if len(value) <= _LONG and not _SUSPECT.search(value):
        return True
    import json

    try:
        found = json.loads(value, parse_float=_number, parse_int=_number)
        json.dumps(found, ensure_ascii=False).encode()
    except (UnicodeEncodeError, ValueError, RecursionError):
        return False
    return True


def _number(text: str) -> int:
    """Raises ValueError for a number that PostgreSQL's numeric does not hold."""
    if len(text) > _LONG or "e" in text or "E" in text:
        from decimal import Decimal

        if not fits_numeric(Decimal(text)):
            raise ValueError("too large for numeric")
    return 0


def _fields(
    shape: Shape, rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, pl.Series], dict[str, str], Counter[str]]:
    """The fields of JSON objects as columns."""
    columns: dict[str, pl.Series] = {}
    types: dict[str, str] = {}
    changed: Counter[str] = Counter()
    for key in dict.fromkeys(chain.from_iterable(rows)):
        name = field_name(shape, key)
        if name not in shape.kinds and len(shape.kinds) >= MAX_FIELDS:
            beyond = sum(key in row for row in rows)
            changed[f"payload: fields beyond {MAX_FIELDS:,} have no column of their own"] += beyond
            continue
        values = [bytes(row[key]) if key in row else b"null" for row in rows]
        columns[name] = _column(shape, name, values)
        strings = {value[0] for value in values} <= _OF_STRINGS
        if shape.strings.get(key) != (told := strings and shape.strings.get(key, True)):
            shape.strings[key], shape.form = told, None
        if (kind := shape.kinds[name]) and kind != "text":
            types[name] = POSTGRES[kind]
    if shape.form is None and shape.strings:
        shape.form = _form(shape.strings)
    return columns, types, changed


def field_name(shape: Shape, key: str) -> str:
    """The column of a payload's field: its own name, or with `payload_` in front where that is taken.

    It depends on the key alone, so it is the same in every run, and no two keys share one.
    """
    rest = key.lower()
    while rest not in shape.reserved and rest.startswith("payload_"):
        rest = rest.removeprefix("payload_")
    return f"payload_{key}" if not rest or rest in shape.reserved else key


def refuse_cursor(cursor: Cursor, what: str) -> None:
    """Raise ConfigError for a cursor column: a stream keeps its own place.

    what: the kind of thing that is read, with its article.
    """
    if cursor.column:
        raise ConfigError(
            f"{what} has no cursor column: it keeps its own place",
            hint=f"take the line 'cursor: {cursor.column}' out of the source file",
        )

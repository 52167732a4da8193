"""Singer messages into frames: the schema decides the types, and no value is changed to keep them.

Whole blocks of lines are decoded at once, twice: the messages, with each record left as the bytes it is
written in; then the records of a batch, into a class with one field per column. A record that does not
keep its schema sends its batch through the way on which each value stays as it is spelled, and the column
is wider from then on (bigint → numeric → text, anything → text).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from dwcli.connectors._formats.json_file import mended, type_values
from dwcli.connectors._formats.texts import POSTGRES, Kind, arrow_type, type_texts
from dwcli.contract import Column, IngestedItem
from dwcli.errors import SourceData
from dwcli.log import get_logger

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

log = get_logger(__name__)

#: What a field of a msgspec class cannot be called.
_NO_FIELD = re.compile(r'[\\"\x00-\x1f]')
_ODD_NUMBERS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')
_TIME = r"^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?$"
_UUID = r"^(?i:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$"
_SPELLINGS = {"time": _TIME, "uuid": _UUID}
LARGEST_BIGINT = 2**63 - 1


# -- the schema ------------------------------------------------------------------------------------------


@dataclass
class Field:
    """One column and how its values are read."""

    name: str
    kind: Kind
    #: time or uuid, which are texts of one form
    form: str = ""
    #: the Python type that its values are decoded to; None leaves them as they are written
    fast: type | None = None
    nullable: bool = True
    source_type: str = ""

    @property
    def type(self) -> str:
        """The PostgreSQL type; "" while no value has been seen."""
        return self.form or POSTGRES.get(self.kind, "")


def fields_of(schema: Mapping[str, Any]) -> list[Field]:
    """The columns that a stream's JSON schema declares."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return []
    return [_field(name, _resolved(spec, schema)) for name, spec in properties.items()]


def columns_of(schema: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of a stream as a catalogue shows them."""
    return tuple(Column(f.name, f.type or "text", f.nullable, f.source_type) for f in fields_of(schema))


def _resolved(spec: Any, schema: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """A property with its reference followed and its alternatives laid together."""
    if not isinstance(spec, dict) or depth > 10:
        return {}
    if isinstance(spec.get("$ref"), str) and spec["$ref"].startswith("#/"):
        target: Any = schema
        for part in spec["$ref"][2:].split("/"):
            target = target.get(part, {}) if isinstance(target, dict) else {}
        return _resolved(target, schema, depth + 1)
    options = [_resolved(o, schema, depth + 1) for key in ("anyOf", "oneOf") for o in spec.get(key) or ()]
    if not options:
        return spec
    types = [t for option in (spec, *options) for t in _types(option)]
    formats = {option.get("format") for option in options if set(_types(option)) - {"null"}}
    merged = {**spec, "type": list(dict.fromkeys(types))}
    if len(formats) == 1 and (only := formats.pop()):
        merged["format"] = only
    return merged


def _types(spec: Mapping[str, Any]) -> list[str]:
    given = spec.get("type")
    return [given] if isinstance(given, str) else [t for t in given or () if isinstance(t, str)]


def _field(name: str, spec: Mapping[str, Any]) -> Field:
    given = _types(spec)
    types = set(given) - {"null"}
    form = str(spec.get("format") or "")
    shown = " or ".join(t for t in given if t != "null") + (f" ({form})" if form else "")
    field = Field(name, "", nullable="null" in given or not given, source_type=shown)
    if types & {"object", "array"}:
        field.kind = "jsonb"
    elif types == {"integer"}:
        large = max(abs(_number(spec, "maximum")), abs(_number(spec, "minimum"))) > LARGEST_BIGINT
        field.kind, field.fast = ("numeric", None) if large else ("bigint", int)
    elif types and types <= {"integer", "number"}:
        field.kind = "numeric"
    elif types == {"boolean"}:
        field.kind, field.fast = "boolean", bool
    elif types == {"string"}:
        field.kind = {"date-time": "zoned", "date": "date", "singer.decimal": "numeric"}.get(form, "text")
        field.form = form if form in _SPELLINGS else ""
        field.fast = str
    elif types:
        field.kind = "text"
    return field


def _number(spec: Mapping[str, Any], key: str) -> float:
    value = spec.get(key)
    return value if isinstance(value, (int, float)) else 0


# -- messages --------------------------------------------------------------------------------------------


@dataclass
class Read:
    """A read of one stream: what its messages have told so far."""

    tap: str
    #: the names under which the stream's messages may come
    streams: Collection[str]
    fields: list[Field]
    batch_bytes: int
    decoder: Any = None
    records: list[Any] = field(default_factory=list)
    size: float = 0
    #: the last STATE, as it is written, and whether an item has carried it
    state: Any = None
    carried: bool = True
    items: int = 0
    changed: dict[str, int] = field(default_factory=dict)


def items_of(read: Read, blocks: Iterator[bytes]) -> Iterator[IngestedItem]:
    """Batches of the stream's records. The item that follows a STATE carries it as its position.

    blocks: pieces of the tap's output that end with a line. Raises SourceData for what is no message and
    cannot be passed over, and whatever `blocks` raises.
    """
    limit = max(64 * 1024, read.batch_bytes // 2)
    for block in blocks:
        for message in _messages(read, block):
            kind = message.type
            if kind == "RECORD":
                if message.stream in read.streams:
                    read.records.append(message.record)
            elif kind == "STATE":
                read.state, read.carried = message.value, False
            elif message.stream not in read.streams:
                continue
            elif kind == "SCHEMA":
                yield from _flushed(read)
                _take_schema(read, message.schema)
            elif kind == "BATCH":
                yield from _flushed(read)
                for piece in _batch_files(read, message):
                    read.records = [_record(line) for line in piece.split(b"\n") if line.strip()]
                    yield from _flushed(read)
            elif kind == "ACTIVATE_VERSION":
                log.info("%s: a new version of %s; write: replace keeps only it", read.tap, message.stream)
        if read.records:
            read.size += len(block)
            if read.size >= limit:
                yield from _flushed(read)
    yield from _flushed(read)
    if not read.items or not read.carried:
        yield _item(read, *_empty(read))


def _message_type() -> Any:
    import msgspec

    raw = msgspec.Raw
    return msgspec.defstruct(
        "Message",
        [
            ("type", str),
            ("stream", str, ""),
            ("record", raw, raw()),
            ("value", raw, raw()),
            ("schema", raw, raw()),
            ("encoding", dict[str, Any] | None, None),
            ("manifest", list[str] | None, None),
        ],
        gc=False,
    )


class _Decoders:
    """Made once, at the first message."""

    messages: Any = None
    records: Any = None


def _decoders() -> type[_Decoders]:
    import msgspec

    if _Decoders.messages is None:
        _Decoders.records = msgspec.json.Decoder(dict[str, msgspec.Raw])
        _Decoders.messages = msgspec.json.Decoder(_message_type())
    return _Decoders


def _messages(read: Read, block: bytes) -> Sequence[Any]:
    """The messages of a block; lines that are none go to the log."""
    import msgspec

    decoder = _decoders().messages
    try:
        found: Sequence[Any] = decoder.decode_lines(block)
        return found
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    except RecursionError:
        raise _too_deep(read) from None
    found = []
    for line in block.split(b"\n"):
        line = line.strip()
        if not line:
            continue
        try:
            found.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            found += _mended(read, line, str(error))
    return found


def _mended(read: Read, line: bytes, why: str) -> list[Any]:
    """The message of a line that is not quite JSON (NaN, half a character), or nothing if it is none."""
    import msgspec

    if not line.startswith(b"{"):
        log.info("%s: %s", read.tap, line[:2000].decode("utf-8", "replace"))
        return []
    text = _ODD_NUMBERS.sub(_in_quotes, mended(line, read.changed))
    try:
        return [_decoders().messages.decode(text)]
    except msgspec.ValidationError:
        log.info("%s: an object that is no message", read.tap)
        return []
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise SourceData(
            f"{read.tap} wrote a message that is not valid JSON",
            why=why.removeprefix("JSON is malformed: "),
            hint="the tap has a bug, or was cut off: run again, and look into the log",
        ) from None


def _in_quotes(match: re.Match[bytes]) -> bytes:
    return match[0] if match[0].startswith(b'"') else b'"' + match[0] + b'"'


def _take_schema(read: Read, schema: Any) -> None:
    """Columns of a SCHEMA message. What was widened by values stays wide."""
    known = {f.name: f for f in read.fields}
    found = _parsed(read, "SCHEMA", schema)
    if not isinstance(found, dict):
        raise SourceData(f"{read.tap} wrote a SCHEMA message without a schema")
    declared = fields_of(found)
    for one in declared:
        before = known.get(one.name)
        if before is not None and read.items and before.kind != one.kind:
            one.kind, one.form, one.fast = _wider(before.kind, one.kind), "", None
    names = {one.name for one in declared}
    read.fields = declared + [f for f in read.fields if f.name not in names and read.items]
    read.decoder = None


def _parsed(read: Read, kind: str, value: Any) -> Any:
    try:
        return json.loads(bytes(value))
    except ValueError:
        raise SourceData(f"{read.tap} wrote a {kind} message that says nothing") from None


def _wider(one: Kind, other: Kind) -> Kind:
    if not one or not other:
        return one or other
    return "numeric" if {one, other} == {"bigint", "numeric"} else "text"


def _record(line: bytes) -> Any:
    import msgspec

    return msgspec.Raw(line.strip())


def _batch_files(read: Read, message: Any) -> Iterator[bytes]:
    """The lines of the files that a BATCH message names, in pieces."""
    import gzip

    encoding = message.encoding or {}
    form, packing = encoding.get("format"), encoding.get("compression") or "none"
    if form != "jsonl" or packing not in ("none", "gzip"):
        raise SourceData(
            f"{read.tap} wrote its rows to files of a kind that is not read ({form}, {packing})",
            hint="tap_config: batch_config with format jsonl and compression gzip or none; or none at all",
        )
    for address in message.manifest or ():
        parts = urlsplit(address)
        if parts.scheme not in ("file", ""):
            raise SourceData(
                f"{read.tap} wrote its rows to {parts.scheme}://{parts.netloc}, which is not read",
                hint="tap_config: batch_config with a root of file://",
            )
        path = Path(unquote(parts.path))
        size = max(64 * 1024, read.batch_bytes // 2)
        try:
            with gzip.open(path) if packing == "gzip" else path.open("rb") as file:
                while lines := file.readlines(size):
                    yield b"".join(lines)
        except (OSError, EOFError) as error:
            raise SourceData(
                f"the file {path} that {read.tap} names cannot be read", why=str(error)
            ) from None


# -- records to frames -----------------------------------------------------------------------------------


def _flushed(read: Read) -> Iterator[IngestedItem]:
    """The records held so far as an item, if there are any."""
    if read.records:
        text = b"\n".join(read.records)
        count = len(read.records)
        read.records, read.size = [], 0
        try:
            frame, types = _frame(read, text, count)
        except UnicodeDecodeError:
            raise SourceData(f"{read.tap} wrote text that is not UTF-8") from None
        except RecursionError:
            raise _too_deep(read) from None
        yield _item(read, frame, types)


def _too_deep(read: Read) -> SourceData:
    return SourceData(f"{read.tap} wrote a value that is nested too deep to be read")


def _item(read: Read, frame: pl.DataFrame, types: dict[str, str]) -> IngestedItem:
    position = None
    if not read.carried:
        position = {"state": _parsed(read, "STATE", read.state)}
        read.carried = True
    read.items += 1
    metadata: dict[str, Any] = {"changed": read.changed} if read.changed else {}
    read.changed = {}
    return IngestedItem(frame, types, position=position, metadata=metadata)


def _empty(read: Read) -> tuple[pl.DataFrame, dict[str, str]]:
    import pyarrow as pa

    return _framed(read, {f.name: pa.nulls(0, arrow_type(f.kind)) for f in read.fields})


def _framed(read: Read, arrays: dict[str, pa.Array]) -> tuple[pl.DataFrame, dict[str, str]]:
    import polars as pl
    import pyarrow as pa

    frame = pl.DataFrame(pa.table({str(place): array for place, array in enumerate(arrays.values())}))
    frame.columns = list(arrays)  # polars would give a column without a name another one
    return frame, {f.name: f.type for f in read.fields if f.type}


def _frame(read: Read, text: bytes, count: int) -> tuple[pl.DataFrame, dict[str, str]]:
    import msgspec

    if any(_NO_FIELD.search(one.name) for one in read.fields):
        return _spelled_out(read, text)
    if read.decoder is None:
        read.decoder = _row_decoder(read.fields)
    try:
        rows = read.decoder.decode_lines(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _spelled_out(read, text)
    if len(rows) != count:
        raise SourceData(f"{read.tap} wrote a RECORD message without a record")
    arrays = {}
    for number, one in enumerate(read.fields):
        values = list(map(attrgetter(f"f{number}"), rows))
        arrays[one.name] = _column(read, one, values)
    return _framed(read, arrays)


def _row_decoder(fields: Sequence[Field]) -> Any:
    import msgspec

    specs: list[tuple[str, Any, Any]] = [
        (f"f{number}", msgspec.Raw if one.fast is None else one.fast | None, msgspec.field(default=None))
        for number, one in enumerate(fields)
    ]
    row = msgspec.defstruct(
        "Row",
        specs,
        rename={f"f{number}": one.name for number, one in enumerate(fields)},
        forbid_unknown_fields=True,
        gc=False,
    )
    return msgspec.json.Decoder(row)


def _spelled_out(read: Read, text: bytes) -> tuple[pl.DataFrame, dict[str, str]]:
    """A batch that does not keep the schema, or has columns beyond it: each value as it is written."""
    import msgspec

    text = mended(text, read.changed) if b"\\u" in text else text
    try:
        rows = _decoders().records.decode_lines(text)
    except msgspec.DecodeError as error:
        raise SourceData(f"{read.tap} wrote a record that is no object", why=str(error)) from None
    known = {one.name for one in read.fields}
    read.fields += [
        Field(name, "") for name in dict.fromkeys(k for row in rows for k in row) if name not in known
    ]
    arrays = {}
    for one in read.fields:
        values = [bytes(row[one.name]) if one.name in row else b"null" for row in rows]
        if one.fast is not None and not _fits(one.fast, values):
            one.fast = None
        arrays[one.name] = _column_of_bytes(one, values)
    read.decoder = None
    return _framed(read, arrays)


_FIRST = {int: b"-0123456789n", bool: b"tfn", str: b'"n'}


def _fits(fast: type, values: Sequence[bytes]) -> bool:
    """Whether values as they are written can be decoded to this type."""
    allowed = _FIRST[fast]
    if fast is int:
        return all(v[0] in allowed and not re.search(rb"[.eE]", v) for v in values)
    return all(v[0] in allowed for v in values)


def _column(read: Read, one: Field, values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    if one.fast is None:
        return _column_of_bytes(one, [b"null" if v is None else bytes(v) for v in values])
    if one.fast is int:
        try:
            return pa.array(values, pa.int64())
        except (pa.ArrowInvalid, OverflowError):
            one.fast, read.decoder = None, None
            return _column_of_bytes(one, [b"null" if v is None else b"%d" % v for v in values])
    if one.fast is bool:
        return pa.array(values, pa.bool_())
    return _column_of_texts(one, pa.array(values, pa.string()))


_ODD = (b'"NaN"', b'"Infinity"', b'"-Infinity"')


def _column_of_bytes(one: Field, values: list[bytes]) -> pa.Array:
    """A column from values as they are written, wider than it was where they ask for it."""
    import pyarrow as pa

    texts_alone = all(v[0] in b'"n' for v in values)
    if texts_alone and (one.kind in ("zoned", "date", "text") or one.fast is str):
        return _column_of_texts(one, type_values(values, "text")[0])
    numbers = one.kind == "numeric" and all(v[0] in b"-0123456789n" or v in _ODD for v in values)
    if numbers and any(v in _ODD for v in values):
        return pa.array([None if v == b"null" else v.strip(b'"').decode() for v in values], pa.string())
    typed, one.kind = type_values(values, one.kind)
    one.form = ""
    return typed


def _column_of_texts(one: Field, texts: pa.Array) -> pa.Array:
    """A column of strings: as the times, dates or decimals that the schema says they are, or as text."""
    import pyarrow.compute as pc

    if one.kind == "text":
        if one.form and not pc.all(pc.match_substring_regex(texts, _SPELLINGS[one.form])).as_py():
            one.form = "" if len(texts) != texts.null_count else one.form
        return texts
    if one.kind == "zoned":
        typed, kind = type_texts(texts, "zoned")
        if kind != "zoned":
            # a time without an offset is UTC, as the Singer specification has it
            full = pc.replace_substring_regex(texts, r"^([0-9-]{10})$", r"\1T00:00:00Z")
            full = pc.replace_substring_regex(full, r"^([0-9-]{10}[T ][0-9:.]+)$", r"\1Z")
            typed, kind = type_texts(full, "zoned")
    else:
        typed, kind = type_texts(texts, one.kind)
    if kind == one.kind:
        return typed
    if one.kind == "date":
        midnight = pc.replace_substring_regex(
            texts, r"^([0-9-]{10})[T ]00:00(:00(\.0+)?)?(Z|\+00:?00)?$", r"\1"
        )
        typed, kind = type_texts(midnight, "date")
        if kind == "date":
            return typed
    one.kind, one.form = "text", ""
    return texts

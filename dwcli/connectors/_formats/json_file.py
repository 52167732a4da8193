"""JSON: arrays, lines (NDJSON) and objects one after the other, streamed, numbers to the last digit.

msgspec checks the grammar and hands over each field as the bytes it stands in, so no number passes
through a float. A column of numbers is `bigint` or `numeric`, never `double`; of true and false `boolean`;
of strings `text`, or `date` or `timestamptz` where every string of a batch is a full date or a full
timestamp with an offset. As soon as an object or array is among the values, the column is `jsonb`.
Different scalars in one column are `text`, as they are spelled. null and a missing field are NULL.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from dwcli.connectors._formats.frames import Frame, Options, Seen, frame_of_arrays, unique_names
from dwcli.connectors._formats.json_records import Known, Piece, decode, learn, values_of
from dwcli.connectors._formats.streams import Source, as_utf8, encoding_of, reading, undecodable
from dwcli.connectors._formats.texts import Kind, arrow_type, fits_numeric, type_texts
from dwcli.errors import SourceData

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

#: One element larger than this is no row.
MAX_ELEMENT_BYTES = 64 * 1024 * 1024
#: Arrays and objects in each other; PostgreSQL's jsonb ends not far above.
MAX_DEPTH = 8_000
_SPACE = re.compile(rb"[ \t\r\n]")
_WHITESPACE = b" \t\r\n"
#: How an object begins, up to the name of its first field, and how many such places are tried as a cut.
_HEAD = re.compile(rb'[ \t\r\n]*(\{[ \t\r\n]*"[^"\\]{0,100}")')
_HEADS = 4
#: As far in front of it, in bytes, whitespace is passed over.
_NEAR = 256
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_LONE_SURROGATE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
#: What is counted of an escape such as `\ud800` with no other half behind it.
HALF_PAIR = "half a surrogate pair → the text of its escape"
#: Where numbers have an exponent, or a minus before zero, among numbers and nulls.
_ODD = (b"e", b"E", b"-0")
_BYTE = re.compile(r" \(byte (\d+)\)")


def read_json(source: Source, options: Options, seen: Seen) -> Iterator[Frame]:
    """Batches of a JSON file: the elements of an array, or objects one after the other.

    An element that is no object becomes a column `value`. Raises SourceData, with the line, for what is
    not JSON, is cut off, or is nested deeper than PostgreSQL takes.
    """
    yield from _read(source, options, seen, _elements)


def read_ndjson(source: Source, options: Options, seen: Seen) -> Iterator[Frame]:
    """Batches of a file with one JSON value on each line; empty lines are passed over."""
    yield from _read(source, options, seen, _lines)


def _read(
    source: Source, options: Options, seen: Seen, split: Callable[[Source, BinaryIO, int], Iterator[Piece]]
) -> Iterator[Frame]:
    with source.open() as stream, reading(source.name):
        encoding = options.encoding or encoding_of(stream.read(4096))
    block = max(64 * 1024, options.batch_bytes // 4)
    known = Known()
    with source.open() as raw, reading(source.name):
        try:
            for piece in split(source, as_utf8(raw, encoding), block):
                if frame := _frame(source, piece, known, seen):
                    yield frame
        except UnicodeDecodeError:
            raise undecodable(source, encoding) from None


# -- cutting the stream into pieces of whole values ----------------------------------------------------


def _lines(source: Source, stream: BinaryIO, block: int) -> Iterator[Piece]:
    line, rest = 1, b""
    while chunk := stream.read(block):
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            rest += chunk
            _refuse_long(source, rest, line)
            continue
        piece = rest + chunk[:cut]
        yield Piece(piece, line)
        line += piece.count(b"\n")
        rest = chunk[cut:]
    yield Piece(rest, line)


def _elements(source: Source, stream: BinaryIO, block: int) -> Iterator[Piece]:
    """The elements of one array, or the values of a file that is none.

    A piece is cut in front of a comma (in an array) or behind a closing brace (else) that nothing encloses.
    """
    line, rest = 1, b""
    while not rest.strip(_WHITESPACE):
        line += rest.count(b"\n")
        rest = stream.read(block)
        if not rest:
            return
    commas = rest.lstrip(_WHITESPACE).startswith(b"[")
    if commas:
        before, _, rest = rest.partition(b"[")
        line += before.count(b"\n")
    more = True
    while more:
        cut, ended = array_cut(rest) if commas else last_cut(rest, False)
        yield Piece(rest[:cut], line, commas)
        line += rest.count(b"\n", 0, cut)
        rest = rest[cut:]
        if ended:
            _refuse_trailing(source, stream, rest[1:], line)
            return
        if commas and cut:
            rest = rest[1:]
            if not rest.lstrip(_WHITESPACE):
                rest += stream.read(block)
            if rest.lstrip(_WHITESPACE).startswith(b"]"):
                raise SourceData(f"{source.name}:{line}: a comma with nothing behind it")
        if not cut:
            decode_piece(source, Piece(rest, line, commas), cut_off=True)
            _refuse_long(source, rest, line)
        chunk = stream.read(max(block, len(rest)))
        more = bool(chunk)
        rest += chunk
    if commas:
        raise SourceData(
            f"{source.name} is cut off", why="the array it begins with is never closed", hint="fetch it again"
        )
    yield Piece(rest, line)


def _refuse_long(source: Source, rest: bytes, line: int) -> None:
    if len(rest) > MAX_ELEMENT_BYTES:
        raise SourceData(
            f"{source.name}:{line}: one JSON value is longer than {MAX_ELEMENT_BYTES:,} bytes",
            why="each element, line or object becomes one row",
        )


def _refuse_trailing(source: Source, stream: BinaryIO, rest: bytes, line: int) -> None:
    while rest := rest.strip(_WHITESPACE) or stream.read(1024 * 1024):
        if rest.strip(_WHITESPACE):
            raise SourceData(
                f"{source.name}:{line}: there is more behind the array that ends here",
                hint="if each line is a JSON value of its own: format: ndjson",
            )


def array_cut(text: bytes) -> tuple[int, bool]:
    """The same as `last_cut` in an array, sooner where its elements are objects with one first field.

    An object with this beginning may be deeper inside as well: what stands before the comma in front of it
    has to be whole elements. What stands behind is looked through, as it may hold a few more.
    """
    import msgspec

    head = _HEAD.match(text)
    if head is None:
        return last_cut(text, True)
    place = len(text)
    for _ in range(_HEADS):
        place = max(0, text.rfind(head[1], 0, place))
        start = max(0, place - _NEAR)
        before = text[start:place].rstrip(_WHITESPACE)
        if not before.endswith(b","):
            continue
        cut = start + len(before) - 1
        try:
            msgspec.json.decode(b"[" + text[:cut] + b"]", type=msgspec.Raw)
        except (msgspec.DecodeError, RecursionError):
            continue
        more, ended = last_cut(text[cut + 1 :], True)
        return (cut + 1 + more, ended) if more or ended else (cut, False)
    return last_cut(text, True)


def last_cut(text: bytes, in_array: bool) -> tuple[int, bool]:
    """Where the last whole value in `text` ends, and whether the array around it ends there.

    `text` begins outside of every value. The cut is in front of the comma or bracket; 0 if there is none.
    """
    import numpy as np

    data = np.frombuffer(_ESCAPED.sub(b"__", text) if b"\\" in text else text, np.uint8)
    inside = np.bitwise_xor.accumulate((data == ord('"')).view(np.uint8)).view(bool)
    # { [ and } ] differ in one bit, which is not looked at
    opening = ((data & 0xDF) == ord("[")) & ~inside
    closing = ((data & 0xDF) == ord("]")) & ~inside
    if in_array:
        cutting = (data == ord(",")) & ~inside
        places = np.flatnonzero(opening | closing | cutting)
        depth = np.cumsum(opening[places].astype(np.int8) - closing[places], dtype=np.int32)
        ends = places[(depth == -1) & closing[places]]
        if len(ends):
            return int(ends[0]), True
        cuts = places[(depth == 0) & cutting[places]]
        return (int(cuts[-1]), False) if len(cuts) else (0, False)
    places = np.flatnonzero(opening | closing)
    depth = np.cumsum(opening[places].astype(np.int8) - closing[places], dtype=np.int32)
    cuts = places[(depth == 0) & closing[places]]
    return (int(cuts[-1]) + 1, False) if len(cuts) else (0, False)


# -- decoding a piece ----------------------------------------------------------------------------------


@cache
def _decoders() -> tuple[Any, Any]:
    """Decoders of objects, and of values of any form, whose fields stay the bytes they are written in."""
    import msgspec

    return msgspec.json.Decoder(dict[str, msgspec.Raw]), msgspec.json.Decoder(msgspec.Raw)


def decode_piece(
    source: Source, piece: Piece, cut_off: bool = False, changed: dict[str, int] | None = None
) -> list[dict[str, Any]]:
    """The rows of a piece: field name → the bytes of its value.

    cut_off: its end may be missing. changed: where what could not stay as it was is counted.
    """
    import msgspec

    objects, values = _decoders()
    try:
        try:
            return _decoded(objects, piece)
        except msgspec.ValidationError:
            rows = [{"value": value} for value in _decoded(values, piece)]
            if any(bytes(row["value"]).startswith(b"{") for row in rows):
                raise SourceData(
                    f"{source.name}: objects and other values are mixed, from line {piece.line:,} on",
                    hint="each element or line has to be an object, or none",
                ) from None
            return rows
    except msgspec.DecodeError as error:
        if cut_off and "truncated" in str(error):
            return []
        text = mended(piece.text, changed) if "escape" in str(error) else piece.text
        if text != piece.text:
            return decode_piece(source, replace(piece, text=text), cut_off)
        raise _malformed(source, piece, str(error)) from None
    except RecursionError:
        raise SourceData(
            f"{source.name}: JSON nested deeper than {MAX_DEPTH:,} levels, from line {piece.line:,} on",
            why="PostgreSQL's jsonb does not go deeper",
        ) from None


def _decoded(decoder: Any, piece: Piece) -> list[Any]:
    try:
        return _decoded_to_depth(decoder, piece)
    except RecursionError:
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(MAX_DEPTH)
        try:
            return _decoded_to_depth(decoder, piece)
        finally:
            sys.setrecursionlimit(before)


def _decoded_to_depth(decoder: Any, piece: Piece) -> list[Any]:
    if not piece.commas:
        rows: list[Any] = decoder.decode_lines(piece.text)
        return rows
    import msgspec

    elements = msgspec.json.Decoder(list[decoder.type])
    found: list[Any] = elements.decode(b"[" + piece.text + b"]")
    return found


def mended(text: bytes, changed: dict[str, int] | None = None) -> bytes:
    """JSON without escapes of half surrogate pairs, which msgspec refuses; `changed` counts them."""
    halves = sum(1 for escape in _LONE_SURROGATE.finditer(text) if escape[1])
    if halves and changed is not None:
        changed[HALF_PAIR] = changed.get(HALF_PAIR, 0) + halves
    return _LONE_SURROGATE.sub(_spelled, text) if halves else text


def _spelled(escape: re.Match[bytes]) -> bytes:
    """Half of a surrogate pair is no character: its escape becomes the text that it is written with."""
    return b"\\\\" + escape[1] if escape[1] else escape[0]


def _malformed(source: Source, piece: Piece, why: str) -> SourceData:
    """The error for what is no JSON, with its line."""
    if not piece.commas:
        piece, why = _first_bad_value(piece, why)
    place = _BYTE.search(why)
    line = piece.line
    if place:
        end = int(place[1]) - int(piece.commas)
        line += piece.text.count(b"\n", 0, max(0, end))
    else:
        line += piece.text.rstrip().count(b"\n")
    return SourceData(
        f"{source.name}:{line}: not valid JSON",
        why=_BYTE.sub("", why).removeprefix("JSON is malformed: "),
        hint="the file may have been cut off" if "truncated" in why else "",
    )


def _first_bad_value(piece: Piece, why: str) -> tuple[Piece, str]:
    """The line of a piece that does not decode by itself, if its values stand on lines."""
    import msgspec

    line = piece.line
    for text in piece.text.split(b"\n"):
        try:
            if text.strip():
                _decoders()[1].decode(text)
        except msgspec.DecodeError as error:
            one = Piece(text, line)
            # a value over several lines is "cut off" at the first of them: the place in the piece holds then
            return (piece, why) if "truncated" in str(error) and "truncated" not in why else (one, str(error))
        line += 1
    return piece, why


# -- from rows to columns ------------------------------------------------------------------------------


def _frame(source: Source, piece: Piece, known: Known, seen: Seen) -> Frame | None:
    """The rows of a piece, None for a piece without any."""
    records = decode(known, piece)
    columns = records and columns_of_records(records, [piece], known, seen)
    if records and columns:
        return frame_of_arrays(source.name, *columns, len(records))
    changed: dict[str, int] = {}
    rows = decode_piece(source, piece, changed=changed)
    if not rows:
        return None
    frame = frame_of_arrays(source.name, *columns_of_rows(rows, known, seen), len(rows))
    return replace(frame, changed=changed)


def columns_of_rows(
    rows: Sequence[Mapping[str, Any]], known: Known, seen: Seen
) -> tuple[dict[str, pa.Array], dict[str, Kind]]:
    """Rows of any fields as columns, and their kinds, which are noted in `seen`.

    Raises UnicodeDecodeError whose reason is the field that is not UTF-8.
    """
    given = dict.fromkeys(chain.from_iterable(rows))
    columns = {key: [row.get(key, b"null") for row in rows] for key in given}
    return _typed(columns, frozenset(), known, seen)


def columns_of_records(
    records: Sequence[Any],
    pieces: Sequence[Piece],
    known: Known,
    seen: Seen,
    node: str = "",
    beside: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> tuple[dict[str, pa.Array], dict[str, Kind]] | None:
    """The same for records that were decoded from `pieces`; None for what the general way has to read.

    beside: further columns, in front of theirs.
    """
    assert known.form is not None
    columns = {**beside, **values_of(known.form, records, pieces, node)}
    strings = frozenset(key for key, texts in known.form.strings.items() if texts)
    for key, name in zip(columns, unique_names(columns), strict=True):
        if key in strings and seen.get(name, "") not in ("", "date", "zoned", "text"):
            return None
    try:
        typed = _typed(columns, strings, known, seen)
    except UnicodeDecodeError:
        return None
    known.misses = 0
    return typed


def _typed(
    columns: Mapping[str, Sequence[Any]], strings: frozenset[str], known: Known, seen: Seen
) -> tuple[dict[str, pa.Array], dict[str, Kind]]:
    """Columns of values as they are written or, for the fields of `strings`, as decoded strings."""
    arrays: dict[str, pa.Array] = {}
    kinds: dict[str, Kind] = {}
    forms: dict[str, frozenset[str]] = {}
    for (key, values), name in zip(columns.items(), unique_names(columns), strict=True):
        so_far = seen.get(name, "")
        if key in strings:
            arrays[name], kinds[name] = _type_decoded(values, so_far)
            continue
        try:
            arrays[name], kinds[name], forms[key] = type_written(values, so_far)
        except UnicodeDecodeError:
            raise UnicodeDecodeError("utf-8", b"", 0, 0, key) from None
        if kinds[name] == "jsonb":
            forms[key] |= {"nested"}  # strings keep their quotes there
    seen |= kinds
    learn(known, forms)
    return arrays, kinds


def _type_decoded(values: Sequence[Any], so_far: Kind) -> tuple[pa.Array, Kind]:
    import pyarrow as pa

    try:
        return type_strings(values, so_far)
    except pa.ArrowTypeError:
        from msgspec import UNSET

        return type_strings([None if value is UNSET else value for value in values], so_far)


def type_values(values: Sequence[Any], so_far: Kind) -> tuple[pa.Array, Kind]:
    """A column from JSON values as they are written, with its kind (see the module's text).

    values: bytes or `msgspec.Raw`, of valid JSON without whitespace around it.
    """
    array, kind, _ = type_written(values, so_far)
    return array, kind


def type_written(values: Sequence[Any], so_far: Kind) -> tuple[pa.Array, Kind, frozenset[str]]:
    """The same, and the forms that the values beside null have: number, boolean, string, nested."""
    import pyarrow as pa

    written = _written(values)
    forms = _forms_of(written.first)
    if not forms:
        return pa.nulls(len(values), arrow_type(so_far)), so_far, forms
    if so_far == "jsonb" or ("nested" in forms and not so_far):
        return _compacted(written), "jsonb", forms
    if forms == {"number"} and so_far in ("", "bigint", "numeric"):
        return *_type_numbers(written, so_far), forms
    texts = _texts(written, forms)
    if forms == {"boolean"} and so_far in ("", "boolean"):
        return *type_texts(texts, so_far), forms
    if forms == {"string"} and so_far in ("", "date", "zoned"):
        return *_type_strings(texts, so_far), forms
    return texts, "text", forms


def type_strings(values: Sequence[str | None], so_far: Kind) -> tuple[pa.Array, Kind]:
    """The same for strings that are decoded already, in a column that has held nothing else."""
    import pyarrow as pa

    texts = pa.array(values, pa.string())
    if texts.null_count == len(texts):
        return pa.nulls(len(values), arrow_type(so_far)), so_far
    return _type_strings(texts, so_far) if so_far in ("", "date", "zoned") else (texts, "text")


def _type_strings(texts: pa.Array, so_far: Kind) -> tuple[pa.Array, Kind]:
    typed, kind = type_texts(texts, so_far)
    return (typed, kind) if kind in ("date", "zoned") else (texts, "text")


_FORMS = {ord("n"): "null", ord("t"): "boolean", ord("f"): "boolean", ord('"'): "string"}
_FORMS |= dict.fromkeys(b"[{", "nested") | dict.fromkeys(b"-0123456789", "number")


@dataclass(frozen=True)
class _Written:
    """The values of a column behind each other, with a NUL between them, which JSON never has."""

    text: bytes
    lengths: np.ndarray
    #: the byte that each value begins with
    first: np.ndarray


def _written(values: Sequence[Any]) -> _Written:
    import numpy as np

    text = b"\0".join(values)
    data = np.frombuffer(text, np.uint8)
    starts = np.zeros(len(values), np.int64)
    starts[1:] = np.flatnonzero(data == 0) + 1
    return _Written(text, np.diff(starts, append=len(text) + 1) - 1, data[starts])


def _forms_of(first: np.ndarray) -> frozenset[str]:
    import numpy as np

    found = np.flatnonzero(np.bincount(first, minlength=1))
    return frozenset(_FORMS[byte] for byte in found.tolist()) - {"null"}


def _type_numbers(written: _Written, so_far: Kind) -> tuple[pa.Array, Kind]:
    texts = spelled = _array(written, written.text.translate(None, b"\0"))
    if any(odd in written.text for odd in _ODD):
        texts = _strings([v if v is None else _plain_number(v) for v in _listed(written)])
    typed, kind = type_texts(texts, so_far)
    # beyond what numeric holds
    return (typed, kind) if kind != "text" else (spelled, "text")


def _plain_number(value: bytes) -> bytes:
    """A JSON number without exponent and without a minus before zero: the same number."""
    if b"e" in value or b"E" in value:
        number = Decimal(value.decode())
        # far from the ends of numeric, as nearly all are, it is not looked at more closely
        inside = len(value) < 1_000 and -10_000 < number.adjusted() < 10_000
        value = format(number, "f").encode() if inside or fits_numeric(number) else value
    return value[1:] if value.startswith(b"-0") and not value.strip(b"-0.") else value


def _texts(written: _Written, forms: frozenset[str]) -> pa.Array:
    """Strings without their quotes, other scalars as they are written, nested ones compact."""
    if "string" not in forms and "nested" not in forms:
        return _array(written, written.text.replace(b"\0", b""))
    if forms == {"string"} and b"\\" not in written.text:  # as most columns are
        quotes = 2 * (written.first == ord('"'))
        return _array(written, written.text.translate(None, b'\0"'), written.lengths - quotes)
    if forms == {"string"}:
        return _decoded_strings(written)
    return _strings([v if v is None else _text(v) for v in _listed(written)])


def _decoded_strings(written: _Written) -> pa.Array:
    import msgspec
    import pyarrow as pa

    together = b"[" + written.text.replace(b"\0", b",") + b"]"
    return pa.array(msgspec.json.decode(together, type=list[str | None]), pa.string())


def _text(value: bytes) -> bytes:
    if value[0] in b"[{":
        return _compact(value)
    if value[0] != ord('"'):
        return value
    if b"\\" not in value:
        return value[1:-1]
    text: str = _text_decoder().decode(value)
    return text.encode()


@cache
def _text_decoder() -> Any:
    import msgspec

    return msgspec.json.Decoder(str)


def _compacted(written: _Written) -> pa.Array:
    """JSON without whitespace, which most APIs write into it or leave out of it everywhere."""
    if not _SPACE.search(written.text):
        return _array(written, written.text.replace(b"\0", b""))
    import msgspec

    together = b"[" + written.text.replace(b"\0", b",") + b"]"
    try:
        values = msgspec.json.Decoder(list[msgspec.Raw]).decode(msgspec.json.format(together, indent=-1))
    except RecursionError:
        return _strings([v if v is None else _compact(v) for v in _listed(written)])
    compact = _written(values)
    return _array(compact, compact.text.replace(b"\0", b""))


def _compact(value: bytes) -> bytes:
    """JSON without the whitespace between its tokens, which stay as they are spelled."""
    if not _SPACE.search(value):
        return value
    import msgspec

    try:
        return msgspec.json.format(value, indent=-1)
    except RecursionError:
        return value


def _listed(written: _Written) -> list[bytes | None]:
    return [None if value == b"null" else value for value in written.text.split(b"\0")]


def _array(written: _Written, content: bytes, lengths: np.ndarray | None = None) -> pa.Array:
    """A string array of values that stand behind each other; what is null has its `null` in `content`."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(written.first) + 1, np.int32)
    np.cumsum(written.lengths if lengths is None else lengths, out=offsets[1:])
    valid = written.first != ord("n")
    present = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    buffers = [present, pa.py_buffer(offsets), pa.py_buffer(content)]
    return _as_strings(pa.Array.from_buffers(pa.binary(), len(valid), buffers))


def _strings(values: list[bytes | None]) -> pa.Array:
    import pyarrow as pa

    return _as_strings(pa.array(values, pa.binary()))


def _as_strings(values: pa.Array) -> pa.Array:
    """A string array; bytes that are no UTF-8 raise UnicodeDecodeError, which names no place yet."""
    import pyarrow as pa

    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid:
        raise UnicodeDecodeError("utf-8", b"", 0, 0, "invalid bytes") from None

"""The body of an answer: looked into without decoding what nobody asks for.

A body is bytes, or a memory map where it was too large to hold. `msgspec.Raw` values are views into it,
so that finding the rows of a page and the place of the next one costs one look over the bytes, and no
number is ever a float.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from dwcli.connectors._formats.json_file import MAX_DEPTH, array_cut, decode_piece, mended
from dwcli.connectors._formats.json_records import Piece
from dwcli.connectors._formats.streams import Source
from dwcli.errors import QueryFailed, SourceData

#: A row: field → its value as the JSON that it is written in.
Row = dict[str, Any]

#: Names under which rows stand in an answer, where several lists could be meant; best first.
LISTS = ("data", "items", "results", "records", "rows", "value", "values", "entries", "content", "hits")
_SPACE = b" \t\r\n"
_EMPTY: Mapping[str, Any] = {}
#: Fields of an object of so many bytes are kept for the next question: each page's body is asked for several.
_LARGE = 4096
#: The large object of each thread that was looked into last. It ends with the thread that fetches pages.
_looked_into = threading.local()


@dataclass(frozen=True)
class Found:
    """Where the rows of an answer stand."""

    #: the path to them, "$" for the whole body
    path: str
    #: an array, or one object; None where nothing stands there
    rows: Any


@cache
def _decoders() -> tuple[Any, Any, Any]:
    """Of an object, an array, and any value, each left as the bytes that it consists of."""
    from msgspec import Raw
    from msgspec.json import Decoder

    return Decoder(dict[str, Raw]), Decoder(list[Raw]), Decoder(Raw)


def array_of_lines(body: Any) -> bytes:
    """NDJSON, a value on each line, as the array of these values."""
    return b"[" + b",".join(line for line in bytes(body[:]).splitlines() if line.strip()) + b"]"


def checked(body: Any, name: str, changed: dict[str, int] | None = None) -> Any:
    """The body as one JSON value. Raises SourceData for what is no JSON, a web page, or cut off.

    changed: where what could not stay as it was is counted.
    """
    import msgspec

    start = bytes(body[:512]).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start and not bytes(body[:]).strip():
        raise SourceData(f"{name}: the answer is empty", why="JSON was expected")
    if start.startswith(b"<"):
        what = "a web page" if b"<html" in start.lower() or b"<!doctype" in start.lower() else "XML"
        raise SourceData(
            f"{name}: the answer is {what}, no JSON",
            hint="a web page is often a login form: check the address and the credentials",
        )
    if body[:3] == b"\xef\xbb\xbf":
        body = memoryview(body)[3:]
    try:
        return _decoded(_decoders()[2], body)
    except msgspec.DecodeError as error:
        if "escape" in str(error) and (text := mended(bytes(body[:]), changed)) != body[:]:
            return checked(text, name)
        why = str(error).removeprefix("JSON is malformed: ")
        cut_off = "truncated" in why
        raise SourceData(
            f"{name}: the answer is {'cut off' if cut_off else 'not valid JSON'}",
            why=why,
            hint="run it again; if it stays so, ask for smaller pages" if cut_off else "",
        ) from None


def _decoded(decoder: Any, text: Any) -> Any:
    try:
        return decoder.decode(text)
    except RecursionError:
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(MAX_DEPTH)
        try:
            return decoder.decode(text)
        except RecursionError:
            raise SourceData(
                f"the answer is nested deeper than {MAX_DEPTH:,} levels",
                why="PostgreSQL's jsonb does not go deeper",
            ) from None
        finally:
            sys.setrecursionlimit(before)


def first_byte(value: Any) -> str:
    """`{`, `[`, `"`, `t`, `f`, `n`, `-` or a digit; "" for nothing."""
    view = memoryview(value) if value is not None else b""
    return next((chr(byte) for byte in view[:64] if byte not in _SPACE), "")


def fields(value: Any) -> Mapping[str, Any]:
    """The fields of an object; none for what is no object."""
    if value is None or first_byte(value) != "{":
        return _EMPTY
    if getattr(_looked_into, "value", None) is value:
        known: Mapping[str, Any] = _looked_into.fields
        return known
    found: dict[str, Any] = _decoded(_decoders()[0], value)
    if memoryview(value).nbytes >= _LARGE:
        _looked_into.value, _looked_into.fields = value, found
    return found


def at(value: Any, path: str) -> Any:
    """The value at a path such as `data.items`; None where there is none. `$` is the value itself.

    A field may have dots in its name, such as `@odata.nextLink`.
    """
    if path in ("", "$"):
        return value
    inside = fields(value)
    if path in inside:
        return inside[path]
    head, _, rest = path.partition(".")
    return at(inside[head], rest) if rest and head in inside else None


def scalar(value: Any) -> str | bool | None:
    """A string, number (as it is written) or boolean; None for null, nothing and what is nested."""
    match first_byte(value):
        case "" | "n" | "[" | "{":
            return None
        case "t" | "f" as first:
            return first == "t"
        case '"':
            import msgspec

            return str(msgspec.json.decode(value))
    return bytes(value).strip().decode()


def whole_number(value: Any) -> int | None:
    """A JSON number without a fraction, or None."""
    text = scalar(value) if value is not None and first_byte(value) not in '"' else None
    return int(text) if isinstance(text, str) and text.lstrip("-").isdigit() else None


# -- where the rows are --------------------------------------------------------------------------------


def find_rows(body: Any, path: str, endpoint: str, name: str) -> Found:
    """The rows of an answer: at `path`, else where a list of objects stands.

    path: "" to look for them; with a `?` behind it the rows may be missing, which means none.
    endpoint: the last part of the address, which is often the list's name as well.

    Raises SourceData where nothing stands at `path` or several lists could be meant, QueryFailed for an
    error that was sent as a success.
    """
    optional = path.endswith("?")
    path = path.removesuffix("?")
    if path != "$":
        refuse_error(body, name)
    if not path:
        return _looked_for(body, endpoint, name)
    rows = at(body, path)
    if rows is None and not optional:
        raise SourceData(
            f"{name}: there is nothing at '{path}' in the answer",
            why=f"it has {_listed(fields(body))}",
            hint=f"correct data_path; if the list is left out when it is empty: data_path: {path}?",
        )
    return Found(path, None if first_byte(rows) in ("", "n") else rows)


def refuse_error(body: Any, name: str) -> None:
    """Raise QueryFailed for `{"error": …}`, which some servers send with a status that says success."""
    top = fields(body)
    for key in ("error", "errors"):
        value = top.get(key)
        if value is None or scalar(value) in (False, "", "0") or first_byte(value) in "n":
            continue
        if first_byte(value) in "[{" and not bytes(value).strip(b"[{}] \t\r\n"):
            continue
        raise QueryFailed(f"{name}: the answer is an error", why=error_text(body))
    failed = any(scalar(top.get(key)) is False for key in ("success", "ok"))
    if failed or ("message" in top and scalar(top.get("status")) in ("error", "fail", "failed")):
        raise QueryFailed(f"{name}: the answer is an error", why=error_text(body))


def error_text(body: Any) -> str:
    """What an answer says about its error, shortened."""
    top = fields(body)
    for key in ("message", "error_description", "detail", "error", "errors", "title", "description"):
        value = top.get(key)
        if value is None:
            continue
        if first_byte(value) == "[":
            elements = _decoded(_decoders()[1], value)
            value = elements[0] if elements else None
        text = scalar(at(value, "message") or at(value, "detail") or value)
        if isinstance(text, str) and text:
            return text[:300]
    return bytes(body[:300] if isinstance(body, bytes) else memoryview(body)[:300]).decode("utf-8", "replace")


def _looked_for(body: Any, endpoint: str, name: str) -> Found:
    if first_byte(body) == "[":
        return Found("$", body)
    top = fields(body)
    if not top:
        return Found("$", body)
    lists = _lists(top, "")
    for key, value in top.items():
        if not lists and first_byte(value) == "{":
            lists |= _lists(fields(value), f"{key}.")
    if not lists:
        return Found("$", body)
    wanted = (endpoint, *LISTS)
    names = {path.rpartition(".")[2].casefold(): path for path in reversed(lists)}
    chosen = next((names[w.casefold()] for w in wanted if w.casefold() in names), "")
    if not chosen and len(lists) > 1 and "id" not in top:
        raise SourceData(
            f"{name}: the answer has several lists: {', '.join(lists)}",
            hint=f"say which one is meant, such as data_path: {next(iter(lists))}; $ is the whole answer",
        )
    if not chosen and "id" in top:
        return Found("$", body)  # one object, which has a list of its own
    chosen = chosen or next(iter(lists))
    return Found(chosen, lists[chosen])


def _lists(inside: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Lists of objects, and empty ones, by path. A list of scalars is a value of one row."""
    found = {}
    for key, value in inside.items():
        if first_byte(value) == "[":
            start = bytes(memoryview(value)[:256]).lstrip(_SPACE)[1:].lstrip(_SPACE)
            if start[:1] in (b"{", b"]") and key not in ("link", "links"):
                found[f"{prefix}{key}"] = value
    return found


def _listed(inside: Mapping[str, Any]) -> str:
    return ", ".join([*inside][:20]) or "no fields"


# -- from the rows' bytes to rows ----------------------------------------------------------------------


def blocks(array: Any, size: int) -> Iterator[bytes]:
    """The elements of an array, some `size` bytes at a time, with the commas between them."""
    view = memoryview(array)
    place, end = 1, view.nbytes - 1
    while place < end:
        length, cut = size, 0
        while not cut:
            text = bytes(view[place : min(place + length, end)])
            cut = len(text) if place + length >= end else array_cut(text)[0]
            length *= 2
        if text[:cut].strip(_SPACE):
            yield text[:cut]
        place += cut + 1


def pieces_in(found: Any, size: int) -> Iterator[Piece]:
    """The rows of an array in pieces of some `size` bytes, or one object as a piece without commas."""
    if found is None:
        return
    if first_byte(found) != "[":
        yield Piece(bytes(found), 1)
        return
    for text in blocks(found, size):
        yield Piece(text, 1, commas=True)


def rows_of(piece: Piece, name: str) -> list[Row]:
    """The rows of a piece of an answer."""
    if not piece.commas:
        return [dict(fields(piece.text)) or {"value": piece.text}]
    return decode_piece(Source(name, _unopened, None, 0), piece)


def rows_in(found: Any, name: str, size: int) -> Iterator[tuple[list[Row], int]]:
    """The rows of an array or object, in lists of some `size` bytes of JSON, each with its bytes."""
    for piece in pieces_in(found, size):
        yield rows_of(piece, name), len(piece.text)


def _unopened() -> Any:
    raise AssertionError("the rows of an answer are not read from a file")


def surveyed(found: Any, size: int) -> tuple[int, Any, Any]:
    """How many rows there are, the first and the last of them."""
    if found is None:
        return 0, None, None
    if first_byte(found) != "[":
        return 1, found, found
    count, first, last = 0, None, None
    for text in blocks(found, size):
        elements = _decoded(_decoders()[1], b"[" + text + b"]")
        first = elements[0] if first is None else first
        count, last = count + len(elements), elements[-1]
    return count, first, last


def unwrapped(rows: list[Row], field: str) -> list[Row]:
    """`edges` as the nodes in them."""
    return [dict(fields(row[field])) if field in row else row for row in rows]


def flattened(rows: list[Row], names: dict[tuple[str, ...], str]) -> list[Row]:
    """Rows with the fields of nested objects as columns of their own, `customer_city`.

    names: path → column, kept over all pages of a read, so that each column has one meaning.
    """
    return [dict(_leaves(row, (), names)) for row in rows]


def _leaves(
    inside: Mapping[str, Any], path: tuple[str, ...], names: dict[tuple[str, ...], str]
) -> Iterator[tuple[str, Any]]:
    for key, value in inside.items():
        here = (*path, key)
        deeper = fields(value) if first_byte(value) == "{" else _EMPTY
        if deeper:
            yield from _leaves(deeper, here, names)
            continue
        if here not in names:
            if first_byte(value) == "n":
                continue  # it may be an object elsewhere
            taken, name, number = set(names.values()), "_".join(here), 2
            while name in taken:
                name, number = f"{'_'.join(here)}_{number}", number + 1
            names[here] = name
        yield names[here], value

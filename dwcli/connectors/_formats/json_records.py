"""Objects like those before them, decoded into records: a third of the work that any others take.

What a result is, `json_file.decode_piece` decides, which takes objects of any fields. Records are for what
it would give the same columns: fields that have been seen, in which strings alone have stood where strings
alone stand. Whatever else comes, whatever is no JSON too, is left to the general way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any

#: Objects with more fields than this have no record, whose fields are looked for one after the other.
MAX_FIELDS = 256
#: So many frames one after the other of objects that are not alike, and no other is tried.
MAX_MISSES = 8
#: Closing braces of the first object that are tried as its end.
_BRACES = 64


@dataclass(frozen=True)
class Piece:
    """Whole JSON values as they stand in a file: elements with commas between them, or lines."""

    text: bytes
    #: the line on which it begins
    line: int
    #: whether commas stand between the values
    commas: bool = False


@dataclass(frozen=True)
class Form:
    """Records with an attribute for each field, `str | None` or the bytes of a JSON value."""

    record: Any
    attributes: Mapping[str, str]
    #: field → whether it holds decoded strings
    strings: Mapping[str, bool]


@dataclass
class Known:
    """What the objects of one source have had so far."""

    #: fields that rows get beside their own, such as their parent's
    beside: frozenset[str] = frozenset()
    #: field → the forms of its values (see `json_file.type_written`)
    forms: dict[str, frozenset[str]] = field(default_factory=dict)
    #: None before anything is known, and where records were of no use
    form: Form | None = None
    #: frames one after the other that were no records in the end
    misses: int = 0


def learn(known: Known, forms: Mapping[str, frozenset[str]]) -> None:
    """Note the fields of more rows, and what their values are."""
    for key, found in forms.items():
        if key not in known.beside:
            known.forms[key] = known.forms.get(key, frozenset()) | found
    strings = {key: found == {"string"} for key, found in known.forms.items()}
    if known.misses > MAX_MISSES:
        known.form = None
    elif known.form is None or known.form.strings != strings:
        known.form = _form(tuple(strings.items()))


@lru_cache(maxsize=64)
def _form(strings: tuple[tuple[str, bool], ...]) -> Form | None:
    """None for names that a record cannot have, and for too many of them."""
    import msgspec

    if len(strings) > MAX_FIELDS:
        return None
    missing = _missing()
    attributes = {key: f"f{number}" for number, (key, _) in enumerate(strings)}
    fields = [
        (attributes[key], str | None | msgspec.UnsetType, msgspec.field(name=key, default=msgspec.UNSET))
        if texts
        else (attributes[key], msgspec.Raw, msgspec.field(name=key, default=missing))
        for key, texts in strings
    ]
    try:
        record = msgspec.defstruct("Record", fields, forbid_unknown_fields=True, gc=False)
    except ValueError:
        return None
    return Form(record, attributes, dict(strings))


@lru_cache(maxsize=1)
def _missing() -> Any:
    """The null of a field that is not there; one that is there is another object."""
    import msgspec

    return msgspec.Raw(b"null")


@lru_cache(maxsize=64)
def _decoder(record: Any, node: str) -> Any:
    """node: the field of each element that holds the object, "" where it is the element itself."""
    import msgspec

    element = msgspec.defstruct("Edge", [("node", record, msgspec.field(name=node))]) if node else record
    return msgspec.json.Decoder(element), msgspec.json.Decoder(list[element])  # type: ignore[valid-type]


def decode(known: Known, piece: Piece, node: str = "") -> list[Any] | None:
    """The objects of a piece as records; None where one of them is not like those before."""
    import msgspec

    if known.form is None:
        return None
    one, several = _decoder(known.form.record, node)
    try:
        found = several.decode(b"[" + piece.text + b"]") if piece.commas else one.decode_lines(piece.text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # what is read with these is no frame of records any more, so that it need not be tried again
        known.form, known.misses = None, known.misses + 1
        return None
    return [element.node for element in found] if node else found


def values_of(
    form: Form, records: Sequence[Any], pieces: Sequence[Piece], node: str = ""
) -> dict[str, list[Any]]:
    """The values of each field that one of the records has, `msgspec.UNSET` or null where others lack it.

    pieces: what the records, of which there is one at least, were decoded from. The fields come in the
    order in which they turn up there.
    """
    import msgspec

    columns = {key: list(map(attrgetter(name), records)) for key, name in form.attributes.items()}
    first = _first(pieces[0], node)
    late: dict[str, int] = {}
    for key in columns.keys() - first.keys():
        missing = msgspec.UNSET if form.strings[key] else _missing()
        place = next((at for at, value in enumerate(columns[key]) if value is not missing), None)
        if place is not None:
            late[key] = place
    order = [*first]
    if late:
        elements = [element for piece in pieces for element in _elements(piece)]
        for place in sorted(set(late.values())):
            order += [key for key in _fields(elements[place], node) if late.get(key) == place]
    return {key: columns[key] for key in order}


def _fields(element: Any, node: str) -> Mapping[str, Any]:
    import msgspec

    fields: dict[str, Any] = msgspec.json.decode(element, type=dict[str, msgspec.Raw])
    return _fields(fields[node], "") if node else fields


def _elements(piece: Piece) -> list[Any]:
    import msgspec

    if piece.commas:
        return msgspec.json.decode(b"[" + piece.text + b"]", type=list[msgspec.Raw])
    found: list[Any] = msgspec.json.Decoder(msgspec.Raw).decode_lines(piece.text)
    return found


def _first(piece: Piece, node: str) -> Mapping[str, Any]:
    """The fields of the first object, without a look at the others."""
    import msgspec

    end = 0
    for _ in range(_BRACES):
        end = piece.text.index(b"}", end) + 1
        try:
            return _fields(piece.text[:end], node)
        except msgspec.DecodeError:
            continue  # a brace inside of it
    return _fields(_elements(piece)[0], node)

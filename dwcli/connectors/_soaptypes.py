"""XML Schema types as PostgreSQL's, and elements of an answer as the values of a row."""

from __future__ import annotations

import base64
import datetime
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dwcli.connectors._rows import Filled, fill_values

if TYPE_CHECKING:
    import polars as pl

NIL = "{http://www.w3.org/2001/XMLSchema-instance}nil"
XSI = "{http://www.w3.org/2001/XMLSchema-instance}"
#: Elements in each other; a type may hold itself.
MAX_DEPTH = 40

#: The PostgreSQL type of each built-in type, by zeep's class; what is derived from it has it too.
BUILTIN = {
    "Boolean": "boolean",
    "Long": "bigint",
    "UnsignedInt": "bigint",
    "Decimal": "numeric",
    "Float": "double precision",
    "Double": "double precision",
    "Date": "date",
    "DateTime": "timestamptz",
    "Time": "time",
    "Duration": "interval",
    "HexBinary": "bytea hex",
    "Base64Binary": "bytea",
}
#: Types whose values are digits; Python would read 1_000 as a number too.
_NUMBERS = ("bigint", "numeric", "double precision")
#: A text as JSON. `json.dumps` would make such an encoder for each.
_json_text = json.JSONEncoder(ensure_ascii=False).encode
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_ZONE = re.compile(r"(Z|[+-][0-9]{2}:[0-9]{2})$")
_FRACTION = re.compile(r"(\.[0-9]{6})([0-9]+)")


@dataclass
class Node:
    """An element of the schema: a value, or elements and attributes."""

    name: str
    #: PostgreSQL type of a value; "jsonb" for an element with others in it; "" where the schema is silent
    type: str
    many: bool = False
    nullable: bool = True
    source_type: str = ""
    #: the schema's own type, of which `children` are made when they are asked for
    xsd: Any = field(default=None, repr=False)
    _below: dict[str, Node] | None = field(default=None, repr=False)

    @property
    def below(self) -> dict[str, Node]:
        """Its elements and attributes, by name. Made when they are asked for: a type may hold itself."""
        if self._below is None:
            self._below = {node.name: node for node in children_of(self.xsd)}
        return self._below

    @property
    def column_type(self) -> str:
        """The PostgreSQL type of a column of it."""
        return "jsonb" if self.many else self.type.removesuffix(" hex") or "text"


def node_of(element: Any, many: bool = False) -> Node:
    """The node of a zeep element."""
    kind = element.type
    return Node(
        element.name,
        type_of(kind),
        many or bool(element.accepts_multiple),
        bool(element.nillable or element.is_optional),
        str(getattr(kind, "name", "") or ""),
        kind,
    )


def type_of(kind: Any) -> str:
    """The PostgreSQL type of a zeep type."""
    names = [c.__name__ for c in type(kind).__mro__]
    if hasattr(kind, "elements_nested"):
        return "jsonb"
    if "AnyType" in names and "AnySimpleType" not in names:
        return ""
    return next((BUILTIN[name] for name in names if name in BUILTIN), "text")


def children_of(kind: Any) -> tuple[Node, ...]:
    """The elements, then the attributes, that an element of this type has."""
    nodes = [node for _, part in getattr(kind, "elements_nested", ()) for node in _walked(part, False)]
    for _, attribute in getattr(kind, "attributes", ()) or ():
        if getattr(attribute, "name", None) and getattr(attribute, "type", None) is not None:
            nodes.append(Node(f"@{attribute.name}", type_of(attribute.type), source_type="attribute"))
    return tuple(nodes)


def _walked(part: Any, many: bool) -> Iterator[Node]:
    many = many or bool(getattr(part, "accepts_multiple", False))
    if hasattr(part, "child"):  # a group
        yield from _walked(part.child, many)
    elif isinstance(part, list):  # a sequence, a choice, all
        for inner in part:
            yield from _walked(inner, many)
    elif getattr(part, "name", None) and hasattr(part, "type"):
        yield node_of(part, many)


def find_rows(root: Node) -> tuple[list[str], Node] | None:
    """The first element that may come more than once, nearest to the top, and its path below `root`."""
    level: list[tuple[list[str], Node]] = [([], root)]
    for _ in range(MAX_DEPTH):
        deeper: list[tuple[list[str], Node]] = []
        for path, node in level:
            for child in node.below.values():
                if child.name.startswith("@"):
                    continue
                if child.many:
                    return [*path, child.name], child
                if child.type == "jsonb" and len(deeper) < 1000:
                    deeper.append(([*path, child.name], child))
        level = deeper
    return None


def find_path(root: Node, wanted: Sequence[str]) -> tuple[list[str], Node] | None:
    """The element whose path below `root` ends with these names."""
    level: list[tuple[list[str], Node]] = [([], root)]
    for _ in range(MAX_DEPTH):
        deeper: list[tuple[list[str], Node]] = []
        for path, node in level:
            for child in node.below.values():
                if child.name.startswith("@"):
                    continue
                below = [*path, child.name]
                if [root.name, *below][-len(wanted) :] == list(wanted):
                    return below, child
                if child.type == "jsonb" and len(deeper) < 1000:
                    deeper.append((below, child))
        level = deeper
    return None


# -- from elements to values -----------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def local(tag: str) -> str:
    """The name of an element or attribute without its namespace."""
    return tag.rpartition("}")[2]


def row_of(element: Any, known: dict[str, Node]) -> dict[str, str | list[str] | None]:
    """The values of a row by column, as texts: those of columns of type jsonb are JSON.

    element: without comments in it. known: the columns of the schema by name; attributes begin with @.
    A value that the schema does not know is in the row too. An element that comes again although the
    schema has it once becomes a list.
    """
    row: dict[str, str | list[str] | None] = {}
    for name, value in element.items():
        if not name.startswith(XSI):
            row[f"@{local(name)}"] = value
    nodes = list(element)
    if not nodes and element.text and (element.text.strip() or not row):
        row[local(element.tag)] = element.text
    for child in nodes:
        name = local(child.tag)
        node = known.get(name)
        value = _text_of(child, node)
        if name not in row:
            row[name] = [value] if node is not None and node.many and value is not None else value
        elif isinstance(already := row[name], list):
            already.append(_quoted(value, node))
        else:
            row[name] = [_quoted(already, node), _quoted(value, node)]
    return row


def _quoted(text: str | list[str] | None, node: Node | None) -> str:
    """A single value as JSON, because it turned out to be one of several."""
    assert not isinstance(text, list)
    if text is None:
        return "null"
    if node is not None and (node.type == "jsonb" or node.many):
        return text
    return _json_text(text)


def _text_of(child: Any, node: Node | None) -> str | None:
    if len(child) or (node is not None and (node.type == "jsonb" or node.many)):
        return json_of(child, node)
    if child.get(NIL) in ("true", "1"):
        return None
    text = child.text or ""
    if not text.strip() and node is not None and node.type not in ("text", ""):
        return None
    return text


def json_of(element: Any, node: Node | None) -> str | None:
    """An element as JSON text: its attributes (@name), its elements, its text ($ beside attributes).

    Numbers keep every digit. None for an element that is nil.
    """
    if element.get(NIL) in ("true", "1"):
        return None
    known = node.below if node is not None else {}
    nodes = list(element)
    attributes = {
        f"@{local(name)}": _leaf(value, known[key].type if (key := f"@{local(name)}") in known else "text")
        for name, value in element.items()
        if not name.startswith(XSI)
    }
    if not nodes and not attributes:
        own = node.type if node is not None else "text"
        if own == "jsonb":
            # an element that could have others in it, and has none
            return "{}" if not (element.text or "").strip() else _json_text(element.text)
        return _leaf(element.text or "", own)
    found: dict[str, list[str]] = {name: [value] for name, value in attributes.items()}
    for child in nodes:
        name = local(child.tag)
        found.setdefault(name, []).append(json_of(child, known.get(name)) or "null")
    if not nodes and (element.text or "").strip():
        found["$"] = [_json_text(element.text)]
    parts = []
    for name, values in found.items():
        several = len(values) > 1 or (name in known and known[name].many)
        value = f"[{', '.join(values)}]" if several else values[0]
        parts.append(f"{_json_text(name)}: {value}")
    return "{" + ", ".join(parts) + "}"


def _leaf(text: str, type: str) -> str:
    """A value as JSON."""
    bare = text.strip()
    if type in ("bigint", "numeric", "double precision") and _JSON_NUMBER.fullmatch(bare):
        return bare
    if type == "boolean" and bare in ("true", "false", "1", "0"):
        return "true" if bare in ("true", "1") else "false"
    if not bare and type not in ("text", ""):
        return "null"
    return _json_text(text if type in ("text", "") else bare)


# -- from texts to columns -------------------------------------------------------------------------------


def fill_for(node: Node, zone: str, running: dict[str, str]) -> Callable[[Sequence[Any], str], Filled]:
    """A fill for the texts of a column. `running` keeps each column's type between reads, by name."""
    wanted = "jsonb" if node.many else node.type

    def fill(values: Sequence[Any], type: str) -> Filled:
        type = type or running.get(node.name, "") or node.column_type
        changed: dict[str, int] = {}
        several = any(isinstance(value, list) for value in values)
        flat = [f"[{', '.join(v)}]" if isinstance(v, list) else v for v in values]
        if wanted not in CONVERTERS or (several and wanted != "jsonb"):
            kept = type == "text" or (several and wanted != "jsonb")
            filled = Filled(_texts(flat), "text" if kept else node.column_type)
        else:
            converted = _converted(flat, wanted, changed)
            if wanted == "interval":
                broken = type == "text" or any(isinstance(value, _Kept) for value in converted)
                filled = Filled(_texts(flat if broken else converted), "text" if broken else "interval")
            else:
                plain = [value.text if isinstance(value, _Kept) else value for value in converted]
                filled = fill_values(plain, type, zone)
        running[node.name] = filled.type
        return Filled(filled.series, filled.type, {**filled.changed, **changed})

    return fill


def _texts(values: Sequence[str | None]) -> pl.Series:
    import polars as pl

    return pl.Series(values=values, dtype=pl.String)


@dataclass(frozen=True)
class _Kept:
    """A value that is not of its type: it stays as it is written."""

    text: str


def _converted(values: Sequence[str | None], wanted: str, changed: dict[str, int]) -> list[Any]:
    convert = CONVERTERS[wanted]
    found: list[Any] = []
    for value in values:
        if value is None:
            found.append(None)
            continue
        try:
            if wanted in _NUMBERS and "_" in value:
                raise ValueError
            found.append(convert(value.strip(), changed))
        except (ValueError, InvalidOperation):
            found.append(_Kept(value))
    return found


def _number(text: str, changed: dict[str, int]) -> Decimal:
    return Decimal(text)


def _whole(text: str, changed: dict[str, int]) -> int:
    return int(text)


def _double(text: str, changed: dict[str, int]) -> float:
    return float(text.replace("INF", "inf"))


def _boolean(text: str, changed: dict[str, int]) -> bool:
    if text not in ("true", "false", "1", "0"):
        raise ValueError
    return text in ("true", "1")


def _date(text: str, changed: dict[str, int]) -> datetime.date:
    if match := _ZONE.search(text[10:]):
        text = text[: 10 + match.start()]
        _count(changed, "offset of a date → left out")
    return datetime.date.fromisoformat(text)


def _moment(text: str, changed: dict[str, int]) -> datetime.datetime:
    if len(text) < 19:
        raise ValueError
    return datetime.datetime.fromisoformat(_microseconds(text, changed))


def _time(text: str, changed: dict[str, int]) -> datetime.time:
    if match := _ZONE.search(text):
        text = text[: match.start()]
        _count(changed, "offset of a time → left out")
    return datetime.time.fromisoformat(_microseconds(text, changed))


def _microseconds(text: str, changed: dict[str, int]) -> str:
    """At most six digits behind the second; those that are cut off are counted, unless they are zeros."""
    match = _FRACTION.search(text)
    if match is None:
        return text
    if match[2].strip("0"):
        _count(changed, "digits beyond microseconds → cut off")
    return text[: match.start(2)] + text[match.end(2) :]


def _count(changed: dict[str, int], what: str) -> None:
    changed[what] = changed.get(what, 0) + 1


def _base64(text: str, changed: dict[str, int]) -> bytes:
    return base64.b64decode("".join(text.split()), validate=True)


def _hex(text: str, changed: dict[str, int]) -> bytes:
    return bytes.fromhex(text)


_DURATION = re.compile(
    r"(?P<sign>-?)P(?=.)((?P<y>\d+)Y)?((?P<mo>\d+)M)?((?P<d>\d+)D)?"
    r"(T(?=.)((?P<h>\d+)H)?((?P<mi>\d+)M)?((?P<s>\d+(\.\d+)?)S)?)?"
)


def _duration(text: str, changed: dict[str, int]) -> str:
    """An interval in PostgreSQL's text form; the sign of a duration is that of each part."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError
    units = {"y": "years", "mo": "months", "d": "days", "h": "hours", "mi": "minutes", "s": "seconds"}
    parts = [f"{match['sign']}{match[key]} {unit}" for key, unit in units.items() if match[key]]
    return " ".join(parts) or "0"


CONVERTERS: dict[str, Callable[[str, dict[str, int]], Any]] = {
    "boolean": _boolean,
    "bigint": _whole,
    "numeric": _number,
    "double precision": _double,
    "date": _date,
    "timestamptz": _moment,
    "time": _time,
    "interval": _duration,
    "bytea": _base64,
    "bytea hex": _hex,
}

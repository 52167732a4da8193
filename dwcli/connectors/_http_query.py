"""What a query of an HTTP source says: an endpoint, an endpoint of each parent, or GraphQL.

/orders?updated_since={cursor}                     {cursor}: the place reached
/orders?since={cursor|2020-01-01}                  with what the first read puts there
/orders/{id}/items                                 the items of each order of /orders
/orders?status=open > /orders/{id}/items           the items of these orders
query ($after: String) { orders(first: 100, after: $after) { … } }
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from dwcli.contract import Cursor
from dwcli.errors import ConfigError

_PLACE = re.compile(r"\{([^{}|]+)(?:\|([^{}]*))?\}")
_GRAPHQL = re.compile(r"\s*(?:\{|query\b\s*\w*\s*[({]|fragment\b)")
_MUTATION = re.compile(r"(?m)^\s*(?:mutation|subscription)\b\s*\w*\s*[({]")
_CURSOR, _CURSOR_END = "cursor", "cursor_end"


@dataclass(frozen=True)
class Target:
    """A query in its parts."""

    path: str
    #: the endpoint whose rows fill in `path`, or ""
    parent: str = ""
    #: fields of the parent's rows that `path` names
    fields: tuple[str, ...] = ()
    graphql: bool = False


def target_of(query: str) -> Target:
    """The parts of a query. Raises ConfigError for one that cannot be meant."""
    if _MUTATION.search(query):
        raise ConfigError("a mutation or subscription is no query", hint="dw reads, it changes nothing")
    if _GRAPHQL.match(query):
        return Target(query, graphql=True)
    parent, _, path = (part.strip() for part in query.rpartition(" > "))
    fields = tuple(dict.fromkeys(name for name, _ in _PLACE.findall(path) if not _is_cursor(name)))
    if fields and not parent:
        before = path[: _first_field(path)]
        if "?" in before or not before.strip("/"):
            raise ConfigError(
                f"which rows fill in {{{fields[0]}}} is not clear",
                hint=f"name the parent's endpoint before it: /parents > {path}",
            )
        parent = before.rstrip("/")
    if parent and not fields:
        raise ConfigError(
            f"'{path}' takes nothing from its parent", hint="name a field of it, such as /orders/{id}/items"
        )
    if any(not _is_cursor(name) for name, _ in _PLACE.findall(parent)):
        raise ConfigError("children are read one level deep", why=f"'{parent}' has a parent as well")
    return Target(path, parent, fields)


def _is_cursor(name: str) -> bool:
    return name in (_CURSOR, _CURSOR_END)


def _first_field(path: str) -> int:
    return next(m.start() for m in _PLACE.finditer(path) if not _is_cursor(m[1]))


def parent_column(parent: str, field: str) -> str:
    """The column in which a child's row carries its parent's field: `_orders_id`."""
    segment = urlsplit(parent).path.rstrip("/").rpartition("/")[2]
    return f"_{segment}_{field}".replace(".", "_")


def with_cursor(path: str, cursor: Cursor, format: str) -> str:
    """The path with `{cursor}` and `{cursor_end}` filled in.

    A parameter whose place is empty (a first read) is left out. Raises ConfigError for an empty place in the
    path itself.
    """
    values = {
        name: spelled(value, cursor.type, format)
        for name, value in ((_CURSOR, cursor.start), (_CURSOR_END, cursor.end))
        if value is not None
    }
    before, mark, parameters = path.partition("?")
    if _empty_places(before, values):
        raise ConfigError(
            "the first read has no cursor to put into the path",
            hint="say where it begins: {cursor|2020-01-01}",
        )
    kept = [p for p in parameters.split("&") if not _empty_places(p, values)] if mark else []
    return filled(f"{before}?{'&'.join(kept)}" if kept else before, values)


def _empty_places(text: str, values: Mapping[str, str]) -> bool:
    """Whether a cursor's place has neither a value nor a text for the first read."""
    return any(_is_cursor(m[1]) and m[1] not in values and m[2] is None for m in _PLACE.finditer(text))


def filled(path: str, values: Mapping[str, str]) -> str:
    """The path with its places filled in, escaped for an address; a place without a value stays."""

    def put(match: re.Match[str]) -> str:
        text = values.get(match[1], match[2])
        return match[0] if text is None else quote(text, safe="")

    return _PLACE.sub(put, path)


def spelled(value: str, type: str, format: str) -> str:
    """A cursor in PostgreSQL's text form as an API takes it: 2026-01-05T12:00:00Z, seconds, or a date."""
    if not type.startswith("timestamp"):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return value
    moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    match format:
        case "date":
            return f"{moment:%Y-%m-%d}"
        case "epoch":
            return str(int(moment.timestamp()))
        case "epoch_ms":
            return str(int(moment.timestamp()) * 1000 + moment.microsecond // 1000)
    return moment.replace(tzinfo=None).isoformat() + "Z"

"""SQL of the sources: what a query names, and the text that reads a part of it.

Names are quoted by the dialect's own rule, values are always parameters.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol, TypeVar

from dwcli.contract import Cursor
from dwcli.documents import nearest
from dwcli.errors import ConfigError, QueryFailed, ResourceMissing

_SELECT = re.compile(
    r"""(?isx) \A (?: \s+ | --[^\n]*(?:\n|\Z) | \#[^\n]*(?:\n|\Z) | /\*.*?\*/ | \( )*
        (?: select | with | values | table | from ) (?: [\s(*"`\['] | --|/\* )""",
)
_PLAIN = re.compile(r"[^\W\d][\w$-]*( [\w$-]+)*")


@dataclass(frozen=True)
class Dialect:
    """How a database writes names and parameters."""

    quote: str = '"'
    place: str = "?"


def is_select(query: str) -> bool:
    """True for a query, False for the name of a table. A table called `select x` is named in quotes."""
    return _SELECT.match(query) is not None


def stripped(query: str) -> str:
    """A query without the semicolon and the blanks at its end, so that it can stand in brackets."""
    return query.strip().rstrip(";").rstrip()


def quoted(name: str, dialect: Dialect) -> str:
    """One name as an identifier of this dialect."""
    return f"{dialect.quote}{name.replace(dialect.quote, dialect.quote * 2)}{dialect.quote}"


def name_parts(text: str, dialect: Dialect) -> tuple[str, ...]:
    """`a.b` or `"a"."b.c"` as its parts, quotes taken off."""
    q = re.escape(dialect.quote)
    pattern = re.compile(rf"\s*(?:{q}((?:[^{q}]|{q}{q})*){q}|([^.{q}][^.]*?))\s*(\.|\Z)", re.DOTALL)
    parts, position = [], 0
    while position < len(text):
        match = pattern.match(text, position)
        if match is None:
            return (text,)
        in_quotes = match[1] is not None
        parts.append(match[1].replace(dialect.quote * 2, dialect.quote) if in_quotes else match[2])
        position = match.end()
    return tuple(parts)


def spelled(parts: Sequence[str], dialect: Dialect) -> str:
    """The name as it goes into `query`: parts in quotes only where a plain spelling would be misread."""
    return ".".join(
        part if _PLAIN.fullmatch(part) and not is_select(part) else quoted(part, dialect) for part in parts
    )


def find_table(
    query: str, known: Sequence[tuple[str, ...]], default: str, dialect: Dialect
) -> tuple[str, ...] | None:
    """Which of the known tables, each (schema, name), a query names; None when it names none of them.

    The whole text is tried as a name first, so that `a.b` finds a table called `a.b`; then exact
    spelling, then any case.
    """
    parts = name_parts(query.strip(), dialect)
    wanted = [(default, query), (default, query.strip())]
    wanted.append((parts[0], ".".join(parts[1:])) if len(parts) > 1 else (default, parts[0]))
    for table in wanted:
        if table in known:
            return table
    folded = {tuple(part.casefold() for part in table): table for table in known}
    return next((folded[t] for w in wanted if (t := tuple(p.casefold() for p in w)) in folded), None)


def find_column(cursor: Cursor, names: Sequence[str]) -> str:
    """The cursor column as the source spells it. Raises ResourceMissing with the nearest name."""
    if cursor.column in names:
        return cursor.column
    for name in names:
        if name.casefold() == cursor.column.casefold():
            return name
    raise ResourceMissing(
        f"there is no cursor column '{cursor.column}'.{nearest(cursor.column, names)}",
        hint=f"columns: {', '.join(names)}",
    )


def bounded(
    columns: Sequence[str],
    source: str,
    cursor_sql: str,
    start: Any,
    end: Any,
    place: str = "?",
    null_sql: str | None = None,
) -> tuple[str, list[Any]]:
    """`SELECT columns FROM source`, from `start` (inclusive) to `end` (exclusive), with its parameters.

    Rows whose cursor is NULL are always among them.

    columns, source, cursor_sql: SQL already quoted. start, end: parameters, None for no bound.
    place: the SQL of one parameter, such as `CAST(? AS DATE)`. null_sql: the condition for a cursor
    that is NULL or becomes so; "" for a column that is never NULL, so that an index serves.
    """
    within, parameters = [], []
    if start is not None:
        within.append(f"{cursor_sql} >= {place}")
        parameters.append(start)
    if end is not None:
        within.append(f"{cursor_sql} < {place}")
        parameters.append(end)
    where = f" WHERE ({' AND '.join(within)})" if within else ""
    null_sql = f"{cursor_sql} IS NULL" if null_sql is None else null_sql
    if where and null_sql:
        where += f" OR {null_sql}"
    return f"SELECT {', '.join(columns)} FROM {source}{where}", parameters  # noqa: S608


def cursor_value(text: str | None, type: str, cursor: Cursor) -> Any:
    """A bound in PostgreSQL's text form as a Python value of that type, for binding.

    Raises ConfigError when the text is not of the type.
    """
    if text is None:
        return None
    base = type.split("(", 1)[0]
    try:
        match base:
            case "bigint" | "integer" | "smallint":
                return int(text)
            case "numeric":
                return Decimal(text)
            case "double precision" | "real":
                return float(text)
            case "timestamptz" | "timestamp" | "date" if text in ("infinity", "-infinity"):
                return text
            case "timestamptz" | "timestamp":
                value = datetime.datetime.fromisoformat(text)
                return value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
            case "date":
                return datetime.date.fromisoformat(text[:10])
            case "boolean":
                return text in ("true", "t")
    except (ValueError, InvalidOperation):
        raise ConfigError(
            f"the cursor '{cursor.column}' stands at a value that is not a {base}",
            hint="read everything again: dw run NAME --full-refresh",
        ) from None
    return text


class Named(Protocol):
    """A column, whatever else a connector knows of it."""

    @property
    def name(self) -> str: ...


Declared = TypeVar("Declared", bound=Named)


def picked(columns: Sequence[Declared], only: Sequence[str]) -> tuple[Declared, ...]:
    """These columns, or all where `only` is empty. Raises QueryFailed for one that is not there."""
    missing = [name for name in only if name not in {column.name for column in columns}]
    if missing:
        raise QueryFailed(
            f"the source has no column {', '.join(missing)}", hint="correct key: in the source file"
        )
    return tuple(column for column in columns if not only or column.name in only)

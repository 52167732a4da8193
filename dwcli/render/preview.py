"""First rows of a source, with the type that each column would have in the warehouse."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from dwcli.render import console
from dwcli.render.results import ResultColumn, json_lines, whole_words
from dwcli.render.tables import Column, table, tsv

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Types whose values stand at the right.
NUMBERS = ("bigint", "integer", "smallint", "numeric", "double", "real")
#: PostgreSQL's oids of the types that JSON has a word for.
OIDS = {
    "bigint": 20,
    "smallint": 21,
    "integer": 23,
    "real": 700,
    "double precision": 701,
    "numeric": 1700,
    "boolean": 16,
    "json": 114,
    "jsonb": 3802,
    "timestamptz": 1184,
}


def show(types: Mapping[str, str], records: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Put rows on stdout: a table with types under the header, TSV into a pipe, or JSON."""
    names = list(types)
    rows = [[text(record.get(name)) for name in names] for record in records]
    if as_json:
        console.write_text(preview_json(types, rows))
    elif sys.stdout.isatty():
        console.show(preview_table(types, rows, console.stdout().width))
    else:
        console.write_text(tsv([Column(name) for name in names], rows, null="\\N"))


def preview_json(types: Mapping[str, str], rows: Iterable[Sequence[str | None]]) -> Iterator[str]:
    """`{"columns": [{name, type}], "rows": [object, …]}`; numbers keep every digit."""
    columns = [{"name": name, "type": shown_type(kind)} for name, kind in types.items()]
    yield f'{{"columns": {console.to_json(columns)}, "rows": '
    yield from json_lines([ResultColumn(name, _oid(kind)) for name, kind in types.items()], rows)
    yield "}\n"


def _oid(kind: str) -> int:
    base = kind.partition("(")[0]
    return OIDS.get(base, 0)


def preview_table(
    types: Mapping[str, str], rows: Iterable[Sequence[str | None]], screen: int
) -> RenderableType:
    """The table: names, types, values."""
    from rich.text import Text

    listed = [list(row) for row in rows]
    columns = [
        Column(
            name,
            right=kind.startswith(NUMBERS),
            folds=not kind.startswith(NUMBERS),
            least=whole_words(row[place] for row in listed),
        )
        for place, (name, kind) in enumerate(types.items())
    ]
    null = Text("NULL", style="dim")
    head = [Text(shown_type(kind), style="dim italic") for kind in types.values()]
    return table(columns, [head, *([null if v is None else v for v in row] for row in listed)], screen)


def shown_type(kind: str) -> str:
    """A type for people; a column without a value so far will be text."""
    return "text?" if kind == "null" else kind


def text(value: Any) -> str | None:
    """A value in PostgreSQL's words; None stays None."""
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case bytes():
            return "\\x" + value.hex()
        case datetime():
            moment = value.astimezone(UTC) if value.tzinfo else value
            return moment.isoformat(" ").replace("+00:00", "+00")
        case date():
            return value.isoformat()
        case timedelta():
            return f"{'-' if value < timedelta() else ''}{_clock(abs(value))}"
        case _:
            return str(value)


def _clock(span: timedelta) -> str:
    hours, rest = divmod(span, timedelta(hours=1))
    return f"{hours:02}:{str(rest).partition(':')[2]}"

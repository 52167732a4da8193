"""The answer to a query, written exactly: CSV, TSV and JSON line by line, or a table for a screen.

Values arrive as PostgreSQL's own text, None for NULL, so every format keeps every digit.

| | NULL | empty text | number | timestamptz |
|---|---|---|---|---|
| csv | nothing | `""` | digits | PostgreSQL's text |
| tsv | `\\N` | nothing | digits | PostgreSQL's text |
| json | null | `""` | digits; NaN and Infinity as strings | ISO 8601, UTC |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from dwcli.errors import WarehouseError
from dwcli.render.tables import Column, longest_word, table, tsv_line

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from rich.console import RenderableType

Row = Sequence[str | None]

BOOL, BYTEA, JSON, JSONB, DATE, TIMESTAMP, TIMESTAMPTZ, NUMERIC = 16, 17, 114, 3802, 1082, 1114, 1184, 1700
WHOLE, FLOATS = frozenset((20, 21, 23, 26)), frozenset((700, 701))
NUMBERS = WHOLE | FLOATS | {NUMERIC}
#: Cells of a UUID.
LONGEST_WHOLE = 36
#: Values are not folded below this: a short word per line is hard to read.
NARROW_VALUES = 16
JSON_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
#: How a formula begins for a spreadsheet.
FORMULAS = frozenset("=+-@\t\r")
MOMENT = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?)(\+00)?")


@dataclass(frozen=True)
class ResultColumn:
    """One column of an answer: its name, its type's oid, and for an array the oid of its elements."""

    name: str
    oid: int
    element: int = 0
    #: declared (precision, scale) of a numeric
    digits: tuple[int, int] | None = None


def unique_names(columns: Iterable[ResultColumn]) -> list[str]:
    """Names for formats where each may stand once: a second `id` is `id_2`."""
    taken: dict[str, None] = {}
    for column in columns:
        name, number = column.name, 1
        while name in taken:
            number += 1
            name = f"{column.name}_{number}"
        taken[name] = None
    return list(taken)


# -- for programs --------------------------------------------------------------------------------------


def csv_lines(columns: Sequence[ResultColumn], rows: Iterable[Row]) -> Iterator[str]:
    """RFC 4180 with `\\n`, as PostgreSQL's COPY writes it: NULL is nothing, empty text is `""`."""
    yield ",".join(csv_field(column.name) for column in columns) + "\n"
    for row in rows:
        yield ",".join(csv_field(value) for value in row) + "\n"


def csv_field(value: str | None) -> str:
    """One field; quoted where it must be, and where bare text would read as something else."""
    if value is None:
        return ""
    if value in ("", "\\.") or value != value.strip() or any(mark in value for mark in ',"\r\n'):
        return '"' + value.replace('"', '""') + '"'
    return value


def without_formulas(columns: Sequence[ResultColumn], rows: Iterable[Row]) -> Iterator[Row]:
    """The rows with a ' before each text that a spreadsheet would take for a formula. Numbers stay.

    See OWASP, "CSV Injection".
    """
    texts = [column.oid not in NUMBERS for column in columns]
    for row in rows:
        yield [
            f"'{value}" if text and value and value[0] in FORMULAS else value
            for value, text in zip(row, texts, strict=True)
        ]


def tsv_lines(columns: Sequence[ResultColumn], rows: Iterable[Row]) -> Iterator[str]:
    """PostgreSQL's COPY text with a header line: escaped tabs and line breaks, `\\N` for NULL."""
    yield tsv_line(column.name for column in columns)
    for row in rows:
        yield tsv_line(row, null="\\N")


def json_lines(columns: Sequence[ResultColumn], rows: Iterable[Row]) -> Iterator[str]:
    """An array of objects, one object a line."""
    keys = [json.dumps(name, ensure_ascii=False) for name in unique_names(columns)]
    before = "[\n"
    for row in rows:
        pairs = (
            f"{key}: {json_value(value, column)}"
            for key, value, column in zip(keys, row, columns, strict=True)
        )
        yield before + "{" + ", ".join(pairs) + "}"
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def json_value(value: str | None, column: ResultColumn) -> str:
    """PostgreSQL's text of a value as JSON text."""
    if value is None:
        return "null"
    if column.element:
        return _json_array(value, ResultColumn(column.name, column.element))
    if column.oid in NUMBERS and JSON_NUMBER.fullmatch(value):
        return value
    if column.oid == BOOL:
        return "true" if value in ("t", "true") else "false"
    if column.oid in (JSON, JSONB):
        return value
    if column.oid in (TIMESTAMP, TIMESTAMPTZ) and (found := MOMENT.fullmatch(value)):
        value = f"{found[1]}T{found[2]}{'Z' if found[3] else ''}"
    return json.dumps(value, ensure_ascii=False)


#: What stands in the text of an array: a brace, a quoted element, a bare element.
ARRAY_TOKEN = re.compile(r'([{}])|"((?:[^"\\]|\\.)*)"|([^{},"]+)', re.DOTALL)


def _json_array(text: str, element: ResultColumn) -> str:
    """`{1,NULL,{2}}` as `[1, null, [2]]`. Bounds in front (`[0:2]=`) have no place in JSON."""
    written = ""
    for token in ARRAY_TOKEN.finditer(re.sub(r"^[\[\]\d:-]+=", "", text)):
        brace, quoted, bare = token.groups()
        if brace == "{":
            part = "["
        elif brace == "}":
            written += "]"
            continue
        elif quoted is not None:
            part = json_value(re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL), element)
        else:
            part = json_value(None if bare == "NULL" else bare, element)
        written += part if written.endswith("[") or not written else f", {part}"
    return written


def write_parquet(columns: Sequence[ResultColumn], rows: Iterable[Row], path: Path, batch: int) -> None:
    """A Parquet file in typed columns; a type that Parquet has no exact form for is PostgreSQL's text.

    Raises WarehouseError for a value beyond its Parquet type, such as the timestamp `infinity`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, _parquet_type(c)) for name, c in zip(unique_names(columns), columns, strict=True)]
    )
    remaining = iter(rows)
    with pq.ParquetWriter(path, schema) as writer:
        while chunk := list(islice(remaining, batch)):
            arrays = [
                _parquet_array(list(values), field)
                for values, field in zip(zip(*chunk, strict=True), schema, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _parquet_type(column: ResultColumn) -> pa.DataType:
    import pyarrow as pa

    if column.oid == NUMERIC and column.digits and column.digits[0] <= 38 and column.digits[1] >= 0:
        return pa.decimal128(*column.digits)
    known = {
        BOOL: pa.bool_(),
        BYTEA: pa.binary(),
        DATE: pa.date32(),
        TIMESTAMP: pa.timestamp("us"),
        TIMESTAMPTZ: pa.timestamp("us", "UTC"),
    }
    return known.get(column.oid) or (
        pa.int64() if column.oid in WHOLE else pa.float64() if column.oid in FLOATS else pa.string()
    )


def _parquet_array(values: list[str | None], field: pa.Field) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_binary(field.type):
        return pa.array([None if v is None else bytes.fromhex(v[2:]) for v in values], field.type)
    if pa.types.is_boolean(field.type):
        return pa.array([None if v is None else v == "t" for v in values], field.type)
    try:
        return pa.array(values, pa.string()).cast(field.type)
    except pa.ArrowInvalid:
        raise WarehouseError(
            f"a value of '{field.name}' does not fit a Parquet {field.type}",
            hint=f'select it as text: "{field.name}"::text',
            code="DW-VALUE",
        ) from None


# -- for a screen --------------------------------------------------------------------------------------


def result_table(columns: Sequence[ResultColumn], rows: Iterable[Row], screen: int) -> RenderableType:
    """The answer as a table; NULL is dim, so that it is not read as the text NULL."""
    from rich.text import Text

    null, listed = Text("NULL", style="dim"), list(rows)
    return table(
        [
            Column(
                column.name,
                right=column.oid in NUMBERS,
                folds=column.oid not in NUMBERS,
                least=whole_words(row[place] for row in listed),
            )
            for place, column in enumerate(columns)
        ],
        ([null if value is None else value for value in row] for row in listed),
        screen,
    )


def whole_words(values: Iterable[str | None]) -> int:
    """Cells that a column of values keeps, so that no word in it is broken that is as short as a UUID."""
    found = (longest_word(value) for value in values if value is not None)
    return max([NARROW_VALUES, *(cells for cells in found if cells <= LONGEST_WHOLE)])


def excerpt(sql: str, position: int, room: int = 60) -> str:
    """The line of a statement where the server found an error, with a caret under the place.

    position: character, from 1, as the server counts.
    """
    from dwcli.render.words import escape, width

    before = sql[: position - 1]
    start = before.rfind("\n") + 1
    end = sql.find("\n", start)
    line = sql[start : len(sql) if end < 0 else end].replace("\t", " ")
    column = position - 1 - start
    first = max(0, min(column - room // 2, len(line) - room))
    label = f"line {before.count(chr(10)) + 1}: "
    shown, left = escape(line[first : first + room]), escape(line[first:column])
    return f"{label}{shown}\n{' ' * (len(label) + width(left))}^"

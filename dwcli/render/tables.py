"""Rows as a table that fits the screen, or as tab-separated text for the next program.

    rows ──┬── terminal ──▶ table         a column per field, sized by content
           │                              narrow: optional columns go first, long texts fold,
           │                              and when that is not enough one line per field
           └── pipe ──────▶ tsv           every column, nothing cut

A cell is a value, and each side says it its own way: 1204551 is `1,204,551` on a screen and `1204551` in
a pipe. Text from outside is never markup, and its control characters are escaped. No value is cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dwcli.render.words import escape, escape_lines, local_time, utc_iso, width

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

GAP = 2
#: A column is not folded below this: a word per line reads worse than one line per field.
NARROWEST = 20


@dataclass(frozen=True)
class Column:
    """One column of a view. `name` heads it, in TSV too."""

    name: str
    right: bool = False
    #: 0 always stays; on a narrow screen the highest number goes first
    optional: int = 0
    #: long text that may be broken into several lines
    folds: bool = False
    #: cells that a column keeps where it is folded, instead of NARROWEST
    least: int = 0


@dataclass(frozen=True)
class Said:
    """A cell whose words for a screen are not just its value in another form: `4 min ago`."""

    value: Any
    words: str | Text


def cell(value: Any) -> Text:
    """A value as a safe cell of a table: numbers with separators, moments in local time, None as `-`."""
    from rich.text import Text

    match value:
        case Said():
            return cell(value.words)
        case Text():
            return value
        case None:
            return Text("-")
        case bool():
            return Text(str(value).lower())
        case int():
            return Text(f"{value:,}")
        case datetime():
            return Text(local_time(value))
        case _:
            return Text(escape(str(value)))


def table(columns: Sequence[Column], rows: Iterable[Sequence[Any]], screen: int) -> RenderableType:
    """A view of the rows in at most `screen` cells of width.

    A rich `Text` in a row is taken as it is.
    """
    listed = [list(row) for row in rows]
    cells = [[cell(value) for value in row] for row in listed]
    widths = [
        max([width(column.name), *(width(row[index].plain) for row in cells)])
        for index, column in enumerate(columns)
    ]
    kept = that_fit(columns, widths, screen)
    if kept is None:
        known = [[value is not None for value in row] for row in listed]
        return _stacked(columns, cells, known, screen)
    return _side_by_side(columns, cells, _folded(columns, widths, kept, screen))


def _total(widths: Iterable[int]) -> int:
    listed = list(widths)
    return sum(listed) + GAP * (len(listed) - 1)


def _least(column: Column, natural: int) -> int:
    return min(natural, max(column.least or NARROWEST, width(column.name))) if column.folds else natural


def that_fit(columns: Sequence[Column], widths: Sequence[int], screen: int) -> list[int] | None:
    """Indexes of the columns that fit side by side, None if even the needed ones do not."""
    kept = list(range(len(columns)))
    while _total(_least(columns[i], widths[i]) for i in kept) > screen:
        expendable = [i for i in kept if columns[i].optional]
        if not expendable:
            return None
        kept.remove(max(expendable, key=lambda i: columns[i].optional))
    return kept


def _folded(
    columns: Sequence[Column], widths: Sequence[int], kept: Sequence[int], screen: int
) -> dict[int, int]:
    """The width of each kept column: the widest folding ones give way, cell by cell, until all fit."""
    chosen = {i: widths[i] for i in kept}
    least = {i: _least(columns[i], widths[i]) for i in kept}
    # a value may be a book: none is wider than the screen once it is folded
    chosen = {i: min(cells, max(screen, least[i])) for i, cells in chosen.items()}
    for _ in range(_total(chosen.values()) - screen):
        chosen[max((i for i in kept if chosen[i] > least[i]), key=lambda i: chosen[i])] -= 1
    return chosen


def _side_by_side(
    columns: Sequence[Column], cells: Sequence[Sequence[Text]], widths: dict[int, int]
) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", show_edge=False)
    for index, wide in widths.items():
        column = columns[index]
        grid.add_column(
            Text(escape(column.name)),
            justify="right" if column.right else "left",
            width=wide,
            overflow="fold",
            no_wrap=not column.folds,
        )
    for row in cells:
        grid.add_row(*(row[index] for index in widths))
    return grid


def _stacked(
    columns: Sequence[Column],
    cells: Sequence[Sequence[Text]],
    known: Sequence[Sequence[bool]],
    screen: int,
) -> RenderableType:
    """One line per field; what may be left out and has no value is left out."""
    from rich.console import Group
    from rich.text import Text

    names = [width(escape(column.name)) for column in columns]
    # a name that leaves its value no room stands above it, and moves no other
    margin = max((wide for wide in names if wide <= screen - NARROWEST // 2), default=0) + GAP
    blocks: list[RenderableType] = []
    for number, row in enumerate(cells):
        if number:
            blocks.append(Text(""))
        blocks += [
            _labelled(Text(escape(column.name), style="bold"), value, margin, screen)
            for column, value, there in zip(columns, row, known[number], strict=True)
            if value.plain and (there or not column.optional)
        ]
    return Group(*blocks)


def fields(pairs: Iterable[tuple[str, Any]], screen: int) -> RenderableType:
    """One thing in detail: a line per field that has a value, long values folded under themselves."""
    from rich.console import Group
    from rich.text import Text

    shown = [(name, value) for name, value in pairs if value not in (None, "", [], {})]
    margin = max((width(name) for name, _ in shown), default=0) + GAP
    bodies = [value if isinstance(value, Text) else Text(escape_lines(str(value))) for _, value in shown]
    return Group(
        *(
            _labelled(Text(name, style="bold"), body, margin, screen)
            for (name, _), body in zip(shown, bodies, strict=True)
        )
    )


def _labelled(label: Text, value: Text, margin: int, screen: int) -> RenderableType:
    """A field. A word that fits the screen, but not what the label leaves of it, stands whole below."""
    from rich.console import Group
    from rich.padding import Padding

    room = max(NARROWEST // 2, screen - margin)
    above = width(label.plain) >= margin
    if above:
        label.overflow, label.no_wrap = "fold", False
    if above or room < longest_word(value.plain) <= screen - GAP:
        return Group(label, Padding(broken(value, screen - GAP), (0, 0, 0, GAP)))
    return marked(label, broken(value, room), margin)


def longest_word(text: str) -> int:
    """Cells of the longest word of a text."""
    return max(map(width, text.split()), default=0)


def broken(body: Text, room: int) -> Text:
    """A text that is too wide for a screen, broken where it has a bar or gaps of two blanks or more.

    Numbers stay with what they count: `1,204,551 read`. A path that is too long is broken after a slash.
    """
    from rich.text import Text

    if all(width(line) <= room for line in body.plain.split("\n")):
        return body
    lines: list[Text] = []
    for line in body.split("\n"):
        start = reach = 0
        for end, after in [*_gaps(line.plain, room), (len(line.plain), len(line.plain))]:
            if width(line.plain[start:end]) > room and reach > start:
                lines.append(line[start : len(line.plain[:reach].rstrip(" |"))])
                start = reach
            reach = after
        lines.append(line[start:])
    return Text("\n").join(lines)


def _gaps(line: str, room: int) -> list[tuple[int, int]]:
    """Where a line may be broken: from where to where nothing is lost with the break."""
    found = [gap.span() for gap in re.finditer(r" {2,}| \| ", line)]
    long = (word for word in re.finditer(r"\S+", line) if width(word[0]) > room)
    slashes = (word.start() + slash.end() for word in long for slash in re.finditer("(?<=.)/", word[0]))
    return sorted([*found, *((slash, slash) for slash in slashes)])


def marked(mark: Text, body: Text, margin: int) -> RenderableType:
    """A line that begins with a mark; what does not fit goes on under the body, not under the mark."""
    from rich.table import Table

    grid = Table.grid()
    grid.add_column(width=margin, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(mark, body)
    return grid


# -- for programs --------------------------------------------------------------------------------------

TSV_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def tsv_line(values: Iterable[Any], null: str = "") -> str:
    """One line of tab-separated text; tab, line breaks and backslash are escaped as PostgreSQL does.

    Moments are UTC, ISO 8601; None is `null`.
    """
    return "\t".join(null if v is None else _plain(v).translate(TSV_ESCAPES) for v in values) + "\n"


def tsv(columns: Sequence[Column], rows: Iterable[Sequence[Any]], null: str = "") -> Iterator[str]:
    """The rows as lines, a header line first. All columns are there, whatever the screen."""
    yield tsv_line(column.name for column in columns)
    for row in rows:
        yield tsv_line(row, null)


def _plain(value: Any) -> str:
    from rich.text import Text

    match value:
        case Said():
            return "" if value.value is None else _plain(value.value)
        case Text():
            return value.plain
        case bool():
            return str(value).lower()
        case datetime():
            return utc_iso(value)
        case _:
            return str(value)

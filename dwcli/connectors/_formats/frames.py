"""What a format gives: frames with the types of their columns, and the options it was read with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dwcli.connectors._formats.texts import POSTGRES, ImpossibleTime, Kind, type_texts
from dwcli.errors import SourceData

if TYPE_CHECKING:
    import polars as pl

#: The column that says which file a row came from.
SOURCE_PATH = "_source_path"

#: Column → kind so far (see `texts`), over all files of a read.
Seen = dict[str, Kind]


@dataclass(frozen=True)
class Options:
    """How files are read; what is empty or None is found out from the file."""

    format: str = "auto"
    delimiter: str = ""
    quote: str = '"'
    encoding: str = ""
    header: bool | None = None
    null_values: tuple[str, ...] = ()
    sheet: str = ""
    skip_rows: int = 0
    compression: str = "auto"
    timezone: str = "UTC"
    max_expansion: int = 200
    batch_bytes: int = 16 * 1024 * 1024


@dataclass(frozen=True)
class Frame:
    """Some rows of one file, and the PostgreSQL types that their dtypes do not say.

    changed: what could not stay as it was, and how many values.
    """

    data: pl.DataFrame
    types: dict[str, str] = field(default_factory=dict)
    changed: Mapping[str, int] = field(default_factory=dict)


def frame_of_texts(
    name: str, names: Sequence[str], columns: Iterable[Any], options: Options, seen: Seen
) -> Frame:
    """A frame from columns of texts (Arrow string arrays), each given the type that its values show."""
    typed: dict[str, Any] = {}
    for column, texts in zip(names, columns, strict=True):
        try:
            typed[column], seen[column] = type_texts(texts, seen.get(column, ""), options.timezone)
        except ImpossibleTime as error:
            raise SourceData(
                f"{name}, column {column}: {error}",
                why="timestamps without an offset are read in the source's time zone",
                hint="set timezone to the zone they were written in",
            ) from None
    rows = len(typed[names[0]]) if names else 0
    return frame_of_arrays(name, typed, {column: seen[column] for column in names}, rows)


def frame_of_arrays(name: str, arrays: dict[str, Any], kinds: dict[str, Kind], rows: int) -> Frame:
    """A frame from Arrow arrays and their kinds."""
    types = {column: POSTGRES[kind] for column, kind in kinds.items() if kind and kind != "text"}
    return frame_of_types(name, arrays, types, rows)


def frame_of_types(name: str, arrays: dict[str, Any], types: dict[str, str], rows: int) -> Frame:
    """A frame from Arrow arrays and PostgreSQL types, with the file's name in the last column."""
    import polars as pl
    import pyarrow as pa

    paths = pl.Series(SOURCE_PATH, [name]).new_from_index(0, rows)
    columns = pl.DataFrame(pa.table(arrays)).get_columns() if arrays else []
    return Frame(pl.DataFrame([*columns, paths]), types)


def unique_names(names: Iterable[str]) -> tuple[str, ...]:
    """Column names without twins or gaps: `name`, `name_2`, and `column_3` for one without a name."""
    taken = {SOURCE_PATH}
    found = []
    given = list(names)
    for position, name in enumerate(given, 1):
        base = name if name.strip() else f"column_{position}"
        unique, number = base, 2
        while unique in taken or (number > 2 and unique in given):
            unique, number = f"{base}_{number}", number + 1
        taken.add(unique)
        found.append(unique)
    return tuple(found)

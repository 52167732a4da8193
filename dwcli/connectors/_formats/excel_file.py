"""Excel and OpenDocument sheets, by fastexcel (the extra `excel`). One sheet is held in memory.

A column's cells become texts with all their digits and are then typed as those of a CSV file: whole numbers
are `bigint`, days without a time `date`; times of day and durations stay text. A cell that holds an error
(#N/A, #DIV/0!) is NULL.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwcli.connectors._formats.csv_file import looks_like_header
from dwcli.connectors._formats.frames import Frame, Options, Seen, frame_of_texts, unique_names
from dwcli.connectors._formats.parquet_file import intervals
from dwcli.connectors._formats.streams import BOMB_BYTES, Source, on_disk, reading
from dwcli.errors import DriverMissing, ResourceMissing, SourceData

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 16_384


def read_excel(source: Source, options: Options, seen: Seen) -> Iterator[Frame]:
    """Batches of one sheet: the one named by `sheet` (name, or number from 1), else the first.

    Raises DriverMissing without fastexcel, ResourceMissing for a sheet that is not there, SourceData for
    a file that is no workbook or would unpack to a bomb.
    """
    try:
        import fastexcel
    except ImportError as error:
        raise DriverMissing(
            f"reading {source.name} needs a driver that is not installed ({error.name})",
            hint="pip install 'dwcli[excel]'",
        ) from None
    with on_disk(source) as path:
        _refuse_bomb(path, source, options.max_expansion)
        try:
            workbook = fastexcel.read_excel(path)
            name = _sheet_name(source, workbook.sheet_names, options.sheet)
            head = workbook.load_sheet(
                name, header_row=None, skip_rows=options.skip_rows, n_rows=1, dtypes="string"
            ).to_arrow()
            first = [column[0].as_py() or "" for column in head.columns] if head.num_rows else []
            header = options.header if options.header is not None else looks_like_header([first or [""]])
            columns = _columns(workbook, name, options.skip_rows + int(header), len(first))
        except fastexcel.FastExcelError as error:
            raise SourceData(
                f"{source.name} cannot be read as a workbook", why=str(error).splitlines()[0]
            ) from None
    if not first:
        return
    names = unique_names(first if header else [""] * len(first))
    rows = len(columns[0])
    for offset in range(0, max(rows, 1), _ROWS):
        part = [column.slice(offset, _ROWS) for column in columns]
        yield frame_of_texts(source.name, names, part, options, seen)


def _columns(workbook: Any, sheet: str, skip: int, width: int) -> list[pa.Array]:
    """The cells below the header as texts, column by column."""
    import pyarrow as pa

    loaded = workbook.load_sheet(sheet, header_row=None, skip_rows=skip, schema_sample_rows=None)
    if not loaded.height:
        return [pa.array([], pa.string())] * width
    found = loaded.to_arrow().columns
    mixed = {number: "float" for number, column in enumerate(found) if pa.types.is_string(column.type)}
    numbers = workbook.load_sheet(sheet, header_row=None, skip_rows=skip, dtypes=mixed).to_arrow().columns
    texts = [
        _all_digits(column, numbers[number]) if number in mixed else _texts(column)
        for number, column in enumerate(found)
    ]
    return texts + [pa.nulls(loaded.height, pa.string())] * (width - len(texts))


def _all_digits(texts: pa.Array, numbers: pa.Array) -> pa.Array:
    """Cells of a mixed column; numbers among them come cut to nine places, and get the others back."""
    import pyarrow as pa

    pairs = zip(texts.to_pylist(), numbers.to_pylist(), strict=True)
    whole = [text if number is None or _is(text, number) else repr(number) for text, number in pairs]
    return pa.array(whole, pa.string())


def _is(text: str, number: float) -> bool:
    try:
        return float(text) == number
    except ValueError:
        return True


def _texts(column: pa.Array) -> pa.Array:
    """Cells of one type as texts, as a CSV file would have them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(column.type) and pc.all(pc.equal(pc.floor(column), column)).as_py():
        with suppress(pa.ArrowInvalid):  # beyond 64 bits
            return column.cast(pa.int64()).cast(pa.string())
    if pa.types.is_duration(column.type):
        return intervals(column)
    if pa.types.is_timestamp(column.type):
        moments = pc.strftime(column, "%Y-%m-%d %H:%M:%S")
        if pc.all(pc.starts_with(moments, "1899-12-31")).as_py():
            return pc.utf8_slice_codeunits(moments, 11)
        if pc.all(pc.ends_with(moments, " 00:00:00.000")).as_py():
            return pc.utf8_slice_codeunits(moments, 0, 10)
        return moments
    return column.cast(pa.string())


def _sheet_name(source: Source, names: list[str], wanted: str) -> str:
    if not wanted:
        return names[0]
    if wanted in names:
        return wanted
    if wanted.isdigit() and 1 <= int(wanted) <= len(names):
        return names[int(wanted) - 1]
    raise ResourceMissing(f"{source.name} has no sheet '{wanted}'", hint=f"its sheets: {', '.join(names)}")


def _refuse_bomb(path: Path, source: Source, max_expansion: int) -> None:
    if not zipfile.is_zipfile(path):
        return  # .xls is no archive
    with reading(source.name), zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > BOMB_BYTES and unpacked > source.size * max_expansion:
        raise SourceData(
            f"{source.name} unpacks to more than {max_expansion} times its size of {source.size:,} bytes",
            hint=f"if it is meant to: max_expansion: {max_expansion * 10}",
        )

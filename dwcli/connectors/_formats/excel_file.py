"""Excel and OpenDocument sheets, by fastexcel (the extra `excel`). One sheet is held in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dwcli.connectors._formats.csv_file import looks_like_header
from dwcli.connectors._formats.frames import Frame, Options, Seen, frame_of_texts, unique_names
from dwcli.connectors._formats.streams import BOMB_BYTES, Source, on_disk, reading
from dwcli.errors import DriverMissing, ResourceMissing, SourceData

_ROWS = 16_384


def read_excel(source: Source, options: Options, seen: Seen) -> Iterator[Frame]:
    """Batches of one sheet: the one named by `sheet` (name, or number from 1), else the first.

    Cells are taken as they are shown without formats, and typed by column as those of a CSV file.
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
            sheet = workbook.load_sheet(
                name, header_row=None, skip_rows=options.skip_rows, dtypes="string", schema_sample_rows=None
            )
            table = sheet.to_arrow()
        except fastexcel.FastExcelError as error:
            raise SourceData(
                f"{source.name} cannot be read as a workbook", why=str(error).splitlines()[0]
            ) from None
    if not table.num_rows or not table.num_columns:
        return
    first = [value or "" for value in (column[0].as_py() for column in table.columns)]
    header = options.header if options.header is not None else looks_like_header([first])
    names = unique_names(first if header else [""] * len(first))
    start = int(header)
    for offset in range(start, max(table.num_rows, start + 1), _ROWS):
        columns = [_strings(column) for column in table.slice(offset, _ROWS).columns]
        yield frame_of_texts(source.name, names, columns, options, seen)


def _strings(column: Any) -> Any:
    import pyarrow as pa

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

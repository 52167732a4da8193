"""From a list of files to items: which to read, in what pieces, and what the next run may pass over.

Shared by every connector whose source is files. A file is known by its name and its stamp (size and time,
or an etag): a file with the stamp of an earlier run is passed over, one with another stamp is read again
and replaces the rows it gave before. Small files travel together in one item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from glob import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dwcli.connectors._catalog import cursor_candidates
from dwcli.connectors._formats import SOURCE_PATH, Frame, Options, read_file
from dwcli.connectors._formats.streams import COMPRESSIONS, base_name
from dwcli.contract import Column, Cursor, IngestedItem, Resource
from dwcli.errors import SourceData

if TYPE_CHECKING:
    import polars as pl

#: Of more files in one group than this, only the group is offered.
MAX_SINGLE_FILES = 200
#: No more files than this share an item.
_TOGETHER = 256
_SAMPLE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Listed:
    """One file of a listing."""

    #: path relative to the listing's root, with slashes
    name: str
    size: int
    #: changes whenever the content does, as far as the source tells: "size:mtime", an etag
    stamp: str


#: Gives a path to the file's bytes on this machine for as long as the context is open. FileNotFoundError
#: means that it is gone since it was listed.
Local = Callable[[Listed], AbstractContextManager[Path]]


@dataclass
class _Held:
    """What waits to become the next item."""

    frames: list[Frame] = field(default_factory=list)
    bytes: int = 0
    replaces: dict[str, str] = field(default_factory=dict)
    #: files that ended since the last item
    finished: bool = False
    vanished: list[str] = field(default_factory=list)


def read_listed(
    files: Sequence[Listed], local: Local, stamp: Callable[[Listed], str], options: Options, cursor: Cursor
) -> Iterator[IngestedItem]:
    """Items of all files that are new or changed since `cursor.position`.

    stamp: the file's stamp now; where it is not the listed one after reading, SourceData is raised.
    The item that completes a file has it in its position, `{"files": {name: stamp}}`, with all before it.
    """
    position: dict[str, str] = dict((cursor.position or {}).get("files", {}))
    seen: dict[str, str] = {}
    held = _Held()
    for file in files:
        if position.get(file.name) == file.stamp:
            continue
        again = file.name in position
        number = 0
        try:
            with local(file) as path:
                for frame in read_file(path, file.name, options, seen):
                    kept = within(frame, cursor)
                    merged = None if again and not number else _joined(held, kept, options.batch_bytes)
                    if held.frames and merged is None:
                        yield _item(held, position)
                        held = _Held()
                    held.frames = merged or [kept]
                    held.bytes += int(kept.data.estimated_size())
                    if again and not number:
                        held.replaces = {SOURCE_PATH: file.name}
                    number += 1
        except FileNotFoundError:
            held.vanished.append(file.name)
            continue
        _refuse_changed(file, stamp)
        if again and not number:
            if held.frames:
                yield _item(held, position)
            held = _Held(replaces={SOURCE_PATH: file.name})
        position[file.name] = file.stamp
        held.finished = True
    if held.frames or held.finished or held.vanished:
        yield _item(held, position)


def _refuse_changed(file: Listed, stamp: Callable[[Listed], str]) -> None:
    try:
        now = stamp(file)
    except FileNotFoundError:
        return  # what was read was whole
    if now != file.stamp:
        raise SourceData(
            f"{file.name} changed while it was being read",
            why=f"size and time were {file.stamp} when it was listed, and are {now}",
            hint="run again when it is written to the end; writers should write elsewhere and rename",
        )


def _item(held: _Held, position: dict[str, str]) -> IngestedItem:
    import polars as pl

    types = {name: kind for frame in held.frames for name, kind in frame.types.items()}
    frames = [frame.data for frame in held.frames]
    together = pl.concat(frames, how="diagonal_relaxed") if len(frames) > 1 else None
    return IngestedItem(
        payload=frames[0] if len(frames) == 1 else together,
        types=types,
        position={"files": dict(position)} if held.finished else None,
        replaces=held.replaces,
        metadata=({"vanished": held.vanished} if held.vanished else {}) | told_changes(held.frames),
    )


def told_changes(frames: Sequence[Frame]) -> dict[str, Any]:
    """The metadata that counts what could not stay as it was in these frames."""
    changed: Counter[str] = Counter()
    for frame in frames:
        changed.update(frame.changed)
    return {"changed": dict(changed)} if changed else {}


def _joined(held: _Held, frame: Frame, limit: int) -> list[Frame] | None:
    """The held frames and one more, if they can be one frame without any value changing; else None."""
    if not held.frames:
        return [frame]
    if held.replaces or len(held.frames) >= _TOGETHER:
        return None
    if held.bytes + frame.data.estimated_size() > limit:
        return None
    last = held.frames[-1]
    if last.types == frame.types and last.data.schema == frame.data.schema:
        return [*held.frames, frame]
    import polars as pl

    known = {name: kind for one in held.frames for name, kind in one.types.items()}
    dtypes = {name: dtype for one in held.frames for name, dtype in one.data.schema.items()}
    casts: dict[str, pl.DataType] = {}
    for name, dtype in frame.data.schema.items():
        other = dtypes.get(name, pl.Null())
        if pl.Null in (dtype, other):
            continue
        if known.get(name) != frame.types.get(name):
            return None
        if dtype != other:
            if not (isinstance(dtype, pl.Decimal) and isinstance(other, pl.Decimal)):
                return None
            casts[name] = pl.Decimal(38, max(dtype.scale, other.scale))
    joined: list[Frame] = []
    for one in [*held.frames, frame]:
        rescaled = _rescaled(one, casts)
        if rescaled is None:
            return None
        joined.append(rescaled)
    return joined


def _rescaled(frame: Frame, casts: dict[str, pl.DataType]) -> Frame | None:
    """The frame with decimals of more places, or None where a value has no room for them."""
    import polars as pl

    columns = []
    for name, dtype in casts.items():
        if name not in frame.data.columns or frame.data.schema[name] in (pl.Null, dtype):
            continue
        column = frame.data[name]
        try:
            wider = column.cast(dtype)
        except pl.exceptions.InvalidOperationError:
            return None
        if not wider.cast(column.dtype).equals(column):
            return None
        columns.append(wider)
    return replace(frame, data=frame.data.with_columns(columns))


# -- the cursor column ---------------------------------------------------------------------------------


def within(frame: Frame, cursor: Cursor) -> Frame:
    """The rows from `cursor.start` on, before `cursor.end`, and those whose cursor is NULL.

    Raises SourceData where the column is missing, or its values cannot be compared with the bounds.
    """
    import polars as pl

    if not cursor.column or (cursor.start is None and cursor.end is None):
        return frame
    name = frame.data[SOURCE_PATH][0] if len(frame.data) else ""
    if cursor.column not in frame.data.columns:
        raise SourceData(
            f"{name} has no column '{cursor.column}', which is the cursor",
            hint=f"its columns: {', '.join(frame.data.columns[:20])}",
        )
    column = frame.data[cursor.column]
    if column.dtype == pl.Null:
        return frame
    keep = pl.col(cursor.column).is_null()
    inside = pl.lit(True)
    comparable = _comparable(column, cursor, frame.types.get(cursor.column, ""))
    try:
        if cursor.start is not None:
            inside = inside & (pl.lit(comparable) >= _bound(cursor.start, comparable.dtype))
        if cursor.end is not None:
            inside = inside & (pl.lit(comparable) < _bound(cursor.end, comparable.dtype))
    except (ValueError, InvalidOperation):
        raise SourceData(
            f"{name}: the cursor column '{cursor.column}' cannot be compared with the place reached",
            why=f"it holds {frame.types.get(cursor.column, column.dtype)} values; "
            f"the cursor was {cursor.type or 'of another type'}",
            hint="choose another cursor, or read everything again: dw run --full-refresh",
        ) from None
    return replace(frame, data=frame.data.filter(keep | inside.fill_null(False)))


def _comparable(column: pl.Series, cursor: Cursor, declared: str) -> pl.Series:
    """The column in the type that the cursor has reached, where this batch is narrower."""
    import polars as pl

    base = (cursor.type or declared).partition("(")[0]
    if base.startswith("timestamp") and column.dtype == pl.Date:
        return column.cast(pl.Datetime("us", "UTC"))
    if base == "numeric" and column.dtype == pl.Int64:
        return column.cast(pl.Decimal(38, 0))
    if base == "text" and column.dtype != pl.String:
        return column.cast(pl.String)
    return column


def _bound(text: str, dtype: pl.DataType) -> pl.Expr:
    """A bound in PostgreSQL's text form as a value of the column's type. Raises ValueError."""
    import polars as pl

    if dtype.is_integer():
        return pl.lit(Decimal(text))
    if isinstance(dtype, pl.Decimal):
        return pl.lit(Decimal(text))
    if dtype.is_float():
        return pl.lit(float(text))
    if dtype == pl.Date:
        return pl.lit(date.fromisoformat(text[:10]))
    if isinstance(dtype, pl.Datetime):
        moment = datetime.fromisoformat(text)
        return pl.lit((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC))
    if dtype == pl.String:
        return pl.lit(text)
    raise ValueError(f"no order among {dtype}")


# -- what there is -------------------------------------------------------------------------------------


def describe_listed(files: Sequence[Listed], local: Local, name: str, options: Options) -> Resource:
    """The resource `name` that consists of these files, by a look into the first that holds anything."""
    sample = replace(options, batch_bytes=min(options.batch_bytes, _SAMPLE_BYTES))
    total = sum(file.size for file in files)
    columns: tuple[Column, ...] = ()
    rows = None
    for file in files:
        with local(file) as path:
            frame = next(iter(read_file(path, file.name, sample, {})), None)
            if frame is None:
                continue
            columns = columns_of(frame)
            rows = _row_estimate(file, path, len(frame.data), total, sample)
        break
    return Resource(
        name,
        columns,
        row_estimate=rows,
        bytes_estimate=total,
        cursors=cursor_candidates(columns, (), ()),
        kind="file" if len(files) == 1 else "files",
    )


def _row_estimate(file: Listed, path: Path, rows: int, total: int, options: Options) -> int | None:
    """Rows in `total` bytes of files like this one, as far as its first block tells."""
    from dwcli.connectors._formats import format_of, sources_in

    source = next(sources_in(path, file.name, options.compression, options.max_expansion))
    kind = format_of(source, options)
    if source.packed or kind == "excel" or not file.size:
        return None
    if kind == "parquet":
        from dwcli.connectors._formats.parquet_file import count_rows

        return round((count_rows(source) or 0) * total / file.size)
    return round(rows * total / min(file.size, options.batch_bytes // 4))


def columns_of(frame: Frame) -> tuple[Column, ...]:
    """The columns of a frame with their PostgreSQL types."""
    return tuple(
        Column(name, frame.types.get(name) or _postgres_type(dtype))
        for name, dtype in frame.data.schema.items()
    )


def _postgres_type(dtype: Any) -> str:
    import polars as pl

    if isinstance(dtype, pl.Decimal):
        return f"numeric({dtype.precision},{dtype.scale})"
    if dtype.is_integer():
        return "bigint"
    if dtype.is_float():
        return "double precision"
    known = {
        pl.Boolean: "boolean",
        pl.Date: "date",
        pl.Time: "time",
        pl.Binary: "bytea",
        pl.Datetime: "timestamptz",
    }
    return known.get(dtype.base_type(), "text")


def groups_of(files: Iterable[Listed]) -> Iterator[tuple[str, list[Listed]]]:
    """(query, files) of what a folder offers: files that look alike together, then each alone.

    Alike are files with the same ending in one folder (`2024/*.csv`), and all such folders together
    (`**/*.csv`).
    """
    by_ending: dict[str, dict[str, list[Listed]]] = {}
    for file in files:
        path = PurePosixPath(file.name)
        inner = PurePosixPath(base_name(file.name)).suffix
        packed = path.suffix if path.suffix.lower() in COMPRESSIONS else ""
        ending = inner + packed if inner != packed else packed
        folder = "" if str(path.parent) == "." else f"{escape(str(path.parent))}/"
        by_ending.setdefault(ending, {}).setdefault(folder, []).append(file)
    for ending, folders in sorted(by_ending.items()):
        if len(folders) > 1:
            yield f"**/*{ending}", [file for alike in folders.values() for file in alike]
        for folder, alike in folders.items():
            if len(alike) > 1:
                yield f"{folder}*{ending}", alike
    for _, folders in sorted(by_ending.items()):
        for alike in folders.values():
            if len(alike) <= MAX_SINGLE_FILES:
                yield from ((file.name, [file]) for file in alike)

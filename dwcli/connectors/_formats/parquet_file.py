"""Parquet, as bounded batches with the types of its schema.

Naive timestamps are read in the source's time zone; lists, structs and maps become JSON text (`jsonb`),
durations PostgreSQL's text of an `interval`. Nanoseconds stay in the frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from dwcli.connectors._formats.frames import Frame, Options, frame_of_types, unique_names
from dwcli.connectors._formats.streams import Source, on_disk
from dwcli.connectors._formats.texts import ImpossibleTime, localize
from dwcli.errors import SourceData

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_MAX_ROWS = 131_072


def read_parquet(source: Source, options: Options) -> Iterator[Frame]:
    """Batches of one file; a file without rows gives one empty frame with its columns.

    Raises SourceData for a damaged file, or a column type that cannot be read.
    """
    import pyarrow as pa

    with on_disk(source) as path:
        try:
            with _opened(path) as file:
                names = unique_names(file.schema_arrow.names)
                rows = 0
                for batch in file.iter_batches(batch_size=_rows_per_batch(file, options.batch_bytes)):
                    rows += batch.num_rows
                    yield _frame(source.name, names, batch.columns, options)
                if not rows:
                    empty = [pa.array([], field.type) for field in file.schema_arrow]
                    yield _frame(source.name, names, empty, options)
        except KeyError:  # from a map, by its strict reading; it names the key, which is data
            raise SourceData(f"{source.name}: a map has a key twice") from None
        except (pa.ArrowException, OSError) as error:
            raise SourceData(
                f"{source.name} cannot be read as Parquet",
                why=str(error).splitlines()[0],
                hint="the file is damaged or was cut off: fetch it again",
            ) from None


def count_rows(source: Source) -> int | None:
    """The number of rows, as the footer says."""
    if source.path is None:
        return None
    with _opened(source.path) as file:
        return int(file.metadata.num_rows)


def _opened(path: Any) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    # without pre_buffer=False a whole row group is read ahead, however large
    return pq.ParquetFile(
        path, pre_buffer=False, page_checksum_verification=True, coerce_int96_timestamp_unit="us"
    )


def _rows_per_batch(file: pq.ParquetFile, batch_bytes: int) -> int:
    meta = file.metadata
    size: int = sum(meta.row_group(number).total_byte_size for number in range(meta.num_row_groups))
    per_row: int = max(1, size // max(1, meta.num_rows))
    return max(1, min(_MAX_ROWS, batch_bytes // 4 // per_row))


def _frame(name: str, names: tuple[str, ...], columns: list[pa.Array], options: Options) -> Frame:
    arrays, types = {}, {}
    for column, values in zip(names, columns, strict=True):
        try:
            arrays[column], declared = readable(values, options.timezone)
        except ImpossibleTime as error:
            raise SourceData(
                f"{name}, column {column}: {error}",
                why="timestamps without a time zone are read in the source's",
                hint="set timezone to the zone they were written in",
            ) from None
        if declared:
            types[column] = declared
    return frame_of_types(name, arrays, types, len(columns[0]) if columns else 0)


def readable(values: pa.Array, timezone: str) -> tuple[pa.Array, str]:
    """An Arrow column in a form that a frame and PostgreSQL take, and its type where the form hides it."""
    import pyarrow as pa
    import pyarrow.types as of

    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        return _extension(values, timezone)
    if of.is_dictionary(kind):
        return readable(values.dictionary_decode(), timezone)
    if of.is_timestamp(kind):
        unit = "ms" if kind.unit == "s" else kind.unit
        if kind.tz is None:
            return localize(values.cast(pa.timestamp(unit)), timezone), "timestamptz"
        return values.cast(pa.timestamp(unit, "UTC")), "timestamptz"
    if of.is_nested(kind):
        plain = values.cast(_without_nanoseconds(kind)).to_pylist(maps_as_pydicts="strict")
        return pa.array([None if v is None else _json(v) for v in plain], pa.string()), "jsonb"
    if of.is_duration(kind):
        return intervals(values), "interval"
    if of.is_decimal256(kind):
        return values.cast(pa.string()), f"numeric({kind.precision},{kind.scale})"
    if of.is_decimal(kind):
        return values.cast(pa.decimal128(kind.precision, kind.scale)), ""
    if of.is_fixed_size_binary(kind) or of.is_binary_view(kind):
        return values.cast(pa.binary()), ""
    if of.is_uint64(kind):
        return values, "numeric(20,0)"
    casts = {pa.date64(): pa.date32(), pa.float16(): pa.float32()}
    return (values.cast(casts[kind]), "") if kind in casts else (values, "")


def _extension(values: pa.Array, timezone: str) -> tuple[pa.Array, str]:
    import uuid

    import pyarrow as pa

    storage = values.storage
    if values.type.extension_name == "arrow.uuid":
        texts = [None if v is None else str(uuid.UUID(bytes=v)) for v in storage.to_pylist()]
        return pa.array(texts, pa.string()), "uuid"
    if values.type.extension_name == "arrow.json":
        return storage.cast(pa.string()), "jsonb"
    return readable(storage, timezone)


def intervals(values: pa.Array) -> pa.Array:
    """Durations as PostgreSQL writes intervals of hours, minutes and seconds."""
    import pyarrow as pa

    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[values.type.unit]
    digits = len(str(per_second)) - 1

    def spell(units: int) -> str:
        seconds, fraction = divmod(abs(units), per_second)
        sign = "-" if units < 0 else ""
        point = f".{fraction:0{digits}d}" if fraction else ""
        return f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}"

    counts = values.cast(pa.int64()).to_pylist()
    return pa.array([None if count is None else spell(count) for count in counts], pa.string())


def _without_nanoseconds(kind: pa.DataType) -> pa.DataType:
    """The nested type with nanosecond times as texts, which Python's times cannot hold."""
    import pyarrow as pa
    import pyarrow.types as of

    if of.is_timestamp(kind) and kind.unit == "ns":
        return pa.string()
    if of.is_struct(kind):
        return pa.struct([field.with_type(_without_nanoseconds(field.type)) for field in kind])
    if of.is_map(kind):
        return pa.map_(kind.key_type, _without_nanoseconds(kind.item_type))
    if of.is_fixed_size_list(kind) or of.is_large_list(kind) or of.is_list(kind):
        return pa.list_(_without_nanoseconds(kind.value_type))
    return kind


def _json(value: Any) -> str:
    """Compact JSON; decimals with all their digits, what JSON lacks (NaN, bytes, times) as strings."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(k))}:{_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_json(v) for v in value) + "]"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return json.dumps("\\x" + value.hex())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return json.dumps({"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)])
    if value is None or isinstance(value, (bool, int, float, str)):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value.isoformat() if hasattr(value, "isoformat") else str(value))

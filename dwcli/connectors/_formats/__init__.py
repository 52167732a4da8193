"""File formats: from one file on disk to batches of typed rows, wherever the file came from.

A connector that has a file (its own, or a downloaded one) says where it lies and how people call it;
`read_file` does the rest: compression, zip members, format, encoding, types.

    FileFields     the config fields that say how files are read; mix them into a `Config`
    options_of     the same as the record that the readers take
    read_file      (path, name, options, seen) → frames
    known_format   whether a name says that it can be read
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, Field, field_validator

from dwcli.connectors._formats.frames import SOURCE_PATH, Frame, Options, Seen
from dwcli.connectors._formats.streams import Source, base_name, reading, sources_in

__all__ = [
    "SOURCE_PATH",
    "FileFields",
    "Frame",
    "Options",
    "Seen",
    "format_of",
    "known_format",
    "options_of",
    "read_file",
    "read_source",
    "sources_in",
]

_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "csv",
    ".json": "json",
    ".geojson": "json",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".xlsx": "excel",
    ".xlsm": "excel",
    ".xlsb": "excel",
    ".xls": "excel",
    ".ods": "excel",
}


class FileFields(BaseModel):
    """How the files of a source are read. What is not given is found out from each file."""

    format: Literal["auto", "csv", "tsv", "json", "ndjson", "parquet", "excel"] = Field(
        "auto", description="format of the files", json_schema_extra={"advanced": True}
    )
    delimiter: str = Field(
        "", max_length=2, description="CSV delimiter", json_schema_extra={"advanced": True}
    )
    quote: str = Field(
        '"', max_length=1, description="CSV quote; empty for none", json_schema_extra={"advanced": True}
    )
    encoding: str = Field(
        "", description="text encoding, such as cp1252", json_schema_extra={"advanced": True}
    )
    header: bool | None = Field(
        None, description="whether the first row names the columns", json_schema_extra={"advanced": True}
    )
    null_values: list[str] = Field(
        [],
        description="CSV texts that mean NULL, beside the empty field",
        json_schema_extra={"advanced": True},
    )
    sheet: str = Field(
        "",
        description="sheet of a workbook, by name or number",
        json_schema_extra={"needs": {"format": ["excel"]}},
    )
    skip_rows: int = Field(
        0, ge=0, description="lines above the header", json_schema_extra={"advanced": True}
    )
    compression: Literal["auto", "none", "gz", "zst", "zip", "xz", "bz2"] = Field(
        "auto", description="compression of the files", json_schema_extra={"advanced": True}
    )
    timezone: str = Field(
        "UTC",
        description="time zone of timestamps without an offset",
        json_schema_extra={"advanced": True},
    )
    max_expansion: int = Field(
        200,
        ge=2,
        description="how many times its size a compressed file may unpack to",
        json_schema_extra={"advanced": True},
    )

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, value: str) -> str:
        import codecs

        try:
            return codecs.lookup(value).name if value else ""
        except LookupError:
            raise ValueError(f"there is no encoding '{value}'") from None

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, value: str) -> str:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(value)
        except (ValueError, LookupError, OSError):
            raise ValueError(f"there is no time zone '{value}'") from None
        return value

    @field_validator("delimiter")
    @classmethod
    def _delimiter_is_one_character(cls, value: str) -> str:
        value = {"\\t": "\t", "tab": "\t"}.get(value, value)
        if len(value) > 1:
            raise ValueError("one character, or \\t")
        return value


def options_of(config: FileFields, batch_bytes: int) -> Options:
    """The reading options of a config."""
    given = {name: getattr(config, name) for name in FileFields.model_fields}
    return Options(**given | {"null_values": tuple(config.null_values), "batch_bytes": batch_bytes})


def known_format(name: str) -> bool:
    """Whether the name ends as a format does that can be read, packed or not."""
    path = PurePosixPath(base_name(name).lower())
    return path.suffix in _FORMATS or name.lower().endswith(".zip")


def format_of(source: Source, options: Options) -> str:
    """csv, tsv, json, ndjson, parquet or excel: as told, by the name, else by the first bytes."""
    if options.format != "auto":
        return options.format
    found = _FORMATS.get(PurePosixPath(base_name(source.name).lower()).suffix)
    if found:
        return found
    with source.open() as stream, reading(source.name):
        head = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return "excel"
    return "json" if head.startswith((b"[", b"{")) else "csv"


def read_file(path: Path, name: str, options: Options, seen: Seen) -> Iterator[Frame]:
    """Batches of typed rows of one file on disk, with `name` in their column `_source_path`.

    seen: the kinds of columns so far; give the same dict for all files of one read, so that a column
    that turned out wide in one file is not narrow again in the next. Members of a zip are read one after
    the other, as `name!member`. Raises SourceData, naming file and line, for what cannot be read exactly.
    """
    for source in sources_in(path, name, options.compression, options.max_expansion):
        yield from read_source(source, options, seen)


def read_source(source: Source, options: Options, seen: Seen) -> Iterator[Frame]:
    """Batches of one file or archive member, by the reader of its format."""
    kind = format_of(source, options)
    if kind in ("csv", "tsv"):
        from dataclasses import replace

        from dwcli.connectors._formats.csv_file import read_csv

        tabs = kind == "tsv" and not options.delimiter
        yield from read_csv(source, replace(options, delimiter="\t") if tabs else options, seen)
    elif kind == "parquet":
        from dwcli.connectors._formats.parquet_file import read_parquet

        yield from read_parquet(source, options)
    elif kind == "excel":
        from dwcli.connectors._formats.excel_file import read_excel

        yield from read_excel(source, options, seen)
    else:
        from dwcli.connectors._formats.json_file import read_json, read_ndjson

        yield from (read_json if kind == "json" else read_ndjson)(source, options, seen)

"""CSV, TSV and their kin, as batches whose columns have the types that their texts show.

Arrow reads every column as text, quickly and without guessing; `texts` then decides what a column holds.
An unquoted empty field is NULL, a quoted one is an empty text.
"""

from __future__ import annotations

import codecs
import csv
import io
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

from dwcli.connectors._formats.frames import Frame, Options, Seen, frame_of_texts, unique_names
from dwcli.connectors._formats.streams import Source, as_utf8, encoding_of, reading, undecodable, watched
from dwcli.connectors._formats.texts import kind_of
from dwcli.errors import SourceData

if TYPE_CHECKING:
    import pyarrow as pa

_HEAD_BYTES = 256 * 1024
#: Arrow would read 32 blocks before the first is asked for. It waits for one to be taken, but not for ever:
#: a row may span blocks.
_BLOCKS_AHEAD = 3
_PATIENCE_SECONDS = 0.5
#: Records that are looked at to find out the delimiter and the header.
_HEAD_RECORDS = 100
_DELIMITERS = (",", "\t", ";", "|")
#: A row larger than this is a quote that was never closed, or no CSV.
MAX_ROW_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Dialect:
    """How one file is written: given by the options where they say so, found in its first records else."""

    encoding: str
    delimiter: str
    quote: str
    header: bool
    #: column names, unique
    names: tuple[str, ...]
    #: lines before the header or the first record
    skip: int
    #: whether nothing stands below the header
    alone: bool = False


def read_csv(source: Source, options: Options, seen: Seen) -> Iterator[Frame]:
    """Batches of one file. A file without a single record gives nothing; a header alone, an empty frame.

    seen: the kind of each column so far, over all files of a read; it is kept up to date.
    Raises SourceData with file and line for rows of another length, wrong encoding, unclosed quotes.
    """
    dialect = detect(source, options)
    if dialect is None:
        return
    rows = 0
    block = max(64 * 1024, options.batch_bytes // 4)
    while not dialect.alone:
        try:
            for batch in _batches(source, options, dialect, block, rows):
                rows += batch.num_rows
                yield frame_of_texts(source.name, dialect.names, batch.columns, options, seen)
            break
        except _RowTooLong:
            if block >= MAX_ROW_BYTES:
                raise SourceData(
                    f"{source.name}: a row after row {rows:,} is longer than {MAX_ROW_BYTES:,} bytes",
                    hint=f"is a {dialect.quote} left open? if quotes mean nothing in it: quote: ''",
                ) from None
            block = min(block * 8, MAX_ROW_BYTES)
    if not rows:
        yield frame_of_texts(source.name, dialect.names, _no_rows(len(dialect.names)), options, seen)


class _RowTooLong(Exception):
    """A row does not fit into two blocks."""


def _no_rows(width: int) -> list[Any]:
    import pyarrow as pa

    return [pa.array([], pa.string())] * width


def _batches(
    source: Source, options: Options, dialect: Dialect, block: int, skip_rows: int
) -> Iterator[pa.RecordBatch]:
    """Batches of texts, without the first `skip_rows` rows (they were given before, in smaller blocks)."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    ragged: list[Any] = []
    quotes = 0
    ahead = threading.Semaphore(_BLOCKS_AHEAD)

    def receive(chunk: bytes) -> None:
        nonlocal quotes
        if quote and quote in chunk:  # looking is twenty times as fast as counting
            quotes += chunk.count(quote)
        ahead.acquire(timeout=_PATIENCE_SECONDS)

    def keep(row: Any) -> str:
        ragged.append(row)
        return "error"

    quote = dialect.quote.encode()
    many = len(dialect.names) > 1
    with source.open() as raw, reading(source.name):
        text = as_utf8(raw, dialect.encoding)
        stream = watched(text, receive)
        try:
            reader = arrow_csv.open_csv(
                stream,
                arrow_csv.ReadOptions(
                    block_size=block,
                    column_names=list(dialect.names),
                    skip_rows=dialect.skip,
                    skip_rows_after_names=int(dialect.header),
                    use_threads=False,
                ),
                arrow_csv.ParseOptions(
                    delimiter=dialect.delimiter,
                    quote_char=dialect.quote or False,
                    newlines_in_values=bool(quote),
                    # in a table of one column an empty line is a NULL
                    ignore_empty_lines=many,
                    invalid_row_handler=keep,
                ),
                arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(dialect.names, pa.string()),
                    strings_can_be_null=True,
                    quoted_strings_can_be_null="" in options.null_values,
                    null_values=["", *options.null_values],
                ),
            )
            for batch in reader:
                ahead.release()
                if skip_rows >= batch.num_rows:
                    skip_rows -= batch.num_rows
                elif batch.num_rows:
                    yield batch.slice(skip_rows)
                    skip_rows = 0
        except UnicodeDecodeError:
            raise undecodable(source, dialect.encoding) from None
        except pa.ArrowInvalid as error:
            raise _explained(error, source, dialect, ragged) from None
    if quotes % 2 and _ends_inside_quotes(source, dialect):
        raise SourceData(
            f"{source.name} ends inside a quoted field",
            why="it is cut off, or a quote in it is not doubled",
            hint="if quotes mean nothing in this file: quote: ''",
        )


def _explained(error: Exception, source: Source, dialect: Dialect, ragged: list[Any]) -> Exception:
    text = str(error)
    if "straddling" in text:
        return _RowTooLong()
    if "UTF8" in text:
        return undecodable(source, dialect.encoding)
    if ragged:
        line = _line_of_ragged(source, dialect)
        place = f"{source.name}:{line}" if line else source.name
        found = ragged[0].actual_columns
        return SourceData(
            f"{place}: {found} {'field' if found == 1 else 'fields'} where {len(dialect.names)} are expected",
            why=f"delimiter {dialect.delimiter!r}, quote {dialect.quote or 'none'}",
            hint=f"dw preview shows how it is read; lines above the header: skip_rows: {line - 1}"
            if 1 < line < 20 and found > len(dialect.names)
            else "mend the row, or set delimiter and quote",
        )
    return SourceData(f"{source.name} cannot be read as CSV", why=text.splitlines()[0].split(":")[0])


def _records(source: Source, dialect: Dialect, lines: io.TextIOBase) -> Iterator[tuple[int, list[str]]]:
    """(last line, fields) of each record, by Python's own reader: slow, and it knows its lines."""
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader(
        lines,
        delimiter=dialect.delimiter,
        quotechar=dialect.quote or None,
        quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
    )
    for record in reader:
        yield reader.line_num, record


def _as_text(raw: BinaryIO, encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(_readinto(raw)), encoding, errors="replace", newline="")


class _Readinto(io.RawIOBase):
    """A stream that only has `read`, for io's buffers, which ask for `readinto`."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._raw.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _readinto(raw: BinaryIO) -> io.RawIOBase:
    return _Readinto(raw)


def _line_of_ragged(source: Source, dialect: Dialect) -> int:
    """The line on which the first row of another length begins, from 1; 0 when it cannot be told."""
    with source.open() as raw, _as_text(raw, dialect.encoding) as lines:
        for _ in range(dialect.skip):
            lines.readline()
        before = 0
        for line, record in _records(source, dialect, lines):
            if record and len(record) != len(dialect.names):
                return dialect.skip + before + 1
            before = line
    return 0


def _ends_inside_quotes(source: Source, dialect: Dialect) -> bool:
    """Follow the quotes through the whole file; only asked when their number is odd."""
    outside, quoted, maybe = 0, 1, 2
    state, fresh = outside, True
    quote, delimiter = dialect.quote, dialect.delimiter
    with source.open() as raw, _as_text(raw, dialect.encoding) as lines:
        for _ in range(dialect.skip):
            lines.readline()
        while chunk := lines.read(1024 * 1024):
            for character in chunk:
                if state == quoted:
                    if character == quote:
                        state = maybe
                elif character == quote and (fresh or state == maybe):
                    state = quoted
                else:
                    state = outside
                fresh = state == outside and character in (delimiter, "\n", "\r")
    return state == quoted


# -- what kind of CSV it is ---------------------------------------------------------------------------


def detect(source: Source, options: Options) -> Dialect | None:
    """How the file is written, from the options and its first records; None when it holds none."""
    with source.open() as raw, reading(source.name):
        head = raw.read(_HEAD_BYTES)
    encoding = options.encoding or encoding_of(head)
    whole = len(head) < _HEAD_BYTES
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head, whole)
    except UnicodeDecodeError:
        raise undecodable(source, encoding) from None
    lines = io.StringIO(text.removeprefix("\ufeff"), newline="")
    for number in range(options.skip_rows):
        if not lines.readline():
            raise SourceData(f"{source.name} has only {number} lines; skip_rows is {options.skip_rows}")
    body = lines.read()
    rest = body.lstrip("\r\n")
    if not rest:
        return None
    empty = len(io.StringIO(body[: len(body) - len(rest)], newline=None).readlines())
    found = Dialect(_without_mark(encoding, head), ",", options.quote, True, (), options.skip_rows + empty)
    delimiter = options.delimiter or _delimiter_of(rest, source, found, whole)
    found = replace(found, delimiter=delimiter)
    records = _first_records(rest, source, found, whole)
    header = options.header if options.header is not None else looks_like_header(records)
    named = records[0] if header else [""] * len(records[0])
    alone = header and whole and len(records) == 1
    return replace(found, header=header, names=unique_names(named), alone=alone)


def _without_mark(encoding: str, head: bytes) -> str:
    """The encoding that also takes off a byte order mark which the options did not mention."""
    if codecs.lookup(encoding).name == "utf-8" and head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    return encoding


def _first_records(text: str, source: Source, dialect: Dialect, whole: bool) -> list[list[str]]:
    found: list[list[str]] = []
    for _, record in _records(source, dialect, io.StringIO(text, newline="")):
        if record:
            found.append(record)
        if len(found) > _HEAD_RECORDS:
            return found
    # the last record of a piece may be cut
    return found if whole or len(found) < 2 else found[:-1]


def _delimiter_of(text: str, source: Source, dialect: Dialect, whole: bool) -> str:
    """The character that cuts most records into the same number of fields, and into most fields."""
    best, best_score = ",", (0.0, 0)
    for delimiter in _DELIMITERS:
        records = _first_records(text, source, replace(dialect, delimiter=delimiter), whole)
        (width, count), *_ = Counter(len(record) for record in records).most_common(1)
        score = (count / len(records) if width > 1 else 0.0, width)
        if score > best_score:
            best, best_score = delimiter, score
    return best


def looks_like_header(records: Sequence[Sequence[str]]) -> bool:
    """Whether the first record names the columns: texts all, not a number, date or truth value among them."""
    first = records[0]
    return any(first) and all(kind_of(field.strip()) == "text" for field in first)

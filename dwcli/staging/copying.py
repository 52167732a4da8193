"""One batch of rows into a table, by binary COPY.

Each column travels in the type its frame has. Where the table's column has another type (text that is
to become an interval, a whole number in a numeric column), the batch goes into a temporary table first
and PostgreSQL casts it, which knows its types best.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import psycopg
import pyarrow as pa
from pgpq import ArrowToPostgresBinaryEncoder
from pgpq.encoders import StringViewEncoderBuilder
from pgpq.schema import Jsonb
from psycopg import sql

from dwcli import crashpoints
from dwcli.ahead import ahead
from dwcli.errors import KeyRefused, ValueRefused, WarehouseError
from dwcli.staging.dw_schema import (
    BOUNDED,
    FLOATS,
    NUMBERS,
    PROVISIONAL,
    Table,
    base_type,
    cast_sql,
    postgres_type,
    run_ddl,
    scale_of,
    type_sql,
    wider,
)
from dwcli.staging.frames import Types
from dwcli.staging.trouble import trouble

#: Rows that are encoded at once, and bytes that are sent in one message: small enough that the processor's
#: cache holds them from end to end. Messages of megabytes cost the server a fifth more.
SLICE_ROWS = 4_096
MESSAGE_BYTES = 64 * 1024
#: The escape of NUL in JSON, or a pair of backslashes, which is kept: what follows it is no escape.
ESCAPED_NUL = r"(\\\\)|\\u0000"
#: Types whose binary form is their text.
AS_TEXT = ("text", "varchar", "json", "xml", "citext", PROVISIONAL)


def holdable(frame: pl.DataFrame, declared: Types) -> tuple[pl.DataFrame, dict[str, int]]:
    """Take out of a batch what PostgreSQL cannot hold, and count it.

    NUL has no place in any text of PostgreSQL, so it is removed; so is its escape in jsonb. Nanoseconds
    are cut to microseconds.
    """
    changed: dict[str, int] = {}
    fixed: list[pl.Expr] = []
    for name, dtype in frame.schema.items():
        column = frame[name]
        if dtype == pl.String:
            without = _without_nul(column, declared.get(name) in ("json", "jsonb"))
            if without is not column and (removed := int((without != column).sum())):
                changed[f"{name}: NUL removed"] = removed
                fixed.append(pl.lit(without))
        elif dtype == pl.Time or (isinstance(dtype, pl.Datetime | pl.Duration) and dtype.time_unit == "ns"):
            finer = int(((column.to_physical() % 1000) != 0).sum())
            if finer:
                changed[f"{name}: nanoseconds cut"] = finer
    return (frame.with_columns(fixed) if fixed else frame), changed


def _without_nul(column: pl.Series, json: bool) -> pl.Series:
    """The column without NUL and, in JSON, without its escape; itself where there is none."""
    if _has_nul(column):
        column = column.str.replace_all("\0", "", literal=True)
    if json and column.str.contains(r"\u0000", literal=True).any():
        column = column.str.replace_all(ESCAPED_NUL, "${1}")
    return column


def _has_nul(column: pl.Series) -> bool:
    """Whether NUL is in any of these texts: looked for in some thousand of them at once."""
    for start in range(0, column.len(), SLICE_ROWS):
        texts = column.slice(start, SLICE_ROWS).to_arrow(compat_level=pl.CompatLevel.oldest()).buffers()[2]
        if texts and not np.frombuffer(texts, np.uint8).min():
            return True
    return False


@dataclass
class OpenCopy:
    """A COPY under way. While it is, its session takes no other statement."""

    into: Table
    wire: Types
    cursor: psycopg.Cursor
    copy: psycopg.Copy
    #: ends the COPY: by CopyDone, or by CopyFail when an error passes through
    stack: contextlib.ExitStack
    encoder: ArrowToPostgresBinaryEncoder | None = None
    rows: int = 0


def copy_frame(
    connection: psycopg.Connection,
    sink: Table,
    frame: pl.DataFrame,
    have: Types,
    running: OpenCopy | None,
    changed: dict[str, int],
) -> OpenCopy | None:
    """COPY a frame into a table, whose columns its columns are named as.

    have: the PostgreSQL type of each column as the frame holds it. running: the COPY that an earlier
    call left open; it goes on where it can, and is ended where not. Returns the one that is open now.
    changed: gets how many values a narrower column rounds or cuts, which PostgreSQL does in silence.
    Raises ValueRefused, KeyRefused, for rows of earlier calls too.
    """
    wire = {column: _wire_type(have[column], frame.schema[column]) for column in frame.columns}
    with refusals(sink):
        if all(_same_form(wire[column], sink.columns[column]) for column in frame.columns):
            if running is None or (running.into.identifier, running.wire) != (sink.identifier, wire):
                end_copy(running)
                running = _begin_copy(connection, sink, wire)
            with _abandoned_on_error(running):
                _send(running, frame)
            changed.update(_rounded_decimals(frame, sink))
            return running
        end_copy(running)
        batch = Table("", "dw_batch", wire)
        create_temporary(connection, batch)
        own = _begin_copy(connection, batch, wire)
        with _abandoned_on_error(own):
            _send(own, frame)
        end_copy(own)
        _insert_cast(connection, batch, sink)
        changed.update(_rounded_decimals(frame, sink) | _changed_by_cast(connection, batch, sink))
        connection.execute(sql.SQL("drop table {}").format(batch.identifier))
        return None


def _wire_type(kind: str, dtype: pl.DataType) -> str:
    """The type in which a column travels: its own where the frame holds its values, else text."""
    if dtype == pl.String:
        return kind if kind == "jsonb" or kind in AS_TEXT else "text"
    if dtype == pl.Null:
        return "text"
    return postgres_type(dtype)


def _same_form(wire: str, column: str) -> bool:
    """Whether a column's binary form on the wire is the one the table's column reads."""
    ours, theirs = base_type(wire), base_type(column)
    return ours == theirs or (ours in AS_TEXT and theirs in AS_TEXT)


def _begin_copy(connection: psycopg.Connection, into: Table, wire: Types) -> OpenCopy:
    statement = sql.SQL("copy {} ({}) from stdin (format binary)").format(into.identifier, listed(list(wire)))
    stack = contextlib.ExitStack()
    cursor = connection.cursor()
    return OpenCopy(into, wire, cursor, stack.enter_context(cursor.copy(statement)), stack)


def _send(running: OpenCopy, frame: pl.DataFrame) -> None:
    # Encoded ahead, so that the server never waits for the next part.
    with contextlib.closing(ahead(_encoded(running, frame))) as parts:
        for part in parts:
            for start in range(0, len(part), MESSAGE_BYTES):
                running.copy.write(memoryview(part)[start : start + MESSAGE_BYTES])
            crashpoints.reached("copy")
    running.rows += frame.height


def _encoded(running: OpenCopy, frame: pl.DataFrame) -> Iterator[bytes]:
    """A frame in PostgreSQL's binary COPY form, in parts of SLICE_ROWS rows."""
    for batch in _arrow(frame, running.wire).to_batches(SLICE_ROWS):
        if running.encoder is None:
            running.encoder = _encoder(batch.schema, running.wire)
            yield running.encoder.write_header()
        yield running.encoder.write_batch(batch)


def end_copy(running: OpenCopy | None) -> None:
    """End a COPY, if there is one, and see that PostgreSQL took every row. Raises what it refused."""
    if running is None:
        return
    with refusals(running.into):
        with running.stack:
            if running.encoder is not None:
                running.copy.write(running.encoder.finish())
        if running.cursor.rowcount != running.rows:
            raise WarehouseError(f"PostgreSQL took {running.cursor.rowcount} of {running.rows} rows")


def abandon_copy(running: OpenCopy | None, error: BaseException) -> None:
    """Break off a COPY, so that the session can roll back. One that has been broken off stays so."""
    if running is not None:
        with contextlib.suppress(Exception):
            running.stack.__exit__(type(error), error, error.__traceback__)


@contextlib.contextmanager
def _abandoned_on_error(running: OpenCopy) -> Iterator[None]:
    """Whoever began a COPY may not know of it yet: left open, it would make the ROLLBACK wait for ever."""
    try:
        yield
    except BaseException as error:
        abandon_copy(running, error)
        raise


def _encoder(schema: pa.Schema, wire: Types) -> ArrowToPostgresBinaryEncoder:
    encoders = {field.name: ArrowToPostgresBinaryEncoder.infer_encoder(field) for field in schema}
    for field_ in schema:
        if wire[field_.name] == "jsonb":
            encoders[field_.name] = StringViewEncoderBuilder.new_with_output(field_, Jsonb())
    return ArrowToPostgresBinaryEncoder.new_with_encoders(schema, encoders)


def _arrow(frame: pl.DataFrame, wire: Types) -> pa.Table:
    """A frame as Arrow, in the forms the encoder knows. Strings stay views: no byte is copied."""
    casts: list[pl.Expr] = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        if dtype == pl.Null:
            casts.append(column.cast(pl.String))
        elif dtype.is_integer() and wire[name] == "bigint" and dtype != pl.Int64:
            casts.append(column.cast(pl.Int64))
        elif dtype == pl.Float32:
            casts.append(column.cast(pl.Float64))
        elif isinstance(dtype, pl.Datetime | pl.Duration) and dtype.time_unit != "us":
            unit = pl.Datetime("us", "UTC") if isinstance(dtype, pl.Datetime) else pl.Duration("us")
            casts.append(column.cast(unit))
    table = frame.with_columns(casts).to_arrow(compat_level=pl.CompatLevel.newest())
    schema = pa.schema([pa.field(f.name, _arrow_form(f.type), f.nullable) for f in table.schema])
    return table if schema.equals(table.schema) else table.cast(schema, safe=False)


def _arrow_form(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_time64(kind):
        return pa.time64("us")
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    return kind


def _insert_cast(connection: psycopg.Connection, batch: Table, sink: Table) -> None:
    columns = list(batch.columns)
    casts = [cast_sql(name, batch.columns[name], sink.columns[name]) for name in columns]
    connection.execute(
        sql.SQL("insert into {} ({}) select {} from {}").format(
            sink.identifier, listed(columns), sql.SQL(", ").join(casts), batch.identifier
        )
    )


def _rounded_decimals(frame: pl.DataFrame, sink: Table) -> dict[str, int]:
    """How many decimals have more digits after the point than their column."""
    found: dict[str, int] = {}
    for name, dtype in frame.schema.items():
        kind = sink.columns[name]
        if not isinstance(dtype, pl.Decimal) or base_type(kind) != "numeric":
            continue
        surplus = dtype.scale - scale if (scale := scale_of(kind)) is not None else 0
        if surplus > 0:
            rounded = int((frame[name].to_physical() % 10**surplus != 0).sum())
            found |= {f"{name}: rounded to {kind}": rounded} if rounded else {}
    return found


def _changed_by_cast(connection: psycopg.Connection, batch: Table, sink: Table) -> dict[str, int]:
    """How many values of a batch that has been cast are not what they were.

    Only columns whose type is narrower than what came can have any: those with a type under `columns:`.
    """
    counts: dict[str, sql.Composed] = {}
    for name, have in batch.columns.items():
        want = sink.columns[name]
        ours, theirs = base_type(want), base_type(have)
        if wider(want, have) == want or ours == theirs == "numeric":
            continue
        if ours in NUMBERS and (theirs in NUMBERS or (theirs in AS_TEXT and ours not in FLOATS)):
            # infinity is no numeric before PostgreSQL 14
            unlike = (
                "case when {0}::text like '%Infinity' then false"
                " else {0}::text::numeric <> ({1})::text::numeric end"
            )
            word = "rounded"
        elif ours in BOUNDED:
            unlike, word = "rtrim({0}::text) <> rtrim(({1})::text)", "cut"
        else:
            continue
        counts[f"{name}: {word} to {want}"] = sql.SQL(f"count(*) filter (where {unlike})").format(
            sql.Identifier(name), cast_sql(name, have, want)
        )
    if not counts:
        return {}
    query = sql.SQL("select {} from {}").format(sql.SQL(", ").join(counts.values()), batch.identifier)
    row = connection.execute(query).fetchone()
    assert row is not None
    return {words: number for words, number in zip(counts, row, strict=True) if number}


def listed(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def create_temporary(connection: psycopg.Connection, table: Table) -> None:
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), type_sql(kind)) for name, kind in table.columns.items()
    )
    run_ddl(
        connection,
        sql.SQL("create temporary table {} ({}) on commit drop").format(table.identifier, columns),
        table,
    )


@contextlib.contextmanager
def refusals(table: Table) -> Iterator[None]:
    """PostgreSQL's refusal of a value, a row or a key as one of ours; its DETAIL holds data and stays out."""
    try:
        yield
    except psycopg.errors.UniqueViolation as error:
        raise KeyRefused(
            f"a row with the same {error.diag.constraint_name or 'key'} is in {table.name} already",
            why="the table has a unique constraint",
            hint="use write: merge with that key, or drop the constraint",
        ) from error
    except (psycopg.errors.NotNullViolation, psycopg.errors.CheckViolation) as error:
        raise ValueRefused(
            f"{table.name} refuses a row",
            why=(error.diag.message_primary or "").split(" of relation")[0],
            hint="mend the row at the source, or drop the constraint",
        ) from error
    except psycopg.OperationalError as error:
        raise (trouble(error, table.name) or error) from error
    except psycopg.DataError as error:
        raise ValueRefused(
            f"a value does not fit into {table.name}{_column_of(error)}",
            why=_without_values(error.diag.message_primary or str(error)),
            hint="set a wider type for the column under columns: in the source file, such as text",
        ) from error
    except pl.exceptions.PolarsError as error:
        raise ValueRefused(
            f"a value does not fit into {table.name}", why=str(error).split("\n")[0]
        ) from error


def _column_of(error: psycopg.Error) -> str:
    context = error.diag.context or ""
    _, found, column = context.partition(", column ")
    return f", column {column.split(':')[0].split(chr(10))[0]}" if found else ""


def _without_values(message: str) -> str:
    """A message without the value it quotes at its end: `invalid input syntax for type date: "x"`."""
    head, found, _ = message.partition(': "')
    return head if found else message

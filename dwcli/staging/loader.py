"""Parquet → PostgreSQL: COPY, then append, replace or merge, in the caller's transaction.

    open_load ─▶ load_file / load_frame … ─▶ finish_load

**Where rows go at first.** A table that this transaction makes, a replace, and an append without a
cursor take rows straight into the target. A merge, and an append that reads its boundary again, take
them into a temporary table first, so that nobody's rows are touched, and no column changed, before
everything has arrived. Readers see the table as it was until COMMIT: a replace deletes, it does not
truncate, so they are not blocked either.

**How a batch goes.** By binary COPY, each column in the type its frame has. Where the table's column
has another type (text that is to become an interval, a whole number in a numeric column), the batch
is copied into a temporary table of its own and cast by PostgreSQL, which knows its types best.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pyarrow as pa
from pgpq import ArrowToPostgresBinaryEncoder
from pgpq.encoders import StringViewEncoderBuilder
from pgpq.schema import Jsonb
from psycopg import sql
from sqlalchemy import Connection, Engine
from sqlalchemy import text as sql_text

from dwcli.contract import WriteDisposition
from dwcli.errors import DwError, KeyRefused, LakeError, SchemaRefused, ValueRefused, WarehouseError
from dwcli.log import get_logger
from dwcli.staging.audit import merged_counts
from dwcli.staging.dw_schema import (
    ADDED_COLUMNS,
    PROVISIONAL,
    Change,
    Table,
    base_type,
    canonical,
    cast_sql,
    ensure_catalogue,
    ensure_table,
    ensure_table_exists,
    evolve,
    fold_name,
    frame_types,
    is_postgres,
    names_for,
    planned,
    postgres_type,
    raw,
    read_table,
    run_ddl,
    transaction,
    type_sql,
)
from dwcli.staging.frames import Types, settle
from dwcli.staging.writer import read_types

#: Rows that are encoded at once: bounds the encoder's buffer, not the COPY.
SLICE_ROWS = 16_384
LOCK_TIMEOUT = "5s"

log = get_logger(__name__)


@dataclass(frozen=True)
class LoadPlan:
    """How a snapshot meets the table.

    key, cursor and overrides speak of source columns. boundary: the cursor value, as text, from which
    this snapshot was read; an append compares the rows that stand exactly there with the table's.
    fresh: forget what the table holds (a full refresh). replaces: column → value of rows that the
    snapshot supersedes. contract `freeze` refuses every change of the schema.
    """

    write: WriteDisposition = "append"
    key: tuple[str, ...] = ()
    cursor: str | None = None
    boundary: str | None = None
    run_id: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    contract: str = "evolve"
    fresh: bool = False


@dataclass
class Load:
    """A load under way. `sink` is where rows go now: the target itself, or a temporary table."""

    connection: psycopg.Connection
    plan: LoadPlan
    schema: str
    table: str
    target: Table | None
    sink: Table | None = None
    rows: int = 0
    deleted: int = 0
    changes: list[Change] = field(default_factory=list)
    values_changed: dict[str, int] = field(default_factory=dict)
    replaces: list[Mapping[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Counts:
    """What a load did to the table."""

    rows: int
    inserted: int
    updated: int
    deleted: int


def load_parquet_files_to_dw(
    engine: Engine | Connection, parquet_paths: Sequence[str | Path], table_name: str, schema: str = "public"
) -> int:
    """Append Parquet files to a table, which is made or widened as they need. Returns the rows inserted.

    Each row gets `_source_file`, the path it came from. All files go in one transaction: with an
    Engine it is committed here, with a Connection it is the caller's. Works on SQLite too.

    Raises FileNotFoundError before anything is loaded when a path is missing; LakeError for a file that
    is not readable Parquet; ValueRefused, SchemaRefused.
    """
    for path in parquet_paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"Parquet file not found: {path}")
    with transaction(engine) as connection:
        if not is_postgres(connection):
            return sum(_load_sqlite(connection, Path(path), table_name) for path in parquet_paths)
        load = open_load(raw(connection), schema, table_name, LoadPlan())
        for path in parquet_paths:
            load_file(load, Path(path), str(path))
        return finish_load(load).rows


def _load_sqlite(connection: Connection, path: Path, table_name: str) -> int:
    frame = _read(path).with_columns(pl.lit(str(path)).alias("_source_file"))
    ensure_table_exists(connection, table_name, frame)
    quote = connection.dialect.identifier_preparer.quote_identifier
    names = ", ".join(quote(name) for name in frame.columns).replace(":", r"\:")
    places = ", ".join(f":c{number}" for number in range(frame.width))
    statement = sql_text(f"INSERT INTO {quote(table_name)} ({names}) VALUES ({places})")  # noqa: S608
    rows = [
        {f"c{number}": _sqlite_value(value) for number, value in enumerate(row)} for row in frame.iter_rows()
    ]
    if rows:
        connection.execute(statement, rows)
    log.info("loaded %d rows from %s", len(rows), path)
    return len(rows)


def _sqlite_value(value: Any) -> Any:
    if value is None or isinstance(value, int | float | str | bytes):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


# -- a load, step by step -----------------------------------------------------------------------------


def open_load(connection: psycopg.Connection, schema: str, table: str, plan: LoadPlan) -> Load:
    """Begin to load into a table, which need not exist yet. The caller's transaction is open."""
    connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
    ensure_catalogue(connection)
    load = Load(connection, plan, schema, table, read_table(connection, schema, table))
    if load.target is not None and plan.write == "replace":
        load.deleted = _delete_all(load)
    return load


def _delete_all(load: Load) -> int:
    assert load.target is not None
    return load.connection.execute(sql.SQL("delete from {}").format(load.target.identifier)).rowcount


def load_file(load: Load, path: Path, label: str) -> int:
    """Load one Parquet file. `label` becomes `_source_file`. Returns its rows."""
    frame = _read(path)
    return load_frame(load, frame, read_types(path), label, datetime.fromtimestamp(path.stat().st_mtime, UTC))


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, memory_map=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LakeError(f"{path} cannot be read as Parquet", why=str(error).split("\n")[0]) from error


def load_frame(load: Load, frame: pl.DataFrame, declared: Types, label: str, ingested_at: datetime) -> int:
    """Load one batch into the sink, after making or widening it. Returns its rows."""
    frame, declared = settle(frame, dict(declared))
    frame, changed = _holdable(frame, declared)
    load.values_changed = merged_counts([load.values_changed, changed])
    types = frame_types(frame, declared) | {
        name: canonical(kind) for name, kind in load.plan.overrides.items() if name in frame.columns
    }
    _widen_sink(load, types, frame)
    assert load.sink is not None
    if frame.height:
        _copy(load, frame, frame_types(frame, declared), label, ingested_at)
    load.rows += frame.height
    log.info("loaded %d rows from %s", frame.height, label)
    return frame.height


def _widen_sink(load: Load, types: Types, frame: pl.DataFrame) -> None:
    """Make the sink, or widen it, so that a batch of these types goes into it."""
    if load.sink is not None and load.sink.schema == "":
        assert load.target is not None
        named = replace(load.sink, names={**load.sink.names, **names_for(load.target, types)})
        load.sink, _ = evolve(load.connection, named, types, frame)
    elif load.sink is None and _is_staged(load):
        load.sink = _create_stage(load, types)
    else:
        load.target = load.sink = _ensure_target(load, types, frame)


def _is_staged(load: Load) -> bool:
    """Whether rows wait in a temporary table until all have arrived."""
    if load.target is None:
        return False
    if load.plan.write == "merge":
        return True
    return load.plan.write == "append" and load.plan.cursor is not None and load.plan.boundary is not None


def _ensure_target(load: Load, types: Types, frame: pl.DataFrame | None) -> Table:
    plan = load.plan
    if load.target is None or load.plan.contract == "evolve":
        if load.target is None:
            table, changes = ensure_table(load.connection, load.schema, load.table, types, frame, plan.run_id)
        else:
            table, changes = evolve(load.connection, load.target, types, frame, plan.run_id)
        load.changes += changes
        return table
    return _frozen(load.target, types, frame)


def _frozen(table: Table, types: Types, frame: pl.DataFrame | None) -> Table:
    """The table, if these types go into it as it is. Raises SchemaRefused under `contract: freeze`."""
    grown, changes = planned(table, types, frame)
    if changes:
        raise SchemaRefused(
            "the source's schema has changed, and the contract is freeze: "
            + "; ".join(change.words for change in changes),
            hint="allow it with contract: evolve, or leave the column out of the query",
        )
    return grown


def _create_stage(load: Load, types: Types) -> Table:
    """A temporary table for the whole load, with the target's names for its columns."""
    assert load.target is not None
    names = names_for(load.target, types)
    columns = {names[source]: kind for source, kind in types.items()} | ADDED_COLUMNS
    stage = Table("", "dw_stage", columns, names)
    _create_temporary(load.connection, stage)
    return stage


def _create_temporary(connection: psycopg.Connection, table: Table) -> None:
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), type_sql(kind)) for name, kind in table.columns.items()
    )
    run_ddl(
        connection,
        sql.SQL("create temporary table {} ({}) on commit drop").format(table.identifier, columns),
        table,
    )


# -- one batch ----------------------------------------------------------------------------------------


def _holdable(frame: pl.DataFrame, declared: Types) -> tuple[pl.DataFrame, dict[str, int]]:
    """Take out of a batch what PostgreSQL cannot hold, and count it.

    NUL has no place in any text of PostgreSQL, so it is removed; so is its escape in jsonb. Nanoseconds
    are cut to microseconds.
    """
    changed: dict[str, int] = {}
    fixed: list[pl.Expr] = []
    for name, dtype in frame.schema.items():
        column = frame[name]
        if dtype == pl.String:
            for mark in ("\0", r"\u0000") if declared.get(name) in ("json", "jsonb") else ("\0",):
                found = column.str.contains(mark, literal=True)
                if found.any():
                    changed[f"{name}: NUL removed"] = int(found.sum())
                    column = column.str.replace_all(mark, "", literal=True)
            if column is not frame[name]:
                fixed.append(pl.lit(column))
        elif dtype == pl.Time or (isinstance(dtype, pl.Datetime | pl.Duration) and dtype.time_unit == "ns"):
            finer = int(((column.to_physical() % 1000) != 0).sum())
            if finer:
                changed[f"{name}: nanoseconds cut"] = finer
    return (frame.with_columns(fixed) if fixed else frame), changed


def _copy(load: Load, frame: pl.DataFrame, have: Types, label: str, ingested_at: datetime) -> None:
    """COPY a batch into the sink, through a temporary table where PostgreSQL must cast."""
    sink = load.sink
    assert sink is not None
    extra = {
        "_source_file": pl.lit(label),
        "_ingested_at": pl.lit(ingested_at, dtype=pl.Datetime("us", "UTC")),
        "_run_id": pl.lit(load.plan.run_id, dtype=pl.String),
    }
    names = {column: sink.names[column] for column in frame.columns}
    frame = frame.rename(names).with_columns(**extra)
    have = {names[column]: kind for column, kind in have.items()} | {c: ADDED_COLUMNS[c] for c in extra}
    wire = {column: _wire_type(have[column], frame.schema[column]) for column in frame.columns}
    direct = all(_same_form(wire[column], sink.columns[column]) for column in frame.columns)
    with _refusals(load.connection, sink):
        if direct:
            _copy_binary(load.connection, sink.identifier, frame, wire)
        else:
            batch = Table("", "dw_batch", wire)
            _create_temporary(load.connection, batch)
            _copy_binary(load.connection, batch.identifier, frame, wire)
            _insert_cast(load.connection, batch, sink)
            load.connection.execute(sql.SQL("drop table {}").format(batch.identifier))


#: Types whose binary form is their text.
_AS_TEXT = ("text", "varchar", "json", "xml", "citext", PROVISIONAL)


def _wire_type(kind: str, dtype: pl.DataType) -> str:
    """The type in which a column travels: its own where the frame holds its values, else text."""
    if dtype == pl.String:
        return kind if kind == "jsonb" or kind in _AS_TEXT else "text"
    if dtype == pl.Null:
        return "text"
    return postgres_type(dtype)


def _same_form(wire: str, column: str) -> bool:
    """Whether a column's binary form on the wire is the one the table's column reads."""
    ours, theirs = base_type(wire), base_type(column)
    return ours == theirs or (ours in _AS_TEXT and theirs in _AS_TEXT)


def _copy_binary(
    connection: psycopg.Connection, into: sql.Identifier, frame: pl.DataFrame, wire: Types
) -> None:
    columns = sql.SQL(", ").join(sql.Identifier(name) for name in frame.columns)
    statement = sql.SQL("copy {} ({}) from stdin (format binary)").format(into, columns)
    with connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            for part in encoded(frame, wire):
                copy.write(part)
        if cursor.rowcount != frame.height:
            raise WarehouseError(f"PostgreSQL took {cursor.rowcount} of {frame.height} rows")


def encoded(frame: pl.DataFrame, wire: Types) -> Iterator[bytes]:
    """A frame in PostgreSQL's binary COPY form, in parts of SLICE_ROWS rows."""
    encoder = None
    for start in range(0, frame.height, SLICE_ROWS):
        table = _arrow(frame.slice(start, SLICE_ROWS), wire)
        for batch in table.to_batches():
            if encoder is None:
                encoder = _encoder(batch.schema, wire)
                yield encoder.write_header()
            yield encoder.write_batch(batch)
    if encoder is not None:
        yield encoder.finish()


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
    fields = [
        pa.field(f.name, _arrow_form(f.type), f.nullable) if _arrow_form(f.type) != f.type else f
        for f in table.schema
    ]
    return table.cast(pa.schema(fields), safe=False)


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
            sink.identifier, _listed(columns), sql.SQL(", ").join(casts), batch.identifier
        )
    )


def _listed(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


@contextlib.contextmanager
def _refusals(connection: psycopg.Connection, table: Table) -> Iterator[None]:
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
    except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
        raise WarehouseError(
            "the warehouse has no room left",
            why=error.diag.message_primary or "",
            hint="free space on the warehouse's disk, then run it again; nothing was changed",
        ) from error
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


# -- the end of a load --------------------------------------------------------------------------------


def finish_load(load: Load) -> Counts:
    """Bring what has arrived into the target, by the plan's write disposition. Nothing is committed."""
    with _refusals(load.connection, load.target or Table(load.schema, load.table)):
        load.deleted += _delete_replaced(load)
        if load.sink is None:
            return Counts(0, 0, 0, load.deleted)
        if load.sink.schema == "":
            return _finish_staged(load)
        if load.plan.write == "merge":
            return _finish_first_merge(load)
        return Counts(load.rows, load.rows, 0, load.deleted)


def _delete_replaced(load: Load) -> int:
    """Delete rows of earlier runs that this snapshot supersedes (a file that changed)."""
    deleted = 0
    for match in load.replaces:
        if load.target is None or load.target.created:
            continue
        names = {source: load.target.names.get(source, fold_name(source)) for source in match}
        if not all(column in load.target.columns for column in names.values()):
            continue
        conditions = [
            sql.SQL("{}::text = {}").format(sql.Identifier(names[source]), sql.Literal(value))
            for source, value in match.items()
        ]
        deleted += load.connection.execute(
            sql.SQL("delete from {} where {} and _run_id is distinct from {}").format(
                load.target.identifier, sql.SQL(" and ").join(conditions), sql.Literal(load.plan.run_id)
            )
        ).rowcount
    return deleted


def _finish_staged(load: Load) -> Counts:
    stage = load.sink
    assert stage is not None and load.target is not None
    types = {source: stage.columns[column] for source, column in stage.names.items()}
    load.target = _ensure_target(load, types, None)
    if load.plan.write == "merge":
        key = _key_columns(load, stage)
        _refuse_null_keys(load, stage, key)
        if load.plan.fresh:
            load.deleted += _delete_all(load)
        inserted, updated = _merge(load, stage, key)
    else:
        inserted, updated = _append_past_boundary(load, stage), 0
    load.connection.execute(sql.SQL("drop table {}").format(stage.identifier))
    return Counts(load.rows, inserted, updated, load.deleted)


def _key_columns(load: Load, table: Table) -> list[str]:
    missing = [name for name in load.plan.key if name not in table.names]
    if missing:
        raise KeyRefused(
            f"the key column {', '.join(missing)} is not in the data",
            hint="correct key: in the source file; columns are: " + ", ".join(table.names),
        )
    return [table.names[name] for name in load.plan.key]


def _refuse_null_keys(load: Load, table: Table, key: Sequence[str]) -> None:
    condition = sql.SQL(" or ").join(sql.SQL("{} is null").format(sql.Identifier(name)) for name in key)
    count = _one(load, sql.SQL("select count(*) from {} where {}").format(table.identifier, condition))
    if count:
        raise KeyRefused(
            f"{count:,} of {load.rows:,} rows have no value in the key ({', '.join(key)})",
            why="rows without a key cannot be told apart, so a merge would load them again at every run",
            hint="choose another key:, filter them out in query:, or use write: append",
        )


def _one(load: Load, query: sql.Composed) -> int:
    row = load.connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def _newest_first(load: Load, table: Table, key: Sequence[str]) -> sql.Composed:
    """Of several rows with one key the newest wins: by the cursor, then by arrival (ctid)."""
    cursor = table.names.get(load.plan.cursor or "")
    newest = sql.SQL("{} desc nulls last, ").format(sql.Identifier(cursor)) if cursor else sql.SQL("")
    return sql.SQL("{}, {}ctid desc").format(_listed(key), newest)


def _merge(load: Load, stage: Table, key: list[str]) -> tuple[int, int]:
    """Insert new rows and update changed ones; rows that are the same already are left alone."""
    target = load.target
    assert target is not None
    _ensure_unique(load, target, key)
    columns = list(stage.columns)
    columns.remove("_loaded_at")
    casts = [cast_sql(name, stage.columns[name], target.columns[name]) for name in columns]
    values = [name for name in columns if name not in key and name not in ADDED_COLUMNS]
    updates = [name for name in columns if name not in key]
    load.connection.execute(sql.SQL("analyze {}").format(stage.identifier))
    row = load.connection.execute(
        sql.SQL(
            "with merged as (insert into {target} as old ({columns})"
            " select {casts} from (select distinct on ({key}) * from {stage} order by {order}) as new"
            " on conflict ({key}) {action} returning xmax = 0 as inserted)"
            " select count(*) filter (where inserted), count(*) filter (where not inserted) from merged"
        ).format(
            target=target.identifier,
            columns=_listed(columns),
            casts=sql.SQL(", ").join(casts),
            key=_listed(key),
            stage=stage.identifier,
            order=_newest_first(load, stage, key),
            action=_update_action(load, target, stage, values, updates),
        )
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _update_action(
    load: Load, target: Table, stage: Table, values: Sequence[str], updates: Sequence[str]
) -> sql.Composable:
    if not values:
        return sql.SQL("do nothing")
    sets = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in updates]
    sets.append(sql.Composed([sql.SQL("_loaded_at = now()")]))
    differs = [
        sql.SQL("old.{0}{1} is distinct from excluded.{0}{1}").format(
            sql.Identifier(name), sql.SQL(_comparable(target.columns[name]))
        )
        for name in values
    ]
    condition = sql.SQL("({})").format(sql.SQL(" or ").join(differs))
    if load.plan.cursor and load.plan.cursor in stage.names:
        # A row that was read late must not put back what a newer run has written.
        condition = sql.SQL("{0} and (old.{1} <= excluded.{1} or (old.{1} <= excluded.{1}) is null)").format(
            condition, sql.Identifier(stage.names[load.plan.cursor])
        )
    return sql.SQL("do update set {} where {}").format(sql.SQL(", ").join(sets), condition)


def _comparable(kind: str) -> str:
    """json and xml have no equality of their own; their text has."""
    return "::text" if base_type(kind) in ("json", "xml", "point", "polygon") else ""


def _ensure_unique(load: Load, target: Table, key: Sequence[str]) -> None:
    """A unique index on exactly the key, which ON CONFLICT needs."""
    found = load.connection.execute(
        """
        select 1 from pg_index i join pg_class c on c.oid = i.indrelid
        join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = %s and c.relname = %s and i.indisunique and i.indisvalid and i.indimmediate
          and i.indpred is null and i.indexprs is null
          and (select array_agg(a.attname::text order by a.attname::text) from pg_attribute a
               where a.attrelid = c.oid and a.attnum = any(i.indkey::int2[])) = %s::text[]
        """,
        (target.schema, target.name, sorted(key, key=lambda name: name.encode())),
    ).fetchone()
    if found is None:
        _create_unique(load, target, key)


def _create_unique(load: Load, target: Table, key: Sequence[str]) -> None:
    name = fold_name(f"{target.name}_{'_'.join(key)}_dw_key")
    statement = sql.SQL("create unique index if not exists {} on {} ({})").format(
        sql.Identifier(name), target.identifier, _listed(key)
    )
    try:
        load.connection.execute(statement)
    except psycopg.errors.UniqueViolation as error:
        raise KeyRefused(
            f"{target.name} holds rows with the same key ({', '.join(key)}): nothing can be merged",
            hint="choose another key:, or load it anew: dw run NAME --full-refresh",
        ) from error


def _finish_first_merge(load: Load) -> Counts:
    """The rows of a first merge stand in a table nobody has seen: keep the newest of each key there."""
    table = load.target
    assert table is not None
    key = _key_columns(load, table)
    _refuse_null_keys(load, table, key)
    removed = load.connection.execute(
        sql.SQL(
            "delete from {table} where ctid in (select ctid from (select ctid, row_number() over"
            " (partition by {key} order by {order}) as place from {table}) as numbered where place > 1)"
        ).format(table=table.identifier, key=_listed(key), order=_newest_first(load, table, key))
    ).rowcount
    _create_unique(load, table, key)
    return Counts(load.rows, load.rows - removed, 0, load.deleted)


def _append_past_boundary(load: Load, stage: Table) -> int:
    """Append rows beyond the boundary, and those exactly at it that the table does not hold yet.

    The boundary is read again at every run, since rows with the same cursor value may have come after
    the last one. What is there already is taken off row by row: two equal rows at the source are two
    in the table.
    """
    target = load.target
    assert target is not None and load.plan.cursor is not None
    cursor = sql.Identifier(_cursor_column(load, stage))
    kind = stage.columns[stage.names[load.plan.cursor]]
    start = sql.SQL("{}::{}").format(sql.Literal(load.plan.boundary), type_sql(kind))
    columns = [name for name in stage.columns if name not in ADDED_COLUMNS]
    every = [*columns, "_source_file", "_ingested_at", "_run_id"]
    casts = sql.SQL(", ").join(cast_sql(name, stage.columns[name], target.columns[name]) for name in every)
    same = sql.SQL(", ").join(cast_sql(n, stage.columns[n], target.columns[n]) for n in columns)
    # The n-th of equal rows in the stage is new when the table holds fewer than n of them.
    statement = """
        insert into {target} ({every}) select {casts} from {stage} where ctid not in (
            select ctid from (
                select ctid, spelled, row_number() over (partition by spelled order by ctid) as place
                from (select ctid, row({same})::text as spelled from {stage}
                      where {cursor} = {start} or {cursor} is null) as at_boundary) as ours
            join (select row({columns})::text as spelled, count(*) as held from {target}
                  where {cursor} = {start} or {cursor} is null group by 1) as theirs using (spelled)
            where place <= held)
    """
    return load.connection.execute(
        sql.SQL(statement).format(
            target=target.identifier,
            every=_listed(every),
            casts=casts,
            stage=stage.identifier,
            same=same,
            columns=_listed(columns),
            cursor=cursor,
            start=start,
        )
    ).rowcount


def _cursor_column(load: Load, table: Table) -> str:
    assert load.plan.cursor is not None
    if load.plan.cursor not in table.names:
        raise DwError(
            f"the cursor column {load.plan.cursor} is not in the data",
            hint="correct cursor: in the source file; columns are: " + ", ".join(table.names),
        )
    return table.names[load.plan.cursor]

"""Parquet → PostgreSQL: COPY, then append, replace or merge, in the caller's transaction.

    open_load ─▶ load_file / load_frame … ─▶ finish_load

**Where rows go at first.** A table that this transaction makes, a replace, and an append without a
cursor take rows straight into the target. A merge, and an append that reads its boundary again, take
them into a temporary table first, so that nobody's rows are touched, and no column changed, before
everything has arrived. Readers see the table as it was until COMMIT: a replace deletes, it does not
truncate, so they are not blocked either. A changed column does block them, so rows that need one wait
in a temporary table too, and the change comes last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import psycopg
from psycopg import sql

from dwcli import crashpoints
from dwcli.contract import KEYED
from dwcli.errors import LakeError, SchemaRefused
from dwcli.log import get_logger
from dwcli.staging.audit import merged_counts
from dwcli.staging.copying import abandon_copy, copy_frame, create_temporary, end_copy, holdable, refusals
from dwcli.staging.deleting import delete_gone
from dwcli.staging.dw_schema import (
    ADDED_COLUMNS,
    Change,
    Table,
    add_run_columns,
    canonical,
    ensure_catalogue,
    ensure_table,
    ensure_table_exists,
    evolve,
    fold_name,
    frame_types,
    is_postgres,
    names_for,
    note_changes,
    planned,
    raw,
    read_table,
    transaction,
)
from dwcli.staging.frames import Types, settle
from dwcli.staging.history import add_versions, begin_history
from dwcli.staging.merging import (
    append_all,
    append_past_boundary,
    create_unique,
    keep_newest,
    key_columns,
    merge,
    refuse_null_keys,
)
from dwcli.staging.plan import Counts, Load, LoadPlan
from dwcli.staging.rejecting import conform, may_refuse
from dwcli.staging.writer import read_types

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

#: How long a change of a table waits for its readers before it gives up.
LOCK_TIMEOUT = "5s"

log = get_logger(__name__)


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
        with open_load(raw(connection), schema, table_name, LoadPlan()) as load:
            for path in parquet_paths:
                load_file(load, Path(path), str(path))
            return finish_load(load).rows


def _load_sqlite(connection: Connection, path: Path, table_name: str) -> int:
    from sqlalchemy import text

    frame = _read(path).with_columns(pl.lit(str(path)).alias("_source_file"))
    ensure_table_exists(connection, table_name, frame)
    quote = connection.dialect.identifier_preparer.quote_identifier
    names = ", ".join(quote(name) for name in frame.columns).replace(":", r"\:")
    places = ", ".join(f":c{number}" for number in range(frame.width))
    statement = text(f"INSERT INTO {quote(table_name)} ({names}) VALUES ({places})")  # noqa: S608
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


@contextlib.contextmanager
def open_load(connection: psycopg.Connection, schema: str, table: str, plan: LoadPlan) -> Iterator[Load]:
    """Begin to load into a table, which need not exist yet. The caller's transaction is open.

    When the block ends with an error, the session can be rolled back, and must be.
    """
    connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
    ensure_catalogue(connection)
    load = Load(connection, plan, schema, table, read_table(connection, schema, table))
    if load.target is not None and plan.write == "replace":
        load.deleted = _delete_all(load)
    try:
        yield load
    except BaseException as error:
        abandon_copy(load.copying, error)
        raise


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
    load.seen.update(frame.columns)
    frame, declared = settle(frame, dict(declared))
    frame, changed = holdable(frame, declared)
    load.values_changed = merged_counts([load.values_changed, changed])
    if may_refuse(load):
        end_rows(load)
        frame, declared = conform(load, frame, frame_types(frame, declared), label)
    types = frame_types(frame, declared) | {
        name: canonical(kind) for name, kind in load.plan.overrides.items() if name in frame.columns
    }
    _widen_sink(load, types, frame)
    assert load.sink is not None
    if frame.height:
        load.ingested_at = load.ingested_at or ingested_at
        _copy_labelled(load, load.sink, frame, frame_types(frame, declared), label)
    load.rows += frame.height
    log.info("loaded %d rows from %s", frame.height, label)
    return frame.height


def _copy_labelled(load: Load, sink: Table, frame: pl.DataFrame, have: Types, label: str) -> None:
    """COPY a batch under the sink's names, with where and when its rows came from."""
    lineage = {
        "_source_file": pl.lit(label),
        "_ingested_at": pl.lit(load.ingested_at, dtype=pl.Datetime("us", "UTC")),
        "_run_id": pl.lit(load.plan.run_id, dtype=pl.String),
    }
    lineage = {column: value for column, value in lineage.items() if column in sink.columns}
    names = {column: sink.names[column] for column in frame.columns}
    types = {names[column]: kind for column, kind in have.items()}
    types |= {column: ADDED_COLUMNS[column] for column in lineage}
    named = frame.rename(names).with_columns(**lineage)
    changed: dict[str, int] = {}
    load.copying = copy_frame(load.connection, sink, named, types, load.copying, changed)
    load.values_changed = merged_counts([load.values_changed, changed])


def _widen_sink(load: Load, types: Types, frame: pl.DataFrame) -> None:
    """Make the sink, or widen it, so that a batch of these types goes into it."""
    if load.sink is not None and planned(load.sink, types, frame)[0] == load.sink:
        return
    end_rows(load)
    if load.sink is not None and load.sink.schema == "":
        assert load.target is not None
        named = replace(load.sink, names={**load.sink.names, **names_for(load.target, types)})
        load.sink, _ = evolve(load.connection, named, types, frame)
    elif (load.sink is None and _is_staged(load)) or _would_block_readers(load, types, frame):
        load.sink = _create_stage(load, types)
    else:
        load.target = load.sink = _ensure_target(load, types, frame)


def complete_rows(load: Load) -> None:
    """After the last row: the sink is whole, and the session is free for other statements."""
    end_rows(load)
    if load.sink is not None and load.sink.created:
        at = load.ingested_at or datetime.now(UTC)
        load.target = load.sink = add_run_columns(load.connection, load.sink, at, load.plan.run_id)


def end_rows(load: Load) -> None:
    """Let the server take the rows so far, so that the session is free for other statements."""
    running, load.copying = load.copying, None
    end_copy(running)


def _is_staged(load: Load) -> bool:
    """Whether rows wait in a temporary table until all have arrived."""
    if load.target is None:
        return False
    if load.plan.write in KEYED:
        return True
    return load.plan.write == "append" and load.plan.cursor is not None and load.plan.boundary is not None


def _would_block_readers(load: Load, types: Types, frame: pl.DataFrame) -> bool:
    """Whether these rows would change a column of a table that others read, long before COMMIT.

    Where a cursor is looked for among the rows of this load, they are to be in one place.
    """
    if load.target is None or load.target.created or load.plan.contract == "freeze":
        return False
    if load.sink is not None and load.plan.write == "append" and load.plan.cursor is not None:
        return False
    return bool(planned(load.target, types, frame)[1])


def _ensure_target(load: Load, types: Types, frame: pl.DataFrame | None) -> Table:
    plan = load.plan
    if load.target is None or load.plan.contract != "freeze":
        if load.target is None:
            table, changes = ensure_table(
                load.connection,
                load.schema,
                load.table,
                types,
                frame,
                plan.run_id,
                complete=False,
                updated=plan.write == "merge",
            )
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
    stage = Table("", load.stage_name, columns, names)
    create_temporary(load.connection, stage)
    return stage


def note_absent(load: Load) -> None:
    """Keep among the changes, once, which columns of the table the source has not given (any more).

    Call it after `complete_rows`. A renamed column is one that is new and one that is absent.
    """
    table = load.target
    if table is None or table.created or not load.rows:
        return
    absent = [column for source, column in table.names.items() if source not in load.seen]
    if not absent:
        return
    told = [f"column {column} was not in what was read: it stays, NULL in new rows" for column in absent]
    known = load.connection.execute(
        "select change from etl_schema_history"
        " where table_schema = %s and table_name = %s and change = any(%s)",
        (table.schema, table.name, told),
    ).fetchall()
    changes = [Change(words, sql.SQL("").format()) for words in told if (words,) not in known]
    note_changes(load.connection, table, changes, load.plan.run_id)
    load.changes += changes


def leave_out_nulls(load: Load, source_column: str) -> int:
    """Take out the rows of this load that have no value in a column. Returns how many.

    Call it after `complete_rows`: what has not arrived cannot be taken out.
    """
    table = load.sink
    if table is None or source_column not in table.names:
        return 0
    removed = load.connection.execute(
        sql.SQL("delete from {} where {} is null and _run_id = {}").format(
            table.identifier, sql.Identifier(table.names[source_column]), sql.Literal(load.plan.run_id)
        )
    ).rowcount
    load.rows -= removed
    return removed


def empty_stage(load: Load) -> Table:
    """A temporary table for a load of which nothing has arrived: the target's key columns, without rows."""
    assert load.target is not None
    return _create_stage(
        load,
        {
            source: load.target.columns[column]
            for source, column in load.target.names.items()
            if source in load.plan.key
        },
    )


# -- the end of a load -----------------------------------------------------------------------------


def finish_load(load: Load) -> Counts:
    """Bring what has arrived into the target, by the plan's write disposition. Nothing is committed."""
    complete_rows(load)
    with crashpoints.during("merge"), refusals(load.target or Table(load.schema, load.table)):
        load.deleted += _delete_replaced(load)
        counts = _meet_target(load)
        gone = delete_gone(load)
        return replace(counts, deleted=load.deleted + gone, rejected=load.rejected)


def _meet_target(load: Load) -> Counts:
    if load.sink is None:
        return Counts(0, 0, 0, 0)
    if load.sink.schema == "":
        return _finish_staged(load)
    removed = 0
    if load.plan.write in KEYED:
        removed = _settle_in_place(load, load.sink)
    return Counts(load.rows, load.rows - removed, 0, 0)


def _settle_in_place(load: Load, table: Table) -> int:
    """One row for each key in a table that nobody has seen yet. Returns how many rows went."""
    key = key_columns(load, table)
    refuse_null_keys(load, table, key)
    removed = keep_newest(load, table, key)
    if load.plan.write == "scd2":
        load.target = load.sink = begin_history(load, table, key)
    else:
        create_unique(load, table, key)
    return removed


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
    if load.plan.write in KEYED:
        key = key_columns(load, stage)
        refuse_null_keys(load, stage, key)
        if load.plan.fresh:
            load.deleted += _delete_all(load)
        meet = add_versions if load.plan.write == "scd2" else merge
        inserted, updated = meet(load, stage, key)
    elif load.plan.write == "append" and load.plan.boundary is not None:
        inserted, updated = append_past_boundary(load, stage), 0
    else:
        append_all(load, stage)
        inserted, updated = load.rows, 0  # those that went straight into the target among them
    load.connection.execute(sql.SQL("drop table {}").format(stage.identifier))
    return Counts(load.rows, inserted, updated, load.deleted)

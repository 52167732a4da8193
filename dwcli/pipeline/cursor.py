"""Where a run begins to read, and how far it has come in the end."""

from __future__ import annotations

from dataclasses import replace

import psycopg
from psycopg import sql

from dwcli.connectors import Connector
from dwcli.contract import KEYED, Cursor
from dwcli.errors import DwError, SourceData, UsageError
from dwcli.events import Notice
from dwcli.pipeline.record import Run
from dwcli.staging.dw_schema import PROVISIONAL, Table, base_type, type_sql
from dwcli.staging.loader import leave_out_nulls
from dwcli.staging.plan import Load, LoadPlan
from dwcli.staging.state import State, wider_cursor

#: A cursor value further ahead of the warehouse's clock than this does not move the cursor.
MAX_FUTURE = "1 day"
TIMES = ("timestamptz", "timestamp", "date")


def where_to_begin(run: Run, connection: psycopg.Connection, state: State) -> tuple[Cursor, LoadPlan]:
    """What to read, and how it meets the table."""
    job, options = run.job, run.options
    if (options.start or options.end) and (job.write != "merge" or not job.cursor):
        raise UsageError(
            "--from and --to read rows again, so the pipeline needs write: merge and a cursor",
            hint="read everything instead: --full-refresh",
        )
    known = state.cursor == job.cursor and state.value is not None
    if options.limit and job.write == "append" and (known or state.position):
        raise UsageError(
            f"{job.pipeline} has been loaded, so --limit would leave a gap in it",
            hint=f"look at rows without loading them: dw preview {job.pipeline}",
        )
    anew = options.full_refresh or is_trial(state)
    fresh = anew and job.write != "scd2"  # a history is never forgotten
    again = job.write in KEYED
    if job.write == "replace" or anew:
        cursor = Cursor(job.cursor or "", again=again) if job.write != "replace" else Cursor()
    elif options.start or options.end:
        cursor = Cursor(job.cursor or "", options.start, options.end, state.type)
    elif job.cursor and known:
        start = _behind(connection, state, job.lookback)
        cursor = Cursor(job.cursor, start, None, state.type, state.position, again)
    else:
        cursor = Cursor(job.cursor or "", position=state.position, again=again)
    run.cursor_from = cursor.start
    plan = LoadPlan(
        write="replace" if fresh and job.write == "append" else job.write,
        key=job.key,
        cursor=job.cursor,
        boundary=cursor.start if job.write == "append" else None,
        run_id=run.id,
        overrides=job.columns,
        contract=job.contract,
        max_rejects=job.max_rejects,
        fresh=fresh,
    )
    return cursor, plan


def reads_states(run: Run, connector: Connector, cursor: Cursor) -> bool:
    """Whether a row that this run reads is all that the source has of its key.

    It is where a table is merged by its own primary key. That is asked only where rows are read that may lie
    behind the cursor: of those that do not, none is older than what was loaded.
    """
    job = run.job
    behind = cursor.position or job.lookback is not None or run.options.start or run.options.end
    if job.write not in KEYED or not job.cursor or not behind:
        return False
    try:
        return connector.holds_states(job.query, job.key)
    except DwError:
        return False


def is_trial(state: State) -> bool:
    """Whether the table holds only the first rows, from a run with --limit."""
    return isinstance(state.position, dict) and bool(state.position.get("dw_trial"))


def _behind(connection: psycopg.Connection, state: State, lookback: str | int | None) -> str | None:
    """The cursor value less the lookback, in text form."""
    if lookback is None or state.value is None:
        return state.value
    kind = type_sql(state.type)
    amount = sql.SQL("{}::numeric") if isinstance(lookback, int) else sql.SQL("{}::interval")
    row = connection.execute(
        sql.SQL("select ({}::{} - {})::{}::text").format(
            sql.Literal(state.value), kind, amount.format(sql.Literal(str(lookback))), kind
        )
    ).fetchone()
    assert row is not None
    return str(row[0])


def settle_cursor(run: Run, load: Load, state: State, cursor: Cursor) -> State:
    """The state after this run: the largest cursor value that arrived, or where the source says it is.

    Rows without a cursor value are refused, kept or left out, as the pipeline says. A value far in the
    future is loaded but does not move the cursor, or nothing would ever be newer.
    """
    job = run.job
    if run.options.limit is not None:
        return State(position={"dw_trial": True}) if job.write == "append" else state
    position = (
        run.position if run.position is not None else (None if job.write == "replace" else state.position)
    )
    if is_trial(state) and run.position is None:
        position = None
    if not job.cursor or job.write == "replace":
        return State(position=position)
    column = load.sink.names.get(job.cursor) if load.sink is not None else None
    if load.sink is None or (column is None and not run.rows_read):  # without rows, no columns to be missed
        return replace(state, position=position)
    if column is None:
        raise SourceData(
            f"the cursor column {job.cursor} is not in the data",
            hint="correct cursor: in the source file; columns are: " + ", ".join(load.sink.names),
        )
    kind = load.sink.columns[column]
    kind = "text" if kind == PROVISIONAL else kind
    highest = _highest(run, load, load.sink, column, kind)
    if cursor.end is not None:
        return state
    before = None if cursor.start is None or state.cursor != job.cursor else state.value
    run.cursor_to = wider_cursor(load.connection, kind, before, highest)
    return State(job.cursor, run.cursor_to, kind, position)


def _highest(run: Run, load: Load, table: Table, column: str, kind: str) -> str | None:
    name, mine = sql.Identifier(column), sql.SQL("_run_id = {}").format(sql.Literal(run.id))
    timely: sql.Composable = sql.SQL("true")
    if base_type(kind) in TIMES:
        timely = sql.SQL("{} <= now() + interval {}").format(name, sql.Literal(MAX_FUTURE))
    collation = sql.SQL(' collate "C"') if base_type(kind) in ("text", "varchar") else sql.SQL("")
    row = load.connection.execute(
        sql.SQL(
            "select max({0}{1}) filter (where {2})::text, count(*) filter (where {0} is null),"
            " count(*) filter (where not {2}) from {3} where {4}"
        ).format(name, collation, timely, table.identifier, mine)
    ).fetchone()
    assert row is not None
    highest, without, future = row
    if future:
        run.emit(Notice(run.job.pipeline, f"{future:,} rows lie in the future; they do not move the cursor"))
    if without:
        _apply_null_policy(run, load, int(without))
    return None if highest is None else str(highest)


def _apply_null_policy(run: Run, load: Load, without: int) -> None:
    policy = run.job.cursor_nulls
    if policy == "error":
        raise SourceData(
            f"{without:,} rows have no value in the cursor column {run.job.cursor}",
            why="a cursor cannot tell whether they are new",
            hint="choose another cursor:, or say cursor_nulls: include (or exclude) in the source file",
        )
    if policy == "exclude" and run.job.cursor:
        run.nulls_left_out = run.job.cursor
        leave_out_nulls(load, run.job.cursor)
        run.values_changed[f"{run.job.cursor}: rows without a value left out"] = without
    run.emit(Notice(run.job.pipeline, f"{without:,} rows have no value in {run.job.cursor}: {policy}d"))

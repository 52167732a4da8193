"""The story of one run, from the source to the committed table.

1. Take the pipeline's lock; close the audit rows of runs that died; write this run's own, `running`.
2. Load complete snapshots that have no receipt: a crash between lake and warehouse heals here.
3. Read from where the state says. Each batch is written to the lake and copied into the warehouse's
   open transaction while the next one is being read.
4. Write the manifest: the snapshot is complete.
5. In the one transaction: finish the load, cursor, receipt, audit row; COMMIT. Then tell the source.

Nothing else decides what the next run does, so a run can be killed at any line of this file.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine

from dwcli.connectors import Connector, create_connector, secrets_of
from dwcli.contract import Cursor, IngestedItem, IngestionResult, WriteDisposition
from dwcli.errors import (
    ConnectionFailed,
    CountsDiffer,
    DwError,
    PipelineLocked,
    RunStopped,
    SourceData,
    SourceError,
    UsageError,
    WarehouseError,
)
from dwcli.events import (
    BatchLoaded,
    BatchRead,
    BatchStaged,
    Emit,
    Notice,
    RunFinished,
    RunStarted,
    SchemaChanged,
    StageStarted,
    ignore,
)
from dwcli.log import get_logger
from dwcli.pipeline.ahead import ahead
from dwcli.references import redact
from dwcli.staging import (
    ensure_audit_table,
    load_parquet_files_to_dw,
    write_audit_record,
    write_ingestion_result_to_parquet,
)
from dwcli.staging.audit import mark_interrupted, merged_counts
from dwcli.staging.dw_schema import Table, base_type, ensure_catalogue, is_postgres, raw, type_sql
from dwcli.staging.frames import Types, item_frame
from dwcli.staging.loader import Counts, Load, LoadPlan, finish_load, load_file, load_frame, open_load
from dwcli.staging.state import (
    State,
    ensure_state_tables,
    loaded_snapshots,
    read_state,
    was_loaded,
    wider_cursor,
    write_receipt,
    write_state,
)
from dwcli.staging.writer import (
    MANIFEST,
    Manifest,
    StagedFile,
    check_file,
    discard_snapshot,
    file_stem,
    open_snapshot,
    partition,
    read_manifest,
    snapshots,
    source_folder,
    staged_file,
    sweep,
    write_frame,
    write_manifest,
)

#: A cursor value further ahead of the warehouse's clock than this does not move the cursor.
MAX_FUTURE = "1 day"
TIMES = ("timestamptz", "timestamp", "date")

log = get_logger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What a person may ask of one run.

    start, end: a backfill range of the cursor, start inclusive and end exclusive.
    limit: stop after so many rows; the next run then reads everything.
    """

    full_refresh: bool = False
    start: str | None = None
    end: str | None = None
    limit: int | None = None
    jobs: int = 1
    fail_fast: bool = False


@dataclass(frozen=True)
class Job:
    """One pipeline, ready to run."""

    pipeline: str
    source: str
    #: names the pipeline's folder and files in the lake
    lake_name: str
    connector: Callable[[], Connector]
    query: str
    schema: str
    table: str
    lake: Path
    write: WriteDisposition = "append"
    key: tuple[str, ...] = ()
    cursor: str | None = None
    cursor_nulls: str = "error"
    lookback: str | int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    contract: str = "evolve"
    config_hash: str = ""
    command: str = ""


@dataclass
class Run:
    """What has happened so far in one run of a job."""

    job: Job
    options: RunOptions
    emit: Emit
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)
    protocol: str = ""
    warehouse_id: str = ""
    rows_read: int = 0
    bytes_staged: int = 0
    files: list[StagedFile] = field(default_factory=list)
    counts: Counts = field(default_factory=lambda: Counts(0, 0, 0, 0))
    cursor_from: str | None = None
    cursor_to: str | None = None
    position: Any = None
    replaces: list[Mapping[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"extract": 0.0, "stage": 0.0, "load": 0.0})
    schema_changes: list[str] = field(default_factory=list)
    values_changed: dict[str, int] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    snapshot: str | None = None
    marker: Path | None = None
    committing: bool = False
    #: loaded from the lake at the start, because an earlier run died before its COMMIT
    healed: list[str] = field(default_factory=list)


def run_pipeline(
    connector_config: dict[str, Any],
    query: str,
    source_name: str,
    target_table: str,
    lake_path: str,
    dw_engine: Engine,
    schema: str = "public",
    pipeline_name: str = "default",
) -> dict[str, Any]:
    """Read a source, keep what it read in the lake, append it to a table, and audit the run.

    Returns run_id, status, rows_loaded, parquet_files and duration_seconds, and the other fields of
    `dw run --json`. A source that answers without success gives status `failure`; every other error
    is raised, after the failure has been written to etl_audit_log and the table left as it was.
    """
    job = Job(
        pipeline=pipeline_name,
        source=source_name,
        lake_name=source_name,
        connector=lambda: create_connector(connector_config),
        query=query,
        schema=schema,
        table=target_table,
        lake=Path(lake_path),
    )
    result, error = attempt(job, dw_engine, RunOptions(), ignore)
    if error is not None:
        raise error
    return result


def attempt(
    job: Job, engine: Engine, options: RunOptions, emit: Emit
) -> tuple[dict[str, Any], BaseException | None]:
    """Run a job once. Returns its result, and the error if it failed: nothing is raised.

    The table is then as it was, and etl_audit_log says why (where the warehouse can be reached).
    """
    run = Run(job, options, emit)
    error: BaseException | None = None
    try:
        if is_postgres(engine):
            _run_to_postgres(run, engine)
        else:
            _run_plainly(run, engine)
    except BaseException as caught:
        error = caught
    result = _result(run, _explained(error, run) if error is not None else None)
    emit(RunFinished(job.pipeline, result))
    if isinstance(error, DwError):
        error = _explained(error, run)
    return result, None if isinstance(error, _SourceAnsweredFailure) else error


class _SourceAnsweredFailure(SourceError):
    """The source answered without success."""


# -- the run, in PostgreSQL ---------------------------------------------------------------------------


def _run_to_postgres(run: Run, engine: Engine) -> None:
    with contextlib.ExitStack() as stack:
        run.warehouse_id = _prepare(engine)
        data = stack.enter_context(engine.connect())
        _take_lock(run, data)
        control = stack.enter_context(engine.connect().execution_options(isolation_level="AUTOCOMMIT"))
        mark_interrupted(raw(control), run.job.pipeline)
        _audit(run, control, "running")
        try:
            _load_and_commit(run, data)
        except BaseException as error:
            _undo(run, data)
            if run.committing and _is_committed(run, engine):
                log.warning("the COMMIT's answer was lost, but it had happened")
                return
            with contextlib.suppress(Exception):
                _audit(run, control, "failure", _explained(error, run))
            raise


def _prepare(engine: Engine) -> str:
    """Make dw's own tables where they are missing. Returns the warehouse's id."""
    try:
        ensure_audit_table(engine)
        with engine.begin() as connection:
            warehouse_id = ensure_state_tables(raw(connection))
            ensure_catalogue(raw(connection))
    except Exception as error:
        raise _warehouse_error(error) from error
    return warehouse_id


def _take_lock(run: Run, data: Connection) -> None:
    """Hold the pipeline for as long as this session lives. Raises PipelineLocked, naming the holder."""
    session = raw(data)
    key = int.from_bytes(hashlib.sha256(run.job.pipeline.encode()).digest()[:8], signed=True)
    session.execute(
        "select set_config('application_name', %s, false)", (f"dw {run.id[:8]} {run.job.pipeline}"[:63],)
    )
    row = session.execute("select pg_try_advisory_lock(%s)", (key,)).fetchone()
    if not row or not row[0]:
        holder = session.execute(
            """
            select split_part(application_name, ' ', 2), round(extract(epoch from now() - backend_start))
            from pg_locks join pg_stat_activity using (pid)
            where locktype = 'advisory' and granted and objsubid = 1
              and (classid::bigint << 32 | objid::bigint) = %s
            """,
            (key,),
        ).fetchone()
        who = f" (run {holder[0]}, for {holder[1]} s)" if holder else ""
        raise PipelineLocked(
            f"{run.job.pipeline} is already running{who}",
            hint="wait until it is done: dw status",
        )
    data.commit()


def _load_and_commit(run: Run, data: Connection) -> None:
    job = run.job
    folder = source_folder(job.lake, run.protocol or _protocol(run), job.lake_name)
    sweep(folder)
    _load_pending(run, data, folder)
    state = read_state(raw(data), job.pipeline)
    data.commit()
    with _connected(run) as connector:
        cursor, plan = _where_to_begin(run, data, state)
        result = (
            connector.fetch_data(job.query, cursor) if cursor != Cursor() else connector.fetch_data(job.query)
        )
        if not result.success:
            raise _SourceAnsweredFailure(result.error or "the source answered without success")
        _announce(run, connector, cursor)
        load = open_load(raw(data), job.schema, job.table, plan)
        _pump(run, result, load, folder)
        state = _settle_cursor(run, load, state, cursor)
        manifest = _complete_snapshot(run, plan, state, cursor)
        _finish(run, load, manifest, state, data)
        _commit(run, data)
        connector.acknowledge(run.position)
    if run.marker is not None:
        run.marker.unlink(missing_ok=True)


def _protocol(run: Run) -> str:
    run.protocol = run.job.connector().protocol
    return run.protocol


@contextlib.contextmanager
def _connected(run: Run) -> Iterator[Connector]:
    connector = run.job.connector()
    run.secrets = secrets_of(connector.config) if hasattr(type(connector.config), "model_fields") else []
    try:
        connector.connect()
        yield connector
    finally:
        connector.close()


def _where_to_begin(run: Run, data: Connection, state: State) -> tuple[Cursor, LoadPlan]:
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
    fresh = options.full_refresh or bool(_trial(state))
    if job.write == "replace" or fresh:
        cursor = Cursor(job.cursor or "") if job.write != "replace" else Cursor()
    elif options.start or options.end:
        cursor = Cursor(job.cursor or "", options.start, options.end, state.type)
    elif job.cursor and known:
        start = _behind(raw(data), state, job.lookback)
        cursor = Cursor(job.cursor, start, None, state.type, state.position)
    else:
        cursor = Cursor(job.cursor or "", position=state.position)
    run.cursor_from = cursor.start
    plan = LoadPlan(
        write="replace" if fresh and job.write == "append" else job.write,
        key=job.key,
        cursor=job.cursor,
        boundary=cursor.start if job.write == "append" else None,
        run_id=run.id,
        overrides=job.columns,
        contract=job.contract,
        fresh=fresh,
    )
    return cursor, plan


def _trial(state: State) -> bool:
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


def _announce(run: Run, connector: Connector, cursor: Cursor) -> None:
    """Tell what is to come; totals are known only when everything is read."""
    rows = size = None
    if cursor.start is None and cursor.position is None and run.options.limit is None:
        with contextlib.suppress(DwError):
            resource = connector.describe(run.job.query)
            rows, size = resource.row_estimate, resource.bytes_estimate
    run.emit(RunStarted(run.job.pipeline, run.id, f"{run.job.schema}.{run.job.table}", rows, size))


# -- reading, staging and loading, each ahead of the next ---------------------------------------------


@dataclass(frozen=True)
class _Staged:
    frame: pl.DataFrame
    types: Types
    path: Path
    at: datetime


def _pump(run: Run, result: IngestionResult, load: Load, folder: Path) -> None:
    """Read, stage and load, batch by batch, in three threads that wait for each other."""
    job = run.job
    today = partition(job.lake, run.protocol, job.lake_name)
    stem = file_stem(job.lake_name)
    run.marker = open_snapshot(today, stem)
    run.emit(StageStarted(job.pipeline, "extract"))
    items = ahead(_limited(run, _timed(run, result)))
    with contextlib.closing(ahead(_stage(run, items, today, stem))) as staged:
        for batch in staged:
            began = time.monotonic()
            rows = load_frame(load, batch.frame, batch.types, batch.path.name, batch.at)
            run.seconds["load"] += time.monotonic() - began
            run.emit(BatchLoaded(job.pipeline, rows))
            _tell_changes(run, load)
    load.replaces.extend(run.replaces)
    run.values_changed = merged_counts([run.values_changed, load.values_changed])
    if not run.rows_read == sum(file.rows for file in run.files) == load.rows:
        raise CountsDiffer(
            f"{run.rows_read:,} rows read, {sum(f.rows for f in run.files):,} staged, {load.rows:,} loaded"
        )


def _timed(run: Run, result: IngestionResult) -> Iterator[IngestedItem]:
    """The items, with the time it takes to read them."""
    iterator = iter(result.items)
    try:
        while True:
            began = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                run.seconds["extract"] += time.monotonic() - began
            yield item
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _limited(run: Run, items: Iterator[IngestedItem]) -> Iterator[IngestedItem]:
    """The items up to `--limit` rows."""
    left = run.options.limit
    for item in items:
        if left is None:
            yield item
            continue
        frame, types = item_frame(item)
        yield replace(item, payload=frame.head(left), types=types, position=None)
        left -= frame.height
        if left <= 0:
            return


def _stage(run: Run, items: Iterator[IngestedItem], folder: Path, stem: str) -> Iterator[_Staged]:
    """Write each item to the lake; hand on its frame."""
    for number, item in enumerate(items):
        began = time.monotonic()
        if item.position is not None:
            run.position = item.position
        if item.replaces:
            run.replaces.append(item.replaces)
        run.values_changed = merged_counts([run.values_changed, item.metadata.get("changed", {})])
        staged = _stage_item(run, item, folder / f"{stem}_{number:05d}.parquet")
        run.seconds["stage"] += time.monotonic() - began
        if staged is not None:
            yield staged


def _stage_item(run: Run, item: IngestedItem, path: Path) -> _Staged | None:
    if item.payload is None:
        return None
    frame, types = item_frame(item)
    run.rows_read += frame.height
    run.emit(BatchRead(run.job.pipeline, frame.height, int(frame.estimated_size())))
    if not frame.width:
        return None
    written = write_frame(frame, types, path)
    file = staged_file(written, frame.height)
    run.files.append(file)
    run.bytes_staged += file.bytes
    run.emit(BatchStaged(run.job.pipeline, frame.height, file.bytes, str(written)))
    return _Staged(frame, types, written, datetime.now(UTC))


def _tell_changes(run: Run, load: Load) -> None:
    for change in load.changes[len(run.schema_changes) :]:
        run.schema_changes.append(change.words)
        run.emit(SchemaChanged(run.job.pipeline, change.words))


# -- the end of a run ---------------------------------------------------------------------------------


def _settle_cursor(run: Run, load: Load, state: State, cursor: Cursor) -> State:
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
    if _trial(state) and run.position is None:
        position = None
    if not job.cursor or job.write == "replace":
        return State(position=position)
    if load.sink is None:
        return replace(state, position=position)
    column = load.sink.names.get(job.cursor)
    if column is None:
        raise SourceData(
            f"the cursor column {job.cursor} is not in the data",
            hint="correct cursor: in the source file; columns are: " + ", ".join(load.sink.names),
        )
    kind = load.sink.columns[column]
    kind = "text" if kind == "null" else kind
    highest = _highest(run, load, load.sink, column, kind)
    if cursor.end is not None:
        return state
    before = None if load.plan.fresh or state.cursor != job.cursor else state.value
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
        _apply_null_policy(run, load, table, name, int(without))
    return None if highest is None else str(highest)


def _apply_null_policy(run: Run, load: Load, table: Table, name: sql.Identifier, without: int) -> None:
    policy = run.job.cursor_nulls
    if policy == "error":
        raise SourceData(
            f"{without:,} rows have no value in the cursor column {run.job.cursor}",
            why="a cursor cannot tell whether they are new",
            hint="choose another cursor:, or say cursor_nulls: include (or exclude) in the source file",
        )
    if policy == "exclude":
        load.connection.execute(
            sql.SQL("delete from {} where {} is null and _run_id = {}").format(
                table.identifier, name, sql.Literal(run.id)
            )
        )
        load.rows -= without
        run.values_changed[f"{run.job.cursor}: rows without a value left out"] = without
    run.emit(Notice(run.job.pipeline, f"{without:,} rows have no value in {run.job.cursor}: {policy}d"))


def _complete_snapshot(run: Run, plan: LoadPlan, state: State, cursor: Cursor) -> Path | None:
    """Write the manifest. From here on the snapshot can be loaded without the source."""
    job = run.job
    if run.marker is None or not run.files:
        return None
    manifest = Manifest(
        run_id=run.id,
        pipeline=job.pipeline,
        protocol=run.protocol,
        warehouse_id=run.warehouse_id,
        schema=job.schema,
        table=job.table,
        write=plan.write,
        key=plan.key,
        cursor=plan.cursor,
        cursor_from=cursor.start,
        cursor_to=state.value,
        cursor_type=state.type,
        position=state.position,
        replaces=tuple(run.replaces),
        fresh=plan.fresh,
        files=tuple(run.files),
        rows=run.rows_read,
        written_at=datetime.now(UTC).isoformat(),
        values_changed=run.values_changed,
    )
    path = run.marker.with_name(run.marker.stem + MANIFEST)
    write_manifest(manifest, path)
    run.snapshot = str(path.relative_to(job.lake))
    return path


def _finish(run: Run, load: Load, manifest: Path | None, state: State, data: Connection) -> None:
    """The last of the one transaction: rows, cursor, receipt, audit row."""
    job = run.job
    run.emit(StageStarted(job.pipeline, "load"))
    began = time.monotonic()
    run.counts = finish_load(load)
    run.seconds["load"] += time.monotonic() - began
    _tell_changes(run, load)
    session = raw(data)
    write_state(session, job.pipeline, run.id, state)
    write_receipt(
        session,
        run.id,
        job.pipeline,
        f"{job.schema}.{job.table}",
        run.snapshot or "",
        len(run.files),
        run.rows_read,
        run.counts.rows,
        run.cursor_from,
        run.cursor_to,
    )
    _audit(run, data, "success")


def _commit(run: Run, data: Connection) -> None:
    run.committing = True
    data.commit()
    run.committing = False


def _undo(run: Run, data: Connection) -> None:
    """Roll back, and forget the files of a snapshot whose COMMIT was never asked for."""
    with contextlib.suppress(Exception):
        data.rollback()
    with contextlib.suppress(Exception):
        data.close()
    if run.committing:
        return
    if run.marker is not None:
        with contextlib.suppress(OSError):
            run.marker.with_name(run.marker.stem + MANIFEST).unlink(missing_ok=True)
            discard_snapshot(run.marker)
    run.files.clear()
    run.snapshot = None


def _is_committed(run: Run, engine: Engine) -> bool:
    """Whether a COMMIT whose answer never came has happened after all."""
    try:
        with engine.connect() as connection:
            return was_loaded(raw(connection), run.id)
    except Exception:
        return False  # the next run will find the snapshot, and look for its receipt again


# -- snapshots that an earlier run left ---------------------------------------------------------------


def _load_pending(run: Run, data: Connection, folder: Path) -> None:
    """Load complete snapshots without a receipt, oldest first, each in a transaction of its own."""
    job = run.job
    loaded = loaded_snapshots(raw(data), job.pipeline)
    data.commit()
    for path in list(snapshots(folder)):
        name = str(path.relative_to(job.lake))
        if name in loaded:
            continue
        manifest = read_manifest(path)
        if (manifest.warehouse_id, manifest.pipeline) != (run.warehouse_id, job.pipeline):
            continue
        try:
            _load_snapshot(run, data, path, manifest, name)
        except DwError as error:
            data.rollback()
            # The state has not moved past it, so reading the source again brings its rows.
            run.emit(Notice(job.pipeline, f"an unfinished snapshot cannot be loaded, reading again: {error}"))
            log.warning("set aside %s: %s", path, error)
            path.rename(path.with_suffix(".refused"))


def _load_snapshot(run: Run, data: Connection, path: Path, manifest: Manifest, name: str) -> None:
    job = run.job
    files = [check_file(path.parent, staged) for staged in manifest.files]
    plan = LoadPlan(
        write=manifest.write,  # type: ignore[arg-type]  # as it was validated when it was written
        key=manifest.key,
        cursor=manifest.cursor,
        boundary=manifest.cursor_from if manifest.write == "append" else None,
        run_id=manifest.run_id,
        overrides=job.columns,
        contract=job.contract,
        fresh=manifest.fresh,
    )
    load = open_load(raw(data), manifest.schema, manifest.table, plan)
    for file in files:
        load_file(load, file, file.name)
    load.replaces.extend(manifest.replaces)
    counts = finish_load(load)
    state = State(manifest.cursor, manifest.cursor_to, manifest.cursor_type, manifest.position)
    write_state(raw(data), job.pipeline, manifest.run_id, state)
    write_receipt(
        raw(data),
        manifest.run_id,
        job.pipeline,
        f"{manifest.schema}.{manifest.table}",
        name,
        len(files),
        manifest.rows,
        counts.rows,
        manifest.cursor_from,
        manifest.cursor_to,
    )
    raw(data).execute(
        "update etl_audit_log set status = 'success', rows_loaded = %s, rows_read = %s, parquet_files = %s,"
        " rows_inserted = %s, rows_updated = %s, finished_at = now(), error_code = null, error_message ="
        " 'died before its COMMIT; loaded from the lake by the next run' where run_id = %s",
        (counts.rows, manifest.rows, len(files), counts.inserted, counts.updated, manifest.run_id),
    )
    data.commit()
    run.healed.append(manifest.run_id)
    run.emit(Notice(job.pipeline, f"{counts.rows:,} rows of an interrupted run loaded from the lake"))


# -- the run, elsewhere -------------------------------------------------------------------------------


def _run_plainly(run: Run, engine: Engine) -> None:
    """The same steps into a database that is not PostgreSQL (SQLite): append, in one transaction."""
    job = run.job
    ensure_audit_table(engine)
    try:
        connector = job.connector()
        run.protocol = str(connector.protocol)
        connector.connect()
        try:
            result = connector.fetch_data(job.query)
            if not result.success:
                raise _SourceAnsweredFailure(result.error or "the source answered without success")
            paths = write_ingestion_result_to_parquet(result, job.lake, job.lake_name)
        finally:
            connector.close()
        run.files = [staged_file(Path(path), 0) for path in paths]
        with engine.begin() as connection:
            rows = load_parquet_files_to_dw(connection, paths, job.table, job.schema)
            run.rows_read, run.counts = rows, Counts(rows, rows, 0, 0)
            _audit(run, connection, "success")
    except BaseException as error:
        _audit(run, engine, "failure", _explained(error, run))
        raise


# -- audit, results, errors ---------------------------------------------------------------------------


def _audit(run: Run, engine: Engine | Connection, status: str, error: DwError | None = None) -> None:
    job, done = run.job, status != "running"
    details: dict[str, Any] = {
        "host": socket.gethostname(),
        "os_user": _user(),
        "pid": os.getpid(),
        "dw_version": dw_version(),
        "config_hash": job.config_hash or None,
        "command": job.command or None,
    }
    if done:
        details |= {
            "rows_read": run.rows_read,
            "rows_inserted": run.counts.inserted,
            "rows_updated": run.counts.updated,
            "rows_deleted": run.counts.deleted,
            "rows_rejected": 0,
            "bytes_staged": run.bytes_staged,
            "cursor_from": run.cursor_from,
            "cursor_to": run.cursor_to,
            "seconds": {stage: round(value, 3) for stage, value in run.seconds.items()},
            "schema_changes": run.schema_changes,
            "values_changed": run.values_changed,
            "snapshot": run.snapshot,
            "error_code": error.code if error else None,
            "error_hint": redact(error.hint, run.secrets) if error else None,
        }
    write_audit_record(
        engine,
        run.id,
        job.pipeline,
        job.source,
        run.protocol,
        f"{job.schema}.{job.table}",
        status,
        (run.counts.rows if error is None else 0) if done else None,
        len(run.files) if done else None,
        run.started_at,
        datetime.now(UTC) if done else None,
        _sentence(error, run.secrets) if error else None,
        details,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def dw_version() -> str:
    """The version of dw that runs, or 'unknown' when it was never installed."""
    try:
        return version("dwcli")
    except PackageNotFoundError:
        return "unknown"


def _sentence(error: DwError, secrets: Sequence[str]) -> str:
    return redact(f"{error.message}: {error.why}" if error.why else error.message, secrets)


def _result(run: Run, error: DwError | None) -> dict[str, Any]:
    """What `dw run --json` prints for this run."""
    job = run.job
    return {
        "run_id": run.id,
        "status": "failure" if error else "success",
        "pipeline_name": job.pipeline,
        "source_name": job.source,
        "target_table": f"{job.schema}.{job.table}",
        "rows_loaded": 0 if error else run.counts.rows,
        "parquet_files": len(run.files),
        "duration_seconds": round(time.monotonic() - run.clock, 3),
        "started_at": run.started_at.isoformat(),
        "rows_read": run.rows_read,
        "rows_inserted": 0 if error else run.counts.inserted,
        "rows_updated": 0 if error else run.counts.updated,
        "rows_deleted": 0 if error else run.counts.deleted,
        "rows_rejected": 0,
        "bytes_staged": run.bytes_staged,
        "cursor_from": run.cursor_from,
        "cursor_to": run.cursor_to,
        "seconds": {stage: round(value, 3) for stage, value in run.seconds.items()},
        "schema_changes": [] if error else run.schema_changes,
        "values_changed": run.values_changed,
        "healed_runs": run.healed,
        "error": None
        if error is None
        else {
            "code": error.code,
            "message": redact(error.message, run.secrets),
            "why": redact(error.why, run.secrets),
            "hint": redact(error.hint, run.secrets),
        },
    }


def _explained(error: BaseException, run: Run) -> DwError:
    """Any error as one of ours, without secrets."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return RunStopped("stopped; everything of this run was rolled back")
    if isinstance(error, ConnectionFailed):
        return ConnectionFailed(
            redact(error.message, run.secrets), error.layer, redact(error.why, run.secrets), error.hint
        )
    if isinstance(error, DwError):
        error.args = (redact(error.message, run.secrets),)
        error.why = redact(error.why, run.secrets)
        return error
    if isinstance(error, psycopg.Error) or type(error).__module__.startswith("sqlalchemy"):
        return _warehouse_error(error)
    log.error("unexpected error in %s", run.job.pipeline, exc_info=error)
    return DwError(
        f"unexpected error ({type(error).__name__})", why=redact(str(error), run.secrets), code="DW-BUG"
    )


def _warehouse_error(error: BaseException) -> DwError:
    """A driver's error as ours: the server's own sentence, never its DETAIL, which holds row data."""
    if isinstance(error, DwError):
        return error
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, DwError):
        return cause
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    if isinstance(cause, psycopg.OperationalError) and primary is None:
        return WarehouseError(
            "the connection to the warehouse was lost; nothing of this run was committed",
            why=str(cause).strip().split("\n")[0],
            hint="run it again when the warehouse is back: dw up",
        )
    return WarehouseError("the warehouse refused something", why=primary or str(cause).split("\n")[0])

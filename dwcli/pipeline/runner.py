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
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from pydantic import BaseModel

from dwcli import crashpoints
from dwcli.connectors import Connector, create_connector, secrets_of
from dwcli.contract import Cursor
from dwcli.errors import (
    CommitUnknown,
    ConfigError,
    DwError,
    LakeError,
    PipelineLocked,
    SourceError,
    UsageError,
)
from dwcli.events import (
    Emit,
    Notice,
    RunFinished,
    RunStarted,
    StageStarted,
    ignore,
)
from dwcli.log import get_logger
from dwcli.pipeline.cursor import reads_states, settle_cursor, where_to_begin
from dwcli.pipeline.deletions import note_deletions, refuse_shrinking
from dwcli.pipeline.lock import is_held, take_lock
from dwcli.pipeline.pending import load_pending
from dwcli.pipeline.pump import pump
from dwcli.pipeline.record import (
    Idle,
    Job,
    Run,
    RunOptions,
    audit,
    explained,
    heed,
    result_of,
    tell_changes,
    warehouse_error,
)
from dwcli.pipeline.runlog import logged
from dwcli.staging import (
    ensure_audit_table,
    load_parquet_files_to_dw,
    write_ingestion_result_to_parquet,
)
from dwcli.staging.audit import ensure_log, mark_interrupted
from dwcli.staging.dw_schema import ensure_catalogue, is_postgres
from dwcli.staging.loader import finish_load, note_absent, open_load
from dwcli.staging.plan import Counts, Load
from dwcli.staging.state import (
    State,
    ensure_state_tables,
    loaded_snapshots,
    read_state,
    was_loaded,
    write_receipt,
    write_state,
)
from dwcli.staging.writer import (
    MANIFEST,
    Manifest,
    discard_snapshot,
    forget,
    source_folder,
    staged_file,
    sweep,
    write_manifest,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: A source's connection that waited longer than this for its next pipeline is made anew: a server or a
#: firewall between may have ended it unseen.
IDLE_SECONDS = 30.0

#: How long the warehouse is asked whether a COMMIT has happened, and how often.
SETTLE_SECONDS = 20.0
SETTLE_PAUSE_SECONDS = 0.1


def run_pipeline(
    connector_config: dict[str, Any],
    query: str,
    source_name: str,
    target_table: str,
    lake_path: str,
    dw_engine: Engine,
    schema: str = "public",
    pipeline_name: str = "default",
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Read a source, keep what it read in the lake, append it to a table, and audit the run.

    Returns run_id, status, rows_loaded, parquet_files and duration_seconds, and the other fields of
    `dw run --json`. A source that answers without success gives status `failure`; every other error
    is raised, after the failure has been written to etl_audit_log and the table left as it was.
    """
    job = one_job(connector_config, query, source_name, target_table, lake_path, schema, pipeline_name)
    result, error = attempt(job, dw_engine, RunOptions(), emit)
    if error is not None:
        raise error
    return result


def one_job(
    connector_config: dict[str, Any],
    query: str,
    source_name: str,
    target_table: str,
    lake_path: str,
    schema: str = "public",
    pipeline_name: str = "default",
) -> Job:
    """What `run_pipeline` runs: one query, without a project."""
    return Job(
        pipeline=pipeline_name,
        source=source_name,
        lake_name=source_name,
        connector=lambda: create_connector(connector_config),
        query=query,
        schema=schema,
        table=target_table,
        lake=Path(lake_path),
    )


#: What a run does while it holds the pipeline, from its first row to COMMIT.
Work = Callable[[Run, psycopg.Connection], None]
#: Opens a session in the warehouse, each time a new one, which whoever asks for it closes.
Sessions = Callable[[], psycopg.Connection]


def attempt(
    job: Job, warehouse: Sessions | Engine, options: RunOptions, emit: Emit, work: Work | None = None
) -> tuple[dict[str, Any], BaseException | None]:
    """Run a job once. Returns its result, and the error if it failed: nothing is raised.

    The table is then as it was, and etl_audit_log says why (where the warehouse can be reached).
    work: something else than to read, stage and load (`replay`).
    """
    run = Run(job, options, emit, secrets=list(job.hidden))
    error: BaseException | None = None
    with logged(run):
        try:
            if callable(warehouse):
                _run_to_postgres(run, warehouse, work or _load_and_commit)
            elif is_postgres(warehouse):
                _run_to_postgres(run, partial(_session_of, warehouse), work or _load_and_commit)
            else:
                _run_plainly(run, warehouse)
        except BaseException as caught:
            error = caught
        failure = explained(error, run) if error is not None and not run.committed else None
        result = result_of(run, failure)
        run.emit(RunFinished(job.pipeline, result))
    if isinstance(error, DwError):
        error = explained(error, run)
    return result, None if isinstance(error, _SourceAnsweredFailure) else error


class _SourceAnsweredFailure(SourceError):
    """The source answered without success."""


# -- the run, in PostgreSQL ---------------------------------------------------------------------------


def _session_of(engine: Engine) -> psycopg.Connection:
    """A session as this engine opens them, and no longer its own."""
    pooled = engine.raw_connection()
    session = pooled.driver_connection
    pooled.detach()
    assert isinstance(session, psycopg.Connection)
    return session


def _run_to_postgres(run: Run, sessions: Sessions, work: Work) -> None:
    with contextlib.ExitStack() as stack:
        data, run.warehouse_id = _prepared(sessions)
        stack.callback(_hang_up, data)
        take_lock(data, run.job.pipeline, run.id[:8])
        _refuse_unwanted(run, data)
        data.commit()
        control = stack.enter_context(contextlib.closing(sessions()))
        control.autocommit = True
        mark_interrupted(control, run.job.pipeline)
        audit(run, control, "running")
        try:
            work(run, data)
        except BaseException as error:
            if run.committed:
                _tell_late_error(run, error)
                return
            _undo(run, data)
            if run.committing:
                _settle(run, sessions, error)
            if run.committed:
                log.warning("the COMMIT's answer was lost, but it had happened")
                if not isinstance(error, Exception):
                    raise
                return
            with contextlib.suppress(Exception):
                audit(run, control, "failure", explained(error, run))
            raise


def _refuse_unwanted(run: Run, session: psycopg.Connection) -> None:
    """Only whoever holds the pipeline knows that no other run ends between this look and its own start."""
    wanted, pipeline = run.options.wanted, run.job.pipeline
    if wanted is not None and not wanted(session, pipeline):
        raise PipelineLocked(f"{pipeline} has just been run by another dw", hint="dw status")


def _tell_late_error(run: Run, error: BaseException) -> None:
    """Tell what went wrong after the COMMIT. Raises it again where it is to end the whole command."""
    if not isinstance(error, Exception):
        raise error
    log.warning("an error after the COMMIT, which stays", exc_info=error)
    run.emit(Notice(run.job.pipeline, f"loaded, but afterwards: {explained(error, run)}"))


def _prepared(sessions: Sessions) -> tuple[psycopg.Connection, str]:
    """A session in a warehouse that has all of dw's own tables, and the warehouse's id."""
    try:
        session = sessions()
        try:
            ensure_log(session)
            warehouse_id = ensure_state_tables(session)
            ensure_catalogue(session)
            crashpoints.reached("own_tables")
            session.commit()
        except BaseException:
            session.close()
            raise
    except Exception as error:
        raise warehouse_error(error) from error
    return session, warehouse_id


def _load_and_commit(run: Run, data: psycopg.Connection) -> None:
    job = run.job
    folder = lake_folder(run)
    sweep(folder)
    load_pending(run, data, folder)
    state = read_state(data, job.pipeline)
    data.commit()
    with connected(run) as connector:
        cursor, plan = where_to_begin(run, data, state)
        plan = replace(plan, states=reads_states(run, connector, cursor))
        result = (
            connector.fetch_data(job.query, cursor) if cursor != Cursor() else connector.fetch_data(job.query)
        )
        if not result.success:
            raise _SourceAnsweredFailure(result.error or "the source answered without success")
        _announce(run, connector, cursor)
        with open_load(data, job.schema, job.table, plan) as load:
            crashpoints.reached("begin")
            pump(run, result, load, partial(close, connector))
            crashpoints.reached("copied")
            note_absent(load)
            state = settle_cursor(run, load, state, cursor)
            _tell_of_lost_place(run, connector, cursor)
            note_deletions(run, connector, load)
            if job.write == "replace":
                refuse_shrinking(run, load.rows, load.deleted, load.deleted - load.rows)
            _complete_snapshot(run, load, state, cursor)
            _finish(run, load, state, data)
        crashpoints.reached("commit")
        commit(run, data)
        crashpoints.reached("committed")
        _acknowledge(run, connector)
        crashpoints.reached("acknowledged")
    if run.marker is not None:
        run.marker.unlink(missing_ok=True)
    if job.keep is not None:
        with contextlib.suppress(OSError, LakeError):  # the next run tries again
            forget(folder, job.lake, loaded_snapshots(data, job.pipeline), job.keep)


def _tell_of_lost_place(run: Run, connector: Connector, cursor: Cursor) -> None:
    """A read begins with the row at which the last one ended: where that is gone too, say what it may mean.

    An API or a stream may have rows of its own choice, so an empty answer of theirs means nothing.
    """
    if run.rows_read or cursor.start is None or cursor.end is not None or not connector.is_database:
        return
    text = (
        f"the source has no row from {cursor.column} {cursor.start} on, where the last run ended:"
        f" if it was restored or made anew, read all of it: dw run {run.job.pipeline} --full-refresh"
    )
    run.emit(Notice(run.job.pipeline, text))


def lake_folder(run: Run) -> Path:
    """Where the snapshots of a run's pipeline are."""
    job = run.job
    run.protocol = run.protocol or job.protocol or job.connector().protocol
    return source_folder(job.lake, run.protocol, job.lake_name)


@contextlib.contextmanager
def connected(run: Run) -> Iterator[Connector]:
    """The source, connected: by the last run of this command that is done with it, or anew.

    A connection is kept for the next run only when everything went well. A stream's is not: what it has
    fetched and not acknowledged belongs to one run.
    """
    source, idle = run.job.source, run.job.idle
    kept = idle.pop(source, None) if idle is not None else None
    if kept is not None and time.monotonic() - kept.since > IDLE_SECONDS:
        close(kept.connector)
        kept = None
    connector = kept.connector if kept is not None else run.job.connector()
    if isinstance(connector.config, BaseModel):
        run.secrets += secrets_of(connector.config)
    if run.job.ended is not None:
        run.job.ended.reading.append(connector)
    try:
        heed(run)
        _refuse_to_lose(run, connector)
        if kept is None:
            crashpoints.reached("connect")
            connector.connect()
        yield connector
    except BaseException:
        close(connector)
        raise
    if idle is None or hasattr(connector.module, "acknowledge"):
        close(connector)
    else:
        mine = Idle(connector, time.monotonic())
        if idle.setdefault(source, mine) is not mine:
            close(connector)


def close_idle(idle: dict[str, Idle]) -> None:
    """Close the connections that runs have left for the next one."""
    while idle:
        close(idle.popitem()[1].connector)


def close(connector: Connector) -> None:
    """Close a source. What goes wrong then changes nothing in what was read."""
    try:
        connector.close()
    except Exception as error:
        log.warning("closing the source failed", exc_info=error)


def _acknowledge(run: Run, connector: Connector) -> None:
    """Tell the source how far the warehouse is.

    Where that fails the run stays a success: the position was committed with the rows, so that what the
    source gives again is recognised by the next read.
    """
    if run.position is None:
        return
    try:
        connector.acknowledge(run.position)
    except Exception as error:
        log.warning("the source could not be told what has been loaded", exc_info=error)
        run.emit(
            Notice(
                run.job.pipeline,
                "loaded, but the source could not be told so and may give these rows again:"
                f" {explained(error, run)}",
            )
        )


def _refuse_to_lose(run: Run, connector: Connector) -> None:
    """What has been acknowledged may be gone from the source, so that takes nothing from the table."""
    stream = hasattr(connector.module, "acknowledge")
    if stream and run.job.write == "replace":
        raise ConfigError(
            f"{run.job.pipeline}: a stream cannot be loaded with write: replace",
            why="each run reads what is new, so the rows of earlier runs would be lost",
            hint="write: append, or merge with a key",
        )
    if stream and run.job.deletes != "ignore":
        raise ConfigError(
            f"{run.job.pipeline}: deletes: {run.job.deletes} cannot be used with a stream",
            why="that a message is gone from the stream does not mean that its row was deleted",
            hint="take the line 'deletes' out of the source file",
        )
    forgets = getattr(connector.module, "FORGETS", False)
    if isinstance(forgets, str):
        forgets = bool(getattr(connector.config, forgets))
    if forgets and run.options.full_refresh:
        raise UsageError(
            f"{run.job.pipeline} cannot be read again: its source drops what has been loaded",
            hint=f"rebuild the table from the lake: dw replay {run.job.pipeline}",
        )


def _announce(run: Run, connector: Connector, cursor: Cursor) -> None:
    """Tell what is to come; totals are known only when everything is read."""
    rows = size = None
    if cursor.start is None and cursor.position is None and run.options.limit is None:
        with contextlib.suppress(DwError):
            rows, size = connector.estimate(run.job.query)
    crashpoints.reached("described")
    target = f"{run.job.schema}.{run.job.table}"
    run.emit(RunStarted(run.job.pipeline, run.id, target, rows, size, cursor.start))


# -- the end of a run ---------------------------------------------------------------------------------


def _complete_snapshot(run: Run, load: Load, state: State, cursor: Cursor) -> None:
    """Write the manifest. From here on the snapshot can be loaded without the source."""
    job, plan = run.job, load.plan
    if run.marker is None or not (run.files or run.gone):
        return
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
        ingested_at=load.ingested_at.isoformat() if load.ingested_at else "",
        nulls_left_out=run.nulls_left_out,
        deletes=job.deletes,
        gone=run.gone,
        states=plan.states,
    )
    path = run.marker.with_name(run.marker.stem + MANIFEST)
    write_manifest(manifest, path)
    crashpoints.reached("manifest")
    run.snapshot = str(path.relative_to(job.lake))


def _finish(run: Run, load: Load, state: State, data: psycopg.Connection) -> None:
    """The last of the one transaction: rows, cursor, receipt, audit row."""
    job = run.job
    run.emit(StageStarted(job.pipeline, "load"))
    began = time.monotonic()
    run.counts = finish_load(load)
    crashpoints.reached("finished")
    run.seconds["load"] += time.monotonic() - began
    tell_changes(run, load)
    write_state(data, job.pipeline, run.id, state)
    write_receipt(
        data,
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
    audit(run, data, "success")


def commit(run: Run, data: psycopg.Connection) -> None:
    """COMMIT. An error from here on may come after it has happened."""
    heed(run)
    run.committing = True
    data.commit()
    run.committed, run.committing = True, False


def _undo(run: Run, data: psycopg.Connection) -> None:
    """Roll back, and forget the files of a snapshot whose COMMIT was never asked for."""
    with contextlib.suppress(Exception):
        # In the midst of a statement the server takes no ROLLBACK: the end of the session is one.
        if data.info.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
            data.rollback()
    _hang_up(data)
    if run.committing:
        return
    if run.marker is not None:
        with contextlib.suppress(OSError):
            run.marker.with_name(run.marker.stem + MANIFEST).unlink(missing_ok=True)
            discard_snapshot(run.marker)
    run.files.clear()
    run.snapshot = run.cursor_to = None
    run.schema_changes.clear()


def _hang_up(data: psycopg.Connection) -> None:
    """End the session, and let go of the lock first where that can be said: a busy server ends it later."""
    with contextlib.suppress(Exception):
        if data.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            data.execute("select pg_advisory_unlock_all()")
    with contextlib.suppress(Exception):
        data.close()


def _settle(run: Run, sessions: Sessions, error: BaseException) -> None:
    """Find out what came of a COMMIT that ended with this error. Raises CommitUnknown, or a signal again."""
    run.unsure = True
    try:
        run.committed = _is_committed(run, sessions)
    except CommitUnknown as unknown:
        raise (unknown if isinstance(error, Exception) else error) from None
    run.unsure = False


def _is_committed(run: Run, sessions: Sessions) -> bool:
    """Whether a COMMIT whose answer never came has happened after all. Raises CommitUnknown.

    The server may still be at it when it is asked: as long as the session of this run lives, it holds the
    pipeline, and nothing is settled.
    """
    give_up, why = time.monotonic() + SETTLE_SECONDS, "its session has not ended yet"
    while True:
        try:
            with contextlib.closing(sessions()) as session:
                ended = not is_held(session, run.job.pipeline, run.id[:8])
                if was_loaded(session, run.id):
                    return True
                if ended:
                    return False
        except Exception as error:
            why = explained(error, run).message
        if time.monotonic() > give_up:
            raise CommitUnknown(why=why)
        time.sleep(SETTLE_PAUSE_SECONDS)


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
            audit(run, connection, "success")
    except BaseException as error:
        audit(run, engine, "failure", explained(error, run))
        raise

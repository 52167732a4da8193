"""One run as a record: what it is asked, what has happened in it, and how that is told afterwards."""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from dwcli.connectors import Connector
from dwcli.contract import Contract, Deletes, WriteDisposition
from dwcli.errors import NO_ROOM, CommitUnknown, ConnectionFailed, DwError, RunStopped, WarehouseError
from dwcli.events import Emit, SchemaChanged
from dwcli.log import get_logger
from dwcli.references import redact
from dwcli.staging.audit import write_row
from dwcli.staging.plan import Counts, Load
from dwcli.staging.trouble import trouble
from dwcli.staging.writer import StagedFile

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

log = get_logger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What a person may ask of one run.

    start, end: a backfill range of the cursor, start inclusive and end exclusive.
    limit: stop after so many rows; the next run then reads everything.
    wanted: asked, with the warehouse and the pipeline's name, once the run holds the pipeline; a run that is
        not wanted any more ends as if another still held it.
    """

    full_refresh: bool = False
    start: str | None = None
    end: str | None = None
    limit: int | None = None
    jobs: int = 1
    fail_fast: bool = False
    #: go on though the source has lost most of its rows
    allow_shrink: bool = False
    wanted: Callable[[psycopg.Connection, str], bool] | None = None


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
    #: known without making the connector, which may need secrets; "" where only it knows
    protocol: str = ""
    write: WriteDisposition = "append"
    key: tuple[str, ...] = ()
    cursor: str | None = None
    cursor_nulls: str = "error"
    lookback: str | int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    contract: Contract = "evolve"
    max_rejects: int | None = None
    deletes: Deletes = "ignore"
    #: seconds that loaded snapshots stay in the lake; None for ever
    keep: float | None = None
    config_hash: str = ""
    command: str = ""
    #: folder of the runs' logs; None for no log
    logs: Path | None = None
    #: values that no message and no log may show, beside the secrets of the source
    hidden: tuple[str, ...] = ()
    #: open connections that no run uses just now, by source, for the next run of the same command
    idle: dict[str, Idle] | None = None
    #: set when the command is to end, for runs in other threads than the one that hears signals
    ended: Ended | None = None


@dataclass(frozen=True)
class Ended:
    """Tells runs in other threads that a signal has ended the command."""

    event: threading.Event = field(default_factory=threading.Event)
    #: sources that they may be waiting for
    reading: list[Connector] = field(default_factory=list)


@dataclass(frozen=True)
class Idle:
    """An open connection to a source that waits for its next pipeline."""

    connector: Connector
    #: time.monotonic() when it was put here
    since: float


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
    #: the column whose NULL rows were left out, by the pipeline's policy
    nulls_left_out: str = ""
    #: keys that the source no longer has, in the lake
    gone: StagedFile | None = None
    secrets: list[str] = field(default_factory=list)
    snapshot: str | None = None
    marker: Path | None = None
    #: COMMIT was asked for, and its answer has not come
    committing: bool = False
    #: what was read is in the warehouse: no error can make a failure of this run any more
    committed: bool = False
    #: nobody can say just now whether that COMMIT has happened
    unsure: bool = False
    #: loaded from the lake at the start, because an earlier run died before its COMMIT
    healed: list[str] = field(default_factory=list)


def heed(run: Run) -> None:
    """End this run here, if a signal has ended the command."""
    if _is_ended(run):
        raise KeyboardInterrupt


def _is_ended(run: Run) -> bool:
    return run.job.ended is not None and run.job.ended.event.is_set()


def tell_changes(run: Run, load: Load) -> None:
    for change in load.changes[len(run.schema_changes) :]:
        run.schema_changes.append(change.words)
        run.emit(SchemaChanged(run.job.pipeline, change.words))


def audit(
    run: Run, where: psycopg.Connection | Connection | Engine, status: str, error: DwError | None = None
) -> None:
    """Write what is known of a run into its row of etl_audit_log."""
    job, done = run.job, status != "running"
    values: dict[str, Any] = {
        "run_id": run.id,
        "pipeline_name": job.pipeline,
        "source_name": job.source,
        "protocol": run.protocol,
        "target_table": f"{job.schema}.{job.table}",
        "status": status,
        "started_at": run.started_at,
        "host": socket.gethostname(),
        "os_user": _user(),
        "pid": os.getpid(),
        "dw_version": dw_version(),
        "config_hash": job.config_hash or None,
        "command": job.command or None,
        "write": job.write,
    }
    if done:
        values |= {
            "finished_at": datetime.now(UTC),
            "rows_loaded": run.counts.rows if error is None else 0,
            "parquet_files": len(run.files),
            "rows_read": run.rows_read,
            "rows_inserted": run.counts.inserted,
            "rows_updated": run.counts.updated,
            "rows_deleted": run.counts.deleted,
            "rows_rejected": run.counts.rejected,
            "bytes_staged": run.bytes_staged,
            "cursor_from": run.cursor_from,
            "cursor_to": run.cursor_to,
            "seconds": {stage: round(value, 3) for stage, value in run.seconds.items()},
            "schema_changes": run.schema_changes,
            "values_changed": run.values_changed,
            "snapshot": run.snapshot,
            "error_message": _sentence(error, run.secrets) if error else None,
            "error_code": error.code if error else None,
            "error_hint": redact(error.hint, run.secrets) if error else None,
        }
    write_row(where, values)


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


def result_of(run: Run, error: DwError | None) -> dict[str, Any]:
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
        "write": job.write,
        "rows_read": run.rows_read,
        "rows_inserted": 0 if error else run.counts.inserted,
        "rows_updated": 0 if error else run.counts.updated,
        "rows_deleted": 0 if error else run.counts.deleted,
        "rows_rejected": 0 if error else run.counts.rejected,
        "bytes_staged": run.bytes_staged,
        "cursor_from": run.cursor_from,
        "cursor_to": run.cursor_to,
        "seconds": {stage: round(value, 3) for stage, value in run.seconds.items()},
        "schema_changes": run.schema_changes,
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


def explained(error: BaseException, run: Run) -> DwError:
    """Any error as one of ours, without secrets."""
    if isinstance(error, KeyboardInterrupt | SystemExit) or _is_ended(run):
        if run.unsure:
            return RunStopped(f"stopped at COMMIT: {CommitUnknown.hint}")
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
        return warehouse_error(error)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return DwError(
            "there is no room left" + (f" for {error.filename}" if error.filename else " on a disk"),
            why=error.strerror or "",
            hint="make room, or choose another folder for temporary files: TMPDIR=/var/tmp dw run …",
        )
    log.error("unexpected error in %s", run.job.pipeline, exc_info=error)
    return DwError(
        f"unexpected error ({type(error).__name__})", why=redact(str(error), run.secrets), code="DW-BUG"
    )


def warehouse_error(error: BaseException) -> DwError:
    """A driver's error as ours: the server's own sentence, never its DETAIL, which holds row data."""
    if isinstance(error, DwError):
        return error
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, DwError):
        return cause
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    return trouble(cause) or WarehouseError(
        "the warehouse refused something",
        why=primary or str(cause).split("\n")[0],
        hint="look at the warehouse's side: dw doctor",
    )

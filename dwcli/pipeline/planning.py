"""What a run would do, without doing it: `dw run --dry-run`.

    project, options ──plan_project──▶ Plan, Plan, …      one for each pipeline, as soon as it is known

A plan reads the catalogue of the source (`describe`), the state, the audit log and the tables of the
warehouse, and the manifests in the lake. It takes no lock, and its session in the warehouse is read-only, so
that PostgreSQL itself refuses what would change anything. Numbers are estimates, and say whose they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

import psycopg

from dwcli.connectors import literals
from dwcli.contract import KEYED, Cursor, Resource
from dwcli.errors import LakeError
from dwcli.events import ignore
from dwcli.pipeline.cursor import is_trial, where_to_begin
from dwcli.pipeline.lock import holder
from dwcli.pipeline.project import job_of, passwords
from dwcli.pipeline.record import Idle, Job, Run, RunOptions, explained
from dwcli.pipeline.runner import close_idle, connected, lake_folder
from dwcli.project import Pipeline, Project, seconds
from dwcli.references import redact
from dwcli.staging.audit import latest_runs
from dwcli.staging.dw_schema import (
    ADDED_COLUMNS,
    DELETED_AT,
    HISTORY_COLUMNS,
    PROVISIONAL,
    Change,
    Table,
    canonical,
    names_for,
    new_table,
    planned,
    read_table,
)
from dwcli.staging.plan import LoadPlan
from dwcli.staging.rejecting import DISCARDING
from dwcli.staging.state import State, receipts, states
from dwcli.staging.writer import Manifest, read_manifest, snapshots
from dwcli.warehouse import connect

#: Runs of each pipeline that estimates are made from.
RUNS_LOOKED_AT = 20
#: A run that read less than this part of the largest one says little about speed: it mostly waited.
TELLING = 0.1


@dataclass(frozen=True)
class Reading:
    """What a run would read."""

    query: str
    #: whatever the source has, not only what is new
    everything: bool
    #: why it is so, as a sentence
    why: str
    cursor_column: str | None = None
    #: where reading begins, in PostgreSQL's text form, any lookback taken off
    cursor_from: str | None = None
    #: where it ends; None for what is there by then
    cursor_to: str | None = None
    rows_estimate: int | None = None
    bytes_estimate: int | None = None
    #: whose estimate it is: the source's catalogue, or the runs before
    estimated_by: Literal["catalogue", "history"] | None = None


@dataclass(frozen=True)
class PlannedColumn:
    """A column that would be new, or of a wider type."""

    name: str
    type: str
    #: the type it has now; None where there is no such column yet
    type_now: str | None = None


@dataclass(frozen=True)
class Schema:
    """How the table would change. Without `known`, columns are told only by reading."""

    known: bool
    #: declared by the source, or inferred from some of its rows
    typing: Literal["declared", "inferred"] | None = None
    new_table: bool = False
    columns: Sequence[PlannedColumn] = ()
    #: columns of the table that the source does not have (any more); they stay
    not_in_source: Sequence[str] = ()
    ddl: Sequence[str] = ()


@dataclass(frozen=True)
class Meeting:
    """How rows would meet the table."""

    write: str
    key: Sequence[str]
    #: as a sentence
    rows: str
    deletes: str
    #: rows of the table now, as PostgreSQL estimates them
    table_rows_estimate: int | None = None


@dataclass(frozen=True)
class Waiting:
    """A snapshot of an interrupted run, which would be loaded first."""

    run_id: str
    snapshot: str
    rows: int
    cursor_to: str | None


@dataclass(frozen=True)
class Cost:
    """What a run would take, as the runs before show it."""

    seconds_estimate: float | None
    lake_bytes_estimate: int | None
    lake_bytes_free: int | None
    #: runs that the estimates were made from
    from_runs: int


@dataclass(frozen=True)
class Warn:
    """What should be known before the run. One that `stops` it would make the run fail."""

    text: str
    hint: str = ""
    stops: bool = False


@dataclass
class Plan:
    """What one run would do; what could not be found out is None, and `error` says why."""

    pipeline_name: str
    source_name: str
    target_table: str
    reading: Reading | None = None
    schema: Schema | None = None
    meeting: Meeting | None = None
    waiting: list[Waiting] = field(default_factory=list)
    cost: Cost | None = None
    warnings: list[Warn] = field(default_factory=list)
    error: Mapping[str, str] | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is known that would make the run fail."""
        return self.error is None and not any(warning.stops for warning in self.warnings)


def record(plan: Plan) -> dict[str, Any]:
    """A plan as `dw run --dry-run --json` prints it."""
    return {"dry_run": True, "ok": plan.ok} | asdict(plan)


def plan_project(
    project: Project, pipelines: Sequence[Pipeline], warehouse_url: str, options: RunOptions
) -> Iterator[Plan]:
    """What a run of each of these pipelines would do, in their order. Nothing is changed anywhere.

    A source that cannot be reached is its plan's error. Raises ConnectionFailed for the warehouse.
    """
    idle: dict[str, Idle] = {}
    with closing(connect(warehouse_url, application_name="dw plan")) as connection:
        connection.read_only = True
        history = latest_runs(connection, RUNS_LOOKED_AT)
        try:
            for pipeline in pipelines:
                job = replace(job_of(project, pipeline), idle=idle, hidden=passwords(warehouse_url))
                every = pipeline.config.every
                plan = plan_run(job, connection, options, history.get(job.pipeline, []))
                plan.warnings += _late(every, history.get(job.pipeline, []), datetime.now(UTC))
                yield plan
        finally:
            close_idle(idle)


def plan_one(job: Job, warehouse_url: str) -> Plan:
    """What a run of one query without a project would do."""
    with closing(connect(warehouse_url, application_name="dw plan")) as connection:
        connection.read_only = True
        history = latest_runs(connection, RUNS_LOOKED_AT)
        return plan_run(
            replace(job, hidden=passwords(warehouse_url)),
            connection,
            RunOptions(),
            history.get(job.pipeline, []),
        )


def plan_run(
    job: Job, connection: psycopg.Connection, options: RunOptions, history: Sequence[Mapping[str, Any]]
) -> Plan:
    """What a run of a job would do. An error becomes the plan's; what was known before it stays.

    connection: read-only. history: the job's last runs, newest first, as the audit log has them.
    """
    run = Run(job, options, ignore, secrets=list(job.hidden))
    plan = Plan(job.pipeline, job.source, f"{job.schema}.{job.table}")
    ran = [entry for entry in history if entry["target_table"] == plan.target_table]
    try:
        plan.warnings += _busy(connection, job) + _went_wrong(job, ran)
        plan.waiting, state = _waiting_and_state(run, plan, connection)
        cursor, loading = where_to_begin(run, connection, state or State())
        plan.reading = _estimated(_reading(job, options, cursor, loading, state), None, options, ran)
        table = read_table(connection, job.schema, job.table)
        plan.meeting = _meeting(job, options, loading, table, connection)
        plan.cost = _cost(job, plan.reading, ran)
        with connected(run) as connector:
            resource = connector.describe(job.query)
        plan.reading = _estimated(plan.reading, resource, options, ran)
        plan.cost = _cost(job, plan.reading, ran)
        plan.schema = _schema(job, loading, table, resource, connector.protocol, connection)
        plan.warnings += _schema_warnings(job, plan.schema, resource)
        plan.warnings += _size_warnings(job, plan, options)
    except Exception as error:  # of any kind: a connector may be somebody else's
        told = explained(error, run)
        parts = {"code": told.code, "message": told.message, "why": told.why, "hint": told.hint}
        plan.error = {name: redact(text, run.secrets) for name, text in parts.items()}
    finally:
        connection.rollback()
    return plan


# -- what would be read --------------------------------------------------------------------------------


def _waiting_and_state(
    run: Run, plan: Plan, connection: psycopg.Connection
) -> tuple[list[Waiting], State | None]:
    """The snapshots that would be loaded first, and the state after them; None where none is kept."""
    job = run.job
    found = states(connection).get(job.pipeline)
    state: State | None = None
    if found:
        state = State(
            found["cursor_column"], found["cursor_value"], found["cursor_type"] or "", found["position"]
        )
    loaded = {receipt.snapshot for receipt in receipts(connection, job.pipeline)}
    waiting: list[Waiting] = []
    warehouse = _warehouse_id(connection)
    for path in snapshots(lake_folder(run)):
        name = str(path.relative_to(job.lake))
        if name in loaded:
            continue
        try:
            manifest = read_manifest(path)
        except LakeError as error:
            text = f"an unfinished snapshot cannot be loaded; its rows would be read again: {error}"
            plan.warnings.append(Warn(text, "dw clean removes it afterwards"))
            continue
        if (manifest.warehouse_id, manifest.pipeline) == (warehouse, job.pipeline):
            waiting.append(Waiting(manifest.run_id, name, manifest.rows, manifest.cursor_to))
            state = _state_after(manifest)
    return waiting, state


def _state_after(manifest: Manifest) -> State:
    return State(manifest.cursor, manifest.cursor_to, manifest.cursor_type, manifest.position)


def _warehouse_id(connection: psycopg.Connection) -> str | None:
    if connection.execute("select to_regclass('etl_warehouse')").fetchone() == (None,):
        return None
    found = connection.execute("select id from etl_warehouse").fetchone()
    return str(found[0]) if found else None


def _reading(
    job: Job, options: RunOptions, cursor: Cursor, loading: LoadPlan, state: State | None
) -> Reading:
    everything = cursor.start is None and cursor.end is None and cursor.position is None
    return Reading(
        query=job.query,
        everything=everything,
        why=_why(job, options, cursor, loading, state),
        cursor_column=cursor.column or None,
        cursor_from=cursor.start,
        cursor_to=cursor.end,
    )


def _why(job: Job, options: RunOptions, cursor: Cursor, loading: LoadPlan, state: State | None) -> str:
    """Why reading begins where it does. state: None where none is kept: a first run, or a reset."""
    if options.start or options.end:
        return "the range that was asked for"
    if cursor.start is not None:
        behind = f", {job.lookback} taken off (lookback)" if job.lookback is not None else ""
        return f"the last run came as far as {state.value if state else cursor.start}{behind}"
    if cursor.position is not None:
        return "the source gives what has not been loaded yet"
    if options.full_refresh:
        return "--full-refresh"
    if state is not None and is_trial(state):
        return "the run before was a trial with --limit"
    if job.write == "replace":
        return "write: replace loads everything anew each time"
    if state is None:
        return "nothing has been loaded yet, or its state was reset"
    if not job.cursor:
        return "it has no cursor" + (": all of it is added again" if job.write == "append" else "")
    if state.cursor is not None and state.cursor != job.cursor:
        return f"the cursor is {job.cursor} now, it was {state.cursor}"
    return "no cursor value has been reached yet"


def _estimated(
    reading: Reading, resource: Resource | None, options: RunOptions, ran: Sequence[Mapping[str, Any]]
) -> Reading:
    """A reading with its size: from the catalogue where everything is read, else from runs of its kind."""
    rows: int | None = None
    size: int | None = None
    by: Literal["catalogue", "history"] | None = None
    if reading.everything and resource is not None:
        rows, size = resource.row_estimate, resource.bytes_estimate
        by = "catalogue" if rows is not None or size is not None else None
    alike = [entry["rows_read"] for entry in _alike(reading, ran)]
    if rows is None and alike and reading.cursor_to is None:
        rows, by = round(median(alike)), by or "history"
    if options.limit is not None and rows is not None and rows > options.limit:
        rows, size = options.limit, None if size is None else size * options.limit // rows
    return replace(reading, rows_estimate=rows, bytes_estimate=size, estimated_by=by)


def _good(ran: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [entry for entry in ran if entry["status"] == "success" and entry["rows_read"] is not None]


def _alike(reading: Reading, ran: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Good runs that read everything, or that read what was new, as this one would.

    A source that keeps its own place leaves no mark in the audit log: all its runs but the first are alike.
    """
    good = _good(ran)
    if reading.everything or reading.cursor_from is not None:
        return [entry for entry in good if (entry["cursor_from"] is None) == reading.everything]
    return good[:-1] if len(good) < RUNS_LOOKED_AT else good


def _cost(job: Job, reading: Reading, ran: Sequence[Mapping[str, Any]]) -> Cost:
    """Time and room in the lake, from the speed and the size of rows of the runs before."""
    good = [entry for entry in _good(ran) if entry["rows_read"] and entry["finished_at"]]
    most = max((entry["rows_read"] for entry in good), default=0)
    telling = [entry for entry in good if entry["rows_read"] >= most * TELLING]
    needed: int | None = None
    taken: float | None = None
    rows = reading.rows_estimate
    if telling and rows is not None:
        per_row = [_seconds(entry) / entry["rows_read"] for entry in telling]
        shortest = min(_seconds(entry) for entry in _good(ran) if entry["finished_at"])
        taken = round(max(shortest, rows * median(per_row)), 2)
        sizes = [entry["bytes_staged"] / entry["rows_read"] for entry in telling if entry["bytes_staged"]]
        needed = round(rows * median(sizes)) if sizes else None
    return Cost(taken, needed, _free(job.lake), len(telling) if taken is not None else 0)


def _seconds(entry: Mapping[str, Any]) -> float:
    took: float = (entry["finished_at"] - entry["started_at"]).total_seconds()
    return max(took, 0.001)


def _free(lake: Path) -> int | None:
    """Bytes free where the lake is, or will be."""
    folder = next((path for path in (lake, *lake.absolute().parents) if path.exists()), None)
    try:
        return shutil.disk_usage(folder).free if folder else None
    except OSError:
        return None


# -- what would become of the table --------------------------------------------------------------------


def _schema(
    job: Job,
    loading: LoadPlan,
    table: Table | None,
    resource: Resource,
    protocol: str,
    connection: psycopg.Connection,
) -> Schema:
    """The DDL of a run, as far as the columns are known before it reads."""
    types = {column.name: canonical(column.type) for column in resource.columns}
    types |= {name: canonical(kind) for name, kind in job.columns.items() if name in types}
    if not types:
        return Schema(known=False, new_table=table is None)
    typing = literals(protocol).get("TYPING")
    if table is None:
        made, change = new_table(job.schema, job.table, types, updated=loading.write == "merge")
        columns = dict(made.columns) | (HISTORY_COLUMNS if loading.write == "scd2" else {})
        shown = tuple(PlannedColumn(name, _type(kind)) for name, kind in columns.items())
        return Schema(True, typing, True, shown, ddl=_statements([change], connection))
    grown, changes = planned(table, _taken(job, table, types), None)
    columns = dict(grown.columns)
    if loading.write == "scd2":
        columns |= HISTORY_COLUMNS
    shown = tuple(
        PlannedColumn(name, _type(kind), _type(table.columns[name]) if name in table.columns else None)
        for name, kind in columns.items()
        if kind != table.columns.get(name)
    )
    mine = {*ADDED_COLUMNS, *HISTORY_COLUMNS, DELETED_AT, *names_for(table, types).values()}
    gone = tuple(name for name in table.columns if name not in mine)
    return Schema(True, typing, False, shown, gone, _statements(changes, connection))


def _taken(job: Job, table: Table, types: Mapping[str, str]) -> Mapping[str, str]:
    """The types that may change the table: with a contract that discards, none but declared ones."""
    if job.contract not in DISCARDING:
        return types
    return {name: kind for name, kind in types.items() if name in job.columns}


def _statements(changes: Sequence[Change], connection: psycopg.Connection) -> tuple[str, ...]:
    return tuple(change.ddl.as_string(connection) for change in changes)


def _type(kind: str) -> str:
    return "text" if kind == PROVISIONAL else kind


def _meeting(
    job: Job, options: RunOptions, loading: LoadPlan, table: Table | None, connection: psycopg.Connection
) -> Meeting:
    rows = None
    if table is not None:
        found = connection.execute(
            "select reltuples::bigint from pg_class where oid = to_regclass(%s)",
            (table.identifier.as_string(connection),),
        ).fetchone()
        rows = found[0] if found and found[0] >= 0 else None
    return Meeting(loading.write, loading.key, _what_rows_do(loading, table), _deletes(job, options), rows)


def _what_rows_do(loading: LoadPlan, table: Table | None) -> str:
    """What becomes of the rows, as a sentence without its full stop."""
    key = f"by key ({', '.join(loading.key)})"
    match loading.write:
        case "replace":
            return "the table is emptied and filled anew, in one transaction"
        case "merge":
            emptied = "the table is emptied first; then " if loading.fresh and table is not None else ""
            return f"{emptied}rows are inserted or updated {key}"
        case "scd2":
            return f"a row that changed ends its version and begins a new one {key}"
        case _:
            edge = "; those at the cursor's last value are compared first" if loading.boundary else ""
            return f"rows are added to those that are there{edge}"


def _deletes(job: Job, options: RunOptions) -> str:
    if job.write == "replace":
        return "rows deleted in the source are gone from the table too"
    if job.deletes == "ignore":
        return "rows deleted in the source stay in the table"
    if options.limit is not None:
        return "rows deleted in the source are not looked for: --limit"
    how = "deleted" if job.deletes == "hard" else f"marked in {DELETED_AT}"
    return f"rows deleted in the source are {how}: all its keys are read"


# -- what should be known first ------------------------------------------------------------------------


def _busy(connection: psycopg.Connection, job: Job) -> list[Warn]:
    held = holder(connection, job.pipeline)
    return [Warn(f"it is already running{held}", "wait until it is done: dw status", True)] if held else []


def _went_wrong(job: Job, ran: Sequence[Mapping[str, Any]]) -> list[Warn]:
    """What the last run says of the next one."""
    ended = [entry for entry in ran if entry["status"] != "running"]
    if not ended:
        return []
    last = ended[0]
    if last["status"] == "failure":
        return [Warn(f"the last run failed: {last['error_message']}", f"dw audit {last['run_id'][:8]}")]
    if last["rows_rejected"]:
        allowed = "" if job.max_rejects is None else f"; max_rejects is {job.max_rejects:,}"
        return [Warn(f"the last run set {last['rows_rejected']:,} rows aside{allowed}")]
    return []


def _late(every: str | None, ran: Sequence[Mapping[str, Any]], now: datetime) -> list[Warn]:
    good = next((entry["finished_at"] for entry in ran if entry["status"] == "success"), None)
    if every is None or good is None or (now - good).total_seconds() <= seconds(every):
        return []
    return [Warn(f"it is late: every {every}, but the last good run was at {good:%Y-%m-%d %H:%M} UTC")]


def _schema_warnings(job: Job, schema: Schema, resource: Resource) -> list[Warn]:
    if not schema.known:
        return []
    warnings: list[Warn] = []
    names = {column.name for column in resource.columns}
    if job.contract == "freeze" and not schema.new_table and schema.columns:
        changed = ", ".join(column.name for column in schema.columns)
        warnings.append(
            Warn(
                f"the source's schema has changed ({changed}), and contract: freeze refuses that",
                "allow it with contract: evolve, or leave the column out of the query",
                True,
            )
        )
    missing = [name for name in job.key if job.write in KEYED and name not in names]
    if missing:
        warnings.append(
            Warn(f"key columns that the source does not have: {', '.join(missing)}", "correct key:", True)
        )
    if job.cursor and job.write != "replace" and job.cursor not in names:
        warnings.append(
            Warn(f"the source has no column {job.cursor}, which is the cursor", "correct cursor:", True)
        )
    unknown = [name for name in job.columns if name not in names]
    if unknown:
        warnings.append(Warn(f"columns: names what the source does not have: {', '.join(unknown)}"))
    if schema.not_in_source:
        warnings.append(
            Warn(f"not in the source (any more), NULL in new rows: {', '.join(schema.not_in_source)}")
        )
    return warnings


def _size_warnings(job: Job, plan: Plan, options: RunOptions) -> list[Warn]:
    warnings: list[Warn] = []
    cost, reading, meeting = plan.cost, plan.reading, plan.meeting
    if cost and cost.lake_bytes_free is not None and (cost.lake_bytes_estimate or 0) > cost.lake_bytes_free:
        warnings.append(Warn("the lake has not enough room for what would be read", "dw clean"))
    if reading and meeting and job.write == "replace" and not options.allow_shrink:
        coming, there = reading.rows_estimate, meeting.table_rows_estimate
        if reading.estimated_by == "catalogue" and coming is not None and there and coming * 2 <= there:
            warnings.append(
                Warn(
                    f"the source seems to have {coming:,} rows where the table has about {there:,}:"
                    " the run would stop before it loses them",
                    f"if that is right: dw run {job.pipeline} --allow-shrink",
                )
            )
    return warnings

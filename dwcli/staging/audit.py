"""etl_audit_log: what past runs did. One row per run, also for one that was killed.

Nothing in here decides what the next run does: delete the log, and the next run behaves the same. (When a
pipeline runs next by its `every:` is read here: without the log it is due at once.)
This module imports neither polars nor SQLAlchemy at the top: `dw status` and `dw audit` read with it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dwcli.errors import NameUnknown

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Connection, Engine

#: The user's own columns, then what dw adds at the end.
COLUMNS = {
    "run_id": "TEXT NOT NULL",
    "pipeline_name": "TEXT NOT NULL",
    "source_name": "TEXT NOT NULL",
    "protocol": "TEXT NOT NULL",
    "target_table": "TEXT NOT NULL",
    "status": "TEXT NOT NULL",
    "rows_loaded": "BIGINT",
    "parquet_files": "INTEGER",
    "error_message": "TEXT",
    "started_at": "TIMESTAMP WITH TIME ZONE NOT NULL",
    "finished_at": "TIMESTAMP WITH TIME ZONE",
}
DETAILS = {
    "write": "TEXT",
    "rows_read": "BIGINT",
    "rows_inserted": "BIGINT",
    "rows_updated": "BIGINT",
    "rows_deleted": "BIGINT",
    "rows_rejected": "BIGINT",
    "bytes_staged": "BIGINT",
    "cursor_from": "TEXT",
    "cursor_to": "TEXT",
    "seconds": "JSONB",
    "schema_changes": "JSONB",
    "values_changed": "JSONB",
    "error_code": "TEXT",
    "error_hint": "TEXT",
    "host": "TEXT",
    "os_user": "TEXT",
    "pid": "BIGINT",
    "dw_version": "TEXT",
    "config_hash": "TEXT",
    "command": "TEXT",
    "snapshot": "TEXT",
}
#: `dw status` and `dw run --due` ask for the last runs of each pipeline.
INDEX = "etl_audit_log_by_pipeline"
CREATE_INDEX = f"CREATE INDEX IF NOT EXISTS {INDEX} ON etl_audit_log (pipeline_name, started_at DESC)"
#: What was loaded stays told. A failure may become a success yet: the next run loads what lies in the lake.
APPEND_ONLY = """
create or replace function etl_audit_log_append_only() returns trigger language plpgsql as $$
begin
    raise exception 'etl_audit_log is append-only: what it says of runs stays'
        using errcode = 'restrict_violation',
              hint = 'to prune it: alter table etl_audit_log disable trigger user, and enable it again';
end $$;
create trigger etl_audit_log_append_only before update on etl_audit_log for each row
    when (old.status = 'success' and old is distinct from new)
    execute procedure etl_audit_log_append_only();
create trigger etl_audit_log_no_delete before delete or truncate on etl_audit_log
    for each statement execute procedure etl_audit_log_append_only();
"""
LOCK_KEY = 7_206_001  # arbitrary; serializes the making of dw's own tables


def ensure_audit_table(engine: Engine | Connection) -> None:
    """Make etl_audit_log if it is not there, and add the columns an older one lacks. Idempotent.

    Works on PostgreSQL and on SQLite. Given a Connection, it joins the caller's transaction.
    """
    from sqlalchemy import inspect, text

    from dwcli.staging.dw_schema import is_postgres, raw, transaction

    with transaction(engine) as connection:
        if is_postgres(connection):
            ensure_log(raw(connection))
            return
        connection.execute(text(_create("INTEGER PRIMARY KEY AUTOINCREMENT")))
        columns = inspect(connection).get_columns("etl_audit_log")
        for statement in (*_additions([column["name"] for column in columns]), CREATE_INDEX):
            connection.execute(text(statement))


def ensure_log(session: psycopg.Connection) -> None:
    """`ensure_audit_table` in a session's transaction."""
    session.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
    session.execute(_create("BIGSERIAL PRIMARY KEY").encode())
    columns = session.execute(
        "SELECT attname FROM pg_attribute"
        " WHERE attrelid = to_regclass('etl_audit_log') AND attnum > 0 AND NOT attisdropped"
    )
    for statement in _additions([name for (name,) in columns]):
        session.execute(statement.encode())
    _ensure_once(session, "SELECT to_regclass(%s)", INDEX, CREATE_INDEX)
    triggers = (
        "SELECT max(tgname) FROM pg_trigger WHERE tgrelid = to_regclass('etl_audit_log') AND tgname = %s"
    )
    _ensure_once(session, triggers, "etl_audit_log_append_only", APPEND_ONLY)


def _create(number: str) -> str:
    columns = ", ".join(f"{name} {kind}" for name, kind in (COLUMNS | DETAILS).items())
    return f"CREATE TABLE IF NOT EXISTS etl_audit_log (id {number}, {columns}, UNIQUE (run_id))"


def _additions(present: Collection[str]) -> list[str]:
    """The statements that add what a log with these columns lacks."""
    return [
        f"ALTER TABLE etl_audit_log ADD COLUMN {name} {kind}"
        for name, kind in (COLUMNS | DETAILS).items()
        if name not in present
    ]


def _ensure_once(session: psycopg.Connection, look: str, name: str, statements: str) -> None:
    """Make what belongs to the log, once: IF NOT EXISTS alone would wait for whoever is writing to it."""
    from psycopg.errors import InsufficientPrivilege

    if session.execute(look.encode(), (name,)).fetchone() != (None,):
        return
    # a table of another role's works without it
    with suppress(InsufficientPrivilege), session.transaction():
        session.execute(statements.encode())


def write_audit_record(
    engine: Engine | Connection,
    run_id: str,
    pipeline_name: str,
    source_name: str,
    protocol: str,
    target_table: str,
    status: str,
    rows_loaded: int | None,
    parquet_files: int | None,
    started_at: datetime,
    finished_at: datetime | None,
    error_message: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write the row of a run; a run that has one already gets it updated, so a run is one row.

    status: running, success or failure. details: values of the columns in DETAILS.
    The table must be there (`ensure_audit_table`). Given a Connection, the row commits with the
    caller's transaction.
    """
    values = {
        "run_id": run_id,
        "pipeline_name": pipeline_name,
        "source_name": source_name,
        "protocol": protocol,
        "target_table": target_table,
        "status": status,
        "rows_loaded": rows_loaded,
        "parquet_files": parquet_files,
        "error_message": error_message,
        "started_at": started_at,
        "finished_at": finished_at,
    }
    write_row(engine, values | {name: value for name, value in (details or {}).items() if name in DETAILS})


def write_row(where: psycopg.Connection | Engine | Connection, values: Mapping[str, Any]) -> None:
    """Write the row of a run, or update it. values: of columns in COLUMNS and DETAILS, run_id among them."""
    import psycopg

    given = {name: json.dumps(v) if DETAILS.get(name) == "JSONB" else v for name, v in values.items()}
    if isinstance(where, psycopg.Connection):
        casts = {name: "::jsonb" for name in given if DETAILS.get(name) == "JSONB"}
        where.execute(_upsert({name: f"%({name})s{casts.get(name, '')}" for name in given}).encode(), given)
        return
    from sqlalchemy import text

    from dwcli.staging.dw_schema import is_postgres, raw, transaction

    with transaction(where) as connection:
        if is_postgres(connection):
            write_row(raw(connection), values)
        else:
            connection.execute(text(_upsert({name: f":{name}" for name in given})), given)


def _upsert(places: Mapping[str, str]) -> str:
    """places: of each column, where its value goes in the statement."""
    updates = ", ".join(f"{name} = excluded.{name}" for name in places if name != "run_id")
    return (
        f"INSERT INTO etl_audit_log ({', '.join(places)}) VALUES ({', '.join(places.values())})"  # noqa: S608
        f" ON CONFLICT (run_id) DO UPDATE SET {updates}"
    )


def mark_interrupted(connection: psycopg.Connection, pipeline_name: str) -> int:
    """Close the rows of runs of this pipeline that died without a word. Returns how many.

    Call it only while holding the pipeline's lock: then a row that still says `running` has no holder.
    """
    closed = connection.execute(
        """
        update etl_audit_log set status = 'failure', finished_at = now(), error_code = 'DW-INTERRUPTED',
            error_message = 'interrupted: the run ended without a word (killed, or the machine stopped)'
        where pipeline_name = %s and status = 'running'
        """,
        (pipeline_name,),
    )
    return closed.rowcount


# -- reading ------------------------------------------------------------------------------------------


def _rows(connection: psycopg.Connection, query: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    from psycopg.rows import dict_row

    if not connection.execute("select to_regclass('etl_audit_log')").fetchone()[0]:  # type: ignore[index]
        return []
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), values).fetchall()


def last_runs(
    connection: psycopg.Connection,
    limit: int = 10,
    pipeline: str | None = None,
    failed: bool = False,
    since: datetime | None = None,
) -> list[dict[str, Any]]:
    """The last runs, newest first, as dicts of the audit columns.

    pipeline: `source.pipeline`, or the part after the dot, or a source.
    """
    query = """
        select * from etl_audit_log
        where (%(pipeline)s::text is null or pipeline_name = %(pipeline)s
               or source_name = %(pipeline)s or pipeline_name like '%%.' || %(literal)s)
          and (not %(failed)s or status = 'failure')
          and (%(since)s::timestamptz is null or started_at >= %(since)s)
        order by started_at desc, id desc limit %(limit)s
    """
    literal = (
        None if pipeline is None else pipeline.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
    )
    values = {"pipeline": pipeline, "literal": literal, "failed": failed, "since": since, "limit": limit}
    return _rows(connection, query, values)


def running_runs(connection: psycopg.Connection) -> list[dict[str, Any]]:
    """The runs that the log says are under way, oldest first; some of them may have died."""
    query = "select * from etl_audit_log where status = 'running' order by started_at, id"
    return _rows(connection, query, {})


def find_run(connection: psycopg.Connection, prefix: str) -> dict[str, Any]:
    """The run whose id begins with `prefix`. Raises NameUnknown when there is none, or several."""
    query = (
        "select * from etl_audit_log where starts_with(run_id, %(prefix)s) order by started_at desc limit 5"
    )
    found = _rows(connection, query, {"prefix": prefix})
    if not found:
        raise NameUnknown(f"there is no run '{prefix}'", hint="dw audit --last 20 lists runs")
    if len(found) > 1:
        raise NameUnknown(
            f"'{prefix}' begins more than one run's id",
            hint="say more of it: " + ", ".join(r["run_id"] for r in found),
        )
    return found[0]


def latest_runs(
    connection: psycopg.Connection, per_pipeline: int = 7, names: Sequence[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The latest runs of every pipeline, or of those named, newest first, by the pipeline's name.

    The latest good run is among them, as one more, however many failures have come after it.
    """
    query = """
        with names as (
            select distinct pipeline_name from etl_audit_log
            where %(names)s::text[] is null or pipeline_name = any(%(names)s))
        select log.* from names
        cross join lateral (
            (select id from etl_audit_log where pipeline_name = names.pipeline_name
             order by started_at desc, id desc limit %(per_pipeline)s)
            union
            (select id from etl_audit_log where pipeline_name = names.pipeline_name and status = 'success'
             order by started_at desc, id desc limit 1)) as latest
        join etl_audit_log as log on log.id = latest.id
        order by log.pipeline_name, log.started_at desc, log.id desc
    """
    grouped: dict[str, list[dict[str, Any]]] = {}
    values = {"per_pipeline": per_pipeline, "names": None if names is None else list(names)}
    for row in _rows(connection, query, values):
        grouped.setdefault(row["pipeline_name"], []).append(row)
    return grouped


def run_before(connection: psycopg.Connection, pipeline: str, run_id: str) -> dict[str, Any] | None:
    """The last run of a pipeline that ended before this one, and was not stopped by a person."""
    query = """
        select * from etl_audit_log as past
        where pipeline_name = %(pipeline)s and run_id <> %(run_id)s and status <> 'running'
          and error_code is distinct from 'DW-STOPPED'
          and started_at <= coalesce(
              (select started_at from etl_audit_log where run_id = %(run_id)s), now())
        order by started_at desc, id desc limit 1
    """
    found = _rows(connection, query, {"pipeline": pipeline, "run_id": run_id})
    return found[0] if found else None


def now() -> datetime:
    """This moment, UTC."""
    return datetime.now(UTC)


def merged_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Counts by name, added up."""
    total: dict[str, int] = {}
    for entry in counts:
        for name, number in entry.items():
            total[name] = total.get(name, 0) + number
    return total

"""What a pipeline has left in the warehouse and the lake, and how it goes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from dwcli.errors import WarehouseError
from dwcli.pipeline.record import Job
from dwcli.staging.state import forget_state, states
from dwcli.staging.writer import source_folder

VIEWS = """
    select distinct n.nspname, c.relname, c.relkind
    from pg_depend d
    join pg_rewrite r on r.oid = d.objid and d.classid = 'pg_rewrite'::regclass
    join pg_class c on c.oid = r.ev_class
    join pg_namespace n on n.oid = c.relnamespace
    where d.refclassid = 'pg_class'::regclass and d.refobjid = to_regclass(%s) and c.oid <> d.refobjid
    order by 1, 2
"""


#: Rows up to which a table is counted.
COUNTED = 1_000_000


@dataclass(frozen=True)
class Traces:
    """Where a pipeline has been. rows: of its table; None where there is no table."""

    table: str
    rows: int | None
    #: views and materialized views that read the table
    views: Sequence[str]
    #: what `etl_state` says, or None: how far it has come
    state: str | None


def traces(connection: psycopg.Connection, job: Job) -> Traces:
    """What a pipeline has in the warehouse. Nothing is changed."""
    table = sql.Identifier(job.schema, job.table)
    name = table.as_string(connection)
    there = connection.execute("select to_regclass(%s) is not null", (name,)).fetchone()
    rows, views = None, list[str]()
    if there and there[0]:
        rows = _rows(connection, table, name)
        views = [f"{schema}.{view}" for schema, view, _ in connection.execute(VIEWS, (name,))]
    entry = states(connection).get(job.pipeline)
    state = None
    if entry is not None:
        place = f"{entry['cursor_column']} {entry['cursor_value']}" if entry["cursor_value"] else ""
        state = place.strip() or "its place"
    return Traces(f"{job.schema}.{job.table}", rows, views, state)


def _rows(connection: psycopg.Connection, table: sql.Identifier, name: str) -> int:
    """Rows of a table: counted, or PostgreSQL's estimate where counting would take long."""
    found = connection.execute(
        "select reltuples from pg_class where oid = to_regclass(%s)", (name,)
    ).fetchone()
    if found and found[0] > COUNTED:
        return int(found[0])
    counted = connection.execute(sql.SQL("select count(*) from {}").format(table)).fetchone()
    return int(counted[0]) if counted else 0


def remove_from_warehouse(connection: psycopg.Connection, job: Job, drop_table: bool) -> None:
    """Forget a pipeline's state, and drop its table; commits with the caller's transaction.

    Raises WarehouseError when something else depends on the table: nothing is ever dropped with it.
    """
    if states(connection):
        forget_state(connection, job.pipeline)
    if not drop_table:
        return
    connection.execute("set local lock_timeout = '10s'")
    try:
        connection.execute(sql.SQL("drop table if exists {}").format(sql.Identifier(job.schema, job.table)))
    except psycopg.errors.DependentObjectsStillExist as error:
        raise WarehouseError(
            f"{job.schema}.{job.table} cannot be dropped: other things depend on it",
            why=error.diag.message_detail or "",
            hint="drop those first, or leave out --drop-table",
        ) from None
    except psycopg.errors.LockNotAvailable:
        raise WarehouseError(
            f"{job.schema}.{job.table} cannot be dropped: somebody is using it",
            hint="try again when they are done",
        ) from None
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.WrongObjectType) as error:
        raise WarehouseError(
            f"{job.schema}.{job.table} cannot be dropped", why=error.diag.message_primary or ""
        ) from None
    known = connection.execute("select to_regclass('etl_columns') is not null").fetchone()
    if known and known[0]:
        connection.execute(
            "delete from etl_columns where table_schema = %s and table_name = %s", (job.schema, job.table)
        )


def lake_files(job: Job) -> tuple[list[Path], int]:
    """A pipeline's files in the lake, and their bytes."""
    folder = source_folder(job.lake, job.protocol, job.lake_name)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder.is_dir() else []
    return files, sum(path.stat().st_size for path in files)


def remove_from_lake(job: Job) -> None:
    """Take a pipeline's folder out of the lake; folders above it go when they are empty."""
    import shutil

    folder = source_folder(job.lake, job.protocol, job.lake_name)
    if folder.is_dir():
        shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # the protocol's folder, which other pipelines may use
        folder.parent.rmdir()

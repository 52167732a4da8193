"""What the next run does: the cursor of each pipeline, and the receipts of snapshots loaded.

Both are written in the transaction that loads the rows, and nowhere else. Delete the state, and the
next run reads everything again; delete a receipt, and its snapshot is loaded again from the lake.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from dwcli.errors import UsageError, WarehouseError
from dwcli.staging.audit import LOCK_KEY

#: The form of dw's own tables. A warehouse with a higher number belongs to a newer dw.
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class State:
    """How far a pipeline has come. `value` is in PostgreSQL's text form of `type`."""

    cursor: str | None = None
    value: str | None = None
    type: str = ""
    position: Any = None


def ensure_state_tables(connection: psycopg.Connection) -> str:
    """Make dw's own tables if they are not there. Returns the warehouse's id.

    Raises WarehouseError when the warehouse has been used by a newer dw.
    """
    connection.execute(f"select pg_advisory_xact_lock({LOCK_KEY})")
    connection.execute(
        """
        create table if not exists etl_warehouse (
            id uuid not null, version integer not null, created_at timestamptz not null default now())
        """
    )
    connection.execute(
        """
        create table if not exists etl_state (
            pipeline_name text primary key, cursor_column text, cursor_value text, cursor_type text,
            position jsonb, run_id text not null, updated_at timestamptz not null default now())
        """
    )
    connection.execute(
        """
        create table if not exists etl_load (
            run_id text primary key, pipeline_name text not null, target_table text not null,
            snapshot text not null, files integer not null, rows_staged bigint not null,
            rows_loaded bigint not null, cursor_from text, cursor_to text,
            loaded_at timestamptz not null default now())
        """
    )
    found = connection.execute("select id, version from etl_warehouse").fetchone()
    if found is None:
        made = str(uuid.uuid4())
        connection.execute("insert into etl_warehouse (id, version) values (%s, %s)", (made, SCHEMA_VERSION))
        return made
    if found[1] > SCHEMA_VERSION:
        raise WarehouseError(
            "this warehouse belongs to a newer dw",
            why=f"its tables have form {found[1]}, this dw knows {SCHEMA_VERSION}",
            hint="pip install --upgrade dwcli",
        )
    return str(found[0])


def read_state(connection: psycopg.Connection, pipeline_name: str) -> State:
    """How far a pipeline has come; an empty State for one that never ran."""
    found = connection.execute(
        "select cursor_column, cursor_value, cursor_type, position from etl_state where pipeline_name = %s",
        (pipeline_name,),
    ).fetchone()
    return State(found[0], found[1], found[2] or "", found[3]) if found else State()


def states(connection: psycopg.Connection) -> dict[str, dict[str, Any]]:
    """How far every pipeline has come that ever ran: the columns of etl_state, by pipeline."""
    if connection.execute("select to_regclass('etl_state')").fetchone() == (None,):
        return {}
    fields = ("cursor_column", "cursor_value", "cursor_type", "position", "run_id", "updated_at")
    rows = connection.execute(f"select pipeline_name, {', '.join(fields)} from etl_state")  # noqa: S608
    return {row[0]: dict(zip(fields, row[1:], strict=True)) for row in rows}


def forget_state(connection: psycopg.Connection, pipeline_name: str) -> None:
    """Forget how far a pipeline has come: its next run reads everything."""
    connection.execute("delete from etl_state where pipeline_name = %s", (pipeline_name,))


def set_cursor(connection: psycopg.Connection, pipeline_name: str, value: str) -> str:
    """Move a pipeline's cursor to a value of its type. Returns the value as PostgreSQL spells it.

    What the source keeps as its position beside the cursor is forgotten. Raises UsageError for a value
    that is none of the type.
    """
    from psycopg import sql

    from dwcli.staging.dw_schema import type_sql

    kind = read_state(connection, pipeline_name).type or "text"
    try:
        found = connection.execute(sql.SQL("select %s::{}::text").format(type_sql(kind)), (value,)).fetchone()
    except psycopg.DataError as error:
        raise UsageError(f"'{value}' is no {kind}", why=error.diag.message_primary or "") from None
    assert found is not None
    connection.execute(
        "update etl_state set cursor_value = %s, position = null, updated_at = now()"
        " where pipeline_name = %s",
        (found[0], pipeline_name),
    )
    return str(found[0])


def write_state(connection: psycopg.Connection, pipeline_name: str, run_id: str, state: State) -> None:
    """Move a pipeline's state; commits with the caller's transaction."""
    position = None if state.position is None else json.dumps(state.position)
    connection.execute(
        """
        insert into etl_state (pipeline_name, cursor_column, cursor_value, cursor_type, position, run_id)
        values (%s, %s, %s, %s, %s::jsonb, %s)
        on conflict (pipeline_name) do update set cursor_column = excluded.cursor_column,
            cursor_value = excluded.cursor_value, cursor_type = excluded.cursor_type,
            position = excluded.position, run_id = excluded.run_id, updated_at = now()
        """,
        (pipeline_name, state.cursor, state.value, state.type, position, run_id),
    )


def write_receipt(
    connection: psycopg.Connection,
    run_id: str,
    pipeline_name: str,
    target_table: str,
    snapshot: str,
    files: int,
    rows_staged: int,
    rows_loaded: int,
    cursor_from: str | None,
    cursor_to: str | None,
) -> None:
    """Say that a snapshot is in the warehouse; commits with its rows."""
    connection.execute(
        """
        insert into etl_load (run_id, pipeline_name, target_table, snapshot, files, rows_staged,
                              rows_loaded, cursor_from, cursor_to)
        values (%s, %s, %s, %s, %s, %s, %s, %s, %s)
        """,
        (
            run_id,
            pipeline_name,
            target_table,
            snapshot,
            files,
            rows_staged,
            rows_loaded,
            cursor_from,
            cursor_to,
        ),
    )


def loaded_snapshots(connection: psycopg.Connection, pipeline_name: str) -> set[str]:
    """The manifests, by path within the lake, of a pipeline's snapshots that are in the warehouse."""
    rows = connection.execute("select snapshot from etl_load where pipeline_name = %s", (pipeline_name,))
    return {row[0] for row in rows}


@dataclass(frozen=True)
class Receipt:
    """That a run's snapshot is in the warehouse. `snapshot`: its manifest within the lake, "" for no rows."""

    run_id: str
    snapshot: str
    rows_loaded: int
    loaded_at: datetime


def receipts(connection: psycopg.Connection, pipeline_name: str) -> list[Receipt]:
    """A pipeline's receipts, oldest first. None where nothing has ever been loaded."""
    if connection.execute("select to_regclass('etl_load')").fetchone() == (None,):
        return []
    rows = connection.execute(
        "select run_id, snapshot, rows_loaded, loaded_at from etl_load where pipeline_name = %s"
        " order by loaded_at, snapshot",
        (pipeline_name,),
    )
    return [Receipt(*row) for row in rows]


def was_loaded(connection: psycopg.Connection, run_id: str) -> bool:
    """Whether a run's receipt is there: its transaction has committed."""
    return connection.execute("select 1 from etl_load where run_id = %s", (run_id,)).fetchone() is not None


def wider_cursor(connection: psycopg.Connection, kind: str, one: str | None, other: str | None) -> str | None:
    """The larger of two cursor values in their text form, compared as PostgreSQL compares the type."""
    if one is None or other is None:
        return one if other is None else other
    from psycopg import sql

    from dwcli.staging.dw_schema import type_sql

    collation = sql.SQL(' collate "C"') if kind in ("text", "varchar") else sql.SQL("")
    query = sql.SQL("select %s::{0}{1} > %s::{0}{1}").format(type_sql(kind or "text"), collation)
    larger = connection.execute(query, (other, one)).fetchone()
    return other if larger and larger[0] else one

"""What the warehouse knows about one run beyond its row of the audit log.

This module imports neither polars nor SQLAlchemy: `dw audit` reads with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import dict_row

#: Of the rows that were set aside, so many stand for all of them.
FIRST_REJECTS = 5


def schema_changes_of(connection: psycopg.Connection, run_id: str) -> list[dict[str, Any]]:
    """Every DDL of a run, in its order: table, change (in words), ddl, changed_at."""
    return _rows(
        connection,
        "etl_schema_history",
        "select table_schema || '.' || table_name as table, change, ddl, changed_at"
        " from etl_schema_history where run_id = %(run_id)s order by id",
        {"run_id": run_id},
    )


def rejects_of(connection: psycopg.Connection, run_id: str) -> dict[str, Any]:
    """How many rows a run has set aside, why (the most frequent reasons first), and the first of them."""
    about = {"run_id": run_id, "first": FIRST_REJECTS}
    reasons = _rows(
        connection,
        "etl_rejects",
        "select reason, count(*) as rows from etl_rejects where run_id = %(run_id)s"
        " group by reason order by count(*) desc, reason limit %(first)s",
        about,
    )
    total = _rows(
        connection,
        "etl_rejects",
        "select count(*) as rows from etl_rejects where run_id = %(run_id)s",
        about,
    )
    first = _rows(
        connection,
        "etl_rejects",
        "select source_file, row_number, reason from etl_rejects where run_id = %(run_id)s"
        " order by id limit %(first)s",
        about,
    )
    return {"rows": total[0]["rows"] if total else 0, "reasons": reasons, "first": first}


def snapshot_of(connection: psycopg.Connection, run_id: str) -> str | None:
    """The manifest of what a run brought into the warehouse, by path within the lake."""
    found = _rows(
        connection,
        "etl_load",
        "select snapshot from etl_load where run_id = %(run_id)s and snapshot <> '' limit 1",
        {"run_id": run_id},
    )
    return found[0]["snapshot"] if found else None


def run_before(connection: psycopg.Connection, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run of the same pipeline before this one: its run_id and config_hash."""
    found = _rows(
        connection,
        "etl_audit_log",
        "select run_id, config_hash from etl_audit_log where pipeline_name = %(pipeline_name)s"
        " and (started_at, id) < (%(started_at)s, %(id)s) order by started_at desc, id desc limit 1",
        run,
    )
    return found[0] if found else None


def _rows(
    connection: psycopg.Connection, table: str, query: str, values: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The answer; nothing where the table has never been made."""
    if connection.execute("select to_regclass(%s)", (table,)).fetchone() == (None,):
        return []
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), values).fetchall()

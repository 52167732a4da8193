"""`write: scd2`: every version of a row is kept, with the time from which, and until which, it was the one.

The newest version of a key has `_is_current` and no `_valid_to`. A row that comes with other values ends the
version that is there and begins the next, at the time the run began to read; one that is the same changes
nothing, so a snapshot that is read twice leaves the history as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from psycopg import sql

from dwcli.staging.copying import listed
from dwcli.staging.dw_schema import (
    ADDED_COLUMNS,
    HISTORY_COLUMNS,
    IS_CURRENT,
    VALID_FROM,
    VALID_TO,
    Change,
    Table,
    cast_sql,
    note_changes,
    run_ddl,
    type_sql,
)
from dwcli.staging.merging import create_unique, differs, keep_newest, matching, not_older
from dwcli.staging.plan import Load


def moment(load: Load) -> datetime:
    """When the versions of a load begin: the same again when its snapshot is loaded from the lake."""
    return load.ingested_at or datetime.now(UTC)


def is_kept(table: Table) -> bool:
    """Whether a table has versions."""
    return set(HISTORY_COLUMNS) <= set(table.columns)


def begin_history(load: Load, table: Table, key: Sequence[str]) -> Table:
    """Make each row of a table the first version of its key. Of several with one key the newest stays."""
    if is_kept(table):
        return table
    keep_newest(load, table, key)
    begin = sql.Literal(moment(load))
    add = sql.SQL(", ").join(
        sql.SQL("add column {} {}{}").format(sql.Identifier(name), type_sql(HISTORY_COLUMNS[name]), default)
        for name, default in (
            (VALID_FROM, sql.SQL(" not null default {}").format(begin)),
            (VALID_TO, sql.SQL("")),
            (IS_CURRENT, sql.SQL(" not null default true")),
        )
    )
    ddl = sql.SQL("alter table {0} {1}; alter table {0} alter column {2} drop default").format(
        table.identifier, add, sql.Identifier(VALID_FROM)
    )
    change = Change("history of its rows", ddl)
    run_ddl(load.connection, change.ddl, table)
    note_changes(load.connection, table, [change], load.plan.run_id)
    load.changes.append(change)
    kept = replace(table, columns={**table.columns, **HISTORY_COLUMNS})
    create_unique(load, kept, key, only=IS_CURRENT)
    return kept


def add_versions(load: Load, stage: Table, key: Sequence[str]) -> tuple[int, int]:
    """Add what has arrived to the history. Returns how many keys are new, and how many have changed."""
    target = load.target
    assert target is not None
    target = load.target = begin_history(load, target, key)
    columns = [name for name in stage.columns if name != "_loaded_at"]
    values = [name for name in columns if name not in key and name not in ADDED_COLUMNS]
    keep_newest(load, stage, key)
    load.connection.execute(sql.SQL("analyze {}").format(stage.identifier))
    casts = [cast_sql(name, stage.columns[name], target.columns[name]) for name in columns]
    cast = sql.SQL("(select ctid as place, {} from {})").format(
        sql.SQL(", ").join(
            part + sql.SQL(" as ") + sql.Identifier(name) for part, name in zip(casts, columns, strict=True)
        ),
        stage.identifier,
    )
    names = {
        "stage": stage.identifier,
        "target": target.identifier,
        "cast": cast,
        "match": sql.SQL("old.{} and {}").format(sql.Identifier(IS_CURRENT), matching(key)),
        "changed": not_older(load, stage, differs(target, values)),
        "at": sql.Literal(moment(load)),
    }
    statements = [
        "delete from {stage} where ctid in"
        " (select place from {cast} as new join {target} as old on {match} where not {changed})",
        "update {target} as old set _valid_to = greatest({at}, old._valid_from), _is_current = false"
        " from {cast} as new where {match}",
    ]
    _, closed = (load.connection.execute(sql.SQL(text).format(**names)).rowcount for text in statements)
    added = load.connection.execute(
        sql.SQL("insert into {} ({}, {}) select {}, {} from {}").format(
            target.identifier,
            listed(columns),
            sql.Identifier(VALID_FROM),
            sql.SQL(", ").join(casts),
            sql.Literal(moment(load)),
            stage.identifier,
        )
    ).rowcount
    return added - closed, closed


def current(table: Table) -> sql.Composable:
    """The rows of a table that stand for the source's: all, or the newest versions."""
    if not is_kept(table):
        return table.identifier
    return sql.SQL("(select * from {} where {})").format(table.identifier, sql.Identifier(IS_CURRENT))

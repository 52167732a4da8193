"""Rows that the source no longer has: which they are, and what becomes of them.

A cursor cannot see a deleted row. So all keys of the source are read into a temporary table and compared with
the target's. What is gone is a frame of keys, as text, with a column `gone`: False for a row that had been
marked as deleted and is there again. The frame stands in the lake beside the rows, so that a load from the
lake comes to the same table.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl
from psycopg import sql

from dwcli.staging.copying import copy_frame, create_temporary, end_copy
from dwcli.staging.dw_schema import DELETED_AT, Table, add_column, cast_sql, type_sql
from dwcli.staging.history import current, is_kept, moment
from dwcli.staging.merging import key_columns
from dwcli.staging.plan import Load

GONE = "gone"


def find_gone(load: Load, keys: Table, mode: str) -> tuple[pl.DataFrame, int]:
    """What is gone from the source, and how many rows of the target are not marked as deleted.

    keys: a temporary table with the keys of all rows that the source has.
    """
    target = load.target
    assert target is not None
    key = key_columns(load, target)
    source = dict(zip(key, key_columns(load, keys), strict=True))
    there = sql.SQL(" and ").join(
        sql.SQL("k.{} = t.{}").format(sql.Identifier(name), sql.Identifier(name)) for name in key
    )
    marked = sql.SQL("t.{} is not null").format(sql.Identifier(DELETED_AT))
    if mode != "soft" or DELETED_AT not in target.columns or is_kept(target):
        marked = sql.SQL("false").format()
    listed = sql.SQL(", ").join(sql.SQL("t.{}::text").format(sql.Identifier(name)) for name in key)
    load.connection.execute(sql.SQL("analyze {}").format(keys.identifier))
    rows = load.connection.execute(
        sql.SQL(
            "select {listed}, not found from (select t.*, exists"
            " (select from (select {casts} from {keys}) as k where {there}) as found"
            " from {target} as t) as t where found = ({marked})"
        ).format(
            listed=listed,
            casts=sql.SQL(", ").join(
                cast_sql(theirs, keys.columns[theirs], target.columns[ours])
                + sql.SQL(" as ")
                + sql.Identifier(ours)
                for ours, theirs in source.items()
            ),
            keys=keys.identifier,
            there=there,
            target=current(target),
            marked=marked,
        )
    ).fetchall()
    alive = load.connection.execute(
        sql.SQL("select count(*) from {} as t where not ({})").format(current(target), marked)
    ).fetchone()
    assert alive is not None
    schema = {**dict.fromkeys(key, pl.String), GONE: pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row"), int(alive[0])


def delete_gone(load: Load) -> int:
    """Delete or mark the rows of `load.gone`; those that are back lose their mark. Returns how many went."""
    if load.gone is None or load.target is None or load.gone[1].is_empty():
        return 0
    mode, frame = load.gone
    key = [name for name in frame.columns if name != GONE]
    listed = Table("", "dw_gone", {**dict.fromkeys(key, "text"), GONE: "boolean"})
    create_temporary(load.connection, listed)
    end_copy(copy_frame(load.connection, listed, frame, dict(listed.columns), None, {}))
    match = sql.SQL(" and ").join(
        sql.SQL("t.{0} = g.{0}::{1}").format(sql.Identifier(name), type_sql(load.target.columns[name]))
        for name in key
    )
    if is_kept(load.target):
        removed = _close(load, load.target, match)
    else:
        removed = _mark(load, load.target, match) if mode == "soft" else _delete(load, load.target, match)
    load.connection.execute(sql.SQL("drop table dw_gone").format())
    return removed


def _delete(load: Load, target: Table, match: sql.Composed) -> int:
    statement = sql.SQL("delete from {} as t using dw_gone as g where g.gone and {}")
    return load.connection.execute(statement.format(target.identifier, match)).rowcount


def _close(load: Load, target: Table, match: sql.Composed) -> int:
    """End the last version of a row that is gone; when it comes back, another begins."""
    statement = sql.SQL(
        "update {} as t set _valid_to = greatest({}, t._valid_from), _is_current = false from dw_gone as g"
        " where g.gone and t._is_current and {}"
    )
    return load.connection.execute(
        statement.format(target.identifier, sql.Literal(moment(load)), match)
    ).rowcount


def _mark(load: Load, target: Table, match: sql.Composed) -> int:
    if DELETED_AT not in target.columns:
        load.changes.append(add_column(load.connection, target, DELETED_AT, "timestamptz", load.plan.run_id))
        load.target = replace(target, columns={**target.columns, DELETED_AT: "timestamptz"})
    statement = sql.SQL("update {} as t set {} = {} from dw_gone as g where {} and {}")
    mark = sql.Identifier(DELETED_AT)
    back, went = (
        statement.format(target.identifier, mark, value, sql.SQL(which), match)
        for value, which in ((sql.SQL("null"), "not g.gone"), (sql.Literal(moment(load)), "g.gone"))
    )
    load.connection.execute(back)
    return load.connection.execute(went).rowcount

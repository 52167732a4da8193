"""How a load that waits in a temporary table meets the target: merge by key, append past a boundary."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from dwcli.errors import DwError, KeyRefused
from dwcli.staging.copying import listed
from dwcli.staging.dw_schema import ADDED_COLUMNS, Table, base_type, cast_sql, fold_name, type_sql
from dwcli.staging.plan import Load


def key_columns(load: Load, table: Table) -> list[str]:
    missing = [name for name in load.plan.key if name not in table.names]
    if missing:
        raise KeyRefused(
            f"the key column {', '.join(missing)} is not in the data",
            hint="correct key: in the source file; columns are: " + ", ".join(table.names),
        )
    return [table.names[name] for name in load.plan.key]


def refuse_null_keys(load: Load, table: Table, key: Sequence[str]) -> None:
    condition = sql.SQL(" or ").join(sql.SQL("{} is null").format(sql.Identifier(name)) for name in key)
    count = _one(load, sql.SQL("select count(*) from {} where {}").format(table.identifier, condition))
    if count:
        raise KeyRefused(
            f"{count:,} of {load.rows:,} rows have no value in the key ({', '.join(key)})",
            why="rows without a key cannot be told apart, so a merge would load them again at every run",
            hint="choose another key:, filter them out in query:, or use write: append",
        )


def _one(load: Load, query: sql.Composed) -> int:
    row = load.connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def _newest_first(load: Load, table: Table, key: Sequence[str]) -> sql.Composed:
    """Of several rows with one key the newest wins: by the cursor, then by arrival (ctid)."""
    cursor = table.names.get(load.plan.cursor or "")
    newest = sql.SQL("{} desc nulls last, ").format(sql.Identifier(cursor)) if cursor else sql.SQL("")
    return sql.SQL("{}, {}ctid desc").format(listed(key), newest)


def merge(load: Load, stage: Table, key: list[str]) -> tuple[int, int]:
    """Insert new rows and update changed ones; rows that are the same already are left alone."""
    target = load.target
    assert target is not None
    _ensure_unique(load, target, key)
    columns = list(stage.columns)
    columns.remove("_loaded_at")
    casts = [cast_sql(name, stage.columns[name], target.columns[name]) for name in columns]
    values = [name for name in columns if name not in key and name not in ADDED_COLUMNS]
    updates = [name for name in columns if name not in key]
    row = load.connection.execute(
        sql.SQL(
            "with merged as (insert into {target} as old ({columns})"
            " select {casts} from (select distinct on ({key}) * from {stage} order by {order}) as new"
            " on conflict ({key}) {action} returning xmax = 0 as inserted)"
            " select count(*) filter (where inserted), count(*) filter (where not inserted) from merged"
        ).format(
            target=target.identifier,
            columns=listed(columns),
            casts=sql.SQL(", ").join(casts),
            key=listed(key),
            stage=stage.identifier,
            order=_newest_first(load, stage, key),
            action=_update_action(load, target, stage, values, updates),
        )
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _update_action(
    load: Load, target: Table, stage: Table, values: Sequence[str], updates: Sequence[str]
) -> sql.Composable:
    if not values:
        return sql.SQL("do nothing")
    sets = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in updates]
    sets.append(sql.Composed([sql.SQL("_loaded_at = now()")]))
    condition = not_older(load, stage, differs(target, values, "excluded"), "excluded")
    return sql.SQL("do update set {} where {}").format(sql.SQL(", ").join(sets), condition)


def matching(key: Sequence[str]) -> sql.Composed:
    """`old` and `new` have the same key."""
    return sql.SQL(" and ").join(sql.SQL("old.{0} = new.{0}").format(sql.Identifier(name)) for name in key)


def differs(target: Table, values: Sequence[str], new: str = "new") -> sql.Composed:
    """Whether a row `new` has other values than `old`, which is the target's."""
    if not values:
        return sql.SQL("false").format()
    return sql.SQL("({})").format(
        sql.SQL(" or ").join(
            sql.SQL("old.{0}{1} is distinct from {2}.{0}{1}").format(
                sql.Identifier(name), sql.SQL(_comparable(target.columns[name])), sql.SQL(new)
            )
            for name in values
        )
    )


def not_older(load: Load, stage: Table, condition: sql.Composed, new: str = "new") -> sql.Composed:
    """The condition, and that `new` is not older than `old` by the cursor.

    A row that was read late must not put back what a newer run has written, unless it is all that the source
    has of its key: a transaction that began early and ended late may set the cursor back.
    """
    if load.plan.states or not load.plan.cursor or load.plan.cursor not in stage.names:
        return condition
    return sql.SQL("({0} and (old.{1} <= {2}.{1} or (old.{1} <= {2}.{1}) is null))").format(
        condition, sql.Identifier(stage.names[load.plan.cursor]), sql.SQL(new)
    )


def _comparable(kind: str) -> str:
    """json and xml have no equality of their own; their text has."""
    return "::text" if base_type(kind) in ("json", "xml", "point", "polygon") else ""


def _ensure_unique(load: Load, target: Table, key: Sequence[str]) -> None:
    """A unique index on exactly the key, which ON CONFLICT needs."""
    found = load.connection.execute(
        """
        select 1 from pg_index i join pg_class c on c.oid = i.indrelid
        join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = %s and c.relname = %s and i.indisunique and i.indisvalid and i.indimmediate
          and i.indpred is null and i.indexprs is null
          and (select array_agg(a.attname::text order by a.attname::text) from pg_attribute a
               where a.attrelid = c.oid and a.attnum = any(i.indkey::int2[])) = %s::text[]
        """,
        (target.schema, target.name, sorted(key, key=lambda name: name.encode())),
    ).fetchone()
    if found is None:
        create_unique(load, target, key)


def create_unique(load: Load, target: Table, key: Sequence[str], only: str = "") -> None:
    """A unique index on the key; `only`: of those rows where this column is true."""
    name = fold_name(f"{target.name}_{'_'.join(key)}_dw_{only.strip('_') or 'key'}")
    where = sql.SQL(" where {}").format(sql.Identifier(only)) if only else sql.SQL("")
    statement = sql.SQL("create unique index if not exists {} on {} ({}){}").format(
        sql.Identifier(name), target.identifier, listed(key), where
    )
    try:
        load.connection.execute(statement)
    except psycopg.errors.UniqueViolation as error:
        raise KeyRefused(
            f"{target.name} holds rows with the same key ({', '.join(key)}): nothing can be merged",
            hint="choose another key:, or load it anew: dw run NAME --full-refresh",
        ) from error


def keep_newest(load: Load, table: Table, key: Sequence[str]) -> int:
    """Keep the newest row of each key, and delete the others. Returns how many went."""
    return load.connection.execute(
        sql.SQL(
            "delete from {table} where ctid in (select ctid from (select ctid, row_number() over"
            " (partition by {key} order by {order}) as place from {table}) as numbered where place > 1)"
        ).format(table=table.identifier, key=listed(key), order=_newest_first(load, table, key))
    ).rowcount


def append_all(load: Load, stage: Table) -> None:
    """Append every row."""
    assert load.target is not None
    every = [name for name in stage.columns if name != "_loaded_at"]
    casts = [cast_sql(name, stage.columns[name], load.target.columns[name]) for name in every]
    load.connection.execute(
        sql.SQL("insert into {} ({}) select {} from {} order by ctid").format(
            load.target.identifier, listed(every), sql.SQL(", ").join(casts), stage.identifier
        )
    )


def append_past_boundary(load: Load, stage: Table) -> int:
    """Append rows beyond the boundary, and those exactly at it that the table does not hold yet.

    The boundary is read again at every run, since rows with the same cursor value may have come after
    the last one. What is there already is taken off row by row: two equal rows at the source are two
    in the table.
    """
    target = load.target
    assert target is not None and load.plan.cursor is not None
    cursor = sql.Identifier(_cursor_column(load, stage))
    kind = stage.columns[stage.names[load.plan.cursor]]
    start = sql.SQL("{}::{}").format(sql.Literal(load.plan.boundary), type_sql(kind))
    columns = [name for name in stage.columns if name not in ADDED_COLUMNS]
    every = [*columns, "_source_file", "_ingested_at", "_run_id"]
    casts = sql.SQL(", ").join(cast_sql(name, stage.columns[name], target.columns[name]) for name in every)
    same = sql.SQL(", ").join(cast_sql(n, stage.columns[n], target.columns[n]) for n in columns)
    # The n-th of equal rows in the stage is new when the table holds fewer than n of them.
    statement = """
        insert into {target} ({every}) select {casts} from {stage} where ctid not in (
            select ctid from (
                select ctid, spelled, row_number() over (partition by spelled order by ctid) as place
                from (select ctid, row({same})::text as spelled from {stage}
                      where {cursor} = {start} or {cursor} is null) as at_boundary) as ours
            join (select row({columns})::text as spelled, count(*) as held from {target}
                  where {cursor} = {start} or {cursor} is null group by 1) as theirs using (spelled)
            where place <= held)
    """
    return load.connection.execute(
        sql.SQL(statement).format(
            target=target.identifier,
            every=listed(every),
            casts=casts,
            stage=stage.identifier,
            same=same,
            columns=listed(columns),
            cursor=cursor,
            start=start,
        )
    ).rowcount


def _cursor_column(load: Load, table: Table) -> str:
    assert load.plan.cursor is not None
    if load.plan.cursor not in table.names:
        raise DwError(
            f"the cursor column {load.plan.cursor} is not in the data",
            hint="correct cursor: in the source file; columns are: " + ", ".join(table.names),
        )
    return table.names[load.plan.cursor]

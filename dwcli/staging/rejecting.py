"""Values and rows that a table does not take, by the pipeline's contract: left out and counted, or set aside.

`contract: discard_value` leaves out new columns, and values that do not fit the column they come for.
`contract: discard_row`, and `max_rejects` with any contract, set the whole row aside in etl_rejects: where it
stood, why, and what it held. Whether a text fits a type is PostgreSQL's to say; it is asked once for each
different value of a column whose type alone does not settle it, so a batch that fits costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import psycopg
from psycopg import sql

from dwcli.contract import Contract
from dwcli.errors import ValueRefused
from dwcli.staging.audit import merged_counts
from dwcli.staging.dw_schema import (
    BOUNDED,
    NUMBERS,
    PROVISIONAL,
    Table,
    base_type,
    canonical,
    names_for,
    type_sql,
    wider,
)
from dwcli.staging.frames import Types, json_text
from dwcli.staging.plan import Load

DISCARDING: tuple[Contract, ...] = ("discard_value", "discard_row")

REJECTS_SQL = """
    create table if not exists etl_rejects (
        id bigserial primary key, run_id text, table_schema text not null, table_name text not null,
        source_file text not null, row_number bigint not null, reason text not null, raw text not null,
        rejected_at timestamptz not null default now())
"""
#: Gives the values that are not of a type; for a number also those that the type would round.
UNFIT_SQL = """
    create or replace function pg_temp.dw_unfit(given text[], kind text, exactly text) returns setof text
    language plpgsql as $$
    declare value text; same boolean;
    begin
        foreach value in array given loop
            begin
                execute format('select %s', replace(replace(exactly, '<type>', kind),
                    '<value>', quote_literal(value))) into same;
            exception when others then same := false;
            end;
            if not coalesce(same, false) then return next value; end if;
        end loop;
    end $$
"""


@dataclass(frozen=True)
class _Misfit:
    """A column of a batch that has values the table does not take: which rows, and why."""

    name: str
    rows: pl.Series
    reason: str


def conform(load: Load, frame: pl.DataFrame, types: Types, label: str) -> tuple[pl.DataFrame, Types]:
    """The part of a batch that its table takes as it is. The rest is counted, or in etl_rejects.

    label: the name of the file that holds the batch. The session must be free for other statements.
    Raises ValueRefused when more rows would be set aside than the plan allows.
    """
    plan, whole = load.plan, frame
    extra = _new_columns(load, types)
    misfits = [_Misfit(name, frame[name].is_not_null(), "the table has no such column") for name in extra]
    for name, kind in _doubtful(load, frame, types).items():
        rows = _unfit(load, frame[name], kind)
        misfits.append(_Misfit(name, rows, f"it holds a value that is no {kind}"))
        text = pl.col(name).cast(pl.String)
        if plan.contract == "discard_value":
            text = pl.when(rows).then(None).otherwise(text)
        frame = frame.with_columns(text.alias(name))
        types = types | {name: kind}
    frame, types = frame.drop(extra), {name: kind for name, kind in types.items() if name not in extra}
    misfits = [misfit for misfit in misfits if misfit.rows.any()]
    if plan.contract == "discard_value":
        words = {f"{m.name}: {_LEFT_OUT[m.name in extra]}": int(m.rows.sum()) for m in misfits}
        load.values_changed = merged_counts([load.values_changed, words])
        return frame, types
    if misfits:
        frame = frame.filter(~_set_aside(load, whole, misfits, label))
    return frame, types


_LEFT_OUT = {True: "new column left out", False: "value that does not fit left out"}


def may_refuse(load: Load) -> bool:
    """Whether a batch has to be looked at: anything that does not fit fails the load otherwise."""
    plan = load.plan
    return plan.contract in DISCARDING or (bool(plan.max_rejects) and bool(plan.overrides))


def _standing(load: Load) -> Table | None:
    """The table whose form stands: one that this load makes has none yet."""
    return None if load.target is None or load.target.created else load.target


def _new_columns(load: Load, types: Types) -> list[str]:
    target = _standing(load)
    if target is None or load.plan.contract not in DISCARDING:
        return []
    names = names_for(target, types)
    return [name for name in types if names[name] not in target.columns]


def _doubtful(load: Load, frame: pl.DataFrame, types: Types) -> dict[str, str]:
    """Columns whose values may not fit, with the type that each has to fit."""
    target, found = _standing(load), {}
    names = names_for(target, types) if target is not None else {}
    for name, incoming in types.items():
        override = load.plan.overrides.get(name)
        if override is not None:
            kind = canonical(override)
        elif target is not None and load.plan.contract in DISCARDING:
            kind = target.columns.get(names[name], PROVISIONAL)
        else:
            continue
        if kind != PROVISIONAL and wider(kind, incoming) != kind and base_type(kind) != "text":
            found[name] = kind
    return found


def _unfit(load: Load, column: pl.Series, kind: str) -> pl.Series:
    """Which rows hold a value that is not of a type."""
    if column.dtype == pl.Binary:
        return column.is_not_null()
    texts = column.cast(pl.String)
    given = texts.drop_nulls().unique().to_list()
    load.connection.execute(UNFIT_SQL)
    spelled = type_sql(kind).as_string(load.connection)
    rows = load.connection.execute(
        "select pg_temp.dw_unfit(%s::text[], %s, %s)", (given, spelled, _exactly(kind))
    ).fetchall()
    unfit = pl.Series([value for (value,) in rows], dtype=pl.String)
    return texts.is_in(unfit.implode()).fill_null(False)


def _exactly(kind: str) -> str:
    """SQL that is true for a value of the type, and false or an error for any other."""
    if base_type(kind) in NUMBERS:
        return "<value>::numeric = <value>::<type>::text::numeric"
    if base_type(kind) in BOUNDED:  # a cast would cut it
        return "<value>::<type>::text = <value>"
    return "<value>::<type> is not null"


def _set_aside(load: Load, frame: pl.DataFrame, misfits: list[_Misfit], label: str) -> pl.Series:
    """Put rows into etl_rejects. Returns which."""
    refused = pl.Series([False] * frame.height)
    for misfit in misfits:
        refused = refused | misfit.rows
    numbers = [number for number, is_refused in enumerate(refused.to_list()) if is_refused]
    reasons = ["; ".join(f"{m.name}: {m.reason}" for m in misfits if m.rows[number]) for number in numbers]
    allowed = load.plan.max_rejects
    if allowed is not None and load.rejected + len(numbers) > allowed:
        raise ValueRefused(
            f"row {numbers[0] + 1:,} of {label} does not fit into {load.table}: {reasons[0]}",
            why=f"{load.rejected + len(numbers):,} rows so far, max_rejects is {allowed:,}",
            hint="mend them at the source, set a wider type under columns:, or raise max_rejects",
        )
    _write(load, frame, numbers, reasons, label)
    load.rejected += len(numbers)
    return refused


def _write(load: Load, frame: pl.DataFrame, numbers: list[int], reasons: list[str], label: str) -> None:
    session: psycopg.Connection = load.connection
    session.execute(REJECTS_SQL)
    if not load.rejected:  # the snapshot may have been loaded before
        session.execute(
            "delete from etl_rejects where run_id = %s and table_schema = %s and table_name = %s",
            (load.plan.run_id, load.schema, load.table),
        )
    raw = [json_text(row) for row in frame[numbers].iter_rows(named=True)]
    session.execute(
        sql.SQL(
            "insert into etl_rejects (run_id, table_schema, table_name, source_file, row_number, reason, raw)"
            " select %s, %s, %s, %s, n, reason, raw from unnest(%s::bigint[], %s::text[], %s::text[])"
            " as r (n, reason, raw)"
        ),
        (load.plan.run_id, load.schema, load.table, label, [n + 1 for n in numbers], reasons, raw),
    )

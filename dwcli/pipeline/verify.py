"""Compare source, lake and warehouse, and say what differs.

The lake is compared with its manifests byte by byte, and with the receipts. The source is read once more,
into a temporary table, and PostgreSQL compares that with the warehouse's: rows by their key, values as it
compares them itself. Rows that are newer than the cursor are none of the last run's. Nothing is changed; the
temporary table goes with the transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg import sql

from dwcli.connectors import Connector
from dwcli.contract import Cursor
from dwcli.errors import DwError, LakeError
from dwcli.pipeline.record import Job
from dwcli.staging.copying import listed
from dwcli.staging.dw_schema import ADDED_COLUMNS, Table, base_type, cast_sql, read_table, type_sql, wider
from dwcli.staging.frames import item_frame
from dwcli.staging.history import current
from dwcli.staging.loader import end_rows, load_frame, open_load
from dwcli.staging.plan import Load, LoadPlan
from dwcli.staging.state import State, read_state, receipts
from dwcli.staging.writer import check_file, read_manifest, snapshots, source_folder

#: Keys of rows that differ which are shown.
SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """What one comparison came to. part: lake, receipts or source. hint: what mends it."""

    part: str
    ok: bool
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class Difference:
    """How the source's rows differ from the warehouse's.

    missing: rows of the source that the warehouse lacks; extra: the other way round; changed: rows that
    both have with other values, `columns` says how often in each. newer: rows beyond the cursor.
    """

    rows: int
    missing: int
    extra: int
    changed: int
    newer: int
    columns: dict[str, int]
    keys: Sequence[str] = ()


def verify(job: Job, connection: psycopg.Connection, with_source: bool = True) -> Iterator[Finding]:
    """Findings on one pipeline, each as it is made. The connection's transaction is rolled back."""
    yield from verify_lake(job, connection)
    if with_source:
        yield verify_source(job, connection)


def verify_lake(job: Job, connection: psycopg.Connection) -> Iterator[Finding]:
    """Every file against its manifest, every manifest against the receipts."""
    folder = source_folder(job.lake, job.protocol, job.lake_name)
    files = rows = size = 0
    try:
        for path in snapshots(folder):
            manifest = read_manifest(path)
            for staged in manifest.every_file:
                check_file(path.parent, staged)
                files, rows, size = files + 1, rows + staged.rows, size + staged.bytes
    except LakeError as error:
        yield Finding("lake", False, _sentence(error), error.hint)
    else:
        yield Finding(
            "lake", True, f"{_count(files, 'file')}, {_count(rows, 'row')}: every byte is as it was written"
        )
    loaded = {receipt.snapshot for receipt in receipts(connection, job.pipeline) if receipt.snapshot}
    kept = {str(path.relative_to(job.lake)) for path in snapshots(folder)}
    pending, gone = kept - loaded, loaded - kept
    told = f"{_count(len(kept & loaded), 'snapshot')} loaded"
    if gone:
        told += f"; {_count(len(gone), 'older one')} left the lake"
    if pending:
        yield Finding("receipts", False, f"{told}; {len(pending):,} to be loaded", f"dw run {job.pipeline}")
    else:
        yield Finding("receipts", True, told)


def verify_source(job: Job, connection: psycopg.Connection) -> Finding:
    """The source, read once more, against the table."""
    connector = job.connector()
    if hasattr(connector.module, "acknowledge"):
        return Finding("source", True, "not compared: a stream cannot be read twice")
    target = read_table(connection, job.schema, job.table)
    if target is None:
        return Finding(
            "source", False, f"there is no table {job.schema}.{job.table} yet", f"dw run {job.pipeline}"
        )
    state = read_state(connection, job.pipeline)
    try:
        with closing(connector), connection.transaction(force_rollback=True):
            connector.connect()
            return _told(job, _compare(job, connection, connector, target, state))
    except DwError as error:
        return Finding("source", False, _sentence(error), error.hint)


def _compare(
    job: Job, connection: psycopg.Connection, connector: Connector, target: Table, state: State
) -> Difference:
    plan = LoadPlan(write="merge", key=job.key, cursor=job.cursor, overrides=job.columns)
    now = datetime.now(UTC)
    with open_load(connection, job.schema, job.table, plan) as load:
        load.target = target
        for item in connector.fetch_data(job.query, Cursor()).items:
            frame, types = item_frame(item)
            if frame.width:
                load_frame(load, frame, types, "", now)
        end_rows(load)
        if load.sink is None:
            return _nothing_there(connection, target)
        connection.execute(sql.SQL("analyze {}").format(load.sink.identifier))
        if job.key:
            return _by_key(job, load, load.sink, target, state)
        return _by_row(job, load, load.sink, target, state)


def _nothing_there(connection: psycopg.Connection, target: Table) -> Difference:
    row = connection.execute(sql.SQL("select count(*) from {} as t").format(current(target))).fetchone()
    return Difference(0, 0, int(row[0]) if row else 0, 0, 0, {})


def _by_key(job: Job, load: Load, stage: Table, target: Table, state: State) -> Difference:
    """Rows that have the same key, column by column."""
    key = [stage.names[name] for name in job.key if name in stage.names]
    values = [
        name
        for name in stage.columns
        if name not in ADDED_COLUMNS and name in target.columns and name not in key
    ]
    kinds = {name: wider(target.columns[name], stage.columns[name]) for name in [*key, *values]}
    pairs = sql.SQL(
        "select {keys}, s.found is not null as ours, t.found is not null as theirs, {newer} as newer{differ}"
        " from (select distinct on ({key}) {ours}, true as found from {stage} order by {key}, {order}) as s"
        " full join (select {theirs}, true as found from {target} as h) as t on {match}"
    ).format(
        keys=sql.SQL(", ").join(
            sql.SQL("coalesce(s.{0}, t.{0})::text as {0}").format(sql.Identifier(name)) for name in key
        ),
        newer=_newer(job, stage, state),
        differ=sql.SQL("").join(sql.SQL(", ") + _differs(kinds[name], name) for name in values),
        key=listed(key),
        ours=_as(stage, kinds),
        stage=stage.identifier,
        order=_newest(job, stage),
        theirs=_as(target, kinds),
        target=current(target),
        match=sql.SQL(" and ").join(sql.SQL("s.{0} = t.{0}").format(sql.Identifier(name)) for name in key),
    )
    load.connection.execute(
        sql.SQL("create temporary table dw_pairs on commit drop as select * from ({}) as p").format(pairs)
    )
    changed = sql.SQL(" or ").join(sql.Identifier(f"≠{name}") for name in values) or sql.SQL("false")
    counts = sql.SQL(", ").join(
        sql.SQL("count(*) filter (where ours and theirs and not newer and {})").format(
            sql.Identifier(f"≠{name}")
        )
        for name in values
    )
    row = load.connection.execute(
        sql.SQL(
            "select count(*) filter (where ours), count(*) filter (where ours and not theirs and not newer),"
            " count(*) filter (where theirs and not ours),"
            " count(*) filter (where ours and theirs and not newer and ({changed})),"
            " count(*) filter (where newer and (not theirs or {changed})){counts} from dw_pairs"
        ).format(changed=changed, counts=sql.SQL(", ") + counts if values else sql.SQL(""))
    ).fetchone()
    assert row is not None
    columns = {name: number for name, number in zip(values, row[5:], strict=True) if number}
    rows, missing, extra, different, newer = (int(number) for number in row[:5])
    return Difference(rows, missing, extra, different, newer, columns, _keys(load, key, changed))


def _as(table: Table, kinds: Mapping[str, str]) -> sql.Composed:
    """Columns in the types that hold both sides' values."""
    return sql.SQL(", ").join(
        cast_sql(name, table.columns[name], kind) + sql.SQL(" as ") + sql.Identifier(name)
        for name, kind in kinds.items()
    )


def _differs(kind: str, name: str) -> sql.Composable:
    text = "::text" if base_type(kind) in ("json", "xml", "point", "polygon") else ""
    return sql.SQL("s.{0}{1} is distinct from t.{0}{1} as {2}").format(
        sql.Identifier(name), sql.SQL(text), sql.Identifier(f"≠{name}")
    )


def _keys(load: Load, key: Sequence[str], changed: sql.Composable) -> list[str]:
    rows = load.connection.execute(
        sql.SQL(
            "select {} from dw_pairs where not newer and (ours <> theirs or ({})) order by 1 limit {}"
        ).format(listed(key), changed, SHOWN)
    )
    return ["/".join(str(part) for part in row) for row in rows]


def _newer(job: Job, stage: Table, state: State, alias: str = "s") -> sql.Composable:
    """Whether a row of the source lies beyond what the last run reached."""
    column = stage.names.get(job.cursor or "")
    if column is None or state.value is None or state.cursor != job.cursor:
        return sql.SQL("false")
    return sql.SQL("coalesce({}.{} > {}::{}, false)").format(
        sql.Identifier(alias), sql.Identifier(column), sql.Literal(state.value), type_sql(state.type)
    )


def _newest(job: Job, stage: Table) -> sql.Composable:
    cursor = stage.names.get(job.cursor or "")
    newest = sql.SQL("{} desc nulls last, ").format(sql.Identifier(cursor)) if cursor else sql.SQL("")
    return newest + sql.SQL("ctid desc")


def _by_row(job: Job, load: Load, stage: Table, target: Table, state: State) -> Difference:
    """Rows without a key: as often as each row stands on either side."""
    columns = [name for name in stage.columns if name not in ADDED_COLUMNS and name in target.columns]
    kinds = {name: wider(target.columns[name], stage.columns[name]) for name in columns}
    row = load.connection.execute(
        sql.SQL(
            "with s as (select row({ours})::text as spelled, count(*) filter (where not {newer}) as n,"
            " count(*) filter (where {newer}) as newer from {stage} as s group by 1),"
            " t as (select row({theirs})::text as spelled, count(*) as n from {target} group by 1)"
            " select coalesce(sum(s.n + s.newer), 0),"
            " coalesce(sum(greatest(coalesce(s.n, 0) - coalesce(t.n, 0), 0)), 0),"
            " coalesce(sum(greatest(coalesce(t.n, 0) - coalesce(s.n, 0) - coalesce(s.newer, 0), 0)), 0),"
            " coalesce(sum(s.newer) filter (where t.n is null), 0) from s full join t using (spelled)"
        ).format(
            ours=_cells(stage, kinds),
            newer=_newer(job, stage, state),
            stage=stage.identifier,
            theirs=_cells(target, kinds),
            target=target.identifier,
        )
    ).fetchone()
    assert row is not None
    rows, missing, extra, newer = (int(number) for number in row)
    return Difference(rows, missing, extra, 0, newer, {})


def _cells(table: Table, kinds: Mapping[str, str]) -> sql.Composed:
    return sql.SQL(", ").join(cast_sql(name, table.columns[name], kind) for name, kind in kinds.items())


def _told(job: Job, found: Difference) -> Finding:
    newer = f"; {_count(found.newer, 'newer row')} for the next run" if found.newer else ""
    gone = found.extra if job.write != "replace" else 0
    left = f"; {_count(gone, 'row')} no longer in the source" if gone else ""
    wrong = [
        f"{number:,} {words}"
        for number, words in (
            (found.missing, "missing"),
            (found.changed, "with other values" + _in_columns(found)),
            (found.extra - gone, "too many"),
        )
        if number
    ]
    if not wrong:
        return Finding("source", True, f"{_count(found.rows, 'row')}, the same in the warehouse{left}{newer}")
    keys = f" (key {', '.join(found.keys)}{' …' if len(found.keys) == SHOWN else ''})" if found.keys else ""
    return Finding(
        "source",
        False,
        f"of {_count(found.rows, 'row')} {', '.join(wrong)}{keys}{left}{newer}",
        f"dw run {job.pipeline} --full-refresh",
    )


def _in_columns(found: Difference) -> str:
    return f" in {', '.join(f'{name} ({number:,})' for name, number in found.columns.items())}"


def _sentence(error: DwError) -> str:
    return f"{error.message} ({error.why})" if error.why else error.message


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

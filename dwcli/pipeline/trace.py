"""Where a row came from: its rows in the warehouse, and every version of it that the lake holds.

wanted (column → text)
  ├─ warehouse   select … where column = value        values are bound, names are quoted
  └─ lake        snapshots, newest first ─▶ Parquet files ─▶ rows with that key, found by a scan
"""

from __future__ import annotations

import decimal
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from dwcli.documents import nearest
from dwcli.errors import DwError, LakeError, UsageError
from dwcli.pipeline.record import Job
from dwcli.staging.deleting import GONE
from dwcli.staging.dw_schema import (
    OWN_COLUMNS,
    PROVISIONAL,
    VALID_FROM,
    Table,
    base_type,
    names_for,
    read_table,
    type_sql,
)
from dwcli.staging.state import receipts
from dwcli.staging.writer import Manifest, StagedFile, read_manifest, snapshots, source_folder

#: Types that have no `=`; they are compared as text.
WITHOUT_EQUALITY = ("json", "xml", "point", "polygon")
#: Types that a text with an equals sign may be a value of.
TEXTS = ("text", "varchar", "char", "bytea", PROVISIONAL)
#: Rows that are shown of the warehouse, and of one file, when the key does not tell one from others.
MANY = 20
#: A key that every snapshot holds (replace) is not looked for any further after so many.
VERSIONS = 200
PLACE = "dw row"


@dataclass(frozen=True)
class Wanted:
    """One column of the key that is looked for. `source`: its name in the lake."""

    column: str
    source: str
    kind: str
    #: as it was given, as PostgreSQL writes it, and as Python has it
    given: str
    text: str
    value: Any


@dataclass(frozen=True)
class Version:
    """A row of the lake: what one run read of it."""

    run_id: str
    read_at: datetime | None
    #: within the lake
    file: str
    #: its place in the file, from 1; None for a note that the key was gone
    row: int | None
    #: by the names of the warehouse's columns
    values: Mapping[str, Any]
    #: whether the snapshot is in the warehouse
    loaded: bool
    #: the source no longer had it
    gone: bool = False


@dataclass
class Found:
    """All that is known of a key."""

    wanted: Sequence[Wanted]
    #: the columns that tell one row from another, as far as that is known
    identity: Sequence[str]
    rows: list[dict[str, Any]]
    versions: list[Version]
    #: snapshots that were looked into, and older ones that were not
    searched: int
    left: int
    remarks: list[str] = field(default_factory=list)


def trace(connection: psycopg.Connection, job: Job, keys: Sequence[str], limit: int) -> Found:
    """Look for a key in the warehouse and in the newest `limit` snapshots of a pipeline.

    keys: `VALUE`, in the order of the key's columns, or `COLUMN=VALUE`. Raises UsageError.
    """
    table = read_table(connection, job.schema, job.table)
    if table is None:
        raise UsageError(
            f"there is no table {job.schema}.{job.table} in the warehouse yet", hint=f"dw run {job.pipeline}"
        )
    key = key_columns(connection, table, job.key)
    wanted = [
        _wanted(connection, table, column, text, key) for column, text in _columns(table, key, keys).items()
    ]
    identity = key or [one.column for one in wanted]
    found = Found(wanted, identity, _rows(connection, table, wanted), [], 0, 0)
    _search_lake(found, job, table, {r.snapshot for r in receipts(connection, job.pipeline)}, limit)
    return found


# -- the key -------------------------------------------------------------------------------------------


def key_columns(connection: psycopg.Connection, table: Table, key: Sequence[str]) -> list[str]:
    """The columns that identify a row: of the pipeline's key, else of the table's smallest unique index."""
    if key:
        return list(names_for(table, key).values())
    found = connection.execute(
        """
        select array_agg(a.attname::text order by k.place)
        from pg_index i cross join unnest(i.indkey::int[]) with ordinality as k (number, place)
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
        where i.indrelid = to_regclass(%s) and i.indisunique and i.indexprs is null
        group by i.indexrelid, i.indisprimary, i.indnatts order by i.indisprimary desc, i.indnatts limit 1
        """,
        (table.identifier.as_string(connection),),
    ).fetchone()
    return list(found[0]) if found else []


def _columns(table: Table, key: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """What was asked for, by column. Raises UsageError."""
    known = {column: column for column in table.columns} | dict(table.names)
    chosen: dict[str, str] = {}
    bare = []
    for text in keys:
        name, equals, value = text.partition("=")
        if equals and name in known:
            chosen[known[name]] = value
        else:
            bare.append(text)
    free = [column for column in key if column not in chosen]
    for text in bare:
        name, equals, _ = text.partition("=")
        # `a=b` may be a text, but no number and no date
        if equals and not (free and base_type(table.columns[free[0]]) in TEXTS):
            raise UsageError(
                f"{table.schema}.{table.name} has no column '{name}'.{nearest(name, list(known))}",
                hint=f"its columns: {', '.join(c for c in table.columns if c not in OWN_COLUMNS)}",
            )
        if not free:
            raise UsageError(
                f"which column of {table.schema}.{table.name} is {text!r}?",
                why="a value needs no name only where the pipeline has a key, or the table a unique index",
                hint=f"--key {next(iter(table.columns), 'id')}={text}",
            )
        chosen[free.pop(0)] = text
    return chosen


def _wanted(
    connection: psycopg.Connection, table: Table, column: str, given: str, key: Sequence[str]
) -> Wanted:
    kind = table.columns[column]
    sources = {name: source for source, name in table.names.items()}
    query = sql.SQL("select cast(%(v)s as {0}), cast(cast(%(v)s as {0}) as text)").format(type_sql(kind))
    try:
        with connection.transaction():
            value, text = connection.execute(query, {"v": given}).fetchone() or (None, "")
    except psycopg.DataError:
        hint = " ".join(f"--key {name}=…" for name in (key if column in key else [column]))
        raise UsageError(f"'{given}' is no {kind}, and {column} is one", hint=hint) from None
    return Wanted(column, sources.get(column, column), kind, given, str(text), value)


# -- the warehouse -------------------------------------------------------------------------------------


def _rows(connection: psycopg.Connection, table: Table, wanted: Sequence[Wanted]) -> list[dict[str, Any]]:
    conditions = [
        sql.SQL("{}::text = %s" if base_type(one.kind) in WITHOUT_EQUALITY else "{} = cast(%s as {})").format(
            sql.Identifier(one.column), type_sql(one.kind)
        )
        for one in wanted
    ]
    newest = VALID_FROM if VALID_FROM in table.columns else "_ingested_at"
    order = sql.SQL(" order by {} desc nulls last").format(sql.Identifier(newest))
    query = sql.SQL("select * from {} where {}{} limit {}").format(
        table.identifier,
        sql.SQL(" and ").join(conditions),
        order if newest in table.columns else sql.SQL(""),
        sql.Literal(MANY),
    )
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, [one.given for one in wanted]).fetchall()


# -- the lake ------------------------------------------------------------------------------------------


def _search_lake(found: Found, job: Job, table: Table, loaded: set[str], limit: int) -> None:
    every = list(snapshots(source_folder(job.lake, job.protocol, job.lake_name)))[::-1]
    for path in every[:limit]:
        if len(found.versions) >= VERSIONS:
            break
        found.searched += 1
        try:
            manifest = read_manifest(path)
            in_table = str(path.relative_to(job.lake)) in loaded
            if manifest.gone is not None:
                found.versions += _in_file(found, job, table, path, manifest, manifest.gone, in_table)
            for staged in reversed(manifest.files):
                found.versions += _in_file(found, job, table, path, manifest, staged, in_table)
        except DwError as error:
            found.remarks.append(f"{error.message}: {error.why}")
    found.left = len(every) - found.searched


def _in_file(
    found: Found,
    job: Job,
    table: Table,
    manifest_path: Path,
    manifest: Manifest,
    staged: StagedFile,
    loaded: bool,
) -> list[Version]:
    """The rows of one file that have the key, the last first."""
    path = manifest_path.parent / staged.name
    is_note = staged is manifest.gone
    # the note of keys that were gone has the names of the table
    names = [one.column if is_note else one.source for one in found.wanted]
    try:
        schema = pl.read_parquet_schema(path)
        if any(name not in schema for name in names):
            return []
        # a path is no pattern, though it may look like one
        scan = pl.scan_parquet(path, glob=False, row_index_name=PLACE)
        matches = [_matches(name, schema[name], one) for name, one in zip(names, found.wanted, strict=True)]
        rows = scan.filter(matches).tail(MANY).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LakeError(f"{path.name} cannot be read", why=str(error).split("\n")[0]) from error
    read_at = datetime.fromisoformat(manifest.ingested_at) if manifest.ingested_at else None
    versions = []
    for row in rows.iter_rows(named=True):
        if all(_is(row[name], one) for name, one in zip(names, found.wanted, strict=True)):
            place, gone = row.pop(PLACE) + 1, bool(is_note and row.pop(GONE))
            if is_note and not gone:  # it was gone, and is back: its row stands beside
                continue
            values = row if is_note else {table.names.get(name, name): v for name, v in row.items()}
            where = str(path.relative_to(job.lake))
            about = (manifest.run_id, read_at, where, None if is_note else place)
            versions.append(Version(*about, values, loaded, gone))
    return versions[::-1]


def _matches(name: str, dtype: pl.DataType, one: Wanted) -> pl.Expr:
    """Which rows of a column of the lake may hold a value: exactly, but for numbers kept as text."""
    column, value = pl.col(name), one.value
    number = isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool)
    if dtype == pl.String:
        if number:
            near = (column.cast(pl.Float64, strict=False) - float(value)).abs() <= abs(float(value)) * 1e-9
            return near | column.is_in([one.given, one.text])
        if isinstance(value, uuid.UUID):
            return column.str.to_lowercase() == one.text
        return column.is_in([one.given, one.text])
    if dtype.is_integer() and number:
        whole = int(value) if value == int(value) else None
        return pl.lit(False) if whole is None else column == whole
    if dtype.is_float() and number:
        return column == float(value)
    if dtype.is_decimal() and number:
        return column.cast(pl.String).cast(pl.Float64) == float(value)
    if isinstance(dtype, pl.Datetime) and isinstance(value, datetime):
        moment = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        return column == pl.lit(moment if dtype.time_zone else moment.replace(tzinfo=None), dtype)
    if dtype in (pl.Boolean, pl.Date, pl.Time, pl.Duration, pl.Binary):
        return column == pl.lit(value)
    return column.cast(pl.String, strict=False).is_in([one.given, one.text])


def _is(value: Any, one: Wanted) -> bool:
    """Whether a number of the lake is the one that is looked for; other values were found exactly."""
    if isinstance(one.value, decimal.Decimal | int) and isinstance(value, str | decimal.Decimal):
        try:
            return decimal.Decimal(value) == one.value
        except decimal.InvalidOperation:
            return value in (one.given, one.text)
    return True


# -- what changed --------------------------------------------------------------------------------------


def key_of(values: Mapping[str, Any], identity: Sequence[str]) -> dict[str, str]:
    """What tells a row from the others that were found."""
    return {column: str(values.get(column)) for column in identity}


def changes(found: Found) -> list[dict[str, dict[str, Any]] | None]:
    """For each version, the columns that it changed: {column: {"from": …, "to": …}}.

    None for the oldest of its row, and where the row had been gone.
    """
    listed: list[dict[str, dict[str, Any]] | None] = []
    keys = [key_of(version.values, found.identity) for version in found.versions]
    for number, version in enumerate(found.versions):
        later = range(number + 1, len(keys))
        older = next((found.versions[n] for n in later if keys[n] == keys[number]), None)
        if older is None or older.gone or version.gone:
            listed.append(None)
            continue
        names = [*version.values, *(name for name in older.values if name not in version.values)]
        pairs = {n: {"from": older.values.get(n), "to": version.values.get(n)} for n in names}
        listed.append({name: pair for name, pair in pairs.items() if pair["from"] != pair["to"]})
    return listed


def since(row: Mapping[str, Any], found: Found) -> dict[str, Version]:
    """For each column of a row of the warehouse, the oldest version from which on it has had its value.

    Empty where the version that the row came from is not among those that were found.
    """
    key = key_of(row, found.identity)
    versions = [v for v in found.versions if key_of(v.values, found.identity) == key]
    begun = next(
        (
            number
            for number, version in enumerate(versions)
            if version.row is not None
            and version.run_id == row.get("_run_id")
            and Path(version.file).name == row.get("_source_file")
        ),
        None,
    )
    if begun is None:
        return {}
    first = {}
    for column in versions[begun].values:
        oldest = versions[begun]
        for version in versions[begun + 1 :]:
            if version.gone or not version.loaded or version.values.get(column) != oldest.values.get(column):
                break
            oldest = version
        first[column] = oldest
    return first

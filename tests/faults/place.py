"""A project whose source changes and whose runs die, and what must be true of it at every moment.

The source is a SQLite file. For every write disposition a run that ends well makes the table equal to it:
rows are only added for `append`, added and changed for `merge` and `scd2` (of which the current versions are
compared), added, changed and deleted for `replace`.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

WRITES = ("append", "replace", "merge")
FIRST_ROWS, MORE_ROWS = 1500, 300
#: How long the lock of a killed run may stand, in seconds.
LOCK_SECONDS = 2.0

CONFIG = """\
protocol: sqlite
database_path: {database}
batch_bytes: 65536
pipelines:
  orders: {{query: orders, write: {write}, key: [id]{cursor}}}
"""

Row = tuple[Any, ...]


@dataclass
class Place:
    """A project folder, its source and the URL of its warehouse, which this process reads directly."""

    root: Path
    url: str
    write: str
    chance: random.Random
    next_id: int = 1
    second: int = 0
    columns: list[str] = field(default_factory=lambda: ["id", "cents", "note", "at"])

    @property
    def database(self) -> Path:
        return self.root / "shop.db"


def make_place(root: Path, url: str, write: str, seed: int, through: str = "") -> Place:
    """An empty project of this kind. `through`: the URL that dw itself uses, where it is another one."""
    (root / "sources").mkdir(parents=True)
    place = Place(root, url, write, random.Random(seed))
    (root / "dw.yaml").write_text(f"name: shop\nwarehouse: {through or url}\nkeep: 1d\n", "utf-8")
    cursor = "" if write == "replace" else ", cursor: at"
    config = CONFIG.format(database=place.database, write=write, cursor=cursor)
    (root / "sources" / "shop.yaml").write_text(config, "utf-8")
    with closing(sqlite3.connect(place.database)) as source, source:
        source.execute(
            "create table orders (id integer primary key not null, cents integer, note text,"
            " at datetime not null)"
        )
    add_rows(place, FIRST_ROWS)
    return place


def add_rows(place: Place, count: int) -> None:
    """New rows; seven in a row have the same time."""
    rows = []
    for _ in range(count):
        place.second += place.next_id % 7 == 0
        rows.append((place.next_id, place.chance.randint(-(2**62), 2**62), _note(place), _time(place.second)))
        place.next_id += 1
    with closing(sqlite3.connect(place.database)) as source, source:
        source.executemany("insert into orders (id, cents, note, at) values (?, ?, ?, ?)", rows)


def change(place: Place, new_column: bool = True) -> None:
    """What happens at a source between two runs, as far as the write disposition can see it."""
    with closing(sqlite3.connect(place.database)) as source, source:
        if new_column:
            name = f"extra{len(place.columns)}"
            source.execute(f"alter table orders add column {name} text")
            place.columns.append(name)
        if place.write != "append":
            place.second += 1
            source.execute(
                "update orders set cents = ?, note = ?, at = ? where id % 5 = ?",
                (
                    place.chance.randint(0, 10**6),
                    _note(place),
                    _time(place.second),
                    place.chance.randint(0, 4),
                ),
            )
        if place.write == "replace":
            source.execute("delete from orders where id % 11 = ?", (place.chance.randint(0, 10),))
    add_rows(place, MORE_ROWS)
    if new_column:
        last = place.next_id - 10
        with closing(sqlite3.connect(place.database)) as source, source:
            source.execute(f"update orders set {place.columns[-1]} = 'new' where id >= ?", (last,))


def _note(place: Place) -> str:
    return place.chance.choice(
        ("größe 日本語", "tab\there", "line\nbreak", "\\N", "", "quote ' \" \\", "x" * 200)
    )


def _time(second: int) -> str:
    return (
        f"2026-01-{1 + second // 86400:02} {second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}"
    )


def source_rows(place: Place) -> list[Row]:
    """All rows of the source, by id."""
    with closing(sqlite3.connect(place.database)) as source:
        return source.execute(f"select {', '.join(place.columns)} from orders order by id").fetchall()


def table_rows(place: Place, session: psycopg.Connection) -> list[Row] | None:
    """All rows of the table, by id and in the source's spelling; None when there is no table."""
    if session.execute("select to_regclass('public.orders')").fetchone() == (None,):
        return None
    found = session.execute(
        "select column_name from information_schema.columns where table_name = 'orders'"
    ).fetchall()
    there = {name for (name,) in found}
    spelled = [
        "to_char(at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS')" if name == "at" else name
        for name in (name if name in there else "null" for name in place.columns)
    ]
    query = f"select {', '.join(spelled)} from {visible(place)} order by id"
    rows: list[Row] = session.execute(query.encode()).fetchall()
    return rows


def visible(place: Place) -> str:
    """What is compared with the source, as a FROM clause."""
    return "orders where _is_current" if place.write == "scd2" else "orders"


def wrong_after_kill(
    place: Place,
    before: list[Row] | None,
    session: psycopg.Connection,
    between: Sequence[list[Row]] = (),
) -> list[str]:
    """What is not as it must be right after a run was killed, whatever it was doing.

    between: what the source held when runs were killed whose snapshot this one may have finished.
    """
    found = []
    table = table_rows(place, session)
    if table not in (before, *between, source_rows(place)) and not (table == [] and before is None):
        found.append(f"half a run is visible: {len(table or [])} rows, {len(before or [])} before")
    waited = wait_for_lock(session)
    if waited > LOCK_SECONDS:
        found.append(f"the lock of the killed run stood for {waited:.1f} s")
    cursor = _one(
        session, "etl_state", "select max(cursor_value::timestamptz) from etl_state where cursor_value <> ''"
    )
    reached = _one(session, "orders", "select max(at) from orders")
    if cursor is not None and (reached is None or cursor > reached):
        found.append(f"the cursor {cursor} is beyond what the table holds, {reached}")
    return found


def wait_for_lock(session: psycopg.Connection) -> float:
    """Seconds until no session holds a pipeline's lock, at most ten."""
    began = time.monotonic()
    held = (
        "select count(*) from pg_locks where locktype = 'advisory' and granted and objsubid = 1"
        " and database = (select oid from pg_database where datname = current_database())"
    )
    while session.execute(held).fetchone() != (0,) and time.monotonic() - began < 10:
        time.sleep(0.02)
    return time.monotonic() - began


def wrong_when_whole(place: Place, session: psycopg.Connection) -> list[str]:
    """What is not as it must be after a run that ended well: table, lake, receipts, audit log."""
    expected, table = source_rows(place), table_rows(place, session) or []
    found = []
    if table != expected:
        lost = len({row[0] for row in expected} - {row[0] for row in table})
        twice = len(table) - len({row[0] for row in table})
        found.append(f"the table is not the source: {lost} rows lost, {twice} twice, {len(table)} in all")
    lake = place.root / "lake"
    left = [str(path.relative_to(lake)) for path in lake.rglob("*") if path.suffix in (".tmp", ".open")]
    if left:
        found.append(f"left in the lake: {left}")
    found += _wrong_versions(session) if place.write == "scd2" else []
    manifests = {str(path.relative_to(lake)) for path in lake.rglob("*.manifest.json")}
    receipts = {snapshot for (snapshot,) in session.execute("select snapshot from etl_load").fetchall()}
    if not manifests <= receipts:
        found.append(f"snapshots without a receipt: {sorted(manifests - receipts)}")
    runs = session.execute(
        "select count(*), count(distinct run_id), count(*) filter (where status = 'running')"
        " from etl_audit_log"
    ).fetchone()
    assert runs is not None
    if runs[0] != runs[1] or runs[2]:
        found.append(f"audit log: {runs[0]} rows for {runs[1]} runs, {runs[2]} still running")
    counted = session.execute(
        "select count(*) from etl_load l full join (select * from etl_audit_log where status = 'success') a"
        " using (run_id) where l.rows_loaded is distinct from a.rows_loaded and l.run_id is not null"
        " and a.run_id is not null"
    ).fetchone()
    if counted != (0,):
        found.append(f"{counted} receipts and audit rows differ")
    return found


def _wrong_versions(session: psycopg.Connection) -> list[str]:
    """What no history may have, each with its count."""
    what = ("overlap", "are the same as the one before", "are current and closed, or open and not current")
    counts = session.execute(_VERSIONS).fetchone() or ()
    return [f"{count} versions {text}" for text, count in zip(what, counts, strict=True) if count]


_VERSIONS = """
    select count(*) filter (where before._valid_to is null or before._valid_to > after._valid_from),
           count(*) filter (where before.at = after.at and before.cents = after.cents
                                  and before.note is not distinct from after.note),
           (select count(*) from orders where (_valid_to is null) is distinct from _is_current)
    from (select *, row_number() over (partition by id order by _valid_from) as number from orders) before
    join (select *, row_number() over (partition by id order by _valid_from) as number from orders) after
      on before.id = after.id and before.number + 1 = after.number
"""


def age_lake(place: Place) -> None:
    """Make what is in the lake older than `keep`."""
    old = time.time() - 2 * 86400
    for path in (place.root / "lake").rglob("*.json"):
        os.utime(path, (old, old))


def _one(session: psycopg.Connection, table: str, query: str) -> Any:
    if session.execute("select to_regclass(%s)", (table,)).fetchone() == (None,):
        return None
    row = session.execute(query).fetchone()
    return row and row[0]

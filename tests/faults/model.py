"""A plain dict that says what the table must hold, beside a source, a lake and a warehouse that do the work.

The source is a SQLite table with a cursor `at`. A run reads the rows from the cursor on, so a row that came
late, with a time behind it, is not seen: the model knows that too. A run that was killed when its snapshot
was complete is finished by the next one; one that was killed before has not happened.
"""

from __future__ import annotations

import random
import secrets
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from dwcli.crashpoints import POINTS
from tests.faults import forker
from tests.faults.forker import Forker

COMPLETE = POINTS.index("manifest")
COMMITTED = POINTS.index("committed")
#: (write, deletes)
KINDS = (
    ("append", "ignore"),
    ("replace", "ignore"),
    ("merge", "ignore"),
    ("merge", "soft"),
    ("merge", "hard"),
    ("scd2", "ignore"),
    ("scd2", "soft"),
)
CONFIG = """\
protocol: sqlite
database_path: {database}
batch_bytes: 65536
pipelines:
  {name}: {{query: t, write: {write}, key: [id], deletes: {deletes}{cursor}}}
"""

Row = dict[str, Any]


@dataclass
class Snapshot:
    """What a run has read: rows by id, the cursor it came to, and what the source no longer has."""

    rows: dict[int, Row]
    cursor: int | None
    here: frozenset[int]


@dataclass
class World:
    """A source and what is believed of its table. cursor: the time that the last run came to."""

    run: Forker
    root: Path
    url: str
    name: str
    write: str
    deletes: str
    source: dict[int, Row] = field(default_factory=dict)
    table: dict[int, Row] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    #: of scd2: all versions of each key, oldest first; the table holds the last where it is not gone
    versions: dict[int, list[Row]] = field(default_factory=dict)
    cursor: int | None = None
    pending: Snapshot | None = None
    now: int = 0
    next_id: int = 1
    columns: list[str] = field(default_factory=lambda: ["id", "value", "at"])
    ran: bool = False


def make_world(run: Forker, root: Path, url: str, kind: tuple[str, str]) -> World:
    """An empty source, its project and a pipeline that no other world has."""
    (root / "sources").mkdir(parents=True)
    world = World(run, root, url, f"t{secrets.token_hex(6)}", *kind)
    (root / "dw.yaml").write_text(f"name: shop\nwarehouse: {url}\n", "utf-8")
    config = CONFIG.format(
        database=root / "shop.db",
        name=world.name,
        write=world.write,
        deletes=world.deletes,
        cursor="" if world.write == "replace" else ", cursor: at",
    )
    (root / "sources" / "shop.yaml").write_text(config, "utf-8")
    _change(world, "create table t (id integer primary key not null, value integer, at bigint not null)")
    insert(world, 30)
    return world


def _change(world: World, *statements: str) -> None:
    with closing(sqlite3.connect(world.root / "shop.db")) as source, source:
        for statement in statements:
            source.execute(statement)


def _put(world: World, row: Row) -> None:
    world.source[row["id"]] = row
    with closing(sqlite3.connect(world.root / "shop.db")) as source, source:
        places = ", ".join("?" for _ in world.columns)
        values = [row.get(column) for column in world.columns]
        source.execute(f"insert or replace into t ({', '.join(world.columns)}) values ({places})", values)


# -- what happens at the source -----------------------------------------------------------------------


def insert(world: World, count: int) -> None:
    """Rows with a time that no row had, or that the last one had."""
    for number in range(count):
        world.now += number % 3 == 0
        row = {"id": world.next_id, "value": world.next_id * 7, "at": world.now}
        _put(world, row | {column: f"{column}{world.next_id}" for column in world.columns[3:]})
        world.next_id += 1


def insert_late(world: World, behind: int) -> None:
    """A row whose time has passed already."""
    _put(world, {"id": world.next_id, "value": -1, "at": max(0, world.now - behind)})
    world.next_id += 1


def update(world: World, which: int) -> None:
    """A changed row has a new time. An append sees none."""
    if world.write != "append" and world.source:
        world.now += 1
        row = world.source[sorted(world.source)[which % len(world.source)]]
        _put(world, row | {"value": row["value"] + 1000, "at": world.now})


def delete(world: World, which: int) -> None:
    """A row is gone; few enough at a time that no brake holds the run."""
    if world.write != "append" and len(world.source) > 25:
        lost = sorted(world.source)[which % len(world.source)]
        del world.source[lost]
        _change(world, f"delete from t where id = {lost}")


def bring_back(world: World, which: int) -> None:
    """A row with an id that was deleted before, changed."""
    lost = sorted(set(range(1, world.next_id)) - set(world.source))
    if world.write != "append" and lost:
        world.now += 1
        _put(world, {"id": lost[which % len(lost)], "value": 5, "at": world.now})


def add_column(world: World) -> None:
    """One column more; rows that are there have nothing in it."""
    if len(world.columns) < 8:
        column = f"c{len(world.columns)}"
        world.columns.append(column)
        _change(world, f"alter table t add column {column} text")


# -- what happens to the table ------------------------------------------------------------------------


def run(world: World) -> list[str]:
    """A run that ends well."""
    _apply_pending(world)
    ended = forker.run(world.run, world.root, "run", world.name, "--json", "--no-input")
    if ended.code != 0:
        return [f"exit {ended.code}: {ended.output[-600:]}"]
    _apply(world, _read(world))
    return differences(world)


def run_killed(world: World, point: int) -> list[str]:
    """A run that is killed at a place, if it comes there."""
    place = POINTS[point % len(POINTS)]
    if place == "merge" and world.pending is not None:
        place = "commit"  # it dies a moment after it came there, and could be anywhere then
    loaded = _receipts(world)
    ended = forker.run(world.run, world.root, "run", world.name, "--json", "--no-input", crash=place)
    died = ended.code == -signal.SIGKILL
    if not died and ended.code != 0:
        return [f"exit {ended.code} instead of a death at {place}: {ended.output[-600:]}"]
    if died and place in ("ddl", "copy") and world.pending is not None and _receipts(world) == loaded:
        return differences(world)  # it came there while it finished the run before
    _apply_pending(world)
    snapshot = _read(world)
    if not died or POINTS.index(place) >= COMMITTED or (place == "merge" and _receipts(world) > loaded):
        _apply(world, snapshot)
    elif POINTS.index(place) >= COMPLETE:
        world.pending = snapshot
    return differences(world)


def _receipts(world: World) -> int:
    """How many runs were committed."""
    with psycopg.connect(world.url, autocommit=True) as session:
        if session.execute("select to_regclass('etl_load')").fetchone() == (None,):
            return 0
        query = "select count(*) from etl_load where pipeline_name = %s"
        found = session.execute(query, (f"shop.{world.name}",)).fetchone()
    return int(found[0]) if found else 0


def refresh(world: World) -> list[str]:
    """Everything is read again, and the table holds that alone."""
    _apply_pending(world)
    ended = forker.run(world.run, world.root, "run", world.name, "--full-refresh", "--json", "--no-input")
    if ended.code != 0:
        return [f"exit {ended.code}: {ended.output[-600:]}"]
    world.cursor = None
    if world.write != "scd2":
        world.table, world.gone = {}, set()
    _apply(world, _read(world))
    return differences(world)


def replay(world: World) -> list[str]:
    """The table is built again from the lake: it is what it was."""
    if not world.ran or world.pending is not None:
        return []
    ended = forker.run(world.run, world.root, "replay", world.name, "--json", "--yes")
    if ended.code != 0:
        return [f"replay: exit {ended.code}: {ended.output[-600:]}"]
    return [f"after a replay: {text}" for text in differences(world)]


def _read(world: World) -> Snapshot:
    seen = {
        key: dict(row)
        for key, row in world.source.items()
        if world.write == "replace" or world.cursor is None or row["at"] >= world.cursor
    }
    times = [row["at"] for row in seen.values()]
    cursor = max([*times, world.cursor] if world.cursor is not None else times, default=None)
    return Snapshot(seen, cursor, frozenset(world.source))


def _apply_pending(world: World) -> None:
    """A run finishes what an earlier one left before it does anything else."""
    if world.pending is not None:
        pending, world.pending = world.pending, None
        _apply(world, pending)


def _apply(world: World, snapshot: Snapshot) -> None:
    world.ran, world.cursor = True, snapshot.cursor
    if world.write == "scd2":
        return _apply_versions(world, snapshot)
    if world.write == "replace":
        world.table = {}
    world.table |= snapshot.rows
    world.gone -= set(snapshot.rows) if world.deletes != "soft" else set()
    lost = set(world.table) - snapshot.here
    if world.deletes == "hard":
        world.table = {key: row for key, row in world.table.items() if key not in lost}
    if world.deletes == "soft":
        world.gone = lost


def _apply_versions(world: World, snapshot: Snapshot) -> None:
    known = bool(world.versions)
    for key, row in snapshot.rows.items():
        held = world.table.get(key)
        if held is None or (_values(world, held) != _values(world, row) and row["at"] >= held["at"]):
            world.versions.setdefault(key, []).append(row)
            world.table[key] = row
    if world.deletes == "soft" and known:
        world.table = {key: row for key, row in world.table.items() if key in snapshot.here}


def _values(world: World, row: Row) -> list[Any]:
    return [row.get(column) for column in world.columns]


def differences(world: World) -> list[str]:
    """How the table differs from what is believed of it."""
    with psycopg.connect(world.url, autocommit=True) as session:
        if session.execute("select to_regclass(%s)", (world.name,)).fetchone() == (None,):
            return [] if not world.table else [f"{len(world.table)} rows are missing: there is no table"]
        names = [name for (name,) in session.execute(_COLUMNS, (world.name,)).fetchall()]
        found = [dict(zip(names, row, strict=True)) for row in session.execute(f"select * from {world.name}")]
    history = found
    if world.write == "scd2":
        found = [row for row in history if row["_is_current"]]
    marked = {row["id"] for row in found if row.get("_deleted_at") is not None}
    own = [{name: value for name, value in row.items() if not name.startswith("_")} for row in found]
    held = {row["id"]: row for row in own}
    wrong = []
    if len(held) != len(own):
        wrong.append(f"{len(own) - len(held)} rows are twice")
    for what, keys in (("missing", set(world.table) - set(held)), ("too many", set(held) - set(world.table))):
        if keys:
            wrong.append(f"{what}: {sorted(keys)[:5]}")
    for key in set(held) & set(world.table):
        expected = {name: world.table[key].get(name) for name in held[key]}
        if held[key] != expected:
            wrong.append(f"row {key} is {held[key]}, not {expected}")
    if world.write == "scd2":
        wrong += _wrong_history(world, history)
    if marked != world.gone:
        wrong.append(f"marked as deleted: {sorted(marked)}, not {sorted(world.gone)}")
    return wrong


def _wrong_history(world: World, history: list[Row]) -> list[str]:
    """Versions of each key in their order, one ending no later than the next begins; the last may be open."""
    wrong = []
    for key in world.versions:
        rows = sorted((row for row in history if row["id"] == key), key=lambda row: row["_valid_from"])
        if [_values(world, row) for row in rows] != [_values(world, row) for row in world.versions[key]]:
            wrong.append(f"versions of {key}: {rows}, not {world.versions[key]}")
        ends = [row["_valid_to"] for row in rows]
        late = any(e is None or e > n["_valid_from"] for e, n in zip(ends, rows[1:], strict=False))
        if late or any((row["_valid_to"] is None) != row["_is_current"] for row in rows):
            wrong.append(f"times of {key}: {rows}")
    return wrong


_COLUMNS = """
    select attname from pg_attribute where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped
    order by attnum
"""

#: what may happen, and how often in comparison; the number is up to the step
STEPS: tuple[tuple[int, Callable[[World, int], list[str] | None]], ...] = (
    (4, lambda world, number: insert(world, 1 + number % 9)),
    (4, update),
    (2, delete),
    (1, bring_back),
    (1, lambda world, number: insert_late(world, 1 + number % 12)),
    (1, lambda world, number: add_column(world)),
    (5, lambda world, number: run(world)),
    (5, run_killed),
    (1, lambda world, number: refresh(world)),
    (1, lambda world, number: replay(world)),
)


def sequence(process: Forker, root: Path, url: str, seed: int, steps: int = 12) -> list[str]:
    """A world in which so many things happen, by chance, and a run in the end."""
    chance = random.Random(seed)
    world = make_world(process, root, url, KINDS[seed % len(KINDS)])
    weights, actions = zip(*STEPS, strict=True)
    for action in [*chance.choices(actions, weights, k=steps), lambda world, number: run(world)]:
        wrong = action(world, chance.randrange(1000))
        if wrong:
            return [f"{world.write}, deletes {world.deletes}: {text}" for text in wrong]
    return []

"""Writers that commit late, and out of order, while a PostgreSQL source is read: nothing may be missing."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import yaml

from dwcli.warehouse import embedded
from tests.faults import forker
from tests.faults.forker import Forker
from tests.faults.meanwhile import threads
from tests.faults.trouble import restart

#: The long form: writers at once, runs meanwhile, and how long the longest transaction is open.
WRITERS, RUNS, LONGEST_SECONDS = 200, 5, 30.0
RUN = ("run", "late", "--json", "--no-input")


@dataclass(frozen=True)
class Place:
    """A project whose source is a PostgreSQL database that nobody else has."""

    root: Path
    warehouse: str
    source: str


@contextmanager
def roomy_server(project: Path) -> Iterator[str]:
    """A server of one's own that lets all writers in at once: the URL of a database on it."""
    home = project / ".dw" / "postgres"
    url = embedded.url(embedded.start(home), socket=False, database="postgres")
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"alter system set max_connections = {WRITERS + 50}".encode())
    restart(home)
    yield embedded.url(embedded.start(home), socket=False, database="postgres")


def make_place(root: Path, warehouse: str, source: str, cursor: str, write: str = "merge") -> Place:
    """An empty table `late` in that database, and a project that reads it by `at` or by `id`."""
    with psycopg.connect(source, autocommit=True) as setup:
        setup.execute("drop table if exists late")
        setup.execute(
            "create table late (id bigserial primary key, value float, at timestamptz not null default now())"
        )
        if cursor == "id":  # only new rows are seen by it, so rows do not change
            setup.execute("create rule fixed as on update to late do instead nothing")
    parts = urlsplit(source)
    config = {
        "protocol": "postgres",
        "host": parts.hostname,
        "port": parts.port,
        "database": parts.path[1:],
        "username": parts.username,
        "password": parts.password or "",
        "pipelines": {"late": {"query": "late", "write": write, "key": ["id"], "cursor": cursor}},
    }
    (root / "sources").mkdir(parents=True)
    (root / "dw.yaml").write_text(f"name: shop\nwarehouse: {warehouse}\n", "utf-8")
    path = root / "sources" / "shop.yaml"
    path.touch(0o600)
    path.write_text(yaml.safe_dump(config), "utf-8")
    return Place(root, warehouse, source)


def late_commits(run: Forker, place: Place, writers: int, runs: int, longest: float, seed: int) -> list[str]:
    """Run so often while writers write, and twice when the last of them has ended: what is wrong then."""
    wrong, behind = [], 0
    stop = threading.Event()
    with threads(_write, [(stop, place.source, seed * 1000 + n, longest) for n in range(writers)], stop):
        for _ in range(runs):
            time.sleep(longest / runs)
            wrong += _run(run, place)
            behind += _open_transactions(place)
    if not behind:
        wrong.append("no transaction was open beside a run")
    wrong += _run(run, place) + _run(run, place)
    compared = "select id, value, at from late order by id"
    with psycopg.connect(place.source) as theirs, psycopg.connect(place.warehouse) as ours:
        expected = theirs.execute(compared).fetchall()
        found = ours.execute(compared).fetchall()
    if len(expected) < writers:
        wrong.append(f"{writers} writers wrote {len(expected)} rows")
    if found != expected:
        missing, ids = len(set(expected) - set(found)), [row[0] for row in found]
        wrong.append(
            f"of {len(expected)} rows {missing} are missing or old, {len(ids) - len(set(ids))} are twice"
        )
    return wrong


def _run(run: Forker, place: Place) -> list[str]:
    ended = forker.run(run, place.root, *RUN)
    return [] if ended.code == 0 else [f"exit {ended.code}: {ended.output[-1000:]}"]


def _open_transactions(place: Place) -> int:
    with psycopg.connect(place.source, autocommit=True) as session:
        row = session.execute(
            "select count(*) from pg_stat_activity where backend_xid is not null"
            " and datname = current_database()"
        ).fetchone()
    return int(row[0]) if row else 0


def _write(stop: threading.Event, url: str, seed: int, longest: float) -> None:
    """Insert and update in transactions, most of which are open for a short while; some are rolled back."""
    chance = random.Random(seed)
    with psycopg.connect(url) as session:
        while not stop.is_set():
            session.execute(
                "insert into late (value) select %s from generate_series(1, 3)", (chance.random(),)
            )
            session.execute(_UPDATE, (chance.random(), chance.randint(1, 500)))
            stop.wait(longest * chance.random() ** 3)
            session.rollback() if chance.random() < 0.2 else session.commit()


#: Of a row that no other writer has in hand: they are not to wait for one another.
_UPDATE = """
    update late set value = %s, at = now()
    where id = (select id from late where id >= %s order by id limit 1 for update skip locked)
"""

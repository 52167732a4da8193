"""Many writers commit out of order while a pipeline runs: in the end nothing is missing, nothing is twice."""

from __future__ import annotations

import random
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from dwcli.connectors import create_connector
from dwcli.pipeline.record import Job, RunOptions
from dwcli.pipeline.runner import attempt
from dwcli.warehouse import connect
from dwcli.warehouse.engine import make_engine
from tests.services import POSTGRES_URL, required

WRITERS, RUNS = 12, 8


@pytest.fixture
def source() -> Iterator[str]:
    """URL of an empty database on a PostgreSQL that is not the warehouse."""
    server, name = required("PostgreSQL", POSTGRES_URL), f"late_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"create database {name}")
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
        admin.execute(f"drop database {name} with (force)")


def write_until(stop: threading.Event, url: str, seed: int) -> None:
    """Insert and update in transactions that stay open for a while; some are rolled back."""
    chance = random.Random(seed)
    with psycopg.connect(url) as session:
        while not stop.is_set():
            session.execute("insert into t (value) select %s from generate_series(1, 3)", (chance.random(),))
            session.execute(
                "update t set value = %s, at = now() where id = %s", (chance.random(), chance.randint(1, 50))
            )
            stop.wait(chance.random() * 0.3)
            session.rollback() if chance.random() < 0.2 else session.commit()


@pytest.mark.parametrize("cursor", ["at", "id"])
def test_late_commits_are_not_lost(source: str, warehouse_url: str, tmp_path: Path, cursor: str) -> None:
    with psycopg.connect(source, autocommit=True) as setup:
        setup.execute(
            "create table t (id bigserial primary key, value float, at timestamptz not null default now())"
        )
        if cursor == "id":  # only new rows are seen by it, so rows do not change
            setup.execute("create rule fixed as on update to t do instead nothing")
    parts = urlsplit(source)
    connection: dict[str, Any] = {
        "protocol": "postgres",
        "host": parts.hostname,
        "port": parts.port,
        "database": parts.path[1:],
        "username": parts.username,
        "password": parts.password or "",
    }
    job = Job(
        pipeline="s.p",
        source="s",
        lake_name="s.p",
        connector=lambda: create_connector(connection),
        query="t",
        schema="public",
        table="t",
        lake=tmp_path / "lake",
        write="merge",
        key=("id",),
        cursor=cursor,
    )
    engine, stop = make_engine(warehouse_url), threading.Event()
    writers = [threading.Thread(target=write_until, args=(stop, source, n)) for n in range(WRITERS)]

    def run() -> None:
        result, error = attempt(job, engine, RunOptions(), lambda event: None)
        assert error is None, result

    for writer in writers:
        writer.start()
    try:
        for _ in range(RUNS):
            run()
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    for _ in range(2):
        run()
    engine.dispose()

    compared = "select id, value, at from t order by id"
    with psycopg.connect(source) as theirs, connect(warehouse_url) as ours:
        expected = theirs.execute(compared).fetchall()
        assert len(expected) > WRITERS
        assert ours.execute(compared).fetchall() == expected

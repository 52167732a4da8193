"""Many writers commit out of order while a pipeline runs: in the end nothing is missing, nothing is twice."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.faults import forker
from tests.faults.forker import Forker
from tests.faults.late import RUN, Place, late_commits, make_place
from tests.services import POSTGRES_URL, required


@pytest.fixture(scope="module")
def run() -> Iterator[Forker]:
    with forker.forker() as process:
        yield process


@pytest.fixture
def source() -> Iterator[str]:
    """URL of an empty database on a PostgreSQL that is not the warehouse."""
    server, name = required("PostgreSQL", POSTGRES_URL), f"late_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"create database {name}")
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
        admin.execute(f"drop database {name} with (force)")


@pytest.mark.parametrize("cursor", ["at", "id"])
def test_late_commits_are_not_lost(
    run: Forker, source: str, warehouse_url: str, tmp_path: Path, cursor: str
) -> None:
    """`make faults` has 200 writers, whose transactions are open for up to 30 s."""
    place = make_place(tmp_path / "shop", warehouse_url, source, cursor)
    assert late_commits(run, place, writers=12, runs=8, longest=1.0, seed=1) == []


def merged(run: Forker, place: Place) -> list[tuple[object, ...]]:
    assert forker.run(run, place.root, *RUN).code == 0
    with psycopg.connect(place.warehouse) as ours:
        return ours.execute("select id, value, at::date::text from late order by id").fetchall()


@pytest.mark.parametrize("write", ["merge", "scd2"])
def test_a_row_whose_cursor_was_set_back_is_as_the_source_has_it(
    run: Forker, source: str, warehouse_url: str, tmp_path: Path, write: str
) -> None:
    """A transaction that began before another and changes the same row after it has an earlier now()."""
    place = make_place(tmp_path / "shop", warehouse_url, source, "at", write)
    with psycopg.connect(source, autocommit=True) as writer, psycopg.connect(source) as slow:
        writer.execute("insert into late (value, at) values (1, '2026-01-01'), (2, '2026-01-03')")
        slow.execute("update late set value = 3, at = '2026-01-02' where id = 2")
        assert merged(run, place) == [(1, 1.0, "2026-01-01"), (2, 2.0, "2026-01-03")]
        slow.commit()
    assert (2, 3.0, "2026-01-02") in merged(run, place)


def test_of_several_rows_with_one_key_the_newest_stands_though_an_older_is_committed_late(
    run: Forker, source: str, warehouse_url: str, tmp_path: Path
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, source, "at")
    with psycopg.connect(source, autocommit=True) as writer, psycopg.connect(source) as slow:
        writer.execute("alter table late drop constraint late_pkey")  # several rows tell of one key
        slow.execute("insert into late (id, value, at) values (1, 2, '2026-01-02')")
        writer.execute("insert into late (id, value, at) values (1, 3, '2026-01-03')")
        assert merged(run, place) == [(1, 3.0, "2026-01-03")]
        slow.commit()
    assert merged(run, place) == [(1, 3.0, "2026-01-03")]

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
from tests.faults.late import late_commits, make_place
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

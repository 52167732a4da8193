"""Runs that are killed at every named place and at any moment: the next plain run makes everything whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import psycopg
import pytest

from dwcli.crashpoints import POINTS
from tests.faults import forker
from tests.faults.forker import Forker
from tests.faults.place import WRITES, make_place
from tests.faults.proxy import proxied
from tests.faults.scenarios import (
    RUN,
    cut_commit,
    flipped_when_loaded,
    flipped_while_waiting,
    named_kill,
    race,
    random_kills,
)


@pytest.fixture(scope="module")
def run() -> Iterator[Forker]:
    with forker.forker() as process:
        yield process


@pytest.mark.parametrize("when", ["first", "again"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_named_place(
    run: Forker, warehouse_url: str, tmp_path: Path, point: str, when: str
) -> None:
    """The write disposition changes from place to place; `make faults` takes all of them."""
    write = WRITES[(POINTS.index(point) + (when == "again")) % 3]
    place = make_place(tmp_path / "shop", warehouse_url, write, 1)
    reached, wrong = named_kill(run, place, point, 1, when)
    assert wrong == []
    assert reached or (point, when) == ("forget", "first")


@pytest.mark.parametrize("write", WRITES)
def test_killed_at_any_moment(run: Forker, warehouse_url: str, tmp_path: Path, write: str) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, write, 2)
    _, wrong = random_kills(run, place, 4, 0.4, real=False)
    assert wrong == []


def test_begun_several_times_at_once(run: Forker, warehouse_url: str, tmp_path: Path) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, "merge", 3)
    for _ in range(3):
        assert race(run, place, 3) == []


@pytest.mark.parametrize("write", WRITES)
def test_cut_at_a_commit(run: Forker, warehouse_url: str, tmp_path: Path, write: str) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(warehouse_url)
    with proxied("127.0.0.1", int(parts["port"] or 5432)) as proxy:
        through = f"postgresql://{parts['user']}:{parts['password']}@127.0.0.1:{proxy.port}/{parts['dbname']}"
        place = make_place(tmp_path / "shop", warehouse_url, write, 4, through)
        for which in range(1, 20):
            cut, wrong = cut_commit(run, place, proxy, which, forward=Random(which).random() < 0.7)
            assert wrong == []
            if not cut:
                return
        pytest.fail("a run has no end of COMMITs")


def test_a_flipped_bit_is_found_before_anything_is_loaded(
    run: Forker, warehouse_url: str, tmp_path: Path
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, "merge", 5)
    assert forker.run(run, place.root, *RUN).code == 0
    for _ in range(5):
        assert flipped_while_waiting(run, place) == []
        assert flipped_when_loaded(run, place) == []

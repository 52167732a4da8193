"""A warehouse that goes down in a run and comes back: the run fails and says so, and the next one heals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import project_folder
from tests.faults import forker
from tests.faults.forker import Forker
from tests.faults.place import WRITES, Place
from tests.faults.trouble import PHASES, Home, own_place, own_server, restarted, restarted_while_waiting

#: The second batch has been read and the first is in the server: between batches.
POINTS = ("connect", "fetch:2", "copied", "finished", "commit", "committed")


@pytest.fixture(scope="module")
def run() -> Iterator[Forker]:
    with forker.forker() as process:
        yield process


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with project_folder() as project:
        yield own_server(project)


@pytest.fixture
def place(home: Home, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    with own_place(home, tmp_path, request.param, 1) as place:
        yield place


@pytest.mark.parametrize(("place", "phase"), [(PHASES[p], p) for p in PHASES], indirect=["place"])
def test_restarted_while_the_server_is_at_a_statement(
    run: Forker, home: Home, place: Place, phase: str
) -> None:
    assert restarted_while_waiting(run, place, home, phase) == (True, [])


@pytest.mark.parametrize(
    ("place", "point"), [(WRITES[n % 3], point) for n, point in enumerate(POINTS)], indirect=["place"]
)
def test_restarted_at_a_named_place(run: Forker, home: Home, place: Place, point: str) -> None:
    assert restarted(run, place, home, point, again=True) == (True, [])

"""A signal ends a run in every phase: said, audited, and nothing of it half in the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import forker
from tests.faults.forker import Forker
from tests.faults.place import WRITES, make_place
from tests.faults.trouble import PHASES, SIGNAL_POINTS, STOPPED, signalled, signalled_while_waiting

NAMES = list(STOPPED)


@pytest.fixture(scope="module")
def run() -> Iterator[Forker]:
    with forker.forker() as process:
        yield process


@pytest.mark.parametrize("point", SIGNAL_POINTS)
def test_a_signal_at_a_named_place(run: Forker, warehouse_url: str, tmp_path: Path, point: str) -> None:
    """Signal and write disposition change from place to place; `make faults` takes all of them."""
    number = SIGNAL_POINTS.index(point)
    place = make_place(tmp_path / "shop", warehouse_url, WRITES[number % 3], 1)
    reached, wrong = signalled(run, place, NAMES[number // 2 % 3], point, again=number % 2 == 0)
    assert wrong == []
    assert reached


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_while_the_server_is_at_a_statement(
    run: Forker, warehouse_url: str, tmp_path: Path, phase: str
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, PHASES[phase], 2)
    name = NAMES[list(PHASES).index(phase)]
    assert signalled_while_waiting(run, place, name, phase) == (True, [])


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_at_a_commit_that_happens_all_the_same_is_no_failure(
    run: Forker, warehouse_url: str, tmp_path: Path, name: str
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, "merge", 3)
    assert signalled_while_waiting(run, place, name, "commit", goes_on=True) == (True, [])

"""Others hold the table while a run comes: readers hardly wait, and the run goes on or says why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import forker
from tests.faults.forker import Forker
from tests.faults.place import WRITES, make_place
from tests.faults.trouble import held_by_another, let_go_in_time, readable_while_loading


@pytest.fixture(scope="module")
def run() -> Iterator[Forker]:
    with forker.forker() as process:
        yield process


@pytest.mark.parametrize("write", WRITES)
def test_a_reader_who_stays_is_in_nobodys_way(
    run: Forker, warehouse_url: str, tmp_path: Path, write: str
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, write, 1)
    assert held_by_another(run, place, "access share", new_column=False, waits=False) == []


@pytest.mark.parametrize(
    ("write", "lock", "new_column"),
    [
        ("replace", "access share", True),
        ("merge", "share row exclusive", False),
        ("append", "access exclusive", False),
    ],
)
def test_a_table_that_is_not_let_go_fails_the_run_and_keeps_its_rows(
    run: Forker, warehouse_url: str, tmp_path: Path, write: str, lock: str, new_column: bool
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, write, 2)
    assert held_by_another(run, place, lock, new_column, waits=True) == []


@pytest.mark.parametrize("lock", ["access share", "access exclusive"])
def test_a_table_that_is_let_go_in_time_is_loaded(
    run: Forker, warehouse_url: str, tmp_path: Path, lock: str
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, "merge", 3)
    assert let_go_in_time(run, place, lock) == []


@pytest.mark.parametrize("write", WRITES)
def test_a_new_column_does_not_shut_readers_out_before_all_rows_are_there(
    run: Forker, warehouse_url: str, tmp_path: Path, write: str
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, write, 4)
    assert readable_while_loading(run, place, "copied") == []

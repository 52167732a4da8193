"""A disk that takes no more, wherever it is: the run says so, and with room again a plain run is whole."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from dwcli.warehouse import embedded
from tests.conftest import project_folder
from tests.faults import disks, forker
from tests.faults.disks import fill, fill_names, small_disk
from tests.faults.forker import Forker
from tests.faults.meanwhile import answering
from tests.faults.place import Place, make_place, source_rows
from tests.faults.trouble import (
    Home,
    lake_full,
    log_full,
    own_place,
    own_server,
    small_tablespace,
    temporary_full,
    warehouse_full,
)

KB = 1024


@pytest.fixture(scope="module")
def run() -> Iterator[Forker]:
    with forker.forker() as process:
        yield process


@pytest.fixture(autouse=True)
def mountable() -> None:
    """A test that needs a small disk is skipped where the machine lets us mount none, and only there."""
    if reason := disks.why_not():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with project_folder() as project:
        yield own_server(project)


@pytest.mark.parametrize(("write", "again"), [("append", False), ("replace", True), ("merge", True)])
def test_no_room_in_the_lake(
    run: Forker, warehouse_url: str, tmp_path: Path, write: str, again: bool
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, write, 1)
    lake = place.root / "lake"
    lake.mkdir()
    with small_disk(lake, "size=2m"):
        assert lake_full(run, place, lake, partial(fill, leave=8 * KB if again else 0), again) == (True, [])


@pytest.mark.parametrize("leave", [0, 1])
def test_no_name_left_in_the_lake(run: Forker, warehouse_url: str, tmp_path: Path, leave: int) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, "merge", 2)
    lake = place.root / "lake"
    lake.mkdir()
    with small_disk(lake, "size=2m,nr_inodes=200"):
        assert lake_full(run, place, lake, partial(fill_names, leave=leave), again=True) == (True, [])


def test_no_room_in_the_whole_project(run: Forker, warehouse_url: str, tmp_path: Path) -> None:
    """Nor is there any for the run's log and for the record of the last runs."""
    place = make_place(tmp_path / "shop", warehouse_url, "merge", 3)
    shutil.copytree(place.root, tmp_path / "copy")
    with small_disk(place.root, "size=3m"):
        shutil.copytree(tmp_path / "copy", place.root, dirs_exist_ok=True)
        assert lake_full(run, place, place.root, fill, again=True) == (True, [])


@pytest.mark.parametrize(("write", "leave"), [("append", 200 * KB), ("replace", 40 * KB), ("merge", 0)])
def test_no_room_in_the_warehouse(run: Forker, home: Home, tmp_path: Path, write: str, leave: int) -> None:
    """Before the first run of its database, in the midst of a COPY, and in the merge."""
    with small_tablespace(home, write) as (disk, name), own_place(home, tmp_path, write, 4, name) as place:
        assert warehouse_full(run, place, disk, leave, again=write != "append") == (True, [])


def test_no_room_for_the_first_of_dws_own_tables(run: Forker, home: Home, tmp_path: Path) -> None:
    with (
        small_tablespace(home, "first") as (disk, name),
        own_place(home, tmp_path, "merge", 5, name) as place,
    ):
        assert warehouse_full(run, place, disk, 0, again=False) == (True, [])


def test_no_room_for_what_the_server_writes_ahead(run: Forker, tmp_path: Path) -> None:
    """It goes down then, in the midst of a run, and can be started again only with room."""
    with project_folder() as project:
        disk = project / ".dw"
        with small_disk(disk, "size=200m,nr_inodes=20000"):
            home = own_server(project)
            with own_place(home, tmp_path, "merge", 6) as place:
                assert log_full(run, place, home, disk, "copied") == (True, [])
            embedded.remove(home)


# -- the folder for temporary files -----------------------------------------------------------------------


def packed(place: Place) -> str:
    """The source's rows as a packed file of a form that cannot be read from its beginning to its end."""
    frame = rows(place)
    frame.write_parquet(place.root / "orders.parquet")
    content = gzip.compress((place.root / "orders.parquet").read_bytes())
    (place.root / "orders.parquet.gz").write_bytes(content)
    return (
        f"protocol: files\npath: {place.root}\n"
        "pipelines:\n  orders: {query: orders.parquet.gz, write: replace}\n"
    )


def rows(place: Place) -> pl.DataFrame:
    return pl.DataFrame(source_rows(place), schema=place.columns, orient="row").with_columns(
        pl.col("at").str.to_datetime()
    )


def sorted_by_sqlite(place: Place) -> str:
    """More than SQLite sorts in memory."""
    with closing(sqlite3.connect(place.database)) as source, source:
        source.execute("update orders set note = hex(randomblob(4000))")
    return (
        f"protocol: sqlite\ndatabase_path: {place.database}\npipelines:\n"
        "  orders: {query: 'select * from orders order by note, at desc', write: replace}\n"
    )


@pytest.mark.parametrize("source", [packed, sorted_by_sqlite])
def test_no_room_for_temporary_files(
    warehouse_url: str, tmp_path: Path, source: Callable[[Place], str]
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, "replace", 7)
    config = source(place)
    with small_disk(tmp_path / "scratch", "size=32m"):
        assert temporary_full(place, config, tmp_path / "scratch", 16 * KB) == (True, [])


def test_no_room_for_a_large_answer(warehouse_url: str, tmp_path: Path) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, "replace", 8)
    body = json.dumps([dict(zip(place.columns, row, strict=True)) for row in source_rows(place)]).encode()
    with answering(body) as address, small_disk(tmp_path / "scratch", "size=32m"):
        config = (
            f"protocol: http\nbase_url: {address}\nbatch_bytes: 65536\n"
            "pipelines:\n  orders: {query: /orders, write: replace, columns: {at: timestamptz}}\n"
        )
        assert temporary_full(place, config, tmp_path / "scratch", 80 * KB) == (True, [])

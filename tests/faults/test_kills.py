"""Runs that are killed at every named place and at any moment: the next plain run makes everything whole."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

import psycopg
import pytest

from dwcli.crashpoints import POINTS
from dwcli.events import Event, StageStarted, ignore
from dwcli.pipeline import runner
from dwcli.pipeline.project import run_project
from dwcli.pipeline.record import RunOptions
from dwcli.project import load_project, select
from tests.faults import forker
from tests.faults.forker import Forker
from tests.faults.place import (
    WRITES,
    change,
    make_place,
    source_rows,
    table_rows,
    wrong_after_kill,
    wrong_when_whole,
)
from tests.faults.proxy import proxied
from tests.faults.scenarios import (
    RUN,
    cut_commit,
    flipped_when_loaded,
    flipped_while_waiting,
    named_kill,
    race,
    random_kills,
    whole,
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


def test_killed_while_it_brings_the_tables_of_an_older_dw_up_to_date(
    run: Forker, warehouse_url: str, tmp_path: Path
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, "merge", 7)
    assert forker.run(run, place.root, *RUN).code == 0
    with psycopg.connect(warehouse_url, autocommit=True) as session:
        session.execute("drop function etl_audit_log_append_only cascade")
        session.execute("alter table etl_audit_log drop column write, drop column snapshot")
        session.execute("drop table etl_columns, etl_schema_history")
        old, before = _own_tables(session), table_rows(place, session)
        change(place, new_column=False)
        assert forker.run(run, place.root, *RUN, crash="own_tables").code == -signal.SIGKILL
        assert _own_tables(session) == old
        assert table_rows(place, session) == before
        assert whole(run, place, session, "after") == []
        assert {"write", "snapshot"} <= {column for table, column in _own_tables(session)}


def _own_tables(session: psycopg.Connection) -> set[tuple[str, str]]:
    """Columns and triggers of dw's own tables."""
    found = session.execute(
        "select table_name, column_name from information_schema.columns where table_name like 'etl%'"
        " union select event_object_table, trigger_name from information_schema.triggers"
    )
    return {(str(table), str(name)) for table, name in found}


@pytest.mark.parametrize("write", WRITES)
def test_killed_at_any_moment(run: Forker, warehouse_url: str, tmp_path: Path, write: str) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, write, 2)
    _, wrong = random_kills(run, place, 4, real=False)
    assert wrong == []


def test_killed_when_it_had_finished_another_and_not_yet_itself(
    run: Forker, warehouse_url: str, tmp_path: Path
) -> None:
    """The table then holds what the first of the two has read: a whole run, and not the last one."""
    place = make_place(tmp_path / "shop", warehouse_url, "merge", 2)
    assert forker.run(run, place.root, *RUN).code == 0
    change(place, new_column=False)
    read = source_rows(place)
    assert forker.run(run, place.root, *RUN, crash="commit").code == -signal.SIGKILL
    change(place, new_column=False)
    with psycopg.connect(warehouse_url, autocommit=True) as session:
        before = table_rows(place, session)
        assert forker.run(run, place.root, *RUN, crash="fetch").code == -signal.SIGKILL
        assert wrong_after_kill(place, before, session, [read]) == []
        assert table_rows(place, session) == read
        assert whole(run, place, session, "after") == []


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


@pytest.mark.parametrize("forward", [False, True])
def test_a_commit_of_which_nobody_can_say_what_came_is_told_as_that(
    warehouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forward: bool
) -> None:
    """The warehouse is gone from the COMMIT on; the next run finds out whether it has happened."""
    monkeypatch.setattr(runner, "SETTLE_SECONDS", 0.5)
    parts = psycopg.conninfo.conninfo_to_dict(warehouse_url)
    place = make_place(tmp_path / "shop", warehouse_url, "append", 6)
    project = load_project(place.root)
    chosen = select(project, ["orders"])
    with proxied("127.0.0.1", int(parts["port"] or 5432)) as proxy:
        through = f"postgresql://{parts['user']}:{parts['password']}@127.0.0.1:{proxy.port}/{parts['dbname']}"

        def cut_next(event: Event) -> None:
            if isinstance(event, StageStarted) and event.stage == "load":
                proxy.cut_at, proxy.forward, proxy.stays_down = proxy.seen + 1, forward, True

        (first,) = run_project(project, chosen, through, RunOptions(), cut_next)
    assert (first["status"], first["error"]["code"]) == ("failure", "DW-COMMIT")
    assert "nothing twice" in first["error"]["hint"]
    with psycopg.connect(warehouse_url, autocommit=True) as session:
        assert wrong_after_kill(place, None, session) == []
        (second,) = run_project(project, chosen, warehouse_url, RunOptions(), ignore)
        assert second["healed_runs"] == ([] if forward else [first["run_id"]])
        assert wrong_when_whole(place, session) == []


def test_a_flipped_bit_is_found_before_anything_is_loaded(
    run: Forker, warehouse_url: str, tmp_path: Path
) -> None:
    place = make_place(tmp_path / "shop", warehouse_url, "merge", 5)
    assert forker.run(run, place.root, *RUN).code == 0
    for _ in range(5):
        assert flipped_while_waiting(run, place) == []
        assert flipped_when_loaded(run, place) == []

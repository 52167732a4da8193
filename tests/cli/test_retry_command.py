"""`dw retry`: what failed runs again, and nothing else."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from io import StringIO

import pytest

from dwcli.render.words import width
from tests.cli.test_look_commands import on_screen
from tests.waiting import until


def rows_of(text):
    return list(csv.DictReader(StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))


def mend(shop):
    """Make the table that the source `broken` lacks."""
    with closing(sqlite3.connect(shop / "shop.db")) as connection, connection:
        connection.executescript("CREATE TABLE nowhere (id INTEGER); INSERT INTO nowhere VALUES (7);")


def runs(warehouse):
    return warehouse.execute(
        "select pipeline_name, status from etl_audit_log order by started_at, id"
    ).fetchall()


def test_only_what_failed_runs_again(dw, shop, warehouse):
    assert dw("run", "--all", cwd=shop).returncode == 1
    listed = dw("retry", "--dry-run", cwd=shop)
    assert listed.returncode == 0, listed.stderr
    assert [(row["PIPELINE"], row["WHY"]) for row in rows_of(listed.stdout)] == [
        ("broken.missing", "the database has no table 'nowhere'.")
    ]
    assert len(runs(warehouse)) == 3

    mend(shop)
    done = dw("retry", cwd=shop)
    assert done.returncode == 0, done.stderr
    assert "broken.missing" in done.stderr.split("ok ")[0]  # the list comes first
    found = json.loads(done.stdout)
    assert (found["ok"], [run["pipeline_name"] for run in found["runs"]]) == (True, ["broken.missing"])
    assert runs(warehouse)[3:] == [("broken.missing", "success")]


def test_nothing_failed_is_no_failure(dw, shop):
    for words in ((), ("--dry-run",)):
        done = dw("retry", *words, cwd=shop)
        assert (done.returncode, done.stderr) == (0, "Nothing has failed.\n")
    assert json.loads(dw("retry", "--json", cwd=shop).stdout) == {"ok": True, "runs": []}
    assert json.loads(dw("retry", "--json", "--dry-run", cwd=shop).stdout) == []


def test_what_fails_again_exits_1(dw, shop):
    dw("run", "missing", cwd=shop)
    assert dw("retry", cwd=shop).returncode == 1


def test_names_narrow_it(dw, shop):
    dw("run", "missing", cwd=shop)
    assert dw("retry", "shop", cwd=shop).stderr == "Nothing has failed.\n"
    assert dw("retry", "nosuch", cwd=shop).returncode == 2


def test_a_run_that_was_killed_runs_again(dw, shop, warehouse):
    assert dw("run", "orders", cwd=shop, DW_TEST_CRASH_AT="copied").returncode != 0
    assert runs(warehouse) == [("shop.orders", "running")]
    done = dw("retry", cwd=shop)
    assert done.returncode == 0, done.stderr
    assert "killed, or the machine stopped" in done.stderr
    assert runs(warehouse) == [("shop.orders", "failure"), ("shop.orders", "success")]


def test_a_run_that_goes_on_is_left_alone(dw, shop, warehouse):
    from dwcli.errors import PipelineLocked
    from dwcli.pipeline.lock import take_lock

    def taken() -> bool:
        try:
            take_lock(warehouse, "shop.orders", "test")
        except PipelineLocked:  # the server still has the session of the run that was killed
            return False
        return True

    dw("run", "orders", cwd=shop, DW_TEST_CRASH_AT="copied")
    until(taken)
    assert dw("retry", cwd=shop).stderr == "Nothing has failed.\n"


def test_a_run_that_never_reached_the_warehouse_runs_again(dw, shop, warehouse):
    dw("run", "customers", cwd=shop)
    assert dw("run", "customers", cwd=shop, DW_URL="postgresql://u@127.0.0.1:1/x").returncode == 1
    done = dw("retry", cwd=shop)
    assert done.returncode == 0, done.stderr
    assert runs(warehouse) == [("shop.customers", "success")] * 2


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_the_list_fits_the_screen(dw, terminal, shop, columns):
    dw("run", "missing", cwd=shop)
    lines = on_screen(terminal("retry", "--dry-run", "--no-color", width=columns))
    assert any("broken.missing" in line for line in lines)
    assert max(width(line) for line in lines) <= columns

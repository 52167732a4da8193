"""`dw state` and `dw clean`, as a person and as a program meet them."""

from __future__ import annotations

import json
import os
import time


def shown(dw, shop):
    return {row["pipeline_name"]: row for row in json.loads(dw("state", "--json", cwd=shop).stdout)}


def test_the_cursor_is_shown_moved_and_moved_back(dw, shop, warehouse):
    assert shown(dw, shop)["shop.orders"]["cursor_value"] is None
    dw("run", "orders", cwd=shop)
    before = shown(dw, shop)["shop.orders"]
    assert (before["cursor_column"], before["cursor_type"]) == ("updated_at", "timestamptz")

    moved = dw("state", "set", "orders", "2026-01-01 10:01:00", cwd=shop)
    assert moved.returncode == 0, moved.stderr
    assert f"Undo: dw state set shop.orders '{before['cursor_value']}'" in moved.stderr
    assert shown(dw, shop)["shop.orders"]["cursor_value"] == "2026-01-01 10:01:00+00"
    again = json.loads(dw("run", "orders", "--json", cwd=shop).stdout)
    assert again["rows_read"] == 41
    assert warehouse.execute("select count(*) from orders").fetchone() == (100,)


def test_a_value_of_another_type_is_refused(dw, shop):
    dw("run", "orders", cwd=shop)
    before = shown(dw, shop)
    refused = dw("state", "set", "orders", "yesterday-ish", cwd=shop)
    assert refused.returncode == 2
    assert "'yesterday-ish' is no timestamptz" in refused.stderr
    assert shown(dw, shop) == before


def test_reset_asks_and_then_everything_is_read(dw, shop):
    dw("run", "orders", cwd=shop)
    unasked = dw("state", "reset", "orders", cwd=shop)
    assert unasked.returncode == 2
    assert "dw state reset shop.orders --yes" in unasked.stderr
    assert dw("state", "reset", "orders", "--yes", cwd=shop).returncode == 0
    assert json.loads(dw("run", "orders", "--json", cwd=shop).stdout)["rows_read"] == 100


def test_what_cannot_be_moved_is_refused(dw, shop):
    for words in (("set", "orders"), ("reset",), ("set", "customers", "1"), ("reset", "shop", "--yes")):
        refused = dw("state", *words, cwd=shop)
        assert refused.returncode == 2, words
        assert "Traceback" not in refused.stderr


def test_clean_removes_leavings_and_old_snapshots_alone(dw, shop):
    assert "Nothing to remove." in dw("clean", cwd=shop).stderr
    dw("run", "orders", cwd=shop)
    killed = dw("run", "orders", cwd=shop, DW_TEST_CRASH_AT="copied")
    assert killed.returncode != 0
    waiting = dw("run", "customers", cwd=shop, DW_TEST_CRASH_AT="commit")
    assert waiting.returncode != 0
    lake = shop / "lake"
    old = time.time() - 40 * 86400
    for path in lake.rglob("*.json"):
        os.utime(path, (old, old))
    before = {path for path in lake.rglob("*") if path.is_file()}

    told = dw("clean", "--older", "30d", "--dry-run", "--json", cwd=shop)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert [entry["what"] for entry in found["leftovers"]] == [
        "left by a run that was killed",
        "in the warehouse, and old",
        "left by a run that was killed",
    ]
    assert {path for path in lake.rglob("*") if path.is_file()} == before

    assert dw("clean", "--older", "30d", cwd=shop).returncode == 2
    assert dw("clean", "--older", "30d", "--yes", cwd=shop).returncode == 0
    left = [path for path in lake.rglob("*") if path.is_file()]
    assert left and all("customers" in path.name for path in left)
    healed = json.loads(dw("run", "customers", "--json", cwd=shop).stdout)
    assert len(healed["healed_runs"]) == 1

"""`dw replay`, as a person and as a program meets it."""

from __future__ import annotations

import json


def test_a_lost_table_comes_back_without_the_source(dw, shop, warehouse):
    assert dw("run", "orders", cwd=shop).returncode == 0
    warehouse.execute("drop table orders")
    (shop / "shop.db").unlink()

    done = dw("replay", "orders", cwd=shop)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows_loaded"] == 100
    assert "ok    shop.orders" in done.stderr
    assert warehouse.execute("select count(*), sum(total) from orders").fetchone() == (100, 1262.5)


def test_a_dry_run_lists_the_snapshots_and_changes_nothing(dw, shop, warehouse):
    run_id = json.loads(dw("run", "orders", cwd=shop).stdout)["run_id"]
    warehouse.execute("delete from orders")

    done = dw("replay", "orders", "--dry-run", "--json", cwd=shop)

    (snapshot,) = json.loads(done.stdout)
    assert (snapshot["run_id"], snapshot["rows"], snapshot["write"]) == (run_id, 100, "merge")
    assert warehouse.execute("select count(*) from orders").fetchone() == (0,)


def test_one_run_by_the_beginning_of_its_id(dw, shop, warehouse):
    run_id = json.loads(dw("run", "orders", cwd=shop).stdout)["run_id"]
    warehouse.execute("delete from orders where id > 50")
    assert dw("replay", run_id[:8], cwd=shop).returncode == 0
    assert warehouse.execute("select count(*) from orders").fetchone() == (100,)


def test_what_cannot_be_meant_is_told(dw, shop):
    never = dw("replay", "orders", cwd=shop)
    assert never.returncode == 2
    assert "nothing of shop.orders has been loaded yet" in never.stderr
    several = dw("replay", "shop", cwd=shop)
    assert several.returncode == 2
    assert "dw replay shop.orders or dw replay shop.customers" in several.stderr
    when = dw("replay", "orders", "--from", "yesterday", cwd=shop)
    assert when.returncode == 2
    assert "--from 'yesterday' is no time" in when.stderr
    assert dw("replay", "ordrs", cwd=shop).returncode == 2

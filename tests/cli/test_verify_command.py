"""`dw verify`, as a person and as a program meets it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing


def test_what_is_the_same_is_said_and_the_code_is_0(dw, shop):
    dw("run", "shop", cwd=shop)
    done = dw("verify", "shop", cwd=shop)
    assert done.returncode == 0, done.stderr
    assert "ok    source    100 rows, the same in the warehouse" in done.stderr
    found = json.loads(done.stdout)
    assert [entry["ok"] for entry in found["pipelines"]] == [True, True]


def test_a_difference_is_told_with_what_mends_it_and_that_mends_it(dw, shop, warehouse):
    dw("run", "orders", cwd=shop)
    warehouse.execute("delete from orders where id < 3")
    done = dw("verify", "orders", cwd=shop)
    assert done.returncode == 1
    assert "2 missing (key 1, 2)" in done.stderr
    assert "fix: dw run shop.orders --full-refresh" in done.stderr
    dw("run", "shop.orders", "--full-refresh", cwd=shop)
    assert dw("verify", "orders", cwd=shop).returncode == 0


def test_without_the_source_only_lake_and_warehouse_are_compared(dw, shop):
    dw("run", "orders", cwd=shop)
    with closing(sqlite3.connect(shop / "shop.db")) as source, source:
        source.execute("delete from orders")
    done = dw("verify", "orders", "--no-source", "--json", cwd=shop)
    assert done.returncode == 0
    assert [check["part"] for check in json.loads(done.stdout)["checks"]] == ["lake", "receipts"]


def test_before_the_first_run_it_says_what_to_do(dw, shop):
    done = dw("verify", "orders", cwd=shop)
    assert done.returncode == 1
    assert "there is no table public.orders yet" in done.stderr
    assert "dw run shop.orders" in done.stderr

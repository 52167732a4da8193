"""`dw remove`: what goes, what stays, and what is refused."""

from __future__ import annotations

import json

import pytest

from dwcli.project import load_project

COMMENTED = """\
# the shop
protocol: sqlite
database_path: {database}   # a copy
pipelines:
  # every order
  orders:
    query: orders
    write: merge
    key: [id]
    cursor: updated_at

  # people
  customers: {{query: customers, write: replace}}
# the end
"""


@pytest.fixture
def commented(shop):
    (shop / "sources" / "shop.yaml").write_text(COMMENTED.format(database=shop / "shop.db"))
    return shop


def kept_states(warehouse):
    return [row[0] for row in warehouse.execute("select pipeline_name from etl_state order by 1")]


def test_a_pipeline_goes_and_everything_around_it_stays(dw, commented, warehouse):
    assert dw("run", "shop", cwd=commented).returncode == 0
    before = (commented / "sources" / "shop.yaml").read_text()
    asked = dw("remove", "shop.orders", cwd=commented)
    assert asked.returncode == 2 and "dw remove shop.orders --yes" in asked.stderr
    assert (commented / "sources" / "shop.yaml").read_text() == before

    done = dw("remove", "orders", "--yes", cwd=commented)
    assert done.returncode == 0, done.stderr
    assert "goes   state: how far it has come (updated_at 2026-01-01 10:01:40+00)" in done.stderr
    assert "stays  table public.orders, 100 rows (--drop-table)" in done.stderr
    assert done.stdout == ""
    lines = before.splitlines(keepends=True)
    assert (commented / "sources" / "shop.yaml").read_text() == "".join(lines[:5] + lines[10:])
    assert "shop.orders" not in kept_states(warehouse)
    assert warehouse.execute("select count(*) from orders").fetchone() == (100,)
    assert list((commented / "lake" / "sqlite" / "shop.orders").rglob("*.parquet"))
    assert list(load_project(commented).sources["shop"].pipelines) == ["customers"]


def test_a_dry_run_tells_the_same_and_changes_nothing(dw, commented, warehouse):
    dw("run", "orders", cwd=commented)
    before = (commented / "sources" / "shop.yaml").read_text()
    told = dw("rm", "shop.orders", "--dry-run", "--drop-table", "--lake", "--json", cwd=commented)
    assert told.returncode == 0, told.stderr
    record = json.loads(told.stdout)
    entry = record["pipelines"][0]
    assert (record["dry_run"], record["removed"], record["file_goes"]) == (True, False, False)
    assert (entry["table"], entry["rows"], entry["table_goes"]) == ("public.orders", 100, True)
    assert entry["lake_goes"] and entry["lake_files"] > 0 and entry["state_goes"]
    assert (commented / "sources" / "shop.yaml").read_text() == before
    assert kept_states(warehouse) == ["shop.orders"]
    assert warehouse.execute("select count(*) from orders").fetchone() == (100,)


def test_table_and_lake_go_when_asked_for(dw, commented, warehouse):
    dw("run", "shop", cwd=commented)
    done = dw("remove", "shop", "--drop-table", "--lake", "--yes", "--json", cwd=commented)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["removed"] is True
    assert not (commented / "sources" / "shop.yaml").exists()
    assert warehouse.execute("select to_regclass('orders'), to_regclass('customers')").fetchone() == (
        None,
        None,
    )
    assert kept_states(warehouse) == []
    assert warehouse.execute("select count(*) from etl_columns").fetchone() == (0,)
    assert warehouse.execute("select count(*) from etl_audit_log").fetchone() == (2,)
    assert not list((commented / "lake").rglob("*.parquet"))
    assert list(load_project(commented).sources) == ["broken"]


def test_a_table_that_a_view_reads_is_not_dropped(dw, commented, warehouse):
    dw("run", "orders", cwd=commented)
    warehouse.execute("create view busy as select count(*) from orders")
    before = (commented / "sources" / "shop.yaml").read_text()
    told = dw("remove", "orders", "--drop-table", "--dry-run", cwd=commented)
    assert told.returncode == 0 and "read by public.busy" in told.stderr.replace("\n", " ")
    refused = dw("remove", "orders", "--drop-table", "--yes", cwd=commented)
    assert refused.returncode == 1
    assert "public.busy reads public.orders: nothing was removed" in refused.stderr
    assert (commented / "sources" / "shop.yaml").read_text() == before
    assert kept_states(warehouse) == ["shop.orders"]
    assert warehouse.execute("select * from busy").fetchone() == (100,)


def test_a_foreign_key_is_no_view_but_holds_the_table_as_well(dw, commented, warehouse):
    dw("run", "customers", cwd=commented)
    warehouse.execute("alter table customers add primary key (id)")
    warehouse.execute("create table fans (id bigint references customers)")
    refused = dw("remove", "customers", "--drop-table", "--yes", cwd=commented)
    assert refused.returncode == 1 and "fans" in refused.stderr
    assert "customers" in (commented / "sources" / "shop.yaml").read_text()
    assert kept_states(warehouse) == ["shop.customers"]


def test_without_a_warehouse_the_file_goes_and_the_state_is_said_to_stay(dw, commented):
    (commented / "dw.yaml").write_text("name: shop\nwarehouse: postgresql://nobody@127.0.0.1:1/none\n")
    refused = dw("remove", "orders", "--drop-table", "--yes", cwd=commented)
    assert refused.returncode == 1 and "no table can be dropped" in refused.stderr
    done = dw("remove", "orders", "--yes", cwd=commented)
    assert done.returncode == 0, done.stderr
    assert "everything in the warehouse, which cannot be reached" in done.stderr.replace("\n", " ")
    assert "orders:" not in (commented / "sources" / "shop.yaml").read_text()


def test_a_pipeline_that_runs_is_not_removed(dw, commented, warehouse):
    from dwcli.pipeline.lock import take_lock

    dw("run", "orders", cwd=commented)
    take_lock(warehouse, "shop.orders", "run")
    warehouse.commit()
    refused = dw("remove", "orders", "--yes", cwd=commented)
    assert refused.returncode == 1 and "already running" in refused.stderr
    assert "orders:" in (commented / "sources" / "shop.yaml").read_text()


def test_secrets_that_only_this_source_used_are_named_and_stay(dw, project):
    for name, variables in (("one", ("ONE_PASSWORD", "SHARED")), ("two", ("SHARED", "TWO"))):
        (project / "sources" / f"{name}.yaml").write_text(
            f"protocol: postgres\nhost: db\ndatabase: d\nusername: ${{env:{variables[1]}}}\n"
            f"password: ${{env:{variables[0]}}}\npipelines: {{{name}_rows: {{query: t}}}}\n"
        )
    (project / ".env").write_text("ONE_PASSWORD=geheim1\nSHARED=geheim2\nTWO=geheim3\n")
    done = dw("remove", "one", "--yes", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["secrets_kept"] == ["ONE_PASSWORD"]
    assert "ONE_PASSWORD in .env" in done.stderr and "geheim" not in done.stdout + done.stderr
    assert "ONE_PASSWORD=geheim1" in (project / ".env").read_text()
    assert not (project / ".dw" / "postgres").exists()  # no server is made to look for a state


def test_the_last_pipeline_leaves_a_source_without_any(dw, shop):
    done = dw("remove", "missing", "--yes", cwd=shop)
    assert done.returncode == 0 and "Next: dw remove broken" in done.stderr
    assert load_project(shop).sources["broken"].pipelines == {}


def test_a_name_that_is_not_there_is_told_with_the_nearest(dw, shop):
    refused = dw("remove", "shop.order", "--yes", cwd=shop)
    assert refused.returncode == 2 and "Did you mean 'shop.orders'?" in refused.stderr


def test_no_at_the_question_and_ctrl_c_change_nothing(terminal, shop):
    before = (shop / "sources" / "shop.yaml").read_text()
    for keys, code, said in (
        ("\r", 0, "Nothing was changed."),
        ("\x03", 130, "Stopped. Nothing was changed."),
    ):
        child = terminal("remove", "orders")
        child.expect_exact("Remove the pipeline shop.orders?")
        child.send(keys)
        child.expect_exact(said)
        child.expect_exact("\r\n")
        child.wait()
        assert child.exitstatus == code
        assert (shop / "sources" / "shop.yaml").read_text() == before

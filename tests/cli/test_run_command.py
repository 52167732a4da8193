"""`dw run`, as a person and as a program meets it."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pexpect
import psycopg
import pytest

SEED_KEYS = {"run_id", "status", "rows_loaded", "parquet_files", "duration_seconds"}
ONE_QUERY = ("run", "--source", "s", "--table", "t", "--lake", "lake", "--config")


def test_one_name_gives_one_object_and_people_read_stderr(dw, shop, warehouse):
    done = dw("run", "orders", cwd=shop)
    result = json.loads(done.stdout)
    assert done.returncode == 0
    assert result.keys() >= SEED_KEYS
    assert (result["status"], result["rows_loaded"], result["pipeline_name"]) == (
        "success",
        100,
        "shop.orders",
    )
    assert "ok    shop.orders  100 read  100 new" in done.stderr
    assert warehouse.execute("select count(*) from orders").fetchone() == (100,)


def test_several_runs_say_which_failed_and_exit_1(dw, shop):
    done = dw("run", "--all", cwd=shop)
    result = json.loads(done.stdout)
    assert done.returncode == 1
    assert result["ok"] is False
    assert {run["pipeline_name"]: run["status"] for run in result["runs"]} == {
        "broken.missing": "failure",
        "shop.orders": "success",
        "shop.customers": "success",
    }
    assert "2 of 3 loaded." in done.stderr
    failed = next(run for run in result["runs"] if run["status"] == "failure")
    assert failed["error"]["code"] == "DW-SOURCE-MISSING"
    assert done.stderr.splitlines()[-1] == f"Next: dw audit {failed['run_id'][:8]}"


def test_a_source_with_one_pipeline_is_one_run(dw, shop):
    done = dw("run", "broken", "--json", cwd=shop)
    assert done.returncode == 1
    assert json.loads(done.stdout)["pipeline_name"] == "broken.missing"


def test_quiet_says_nothing_but_the_result(dw, shop):
    done = dw("run", "customers", "-q", cwd=shop)
    assert done.stderr == ""
    assert json.loads(done.stdout)["rows_loaded"] == 2


def test_quiet_still_says_what_failed(dw, shop):
    done = dw("run", "customers", "missing", "-q", cwd=shop)
    assert done.stderr.startswith("FAIL  broken.missing")
    assert "customers" not in done.stderr.replace("'customers'", "")


def test_what_ran_is_known_without_the_warehouse_and_to_tab(dw, shop):
    dw("run", "orders", "missing", cwd=shop)
    last = json.loads((shop / ".dw" / "last.json").read_text("utf-8"))
    assert last["shop.orders"]["status"] == "success"
    assert last["shop.orders"]["rows_loaded"] == 100
    assert "nowhere" in last["broken.missing"]["error"]
    kept = json.loads((shop / ".dw" / "complete.json").read_text("utf-8"))
    assert len(kept["runs"]) == 2


def test_each_run_leaves_a_log_without_the_warehouses_password(dw, shop, warehouse_url):
    done = dw("run", "orders", "customers", cwd=shop)
    ids = {run["run_id"] for run in json.loads(done.stdout)["runs"]}
    logs = {path.stem: path.read_text("utf-8") for path in (shop / ".dw" / "logs").glob("*.log")}
    assert logs.keys() == ids
    password = urlsplit(warehouse_url).password
    for text in logs.values():
        assert json.loads(text.splitlines()[-1])["status"] == "success"
        assert not password or password not in text


def test_without_a_name_and_a_terminal_it_lists_the_names(dw, shop):
    done = dw("run", cwd=shop)
    assert (done.returncode, done.stdout) == (2, "")
    assert "shop.orders" in done.stderr
    assert "dw run --all" in done.stderr


def test_the_only_pipeline_needs_no_name(dw, shop):
    (shop / "sources" / "shop.yaml").unlink()
    assert json.loads(dw("run", cwd=shop).stdout)["pipeline_name"] == "broken.missing"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ordrs",), "Did you mean 'orders'?"),
        (("orders", "--all"), "either names or --all"),
        (("orders", "--limit", "0"), "--limit"),
        (("--config", "c.yaml"), "--query, --source, --table, --lake"),
        (("--config", "c.yaml", "--limit", "3"), "--limit: for pipelines of a project"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_done(dw, shop, words, said):
    done = dw("run", *words, cwd=shop)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not (shop / "lake").exists()


# -- one query, without a project ----------------------------------------------------------------------


def test_one_query_runs_without_a_project(dw, shop, tmp_path, warehouse_url, warehouse):
    config = shop / "sources" / "shop.yaml"
    words = (*ONE_QUERY, str(config), "--query", "select id, name from customers")
    done = dw(*words, "--warehouse", warehouse_url, cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["rows_loaded"]) == (0, 2), done.stderr
    assert dw(*words, cwd=tmp_path, DW_URL=warehouse_url).returncode == 0
    (tmp_path / ".env").write_text(f"DW_URL={warehouse_url}\n", "utf-8")
    assert dw(*words, cwd=tmp_path).returncode == 0
    assert warehouse.execute("select count(*) from t").fetchone() == (6,)


def test_one_query_that_fails_prints_its_result_and_exits_1(dw, shop, tmp_path, warehouse_url):
    config = shop / "sources" / "shop.yaml"
    done = dw(*ONE_QUERY, str(config), "--query", "nowhere", cwd=tmp_path, DW_URL=warehouse_url)
    result = json.loads(done.stdout)
    assert done.returncode == 1
    assert result.keys() >= SEED_KEYS
    assert (result["status"], result["error"]["code"]) == ("failure", "DW-SOURCE-MISSING")
    assert done.stderr.count("no table 'nowhere'") == 1


def test_one_query_without_any_warehouse_says_where_one_could_come_from(dw, shop, tmp_path):
    config = shop / "sources" / "shop.yaml"
    done = dw(*ONE_QUERY, str(config), "--query", "customers", cwd=tmp_path)
    assert done.returncode == 2
    assert "--warehouse postgresql://" in done.stderr


# -- in a terminal -------------------------------------------------------------------------------------


def test_bars_on_the_screen_leave_every_byte_of_json_to_the_file(terminal, shop: Path):
    child = terminal(
        shell=f"exec {sys.executable} -m dwcli run orders customers --progress bars --json > out.json"
    )
    child.expect(pexpect.EOF)
    child.wait()
    result = json.loads((shop / "out.json").read_text("utf-8"))
    assert [run["rows_loaded"] for run in result["runs"]] == [100, 2]
    assert "\x1b[?25l" in child.before
    assert child.before.rfind("\x1b[?25h") > child.before.rfind("\x1b[?25l")
    assert "shop.orders" in child.before


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_terminal_gets_summary_lines_and_no_json(terminal, width):
    child = terminal("run", "orders", "--no-color", width=width)
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    assert "ok    shop.orders  100 read" in child.before
    assert '"run_id"' not in child.before


def test_pipelines_can_be_picked(terminal, warehouse: psycopg.Connection):
    child = terminal("run")
    child.expect("What to run")
    child.send("\x1b[B \r")  # down, pick, go
    child.expect("shop.orders  100 read")
    child.expect(pexpect.EOF)
    assert warehouse.execute("select count(*) from orders").fetchone() == (100,)


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_killed_terminal_run_gives_the_cursor_back_and_its_result(
    terminal, shop: Path, warehouse, stop: signal.Signals, code: int
):
    warehouse.execute("create table customers (id bigint, name text)")
    with warehouse.transaction():
        warehouse.execute("lock table customers in access exclusive mode")
        child = terminal(
            shell=f"exec {sys.executable} -m dwcli run customers --progress bars --json > out.json"
        )
        child.expect("shop.customers")
        child.kill(stop)
        child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == code, child.before
    assert "was rolled back" in child.before
    assert child.before.rfind("\x1b[?25h") > child.before.rfind("\x1b[?25l")
    result = json.loads((shop / "out.json").read_text("utf-8"))
    assert (result["status"], result["error"]["code"]) == ("failure", "DW-STOPPED")


def test_a_run_whose_terminal_goes_away_is_rolled_back_and_audited(terminal, warehouse):
    warehouse.execute("create table customers (id bigint, name text)")
    with warehouse.transaction():
        warehouse.execute("lock table customers in access exclusive mode")
        child = terminal(shell=f"exec {sys.executable} -m dwcli run customers --progress bars")
        child.expect("shop.customers")
        with suppress(pexpect.ExceptionPexpect):  # it gives the run 0.3 s to roll back
            child.close(force=False)
        child.wait()
    row = warehouse.execute("select status, error_code from etl_audit_log").fetchone()
    assert row == ("failure", "DW-STOPPED")
    assert warehouse.execute("select count(*) from customers").fetchone() == (0,)

"""`dw status`, `dw audit` and `dw sources`: what is there, and how it stands."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pexpect
import pytest

from dwcli.render.words import width

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def insert_run(warehouse, pipeline, status, minutes, rows=10, **more):
    """A run of the past, as the engine writes it."""
    columns = {
        "run_id": f"{pipeline}-{minutes}-0123456789abcdef0123456789",
        "pipeline_name": pipeline,
        "source_name": pipeline.split(".")[0],
        "protocol": "sqlite",
        "target_table": "public.t",
        "status": status,
        "rows_loaded": rows,
        "rows_read": rows,
        **more,
    }
    names = ", ".join(columns)
    places = ", ".join(["%s"] * len(columns))
    warehouse.execute(
        f"insert into etl_audit_log ({names}, started_at, finished_at) values ({places},"
        f" now() - interval '{minutes} minutes 3 seconds', now() - interval '{minutes} minutes')",
        list(columns.values()),
    )


@pytest.fixture
def past(dw, shop, warehouse):
    """The project after a day of runs: orders is late, customers is fine, missing failed."""
    from dwcli.staging import ensure_audit_table
    from dwcli.warehouse import make_engine

    engine = make_engine((shop / "dw.yaml").read_text("utf-8").split("warehouse: ")[1].strip())
    ensure_audit_table(engine)
    engine.dispose()
    insert_run(warehouse, "shop.orders", "success", 200, 1204551)
    insert_run(warehouse, "shop.orders", "success", 140, 0)
    insert_run(warehouse, "shop.customers", "success", 4, 2)
    insert_run(
        warehouse,
        "broken.missing",
        "failure",
        3,
        0,
        error_message="[red]no\x1b[31m table",
        error_code="DW-CONN-LOGIN",
        error_hint="dw edit broken",
    )
    return shop


def rows_of(text):
    return list(csv.DictReader(StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))


def on_screen(child):
    child.expect(pexpect.EOF)
    child.wait()
    return [ESCAPES.sub("", line).rstrip() for line in child.before.replace("\r", "").splitlines()]


# -- status --------------------------------------------------------------------------------------------


def test_status_names_what_is_late_and_what_failed_with_the_fix(dw, past):
    done = dw("status", cwd=past)
    standing = {row["PIPELINE"]: (row["STATE"], row["LOADED"], row["FIX"]) for row in rows_of(done.stdout)}
    assert done.returncode == 0
    assert standing == {
        "shop.orders": ("STALE", "0", "dw run shop.orders"),
        "shop.customers": ("ok", "2", ""),
        "broken.missing": ("FAILED", "", "dw test-connection broken"),
    }
    assert done.stderr.splitlines()[0].startswith("shop  warehouse up ")
    assert done.stderr.splitlines()[-1] == "Next: dw test-connection broken"


def test_status_tells_the_rows_of_the_table_beside_those_of_the_last_run(dw, shop):
    dw("run", "shop", cwd=shop)
    assert dw("run", "orders", cwd=shop).returncode == 0  # nothing new
    (row,) = [row for row in rows_of(dw("status", cwd=shop).stdout) if row["PIPELINE"] == "shop.orders"]
    assert row["ROWS"] == "100"
    assert int(row["LOADED"]) < 100
    told = json.loads(dw("status", "--json", cwd=shop).stdout)["pipelines"]
    assert {one["pipeline"]: (one["table_rows"], one["table_rows_exact"]) for one in told} == {
        "shop.orders": (100, True),
        "shop.customers": (2, True),
        "broken.missing": (None, False),
    }
    down = json.loads(dw("status", "--json", cwd=shop, DW_URL="postgresql://u@127.0.0.1:1/x").stdout)
    orders = next(one for one in down["pipelines"] if one["pipeline"] == "shop.orders")
    assert (orders["state"], orders["table_rows"]) == ("ok", None)


def test_check_exits_1_while_something_needs_attention(dw, past, warehouse):
    assert dw("status", "--check", cwd=past).returncode == 1
    insert_run(warehouse, "shop.orders", "success", 1)
    insert_run(warehouse, "broken.missing", "success", 1)
    assert dw("status", "--check", cwd=past).returncode == 0


def test_status_as_json_is_one_document(dw, past):
    found = json.loads(dw("status", "--json", cwd=past).stdout)
    orders = next(entry for entry in found["pipelines"] if entry["pipeline"] == "shop.orders")
    assert (found["project"], found["ok"], found["warehouse"]["up"]) == ("shop", False, True)
    assert (orders["state"], orders["needs_attention"], orders["trend"]) == ("STALE", True, [1204551, 0])
    assert orders["last_ok"].endswith("Z")


def test_with_the_warehouse_down_status_shows_the_local_record(dw, shop, environment):
    dw("run", "orders", "missing", cwd=shop)
    (shop / "dw.yaml").write_text("name: shop\nwarehouse: postgresql://u:hunter22@127.0.0.1:1/x\n", "utf-8")
    done = dw("status", cwd=shop)
    standing = {row["PIPELINE"]: row["STATE"] for row in rows_of(done.stdout)}
    assert done.returncode == 0
    assert standing == {"shop.orders": "ok", "shop.customers": "never", "broken.missing": "FAILED"}
    assert "warehouse DOWN" in done.stderr
    assert "hunter22" not in done.stdout + done.stderr


def test_an_own_warehouse_that_is_down_is_not_started(dw, shop):
    (shop / "dw.yaml").write_text("name: shop\nwarehouse: embedded\n", "utf-8")
    done = dw("status", cwd=shop)
    assert "warehouse DOWN" in done.stderr
    assert done.stderr.splitlines()[-1] == "Next: dw up"
    assert not (shop / ".dw" / "postgres").exists()


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_status_fits_the_screen(terminal, past, columns):
    lines = on_screen(terminal("status", "--no-color", width=columns))
    assert any(line.startswith("shop.orders") and "STALE" in line for line in lines)
    assert max(width(line) for line in lines) <= columns


def test_watching_ends_with_q(terminal, past):
    child = terminal("status", "--watch")
    child.expect("q quits")
    child.send("q")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    assert child.before.rfind("\x1b[?1049l") >= 0  # the screen that was there before is back


def test_watching_needs_a_terminal(dw, past):
    assert dw("status", "--watch", cwd=past).returncode == 2


def test_looking_needs_none_of_the_libraries_that_load(environment, past):
    code = (
        "import sys; from dwcli.cli.app import main; main(['status']);"
        "heavy = {'polars', 'sqlalchemy', 'pyarrow', 'numpy', 'questionary'} & set(sys.modules);"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=past, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


# -- audit ---------------------------------------------------------------------------------------------


def test_audit_lists_the_newest_first(dw, past):
    done = dw("audit", "--last", "3", cwd=past)
    found = rows_of(done.stdout)
    assert [row["PIPELINE"] for row in found] == ["broken.missing", "shop.customers", "shop.orders"]
    assert found[0]["RUN"] == "broken.missing-3-0123456789abcdef0123456789"
    assert found[1]["WHEN"].endswith("Z")
    assert done.stderr.splitlines()[-1] == "Next: dw audit broken.m"


@pytest.mark.parametrize(
    ("words", "pipelines"),
    [
        (("--failed",), ["broken.missing"]),
        (("--pipeline", "shop"), ["shop.customers", "shop.orders", "shop.orders"]),
        (("--pipeline", "orders", "--since", "3h"), ["shop.orders"]),
        (("--since", "1m"), []),
    ],
)
def test_audit_can_be_narrowed(dw, past, words, pipelines):
    done = dw("audit", *words, "--json", cwd=past)
    assert [run["pipeline_name"] for run in json.loads(done.stdout)] == pipelines


def test_a_run_is_found_by_the_beginning_of_its_id(dw, past):
    found = json.loads(dw("audit", "broken", "--json", cwd=past).stdout)
    assert (found["error_code"], found["error_message"]) == ("DW-CONN-LOGIN", "[red]no\x1b[31m table")


def test_one_run_in_detail_is_safe_to_look_at(terminal, past):
    lines = on_screen(terminal("audit", "broken", "--no-color", width=60))
    assert "error     [red]no\\x1b[31m table" in lines
    assert "fix       dw edit broken" in lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nosuch",), "there is no run 'nosuch'"),
        (("shop.",), "begins more than one"),
        (("--since", "7x"), "--since"),
        (("--last", "0"), "--last"),
    ],
)
def test_audit_refuses_what_it_cannot_find(dw, past, words, said):
    done = dw("audit", *words, cwd=past)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_warehouse_without_a_log_has_no_runs_yet(dw, shop):
    done = dw("audit", cwd=shop)
    assert done.returncode == 0
    assert done.stderr == "No runs yet.\n"


# -- sources -------------------------------------------------------------------------------------------


def test_sources_shows_what_goes_where(dw, shop):
    dw("run", "customers", cwd=shop)
    found = rows_of(dw("sources", cwd=shop).stdout)
    assert [(row["SOURCE"], row["PIPELINE"], row["TARGET"], row["WRITE"]) for row in found] == [
        ("broken", "missing", "public.missing", "append"),
        ("shop", "orders", "public.orders", "merge"),
        ("shop", "customers", "public.customers", "replace"),
    ]
    assert [bool(row["LAST RUN"]) for row in found] == [False, False, True]


def test_sources_as_json_keeps_connection_values_out(dw, shop):
    text = dw("sources", "--json", cwd=shop).stdout
    assert json.loads(text)[1]["pipelines"][0]["key"] == ["id"]
    assert "shop.db" not in text


def test_protocols_say_whether_their_driver_is_there(dw, tmp_path):
    found = {row["PROTOCOL"]: row for row in rows_of(dw("sources", "--protocols", cwd=tmp_path).stdout)}
    assert found["sqlite"]["DRIVER"] == "ready"
    assert "postgresql" in found["postgres"]["ALIASES"]
    assert (found["mysql"]["TYPES"], found["mysql"]["NEW ROWS BY"]) == ("declared", "a cursor column")
    assert all(row["TRIED AGAINST"] for row in found.values())


def test_protocols_as_json_name_the_extra_of_each(dw, tmp_path):
    found = {
        row["protocol"]: row
        for row in json.loads(dw("sources", "--protocols", "--json", cwd=tmp_path).stdout)
    }
    assert found["mysql"] == {
        "protocol": "mysql",
        "title": "MySQL or MariaDB",
        "aliases": ["mariadb"],
        "extra": "mysql",
        "missing": [],
        "incremental": "a cursor column",
        "typing": "declared",
        "streaming": True,
        "tried": "MariaDB 10.11",
        "stand_in": None,
    }
    assert found["sqlite"]["extra"] is None


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_protocols_fit_the_screen(terminal, tmp_path, columns):
    lines = on_screen(terminal("sources", "--protocols", "--no-color", width=columns))
    assert any("sqlite" in line for line in lines)
    assert max(width(line) for line in lines) <= columns


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_sources_fit_the_screen(terminal, shop: Path, columns):
    lines = on_screen(terminal("sources", "--no-color", width=columns))
    assert any("customers" in line for line in lines)
    assert max(width(line) for line in lines) <= columns

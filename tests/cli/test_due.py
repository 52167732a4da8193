"""`dw run --due`, and who is told of it (`notify:`)."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from contextlib import closing
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg
import pytest

from tests.audit_log import rewrite
from tests.cli.loaded import make_project

URL = "${env:ALERT_URL}"


def due(dw, shop, *words, **more):
    done = dw("run", "--due", *words, "--json", cwd=shop, **more)
    result = json.loads(done.stdout)
    return done, {run["pipeline_name"]: run["status"] for run in result["runs"]}, result


def age(warehouse, pipeline, interval):
    """Make the past of a pipeline older."""
    assert rewrite(
        warehouse,
        "update etl_audit_log set started_at = started_at - %s::interval,"
        " finished_at = finished_at - %s::interval where pipeline_name = %s",
        (interval, interval, pipeline),
    )


@pytest.fixture
def good(dw, shop):
    """The project with its broken source gone, and one pipeline a week old by cron."""
    (shop / "sources" / "broken.yaml").unlink()
    path = shop / "sources" / "shop.yaml"
    path.write_text(
        path.read_text("utf-8").replace("write: replace}", 'write: replace, every: "0 6 * * *"}'), "utf-8"
    )
    return shop


def test_what_is_due_runs_once_and_then_nothing_is(dw, good, warehouse):
    done, ran, _ = due(dw, good)
    assert (done.returncode, ran) == (0, {"shop.orders": "success", "shop.customers": "success"})
    done, ran, result = due(dw, good)
    assert (done.returncode, ran, result["ok"]) == (0, {}, True)
    assert "Nothing is due. " in done.stderr

    age(warehouse, "shop.orders", "5 hours")
    done, ran, _ = due(dw, good)
    assert ran == {"shop.orders": "success"}
    age(warehouse, "shop.customers", "10 days")  # ten mornings missed are one run
    assert due(dw, good)[1] == {"shop.customers": "success"}
    assert due(dw, good)[1] == {}


def test_names_limit_it_and_what_has_no_time_is_never_due(dw, shop):
    assert due(dw, shop, "shop")[1] == {"shop.orders": "success"}
    done, ran, _ = due(dw, shop, "customers")
    assert (done.returncode, ran) == (0, {})
    assert "no pipeline has a time" in done.stderr


def test_what_fails_is_tried_again_after_waits_that_grow(dw, shop, warehouse):
    assert due(dw, shop, "broken")[1] == {"broken.missing": "failure"}
    for minutes in (15, 30):  # it is to run every day
        age(warehouse, "broken.missing", f"{minutes - 5} minutes")
        done, ran, _ = due(dw, shop, "broken")
        assert (done.returncode, ran) == (0, {})
        said = " ".join(done.stderr.split())
        assert "broken.missing is next: " in said and "at once: dw run broken.missing" in said
        age(warehouse, "broken.missing", "5 minutes")
        done, ran, _ = due(dw, shop, "broken")
        assert (done.returncode, ran) == (1, {"broken.missing": "failure"})
    assert dw("run", "missing", cwd=shop).returncode == 1  # asked for by name it never waits
    with closing(sqlite3.connect(shop / "shop.db")) as connection, connection:
        connection.execute("create table nowhere (id integer)")
    assert dw("run", "missing", cwd=shop).returncode == 0
    age(warehouse, "broken.missing", "1 day")
    assert due(dw, shop, "broken")[1] == {"broken.missing": "success"}


def test_schedule_says_when_what_failed_is_tried_again(dw, shop, terminal, warehouse):
    due(dw, shop, "broken")
    shown = json.loads(dw("schedule", "show", "--json", cwd=shop).stdout)["pipelines"]
    missing = next(p for p in shown if p["pipeline"] == "broken.missing")
    (ended,) = warehouse.execute("select finished_at from etl_audit_log").fetchone()
    assert datetime.fromisoformat(missing["due"]) == ended + timedelta(minutes=15)
    assert (missing["failures"], missing["is_due"]) == (1, False)
    age(warehouse, "broken.missing", "15 minutes")
    terminal("schedule", "show", width=120).expect("now, after 1 failure")


def test_a_failure_of_another_dw_meanwhile_is_asked_under_the_lock(shop, warehouse, warehouse_url):
    from dwcli.cli._due import due_of, pasts, still_due
    from dwcli.pipeline import RunOptions, run_project
    from dwcli.project import load_project, select

    project = load_project(shop)
    missing = select(project, ["missing"])
    assert due_of(missing, pasts(warehouse_url, missing)) == missing
    run_project(project, missing, warehouse_url, RunOptions(), lambda event: None)
    options = RunOptions(wanted=still_due(missing))
    (result,) = run_project(project, missing, warehouse_url, options, lambda event: None)
    assert result["error"]["code"] == "DW-LOCKED"
    assert warehouse.execute("select count(*) from etl_audit_log").fetchone() == (1,)


def test_what_runs_already_is_skipped_quietly(dw, good, warehouse_url):
    from dwcli.pipeline.lock import take_lock

    with psycopg.connect(warehouse_url, autocommit=True) as other:
        take_lock(other, "shop.orders", "abcdef12")
        done, ran, result = due(dw, good)
        assert (done.returncode, result["ok"]) == (0, True)
        assert ran == {"shop.orders": "skipped", "shop.customers": "success"}
        assert "FAIL" not in done.stderr
        skipped = next(run for run in result["runs"] if run["status"] == "skipped")
        assert skipped["why"].startswith("shop.orders is already running (run abcdef12")
        assert due(dw, good, "-q")[0].stderr == ""
    logs = list((good / ".dw" / "logs").glob("*.log"))
    assert len(logs) == 1  # only what ran has a log
    assert due(dw, good)[1] == {"shop.orders": "success"}


def test_two_calls_at_once_run_each_pipeline_once(dw, good, warehouse):
    due(dw, good)
    for pipeline in ("shop.orders", "shop.customers"):
        age(warehouse, pipeline, "3 days")
    threads = [threading.Thread(target=due, args=(dw, good)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = warehouse.execute(
        "select pipeline_name, count(*) from etl_audit_log group by 1 order by 1"
    ).fetchall()
    assert counts == [("shop.customers", 2), ("shop.orders", 2)]


@pytest.mark.parametrize("flags", [["--full-refresh"], ["--from", "1"], ["--limit", "5"]])
def test_due_goes_with_nothing_that_changes_what_is_read(dw, shop, flags):
    done = dw("run", "--due", *flags, cwd=shop)
    assert done.returncode == 2
    assert f"{flags[0]}: not with --due" in done.stderr


def test_nothing_due_needs_none_of_the_libraries_that_load(dw, shop, environment):
    import subprocess
    import sys

    due(dw, shop, "shop")
    code = (
        "import sys; from dwcli.cli.app import main\n"
        "try: main(['run', 'shop', '--due'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('polars', 'sqlalchemy', 'apprise', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=shop, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_status_and_due_agree_on_late(dw, good, warehouse):
    due(dw, good)
    age(warehouse, "shop.orders", "64 minutes")
    states = {
        p["pipeline"]: p["state"] for p in json.loads(dw("status", "--json", cwd=good).stdout)["pipelines"]
    }
    assert states["shop.orders"] == "ok"  # due, and not late yet
    age(warehouse, "shop.orders", "4 minutes")
    age(warehouse, "shop.customers", "3 days")
    states = {
        p["pipeline"]: p["state"] for p in json.loads(dw("status", "--json", cwd=good).stdout)["pipelines"]
    }
    assert states == {"shop.orders": "STALE", "shop.customers": "STALE"}


def test_status_knows_the_last_good_run_behind_many_failures(dw, shop, warehouse):
    due(dw, shop, "shop")
    (shop / "shop.db").rename(shop / "away.db")
    for number in range(9):
        warehouse.execute(
            "insert into etl_audit_log (run_id, pipeline_name, source_name, protocol, target_table, status,"
            " started_at, finished_at)"
            " values (%s, 'shop.orders', 'shop', 'sqlite', 'public.orders', 'failure', now(), now())",
            (f"run-{number}",),
        )
    orders = json.loads(dw("status", "--json", cwd=shop).stdout)["pipelines"]
    orders = next(p for p in orders if p["pipeline"] == "shop.orders")
    assert orders["last_ok"] and orders["rows"] == 100
    assert orders["trend"] == [None] * 7


# -- notify --------------------------------------------------------------------------------------------


@pytest.fixture
def inbox():
    """An endpoint that takes what is sent: (its apprise URL, the messages)."""
    messages = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.startswith("/hang"):
                time.sleep(20)
            if self.path.startswith("/no"):
                self.send_response(500)
            else:
                messages.append(json.loads(body))
                self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"json://me:s3cr3tword@127.0.0.1:{server.server_port}", messages
    server.shutdown()
    thread.join()
    server.server_close()


def told(messages):
    found = [(m["title"], m["type"]) for m in messages]
    messages.clear()
    return found


@pytest.fixture
def telling(shop, inbox):
    with (shop / "dw.yaml").open("a", encoding="utf-8") as file:
        file.write(f"notify:\n  to:\n    - {URL}\n")
    (shop / ".env").write_text(f"ALERT_URL={inbox[0]}\n", "utf-8")
    return shop


def test_the_first_failure_and_the_recovery_are_told(dw, telling, inbox):
    _, messages = inbox
    dw("run", "shop", cwd=telling)
    assert told(messages) == []
    done = dw("run", "missing", cwd=telling)
    assert "nowhere" in messages[0]["message"] and "DW-SOURCE-MISSING" in messages[0]["message"]
    assert f"dw audit {json.loads(done.stdout)['run_id'][:8]}" in messages[0]["message"]
    assert told(messages) == [("shop: broken.missing failed", "failure")]
    dw("run", "missing", cwd=telling)
    assert told(messages) == []
    with closing(sqlite3.connect(telling / "shop.db")) as connection, connection:
        connection.execute("create table nowhere (id integer)")
        connection.execute("insert into nowhere values (1)")
    dw("run", "--all", cwd=telling)
    assert messages[0]["message"] == "broken.missing works again: 1 row loaded"
    assert told(messages) == [("shop: broken.missing works again", "success")]
    dw("run", "--all", cwd=telling)
    assert told(messages) == []


def test_several_at_once_are_one_message_and_it_holds_no_secret(dw, telling, inbox):
    messages = inbox[1]
    (telling / "sources" / "other.yaml").write_text(
        "protocol: sqlite\ndatabase_path: ./none-s3cr3tvalue.db\npipelines: {a: {query: a}, b: {query: b}}\n",
        "utf-8",
    )
    with (telling / ".env").open("a", encoding="utf-8") as file:
        file.write("OTHER=s3cr3tvalue\n")
    dw("run", "other", cwd=telling)
    text = messages[0]["message"]
    assert "other.a FAILED" in text and "other.b FAILED" in text
    assert "s3cr3t" not in text
    assert told(messages) == [("shop: 2 failed", "failure")]


def test_what_is_late_is_told_once_by_due(dw, telling, inbox, warehouse, warehouse_url):
    from dwcli.pipeline.lock import take_lock

    _, messages = inbox
    due(dw, telling, "shop")
    age(warehouse, "shop.orders", "5 hours")
    with psycopg.connect(warehouse_url, autocommit=True) as other:
        take_lock(other, "shop.orders", "hanging")  # it runs and does not end
        assert (
            due(dw, telling, "shop", ALERT_URL=f"{inbox[0]}/no")[0].stderr.count("notification not sent") == 1
        )
        assert told(messages) == []
        due(dw, telling, "shop")  # so it is told now
        assert "shop.orders is late: its last good run began" in messages[0]["message"]
        assert told(messages) == [("shop: shop.orders is late", "warning")]
        due(dw, telling, "shop")
        assert told(messages) == []
    assert due(dw, telling, "shop")[1] == {"shop.orders": "success"}
    age(warehouse, "shop.orders", "3 hours")
    with psycopg.connect(warehouse_url, autocommit=True) as other:
        take_lock(other, "shop.orders", "hanging")
        due(dw, telling, "shop")
    assert told(messages) == [("shop: shop.orders is late", "warning")]  # another lateness


def test_on_says_what_is_told(dw, telling, inbox):
    with (telling / "dw.yaml").open("a", encoding="utf-8") as file:
        file.write("  on: [recovery]\n")
    dw("run", "missing", cwd=telling)
    assert told(inbox[1]) == []


@pytest.mark.parametrize("ending", ["/no", "/hang"])
def test_a_notification_that_fails_is_one_line_and_no_failure(dw, telling, inbox, ending):
    begun = time.monotonic()
    done = dw("run", "missing", "-q", cwd=telling, ALERT_URL=inbox[0] + ending)
    assert time.monotonic() - begun < 15
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("!")]
    assert len(lines) == 1 and "dw test-connection notify" in lines[0]
    assert "s3cr3tword" not in done.stderr + done.stdout


def test_a_missing_secret_and_a_dead_warehouse_do_not_change_the_result(dw, telling, inbox):
    (telling / ".env").write_text("", "utf-8")
    done = dw("run", "missing", cwd=telling)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "DW-SOURCE-MISSING"
    assert "${env:ALERT_URL} is not set" in done.stderr
    (telling / ".env").write_text(f"ALERT_URL={inbox[0]}\nDW_URL=postgresql://u@127.0.0.1:1/x\n", "utf-8")
    for _ in range(2):
        done = dw("run", "customers", cwd=telling)
        assert done.returncode == 1
    assert told(inbox[1]) == [("shop: shop.customers failed", "failure")]


def test_a_warehouse_that_is_down_is_told_once_and_again_when_it_is_back(dw, telling, inbox):
    nowhere = {"DW_URL": "postgresql://u:hunter22@127.0.0.1:1/x"}
    assert dw("run", "--due", "shop", cwd=telling, ALERT_URL=inbox[0] + "/no", **nowhere).returncode == 1
    for _ in range(2):
        assert dw("run", "--due", "shop", cwd=telling, **nowhere).returncode == 1
    assert "127.0.0.1" in inbox[1][0]["message"] and "hunter22" not in inbox[1][0]["message"]
    assert told(inbox[1]) == [("shop: the warehouse failed", "failure")]
    for _ in range(2):
        assert dw("run", "--due", "shop", cwd=telling).returncode == 0
    assert told(inbox[1]) == [("shop: the warehouse works again", "success")]


def test_the_test_message(dw, telling, inbox):
    done = dw("test-connection", "notify", cwd=telling)
    assert done.returncode == 0, done.stderr
    assert told(inbox[1]) == [("shop: a test", "info")]
    dw("test-connection", cwd=telling)
    assert told(inbox[1]) == []  # only when it is named
    refused = dw("test-connection", "notify", cwd=telling, ALERT_URL=f"{inbox[0]}/no")
    assert refused.returncode == 1
    assert "not delivered" in refused.stderr and "s3cr3tword" not in refused.stderr + refused.stdout
    unknown = dw("test-connection", "notify", cwd=telling, ALERT_URL="nonsense://x")
    assert "no URL that apprise knows" in unknown.stderr


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("notify: [json://host/token]", "keep it in .env"),
        ("notify: {on: [failure]}", "'to' is missing"),
        ("notify: {to: '${env:X}', on: [sometimes]}", "dw.yaml:"),
        ("notify: {to: '${env:X}', when: [failure]}", "unknown key 'when'"),
    ],
)
def test_a_wrong_notify_is_told_with_its_place(dw, tmp_path, warehouse_url, written, said):
    shop = make_project(tmp_path / "p", warehouse_url)
    with (shop / "dw.yaml").open("a", encoding="utf-8") as file:
        file.write(written + "\n")
    done = dw("status", cwd=shop)
    assert done.returncode == 2
    assert said in done.stderr and "dw.yaml:3:" in done.stderr

"""Runs on the screen: endings, the audit log, how every pipeline stands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from rich.text import Text

from dwcli.render.runs import (
    AUDIT_COLUMNS,
    MARK_WIDTH,
    STATUS_COLUMNS,
    after_runs,
    audit_detail,
    audit_row,
    needs_attention,
    next_step,
    plain_line,
    standing,
    status_row,
    summary,
)
from dwcli.render.tables import broken, marked, table
from dwcli.staging.counting import Rows

NOW = datetime(2026, 11, 22, 21, 52, tzinfo=UTC)
GOOD = {
    "run_id": "7f3a0a1c-9d7e-4b11-8a55-0123456789ab",
    "pipeline_name": "shop.orders",
    "status": "success",
    "rows_read": 1204551,
    "rows_inserted": 1180,
    "rows_updated": 3402,
    "rows_loaded": 4582,
    "duration_seconds": 12.8,
    "seconds": {"load": 4.8, "extract": 6.1, "stage": 1.9},
    "schema_changes": ["new column discount (numeric)"],
    "values_changed": {"note: NUL removed": 3},
}
BAD = {
    "run_id": "7f3b0a1c-9d7e-4b11-8a55-0123456789ab",
    "pipeline_name": "shop.[red]größe_日本語",
    "status": "failure",
    "rows_read": 1700000,
    "error": {
        "code": "DW-CONN-LOST",
        "message": "connection lost \x1b[31m(db.internal:5432)",
        "why": "",
        "hint": "run the same command again",
    },
}


def lines_of(result, screen, width):
    return [line for mark, body in summary(result) for line in screen(marked(mark, body, MARK_WIDTH), width)]


def test_a_good_run_says_what_it_did_and_what_changed(screen):
    assert lines_of(GOOD, screen, 120) == [
        "ok    shop.orders  1,204,551 read  1,180 new  3,402 changed   12.8 s   "
        "extract 6.1 | stage 1.9 | load 4.8",
        "!     shop.orders: new column discount (numeric)",
        "!     shop.orders: note: NUL removed (3)",
    ]


def test_a_failed_run_says_what_happened_to_the_warehouse(screen):
    assert lines_of(BAD, screen, 80) == [
        "FAIL  shop.[red]größe_日本語  stopped after 1,700,000 rows; warehouse table",
        "      unchanged",
        "      connection lost \\x1b[31m(db.internal:5432)",
        "      fix: run the same command again",
        "      details: dw audit 7f3b0a1c",
    ]


def test_a_log_gets_a_failure_unfolded():
    (mark, body), *_ = summary(BAD)
    assert plain_line(mark, body).splitlines()[0] == (
        "FAIL  shop.[red]größe_日本語  stopped after 1,700,000 rows; warehouse table unchanged"
    )


def test_nothing_new_is_not_silence(screen):
    reached = {"status": "success", "pipeline_name": "a.b", "rows_read": 0, "cursor_to": "2026-11-22 21:40"}
    assert lines_of(reached, screen, 80)[0].startswith("ok    a.b  up to date (newest 2026-11-22 21:40)")
    again = {"status": "success", "pipeline_name": "a.b", "rows_read": 50, "rows_loaded": 50}
    assert "50 read  nothing new" in lines_of(again, screen, 80)[0]


def test_the_next_step_after_runs_is_about_the_first_failure():
    assert after_runs([GOOD]) == ""
    assert after_runs([GOOD, BAD]) == "dw test-connection shop"
    other = {**BAD, "error": {"code": "DW-SOURCE-DATA", "hint": "mend the file"}}
    assert after_runs([other]) == "dw audit 7f3b0a1c"


def audit(**more):
    return {
        "run_id": "7f3a0a1c-9d7e-4b11-8a55-0123456789ab",
        "pipeline_name": "shop.orders",
        "source_name": "shop",
        "protocol": "postgres",
        "target_table": "public.orders",
        "status": "success",
        "rows_loaded": 4582,
        "rows_read": 1204551,
        "rows_inserted": 1180,
        "rows_updated": 3402,
        "started_at": NOW - timedelta(minutes=4),
        "finished_at": NOW - timedelta(minutes=4) + timedelta(seconds=12.84),
        "os_user": "marie",
        **more,
    }


RUNS = [
    audit(
        run_id="7f3b" + "0" * 32,
        status="failure",
        pipeline_name="shop.größe_日本語",
        rows_inserted=None,
        rows_updated=None,
        rows_loaded=0,
        error_message="connection lost\nafter \x1b[31m1.7 M rows",
        error_code="DW-CONN-LOST",
    ),
    audit(),
]


def test_the_audit_table_fits_every_width(screen):
    def view(width):
        return screen(table(AUDIT_COLUMNS, map(audit_row, RUNS), width), width)

    when = (NOW - timedelta(minutes=4)).astimezone().strftime("%Y-%m-%d %H:%M")
    assert view(160)[1:] == [
        f"7f3b0000  {when}  shop.größe_日本語  FAILED  1,204,551      -        -       0     12.8  marie",
        f"7f3a0a1c  {when}  shop.orders        ok      1,204,551  1,180    3,402   4,582     12.8  marie",
    ]
    assert view(80) == [
        "RUN       WHEN              PIPELINE           STATE        READ  SECONDS",
        f"7f3b0000  {when}  shop.größe_日本語  FAILED  1,204,551     12.8",
        f"7f3a0a1c  {when}  shop.orders        ok      1,204,551     12.8",
    ]
    assert view(40) == [
        "RUN       PIPELINE           STATE",
        "7f3b0000  shop.größe_日本語  FAILED",
        "7f3a0a1c  shop.orders        ok",
    ]


def test_the_detail_of_a_run_keeps_its_whole_error(screen):
    lines = screen(audit_detail(RUNS[0], 60), 60)
    assert lines[0] == "run       7f3b" + "0" * 32
    assert lines[-3:] == [
        "error     connection lost",
        "          after \\x1b[31m1.7 M rows",
        "code      DW-CONN-LOST",
    ]


def run(status, minutes, rows=10, **more):
    moment = NOW - timedelta(minutes=minutes)
    return {
        "run_id": "abcdef0123",
        "status": status,
        "rows_loaded": rows,
        "started_at": moment,
        "finished_at": None if status == "running" else moment,
        **more,
    }


def test_a_pipeline_stands_as_its_last_run_and_its_clock_say():
    hourly = ("a.b", "1h")
    assert standing(*hourly, [run("success", 4)], NOW).state == "ok"
    assert standing(*hourly, [run("success", 67)], NOW).state == "STALE"
    assert standing(*hourly, [run("failure", 1), run("success", 4)], NOW).state == "FAILED"
    assert standing(*hourly, [run("running", 1), run("failure", 4)], NOW).state == "running"
    assert standing(*hourly, [], NOW).state == "never"
    assert standing("a.b", None, [run("success", 9999)], NOW).state == "ok"


def test_a_pipeline_without_a_clock_that_never_ran_is_no_alarm():
    assert needs_attention(standing("a.b", "1h", [], NOW))
    assert not needs_attention(standing("a.b", None, [], NOW))


def test_status_shows_freshness_trend_and_the_fix(screen):
    orders = [run("success", 4, 0), run("success", 64, 1204551)]
    standings = [
        standing("shop.orders", "1h", orders, NOW, Rows(1204551, False)),
        standing("shop.customers", "1h", [run("success", 540, 88120)], NOW, Rows(88120, True)),
        standing("erp.invoices", "1d", [run("failure", 1, 0, error_code="DW-CONN-LOGIN")], NOW),
        standing("erp.größe_日本語", None, [], NOW),
    ]
    rows = [status_row(one, NOW) for one in standings]
    assert screen(table(STATUS_COLUMNS, rows, 160), 160) == [
        "PIPELINE          STATE   LAST OK    EVERY        ROWS  LOADED  LAST RUNS  FIX",
        "shop.orders       ok      4 min ago  1h     ~1,204,551       0  █▁",
        "shop.customers    STALE   9 h ago    1h         88,120  88,120  █          dw run shop.customers",
        "erp.invoices      FAILED  -          1d              -       -  x          dw test-connection erp",
        "erp.größe_日本語  never   -          -               -       -",
    ]
    assert screen(table(STATUS_COLUMNS, rows, 40), 40) == [
        "PIPELINE          STATE   LAST OK",
        "shop.orders       ok      4 min ago",
        "shop.customers    STALE   9 h ago",
        "erp.invoices      FAILED  -",
        "erp.größe_日本語  never   -",
    ]
    assert next_step(standings) == "dw test-connection erp"
    assert next_step(standings[:2]) == "dw run shop.customers"
    assert next_step(standings[:1]) == ""


def test_a_line_that_is_too_wide_is_broken_between_its_parts():
    line = Text("shop.orders  1,204,551 read  1,180 new  3,402 changed   12.8 s   extract 6.1 | load 4.8")
    assert broken(line, 100) is line
    assert broken(line, 60).plain.split("\n") == [
        "shop.orders  1,204,551 read  1,180 new  3,402 changed",
        "12.8 s   extract 6.1 | load 4.8",
    ]
    assert broken(line, 25).plain.split("\n") == [
        "shop.orders",
        "1,204,551 read  1,180 new",
        "3,402 changed   12.8 s",
        "extract 6.1 | load 4.8",
    ]
    assert broken(Text("one two three"), 5).plain == "one two three"

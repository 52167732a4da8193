"""Every view at three widths, from fixed records. `python -m tests.render.test_screens` writes them anew.

Look at a page before it is committed: whole words, nothing cut, numbers in their column.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, Group
from rich.text import Text

from dwcli import connectors
from dwcli.cli._codes import CODES
from dwcli.errors import ConfigError, ConnectionFailed
from dwcli.pipeline.planning import Cost, Meeting, Plan, PlannedColumn, Reading, Schema, Waiting, Warn
from dwcli.render.charts import CHART_COLUMNS, chart, series, small_charts
from dwcli.render.doctor import Finding, finding_view
from dwcli.render.errors import error_view
from dwcli.render.help import explanation_view
from dwcli.render.logs import log_line
from dwcli.render.plans import plan_view
from dwcli.render.preview import preview_table
from dwcli.render.results import ResultColumn, result_table
from dwcli.render.runs import (
    AUDIT_COLUMNS,
    FAILURE_COLUMNS,
    MARK_WIDTH,
    SCHEDULE_COLUMNS,
    STATUS_COLUMNS,
    audit_detail,
    audit_row,
    failure_row,
    schedule_row,
    standing,
    status_row,
    summary,
)
from dwcli.render.sources import (
    PROTOCOL_COLUMNS,
    SOURCE_COLUMNS,
    checks_view,
    protocol_row,
    source_row,
)
from dwcli.render.tables import broken, marked, table
from dwcli.render.trace import trace_view
from dwcli.render.words import width as cells
from dwcli.staging.counting import Rows

GOLDEN = Path(__file__).parent / "golden"
WIDTHS = (40, 80, 160)
NOW = datetime(2026, 11, 22, 21, 52, 3, tzinfo=UTC)
TABLES = {
    "shop.orders": Rows(1_204_551, False),
    "shop.customers": Rows(88_120, True),
    "shop.returns": Rows(41, True),
}
LAKE = "postgres/shop.orders/2026-11-22/"
FILE = "shop.orders_20261122T214801123456Z_00000.parquet"
REFUSED = "erp.internal:3306 does not let 'reader' in"
DENIED = "Access denied [/] \x1b[31m (using password: YES)"
HINT = "set SHOP_PASSWORD in .env, or: dw edit shop --password-env NAME"


def a_run(number: int, pipeline: str, minutes: float, took: float, **more: Any) -> dict[str, Any]:
    began = NOW - timedelta(minutes=minutes)
    return {
        "run_id": f"{number:08x}-9d7e-4b11-8a55-0123456789ab",
        "pipeline_name": pipeline,
        "source_name": pipeline.partition(".")[0],
        "protocol": "postgres",
        "target_table": f"public.{pipeline.partition('.')[2]}",
        "status": "success",
        "started_at": began,
        "finished_at": began + timedelta(seconds=took),
        "os_user": "marie",
        **more,
    }


def loaded(read: int, new: int = 0, changed: int = 0, **more: Any) -> dict[str, Any]:
    counts = {"rows_read": read, "rows_inserted": new, "rows_updated": changed, "rows_loaded": new + changed}
    return counts | {"rows_deleted": 0, "rows_rejected": 0} | more


ORDERS = a_run(
    0x7F3A91C2,
    "shop.orders",
    4,
    12.84,
    **loaded(1204551, 1180, 3402, rows_rejected=2),
    write="merge",
    seconds={"extract": 6.1, "stage": 1.9, "load": 4.8},
    duration_seconds=12.84,
    parquet_files=3,
    bytes_staged=43_412_310,
    files=[
        {"name": FILE, "rows": 1_204_549, "bytes": 43_400_022, "there": True},
        {
            "name": "shop.orders.lines_20261122T214801123456Z_00000.parquet",
            "rows": 2,
            "bytes": 12_288,
            "there": False,
        },
    ],
    cursor_from="2026-11-22 20:40:03+00",
    cursor_to="2026-11-22 21:40:03.123456+00",
    schema_changes=["new column discount (numeric)"],
    ddl=[{"ddl": 'ALTER TABLE "public"."orders" ADD COLUMN "discount" numeric'}],
    rejects={
        "rows": 2,
        "reasons": [{"rows": 2, "reason": "total: 19.999 has more decimals than numeric(12,2)"}],
        "first": [{"row_number": 1042, "source_file": FILE}],
    },
    values_changed={"note: NUL removed": 3},
    snapshot=LAKE + "shop.orders_20261122T214801123456Z.manifest.json",
    host="etl",
    command="dw run orders",
    dw_version="0.1.0",
    config_hash="ce162c5cf9cebc87",
    config_before={"config_hash": "0017de5efbc07bd3", "run_id": "7e91aa00-9d7e"},
    log="/srv/shop/.dw/logs/7f3a91c2-9d7e-4b11-8a55-0123456789ab.log",
)
FAILED = a_run(
    0x7D10BB11,
    "erp.invoices_größe_日本語",
    125,
    0.4,
    protocol="mysql",
    **loaded(170_000),
    status="failure",
    error_message=f"{REFUSED}\n{DENIED}",
    error_code="DW-CONN-LOGIN",
    error_hint=HINT,
    command="dw run --due",
) | {
    "error": {
        "code": "DW-CONN-LOGIN",
        "message": REFUSED,
        "why": DENIED,
        "hint": HINT,
    }
}
CUSTOMERS = a_run(0x7E91AA00, "shop.customers", 540, 0.9, **loaded(88120, 88120), duration_seconds=0.9)
NOTHING = a_run(
    0x7E91AA01, "shop.returns", 4, 0.2, **loaded(0), duration_seconds=0.2, cursor_to="2026-11-22 21:40:03+00"
)
GOING = a_run(0x7F3B0000, "shop.stock", 1, 0, status="running") | {"finished_at": None}
OLDER = [
    a_run(0x6A000000 + n, "shop.orders", 64 + 60 * n, 3.5 + n % 5, **loaded(n % 4 * 500_000, n % 4 * 400_000))
    if n % 6 != 3
    else a_run(0x6A000000 + n, "shop.orders", 64 + 60 * n, 1, status="failure", rows_loaded=0)
    for n in range(20)
]
RUNS = [GOING, ORDERS, NOTHING, FAILED, CUSTOMERS]
EVERY = {
    "shop.orders": "1h",
    "shop.customers": "1h",
    "erp.invoices_größe_日本語": "0 6 * * 1-5",
    "shop.stock": "15m",
    "shop.returns": None,
    "shop.never": "1d",
}


def standings() -> list[Any]:
    every_run = [*RUNS, *OLDER]
    return [
        standing(
            name, every, [run for run in every_run if run["pipeline_name"] == name], NOW, TABLES.get(name)
        )
        for name, every in EVERY.items()
    ]


def status(width: int, plain: bool) -> Any:
    head = Text("shop  warehouse up 127.0.0.1:5433  2.1 GB used, 38 GB free")
    rows = [status_row(one, NOW, plain) for one in standings()]
    return Group(broken(head, width), table(STATUS_COLUMNS, rows, width))


def ends(width: int, plain: bool) -> Any:
    lines = [line for run in (ORDERS, NOTHING, CUSTOMERS, FAILED) for line in summary(run)]
    return Group(*(marked(mark, broken(body, width - MARK_WIDTH), MARK_WIDTH) for mark, body in lines))


PLAN = Plan(
    "shop.orders",
    "shop",
    "public.orders",
    Reading(
        "public.orders",
        False,
        "the last run came as far as 2026-11-22 21:40:03+00",
        "updated_at",
        "2026-11-22 21:25:03+00",
        None,
        1_204_551,
        43_412_310,
        "catalogue",
    ),
    Schema(
        True,
        "declared",
        False,
        (
            PlannedColumn("total", "numeric(12,2)", "bigint"),
            PlannedColumn("größe_日本語", "text"),
            PlannedColumn("delivered_at", "timestamptz", "date"),
        ),
    ),
    Meeting(
        "merge",
        ("id",),
        "rows are inserted or updated by key (id)",
        "rows deleted in the source stay in the table",
        1_204_551,
    ),
    [Waiting("7f3a", "x.manifest.json", 40_000, None)],
    Cost(12.8, 43_412_310, 38_000_000_000, 5),
    [
        Warn(
            "it is already running since 2026-11-22 21:51 (pid 4121 on etl)",
            "wait until it is done: dw status",
            stops=True,
        ),
        Warn("the contract is evolve: the table will be changed"),
    ],
)
SOURCES = [
    (
        {"name": "shop", "protocol": "postgres"},
        {
            "name": "orders",
            "query": "SELECT o.*, c.city FROM orders AS o JOIN public.customers AS c USING (customer_id)",
            "target": "public.orders",
            "write": "merge",
            "key": ["id", "line"],
            "cursor": "updated_at",
            "every": "1h",
        },
        {"status": "success", "finished_at": "2026-11-22T21:48:03+00:00"},
    ),
    (
        {"name": "erp", "protocol": "mysql"},
        {
            "name": "invoices_größe_日本語",
            "query": "invoices",
            "target": "public.invoices",
            "write": "append",
        },
        {"status": "failure", "finished_at": "2026-11-22T19:48:03+00:00"},
    ),
    ({"name": "new", "protocol": "files"}, {}, None),
]


def protocols(width: int, plain: bool) -> Any:
    said = {name: connectors.literals(name) for name in connectors.names()}
    records = [
        {
            "protocol": name,
            "title": connectors.title(name),
            "aliases": list(said[name].get("ALIASES", ())),
            "extra": connectors.extra(name),
            "missing": name in ("kafka", "oracle"),
            "incremental": said[name].get("INCREMENTAL"),
            "typing": said[name].get("TYPING"),
            "tried": said[name].get("TRIED"),
            "stand_in": said[name].get("STAND_IN"),
        }
        for name in ("files", "postgres", "kafka", "oracle", "s3", "http")
    ]
    return table(PROTOCOL_COLUMNS, map(protocol_row, records), width)


TYPES = {
    "id": "bigint",
    "customer": "text",
    "total": "numeric(12,2)",
    "note": "text",
    "updated_at": "timestamptz",
}
VALUES = [
    [
        "1204551",
        "größe 日本語",
        "42.10",
        "gift wrap, please; leave it with the neighbour if nobody is at home",
        "2026-11-22 21:40:03+00",
    ],
    ["7", "[red]x[/]", "-1000000.00", None, "2026-11-22 21:39:00.123456+00"],
    ["42", "tab\there\nnew \x1b[31mline", "0.05", "", "2026-11-22 21:38:00+00"],
]
RESULT = (
    ResultColumn("airline", 25),
    ResultColumn("flights", 20),
    ResultColumn("minutes_late", 1700),
    ResultColumn("_run_id", 25),
)
ANSWER = [
    ["Frontier Airlines Inc.", "685", "20.2", ORDERS["run_id"]],
    ["ExpressJet Airlines Inc.", "54173", "20.0", ORDERS["run_id"]],
    ["größe 日本語", "7", None, CUSTOMERS["run_id"]],
]
FINDINGS = [
    Finding("dw", "ok", "dw 0.1.0, Python 3.11.7"),
    Finding("project", "ok", "shop: 3 sources, 4 pipelines, files valid"),
    Finding("secrets", "fail", ".env can be read by others (0644)", "chmod 600 .env", lambda: ""),
    Finding("secrets", "ok", "git passes over .env and .dw", mended=".gitignore: .env, .dw/ added"),
    Finding(
        "disk",
        "warn",
        "3.1 GB free of 80 GB: .dw, lake, warehouse; the lake holds 11 GB",
        "dw clean --older 30d",
    ),
    Finding("warehouse", "ok", "PostgreSQL 18.6 answers in 5 ms: 127.0.0.1:5433"),
    Finding("sources", "fail", "erp: erp.internal:3306 does not let 'reader' in", HINT),
]


def verified(width: int, plain: bool) -> Any:
    def check(detail: str, ok: bool = True, milliseconds: float = 0.0, hint: str = "") -> dict[str, Any]:
        return {"detail": detail, "ok": ok, "milliseconds": milliseconds, "hint": hint}

    return checks_view(
        "shop.orders",
        "public.orders",
        [
            check("lake      4 files, 15,002 rows: every byte is as it was written", milliseconds=1312),
            check("receipts  3 snapshots loaded, 1 waits", False, 1.4, "dw run orders"),
            check(
                "source    1,204,551 rows; 3 of them are not in the warehouse",
                False,
                6100,
                "dw run orders --full-refresh",
            ),
        ],
        width,
    )


def traced(width: int, plain: bool) -> Any:
    read = NOW - timedelta(minutes=4)
    before = OLDER[0]["run_id"]
    values = {
        "id": 7,
        "total": "99.95",
        "note": "changed 日本語",
        "lines": [{"sku": "a", "n": 2}],
        "city": None,
    }
    record = {
        "table": "public.orders",
        "key": {"id": 7},
        "snapshots_left": 0,
        "warehouse": [
            {
                "values": values
                | {
                    "_run_id": ORDERS["run_id"],
                    "_source_file": FILE,
                    "_loaded_at": read,
                    "_ingested_at": read,
                },
                "since": {"id": before, "total": ORDERS["run_id"], "note": ORDERS["run_id"], "lines": before},
                "run": ORDERS,
            }
        ],
        "lake": [
            {
                "run_id": ORDERS["run_id"],
                "read_at": read,
                "key": {"id": 7},
                "gone": False,
                "loaded": True,
                "changed": {
                    "total": {"from": "1.75", "to": "99.95"},
                    "note": {"from": None, "to": "changed 日本語"},
                },
                "values": values,
                "file": LAKE + FILE,
                "row": 1_204_001,
            },
            {
                "run_id": before,
                "read_at": OLDER[0]["started_at"],
                "key": {"id": 7},
                "gone": False,
                "loaded": False,
                "changed": None,
                "values": {"id": 7, "total": "1.75", "note": None},
                "file": LAKE + FILE,
                "row": 7,
            },
        ],
    }
    return trace_view(record, width, plain)


LOG = [
    {
        "time": "2026-11-22T21:48:01.123+00:00",
        "level": "info",
        "event": "RunStarted",
        "pipeline": "shop.orders",
        "target": "public.orders",
        "rows_expected": 1_204_551,
    },
    {
        "time": "2026-11-22T21:48:03.001+00:00",
        "level": "info",
        "event": "BatchStaged",
        "rows": 65_536,
        "bytes": 2_400_000,
        "path": f"/srv/shop/lake/{LAKE}{FILE}",
    },
    {
        "time": "2026-11-22T21:48:04.500+00:00",
        "level": "warning",
        "event": "log",
        "logger": "pymysql",
        "message": "slow \x1b[2J network",
    },
    {"time": "2026-11-22T21:48:13.960+00:00", "level": "info", "event": "RunFinished", **ORDERS},
    {"time": "2026-11-22T21:48:13.960+00:00", "level": "error", "event": "RunFinished", **FAILED},
]


def explained(width: int, plain: bool) -> Any:
    entry = CODES["DW-CONN-LOGIN"]
    return explanation_view("DW-CONN-LOGIN", entry.what, entry.causes, entry.do, entry.exit_code, width)


def errors(width: int, plain: bool) -> Any:
    login = ConnectionFailed(REFUSED, "login", DENIED, HINT)
    key = ConfigError("sources/shop.yaml line 7: there is no key 'cursr'. Did you mean 'cursor'?")
    return Group(error_view(login), error_view(key))


def failures(width: int, plain: bool) -> Any:
    record = {"pipeline_name": FAILED["pipeline_name"], "run_id": FAILED["run_id"]}
    record |= {"failed_at": FAILED["finished_at"], "error": FAILED["error_message"].split("\n")[0]}
    return table(FAILURE_COLUMNS, [failure_row(record)], width)


VIEWS: dict[str, Callable[[int, bool], Any]] = {
    "status": status,
    "audit": lambda width, plain: table(AUDIT_COLUMNS, map(audit_row, RUNS), width),
    "audit-run": lambda width, plain: audit_detail(ORDERS, width),
    "audit-failed-run": lambda width, plain: audit_detail(FAILED, width),
    "audit-chart": lambda width, plain: chart(
        "shop.orders", series([ORDERS, *OLDER])["shop.orders"], width, plain
    ),
    "audit-charts": lambda width, plain: table(
        CHART_COLUMNS, small_charts(series([*RUNS, *OLDER]), width, plain), width
    ),
    "run": ends,
    "run-dry-run": lambda width, plain: plan_view(PLAN, plain),
    "retry": failures,
    "sources": lambda width, plain: table(SOURCE_COLUMNS, [source_row(*one, NOW) for one in SOURCES], width),
    "sources-protocols": protocols,
    "preview": lambda width, plain: preview_table(TYPES, VALUES, width),
    "query": lambda width, plain: result_table(RESULT, ANSWER, width),
    "doctor": lambda width, plain: Group(*(finding_view(finding, width) for finding in FINDINGS)),
    "verify": verified,
    "trace": traced,
    "schedule": lambda width, plain: table(
        SCHEDULE_COLUMNS, [schedule_row(one, NOW) for one in standings()], width
    ),
    "logs": lambda width, plain: Group(*(log_line(entry, width) for entry in LOG)),
    "help-code": explained,
    "error": errors,
}
CASES = [(view, width) for view in VIEWS for width in WIDTHS]


@contextmanager
def in_utc() -> Iterator[None]:
    """The machine's clock set to UTC."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        yield
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


def page(view: str, width: int, plain: bool = False) -> str:
    """A view as text, without colours and trailing blanks."""
    out = StringIO()
    console = Console(
        file=out, width=width, height=50, color_system=None, markup=False, highlight=False, emoji=False
    )
    with in_utc():
        console.print(VIEWS[view](width, plain))
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


@pytest.mark.parametrize(("view", "width"), CASES)
def test_the_screen_is_the_one_on_the_page(view, width):
    assert page(view, width) == (GOLDEN / f"{view}-{width}.txt").read_text("utf-8")


@pytest.mark.parametrize(("view", "width"), CASES)
def test_a_screen_is_within_its_width_and_nothing_on_it_is_cut_or_obeyed(view, width):
    shown = page(view, width)
    assert max(map(cells, shown.splitlines())) <= width
    assert "\x1b" not in shown
    assert "…" not in shown
    assert "\n\n\n" not in shown and not shown.startswith("\n") and not shown.endswith("\n\n")


@pytest.mark.parametrize("view", VIEWS)
def test_every_word_of_the_wide_screen_that_stays_is_whole_on_the_middle_one(view):
    wide, middle = (set(page(view, width).split()) for width in (160, 80))
    broken_words = {word for word in middle - wide if not any(word in whole for whole in wide)}
    assert broken_words == set()


@pytest.mark.parametrize("view", VIEWS)
def test_a_screen_for_ascii_has_only_the_data_that_is_not(view):
    data = set("größe日本語…")
    assert {c for c in page(view, 80, plain=True) if not c.isascii()} <= data


def write_pages() -> None:
    for view, width in CASES:
        (GOLDEN / f"{view}-{width}.txt").write_text(page(view, width), "utf-8")


if __name__ == "__main__":
    write_pages()

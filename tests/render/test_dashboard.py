"""The look of the dashboard at two sizes. `python -m tests.render.test_dashboard` writes the pages anew."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from dwcli.render.dashboard import KEYS, Dashboard
from dwcli.render.logs import log_lines
from dwcli.render.runs import standing
from dwcli.render.watching import Found, Progress, going_row, matches, trend_of, trend_words
from dwcli.staging.counting import Rows

GOLDEN = Path(__file__).parent / "golden"
NOW = datetime(2026, 11, 22, 21, 48, 3, tzinfo=UTC)
SIZES = [(80, 24), (120, 32)]
#: Rich's SVG: how wide a cell is, and how high a line.
CELL, LINE = 12.2, 24.4


def a_run(run_id, pipeline, status, minutes, rows, **more):
    started = NOW - timedelta(minutes=minutes)
    return {
        "run_id": f"{run_id}-0000-4000-8000-000000000000",
        "pipeline_name": pipeline,
        "source_name": pipeline.partition(".")[0],
        "protocol": "sqlite",
        "status": status,
        "started_at": started,
        "finished_at": None if status == "running" else started + timedelta(seconds=6.1),
        "rows_read": rows,
        "rows_inserted": rows,
        "rows_loaded": rows,
        "os_user": "marie",
        **more,
    }


RUNS = [
    a_run("7f3a91c2", "shop.orders", "running", 1, None),
    a_run("7e91aa00", "shop.customers", "success", 4, 88120),
    a_run("7d10bb11", "erp.invoices", "failure", 125, 0, error_message="login rejected [/] \x1b[31m"),
    *(a_run(f"6a{n:06}", "shop.orders", "success", 61 * (n + 1), 1000 * (n % 4)) for n in range(9)),
]
TABLES = {"shop.orders": Rows(1204551, False), "shop.customers": Rows(88120, True)}
LOG = [
    {
        "time": "2026-11-22T21:47:03.100+00:00",
        "level": "info",
        "event": "RunStarted",
        "pipeline": "shop.orders",
        "target": "public.orders",
    },
    {
        "time": "2026-11-22T21:47:04.100+00:00",
        "level": "info",
        "event": "BatchRead",
        "rows": 120000,
        "bytes": 9600000,
    },
    {
        "time": "2026-11-22T21:47:05.100+00:00",
        "level": "warning",
        "event": "log",
        "logger": "dwcli.connectors.sqlite",
        "message": "slow\x1b[2J",
    },
]


def found():
    pipelines = ["shop.orders", "shop.customers", "erp.invoices", "erp.stock"]
    history = {name: [run for run in RUNS if run["pipeline_name"] == name] for name in pipelines}
    return Found(
        header="shop  warehouse up 127.0.0.1:5433  2.1 GB used, 38 GB free",
        up=True,
        now=NOW,
        standings=[standing(name, "1h", history[name], NOW, TABLES.get(name)) for name in pipelines],
        history=history,
        runs=RUNS,
        going=RUNS[:1],
        live={RUNS[0]["run_id"]: Progress(read=1204551, staged=900000, loaded=300000, seen=True)},
    )


def page(svg):
    """The words of an SVG screen, each where it stands."""
    lines = {}
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if "clip-path" not in text.attrib:  # the window's own title
            continue
        line = lines.setdefault(round(float(text.get("y")) / LINE - 0.76), {})
        line[round(float(text.get("x")) / CELL)] = (text.text or "").replace("\xa0", " ")
    rows = []
    for number in range(max(lines) + 1):
        row = ""
        for column, words in sorted(lines.get(number, {}).items()):
            row = row.ljust(column) + words
        rows.append(row.rstrip())
    return "\n".join(rows) + "\n"


def screen(width, height):
    """The dashboard at this size."""

    async def shown():
        app = Dashboard(look=found, log_of=lambda run_id: LOG, start=lambda name: lambda: None, every=60)
        async with app.run_test(size=(width, height)) as pilot:
            async with asyncio.timeout(60):
                before, now = "", ""
                while app.found is None or not app.query("FooterKey") or now != before:
                    await pilot.pause(0.2)
                    before, now = now, page(app.export_screenshot(simplify=True))
            return now

    return asyncio.run(shown())


@pytest.fixture
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_screen_is_the_one_on_the_page(utc, width, height):
    assert screen(width, height) == (GOLDEN / f"dashboard-{width}.txt").read_text("utf-8")


def test_every_key_stands_in_the_guide():
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "watch.md").read_text("utf-8")
    for keys, does in KEYS:
        assert f"| {keys} | {does} |" in guide


def test_a_run_of_another_machine_has_no_counts():
    assert [str(value) for value in going_row(RUNS[0], Progress(), NOW)][3:] == ["None"] * 3
    assert going_row(RUNS[0], Progress(read=600, loaded=60, seen=True), NOW)[2:] == [
        "1 min 0 s",
        600,
        60,
        "10 rows/s",
    ]


def test_the_trend_leaves_out_what_goes_on_and_marks_failures():
    assert trend_of(RUNS[:3]) == [None, 88120]
    assert trend_words([None, 88120]) == "2 runs, 1 failed, last 88k, most 88k"
    assert trend_words([]) == "no runs known"


def test_the_lines_of_a_log_are_those_of_dw_logs(utc):
    console = Console(file=StringIO(), width=100, color_system=None)
    twice = {"time": "2026-11-22T21:47:04+00:00", "level": "info", "logger": "dwcli.staging.writer"}
    console.print(*log_lines([*LOG, twice | {"event": "log", "message": "wrote a file"}], 100), sep="")
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == [
        "21:47:03.100 info    started: shop.orders into public.orders",
        "21:47:04.100 info    read 120,000 rows (9.2 MB in memory)",
        "21:47:05.100 warning slow\\x1b[2J",
    ]


def test_every_word_of_a_filter_must_be_there():
    assert matches("shop.orders FAILED", "fail ORD")
    assert not matches("shop.orders FAILED", "ord ok")
    assert matches("anything", "")


if __name__ == "__main__":
    for wide, high in SIZES:
        (GOLDEN / f"dashboard-{wide}.txt").write_text(screen(wide, high), "utf-8")

"""The plan of a run on screens of several widths."""

from __future__ import annotations

import pytest

from dwcli.pipeline.planning import Cost, Meeting, Plan, PlannedColumn, Reading, Schema, Waiting, Warn
from dwcli.render.plans import COLUMNS_SHOWN, closing_line, plan_view

PLAN = Plan(
    "shop.[red]größe_日本語",
    "shop",
    "public.orders",
    Reading("orders", False, "the last run came as far as 9", "id", "9", None, 1_204_551, None, "history"),
    Schema(
        True,
        "declared",
        False,
        (PlannedColumn("total", "numeric(12,2)", "bigint"), PlannedColumn("bad\x1b[31m", "text")),
    ),
    Meeting("merge", ("id",), "rows are inserted or updated by key (id)", "rows stay", 12),
    [Waiting("7f3a", "x.manifest.json", 40, None), Waiting("7f3b", "y.manifest.json", 1, None)],
    Cost(6.1, 41_000_000, 38_000_000_000, 5),
    [Warn("it is late"), Warn("it is already running", "wait until it is done: dw status", stops=True)],
    {"code": "X", "message": "gone", "why": "", "hint": "look"},
)


def test_everything_is_said_and_what_stops_the_run_comes_first(screen):
    assert screen(plan_view(PLAN), 100) == [
        "shop.[red]größe_日本語 → public.orders",
        "  first  2 snapshots of interrupted runs from the lake: 41 rows",
        "  read   id from 9 to now: the last run came as far as 9",
        "         about 1.2M rows (history)",
        "  table  1 new column, 1 column widened",
        "         ~ total        bigint → numeric(12,2)",
        "         + bad\\x1b[31m  text",
        "  rows   rows are inserted or updated by key (id)",
        "         rows stay",
        "         about 12 rows there now",
        "  takes  about 6.1 s, by 5 runs before; about 39 MB in the lake; 35 GB free",
        "  FAIL   it is already running",
        "         fix: wait until it is done: dw status",
        "  !      it is late",
        "  FAIL   gone",
        "         fix: look",
    ]
    assert closing_line([PLAN]) == "Nothing was changed. It would fail as things are."


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_nothing_is_cut_on_any_screen(screen, width):
    lines = screen(plan_view(PLAN, ascii_only=True), width)
    assert "…" not in "".join(lines) and "→" not in "".join(lines)
    words = " ".join(" ".join(lines).split())
    assert "bigint -> numeric(12,2)" in words
    assert "wait until it is done: dw status" in words


def test_a_wide_table_is_not_listed_to_its_end(screen):
    columns = tuple(PlannedColumn(f"c{number}", "text") for number in range(400))
    plan = Plan("a.b", "a", "public.b", schema=Schema(True, "inferred", True, columns))
    lines = screen(plan_view(plan), 80)
    assert lines[1] == "  table  new, 400 columns, as far as some of its rows show"
    assert lines[-1] == "         and 370 more: --json"
    assert len(lines) == COLUMNS_SHOWN + 3

"""What `dw run` shows while it works."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import pytest
from rich.console import Console, Group
from rich.text import Text

from dwcli.events import (
    BatchLoaded,
    BatchRead,
    BatchStaged,
    Notice,
    RunFinished,
    RunStarted,
    SchemaChanged,
    StageStarted,
)
from dwcli.render import progress
from dwcli.render.progress import Board, follow, log_line, note, part_done, time_left, view

ORDERS, CUSTOMERS = "shop.orders", "shop.[red]größe_日本語_und_mehr"
BEGIN = [
    RunStarted(ORDERS, "7f3a", "public.orders", rows_expected=1_000_000),
    StageStarted(ORDERS, "extract"),
    BatchRead(ORDERS, 400_000, 80_000_000),
    BatchStaged(ORDERS, 300_000, 9_000_000, "/lake/x"),
    RunStarted(CUSTOMERS, "7f3b", "public.customers"),
    StageStarted(CUSTOMERS, "extract"),
    BatchRead(CUSTOMERS, 5_000, 1_000_000),
]
END = [
    SchemaChanged(ORDERS, "new column discount (numeric)"),
    Notice(ORDERS, "3 rows lie in the future"),
    RunFinished(
        ORDERS,
        {
            "run_id": "7f3a",
            "status": "success",
            "rows_read": 1_000_000,
            "rows_inserted": 1_000_000,
            "duration_seconds": 4.0,
            "schema_changes": ["new column discount (numeric)"],
        },
    ),
    RunFinished(CUSTOMERS, {"run_id": "7f3b0000", "status": "failure", "error": {"message": "gone"}}),
]


def board_after(events, now=2.0):
    board = Board()
    for event in events:
        note(board, event, 0.0 if isinstance(event, RunStarted | StageStarted) else now)
    return board


def shown(board, screen, width, height=30):
    lines = [
        line.replace("╺", "━").replace("╸", "━") for line in screen(view(board, width, height, 3), width)
    ]
    said = re.fullmatch(r"(\d of 3 done)   \d+:\d\d   \d+(\.\d)? [MG]B memory", lines[-1])
    assert said, lines[-1]
    return [*lines[:-1], said[1]]


def test_a_wide_screen_shows_rows_bytes_speed_and_time_left(screen):
    full, name = "━" * 31, "shop.[red]größe_日本語_und_mehr"
    assert shown(board_after(BEGIN), screen, 130) == [
        f"shop.orders                      extract  {'━' * 12:31}"
        "    400,000 rows    76 MB   200k rows/s   40%  0:03 left",
        f"                                 stage    {'━' * 9:31}"
        "    300,000 rows   8.6 MB   150k rows/s   30%  0:05 left",
        "                                 load     waiting",
        f"{name}  extract  {full}      5,000 rows   977 KB   2.5k rows/s",
        "                                 stage    waiting",
        "                                 load     waiting",
        "0 of 3 done",
    ]


@pytest.mark.parametrize("width", [40, 59, 60, 72, 80, 100, 160])
def test_no_line_is_wider_than_the_screen_and_no_figure_is_cut(screen, width):
    lines = shown(board_after(BEGIN), screen, width)
    assert not any("…" in line for line in lines)
    assert len(lines) == (7 if width >= 60 else 3)


def test_a_narrow_screen_has_one_line_per_pipeline(screen):
    assert shown(board_after(BEGIN), screen, 40) == [
        "shop.orders stage 30% 0:05",
        "shop.[red]größe_日.. extract 5.0k rows",
        "0 of 3 done",
    ]


def test_more_pipelines_than_the_screen_has_room_for_get_one_line_each(screen):
    many = [RunStarted(f"shop.t{n}", str(n), "t") for n in range(40)]
    assert len(shown(board_after(many), screen, 100, height=24)) == 22


def test_an_estimate_that_proved_too_low_gives_no_percentage():
    board = board_after([*BEGIN, BatchRead(ORDERS, 700_000, 1)])
    assert part_done(board.running[ORDERS], "extract") is None
    assert time_left(board.running[ORDERS], "extract") is None
    assert part_done(board.running[CUSTOMERS], "extract") is None


def test_when_the_last_of_the_load_begins_reading_and_staging_are_done():
    running = board_after([*BEGIN, StageStarted(CUSTOMERS, "load")]).running[CUSTOMERS]
    assert (part_done(running, "extract"), part_done(running, "stage")) == (1.0, 1.0)
    assert part_done(running, "load") is None


def test_all_that_the_catalogue_expects_is_not_yet_all_that_comes(screen):
    board = board_after([*BEGIN[:2], BatchRead(ORDERS, 1_000_000, 1), BatchLoaded(ORDERS, 1_000_000)])
    lines = shown(board, screen, 130)
    assert [" 99%" in line for line in lines] == [True, False, True, False]
    assert not any("done" in line for line in lines[:-1])


def test_when_all_is_loaded_the_end_of_the_load_is_still_to_come(screen):
    board = board_after(
        [
            *BEGIN[:2],
            BatchRead(ORDERS, 1_000_000, 1),
            BatchLoaded(ORDERS, 1_000_000),
            StageStarted(ORDERS, "load"),
        ]
    )
    lines = shown(board, screen, 130)
    assert lines[0].endswith("100%  done")
    assert lines[2].endswith("finishing") and "%" not in lines[2]
    assert "finishing" in shown(board, screen, 60)[2]
    assert shown(board, screen, 40)[0] == "shop.orders finishing"


def test_before_the_first_row_is_asked_for_there_is_no_figure(screen):
    board = board_after([RunStarted(ORDERS, "7f3a", "public.orders", rows_expected=1_000_000)])
    lines = shown(board, screen, 80)
    assert lines[0].endswith("begins") and "0 rows" not in lines[0]
    assert shown(board, screen, 40)[0] == "shop.orders begins"


def test_time_before_the_reading_begins_says_nothing_about_speed():
    board = Board()
    for event, now in zip(BEGIN[:3], (0.0, 100.0, 102.0), strict=True):
        note(board, event, now)
    assert log_line(board.running[ORDERS]) == "shop.orders extract 400000 rows 200000 rows/s"


@pytest.mark.parametrize(("cursor", "hint"), [(None, "of ~1.2M"), ("2026-01-01", "of ~41"), ("b", "")])
def test_what_the_last_run_of_its_kind_read_is_a_hint_and_no_total(screen, cursor, hint):
    board = Board(before={(ORDERS, False): 1_200_000, (ORDERS, True): 41})
    rows = 500 if cursor == "b" else 20
    for event in (
        RunStarted(ORDERS, "7f3a", "public.orders", cursor_from=cursor),
        StageStarted(ORDERS, "extract"),
        BatchRead(ORDERS, rows, 1),
    ):
        note(board, event, 0.0)
    line = shown(board, screen, 130)[0]
    assert line.endswith(hint or f"{rows} rows      1 B")
    assert "%" not in line


def test_what_a_narrower_screen_has_broken_is_gone_over(monkeypatch):
    for name in ("XTERM_VERSION", "STY", "TERM"):
        monkeypatch.delenv(name, raising=False)
    out = StringIO()
    console = Console(file=out, width=80, height=24, force_terminal=True, color_system=None)
    wide = Group(Text("x" * 75), Text("y" * 30), Text("z" * 41))
    progress.step_over(console, progress.Drawn(80, wide), 40)
    assert out.getvalue().count("\x1b[1A") == 2
    monkeypatch.setenv("XTERM_VERSION", "XTerm(379)")
    out.truncate(0)
    progress.step_over(console, progress.Drawn(80, wide), 40)
    assert out.getvalue().strip("\x00") == ""


def test_log_lines_are_plain_numbers():
    board = board_after(BEGIN)
    assert log_line(board.running[ORDERS]) == "shop.orders extract 400000 rows 200000 rows/s"


def listen(mode, events):
    out = StringIO()
    with follow(mode, Console(file=out, width=80, force_terminal=False), planned=3) as emit:
        for event in events:
            emit(event)
    return out.getvalue().splitlines()


def test_without_a_screen_every_change_of_stage_is_a_line():
    lines = listen("log", [*BEGIN, BatchLoaded(ORDERS, 300_000), StageStarted(ORDERS, "load"), *END])
    assert [line.split(" ", 1)[1].split(" rows/s")[0] for line in lines[:2]] == [
        "shop.orders extract",
        f"{CUSTOMERS} extract",
    ]
    assert lines[2].split()[1:5] == ["shop.orders", "load", "300000", "rows"]
    assert lines[3:] == [
        "!     shop.orders: 3 rows lie in the future",
        "ok    shop.orders  1,000,000 read  1,000,000 new   4.0 s",
        "!     shop.orders: new column discount (numeric)",
        f"FAIL  {CUSTOMERS}  warehouse table unchanged",
        "      gone",
        "      details: dw audit 7f3b0000",
    ]


def test_progress_none_tells_endings_alone():
    lines = listen("none", [*BEGIN, *END])
    assert lines[0] == "!     shop.orders: 3 rows lie in the future"
    assert not any("extract" in line for line in lines)


class Waiting(StringIO):
    """A stream that says when a text has been written to it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.seen = text, threading.Event()

    def write(self, written: str) -> int:
        count = super().write(written)
        if self.text in self.getvalue():
            self.seen.set()
        return count


def test_a_run_that_says_nothing_for_long_is_still_told(monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.05)
    out = Waiting("shop.orders extract 400000 rows")
    with follow("log", Console(file=out, width=80, force_terminal=False)) as emit:
        for event in BEGIN:
            emit(event)
        assert out.seen.wait(20)


def test_events_from_many_threads_are_all_counted():
    board, each = Board(), 500
    note(board, BEGIN[0], 0.0)

    def work(_):
        for _ in range(each):
            with board.lock:
                note(board, BatchRead(ORDERS, 1, 10), 1.0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert board.running[ORDERS].rows["extract"] == 8 * each


def test_bars_leave_no_trace_but_the_endings_and_give_the_cursor_back():
    out = StringIO()
    console = Console(file=out, width=80, height=24, force_terminal=True, color_system=None)
    with follow("bars", console, planned=2) as emit:
        for event in [*BEGIN, *END]:
            emit(event)
    text = out.getvalue()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
    assert "ok    shop.orders  1,000,000 read" in text
    assert threading.active_count() == 1 or not [t for t in threading.enumerate() if t.name == "progress"]

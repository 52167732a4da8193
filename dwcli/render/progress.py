"""What `dw run` shows while it works: bars that move, or lines that stay. Always on stderr.

    with follow("bars", width=…) as emit:
        run_project(…, emit)

`emit` is called from several threads and only writes down what happened. A thread of the display draws
it four times a second (bars) or tells it every half minute (log). What a pipeline ended with is said
once, in lines that stay, in every mode.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, assert_never

from dwcli.events import (
    BatchLoaded,
    BatchRead,
    BatchStaged,
    Emit,
    Event,
    Notice,
    RunFinished,
    RunStarted,
    SchemaChanged,
    Stage,
    StageStarted,
)
from dwcli.render.console import console
from dwcli.render.runs import MARK_WIDTH, STAGES, Line, plain_line, rate, remark, summary
from dwcli.render.tables import broken, marked
from dwcli.render.words import clock, compact, escape, size, width

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.table import Table
    from rich.text import Text

Mode = Literal["bars", "log", "none"]

REFRESH_PER_SECOND = 4
LOG_SECONDS = 30.0
#: Below this width a pipeline gets one line and no bar.
NARROW = 60


@dataclass
class Progress:
    """How far one running pipeline is. Written by `note`, read by the display, under one lock."""

    pipeline: str
    began: float
    rows_expected: int | None = None
    #: None until there is something to read: the table is emptied first, or the source takes its time
    stage: Stage | None = None
    #: rows that the last run of this kind read: a hint, never a total
    rows_before: int | None = None
    rows: dict[Stage, int] = field(default_factory=lambda: {"extract": 0, "stage": 0, "load": 0})
    bytes: dict[Stage, int] = field(default_factory=lambda: {"extract": 0, "stage": 0, "load": 0})
    #: when the last batch of a stage went by
    last: dict[Stage, float] = field(default_factory=dict)


@dataclass
class Board:
    """Every running pipeline, and the lines that are waiting to be said."""

    running: dict[str, Progress] = field(default_factory=dict)
    finished: int = 0
    lines: list[Line] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    #: rows that each pipeline's last run read here, by whether it began at a cursor value
    before: Mapping[tuple[str, bool], int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def note(board: Board, event: Event, now: float) -> None:
    """Write down what happened. Quick: no screen is touched."""
    match event:
        case RunStarted():
            before = board.before.get((event.pipeline, event.cursor_from is not None))
            board.running[event.pipeline] = Progress(
                event.pipeline, now, event.rows_expected, rows_before=before
            )
        case StageStarted():
            progress = _of(board, event.pipeline, now)
            if progress.stage is None:
                progress.began = now  # what came before says nothing about speed
            progress.stage = event.stage
        case BatchRead():
            _add(_of(board, event.pipeline, now), "extract", event.rows, event.bytes, now)
        case BatchStaged():
            _add(_of(board, event.pipeline, now), "stage", event.rows, event.bytes, now)
        case BatchLoaded():
            _add(_of(board, event.pipeline, now), "load", event.rows, 0, now)
        case SchemaChanged():
            pass  # it stands in the result, and is said with it
        case Notice():
            board.lines.append(remark(escape(event.pipeline), event.text))
        case RunFinished():
            board.running.pop(event.pipeline, None)
            board.finished += 1
            board.lines += summary({**event.result, "pipeline_name": event.pipeline})
        case _:
            assert_never(event)


def _of(board: Board, pipeline: str, now: float) -> Progress:
    return board.running.setdefault(pipeline, Progress(pipeline, now))


def _add(progress: Progress, stage: Stage, rows: int, bytes: int, now: float) -> None:
    progress.rows[stage] += rows
    progress.bytes[stage] += bytes
    progress.last[stage] = now


# -- the listener --------------------------------------------------------------------------------------


@contextmanager
def follow(
    mode: Mode,
    out: Console | None = None,
    planned: int = 1,
    before: Mapping[tuple[str, bool], int] | None = None,
) -> Iterator[Emit]:
    """Show a run while the block lasts; what it yields is the run's listener.

    planned: how many pipelines were asked for, so that those still to come can be counted.
    before: rows that earlier runs read, by pipeline and whether they began at a cursor value.
    """
    out = out or console(sys.stderr)
    board = Board(before=before or {})
    if mode == "bars":
        with _bars(board, out, planned) as emit:
            yield emit
    else:
        with _lines(board, out, LOG_SECONDS if mode == "log" else None) as emit:
            yield emit
    _say_lines(board, out)


def _say_lines(board: Board, out: Console) -> None:
    from rich.text import Text

    with board.lock:
        waiting, board.lines = board.lines, []
    for mark, body in waiting:
        if out.is_terminal:
            out.print(marked(mark, broken(body, out.width - MARK_WIDTH), MARK_WIDTH))
        else:
            out.print(Text(plain_line(mark, body)), soft_wrap=True)


@contextmanager
def _bars(board: Board, out: Console, planned: int) -> Iterator[Emit]:
    from rich.live import Live

    def emit(event: Event) -> None:
        with board.lock:
            note(board, event, time.monotonic())

    last = Drawn(out.width)

    def draw() -> Group:
        nonlocal last
        screen = out.width
        if screen < last.screen:
            step_over(out, last, screen)
        with board.lock:
            drawn = view(board, screen, out.height, planned)
        last = Drawn(screen, drawn)
        return drawn

    live = Live(
        console=out,
        get_renderable=draw,
        refresh_per_second=REFRESH_PER_SECOND,
        transient=True,
        # stdout may be a file that waits for JSON: not a byte of it may land on the screen
        redirect_stdout=False,
    )
    stop = threading.Event()

    def say() -> None:
        while not stop.wait(1 / REFRESH_PER_SECOND):
            _say_lines(board, out)

    speaker = threading.Thread(target=say, name="progress", daemon=True)
    with live:
        speaker.start()
        try:
            yield emit
        finally:
            stop.set()
            speaker.join()
            _say_lines(board, out)


@contextmanager
def _lines(board: Board, out: Console, every: float | None) -> Iterator[Emit]:
    """Lines that stay: at each change of stage and every `every` seconds; None for endings alone."""

    def emit(event: Event) -> None:
        with board.lock:
            note(board, event, time.monotonic())
            if every and isinstance(event, StageStarted):
                board.lines.append(_line(board.running[event.pipeline]))
        _say_lines(board, out)

    stop = threading.Event()

    def tell() -> None:
        while not stop.wait(every):
            with board.lock:
                board.lines += [_line(progress) for progress in board.running.values()]
            _say_lines(board, out)

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    if every:
        teller.start()
    try:
        yield emit
    finally:
        stop.set()
        if every:
            teller.join()
        _say_lines(board, out)


@dataclass(frozen=True)
class Drawn:
    """What stands on the screen, and for which width it was made."""

    screen: int
    view: Group | None = None


def step_over(out: Console, last: Drawn, screen: int) -> None:
    """After a screen has become narrower: go up to where what was drawn begins now.

    Most terminals break the lines that no longer fit, so what was drawn takes more lines than Rich, which
    goes up as many as it wrote, knows of. What is not gone over would stay there for good.
    """
    if last.view is None or not _breaks_lines():
        return
    options = out.options.update(width=last.screen)
    drawn = out.render_lines(last.view, options, pad=False)
    lengths = [sum(segment.cell_length for segment in line) for line in drawn]
    more = sum(max(0, -(-length // screen) - 1) for length in lengths)
    out.file.write("\r\x1b[2K" + "\x1b[1A\x1b[2K" * more)


def _breaks_lines() -> bool:
    """Whether the terminal breaks long lines anew when it is made narrower; xterm and screen cut them."""
    cutting = ("XTERM_VERSION", "STY")
    return os.environ.get("TERM") != "linux" and not any(os.environ.get(name) for name in cutting)


def _line(progress: Progress) -> Line:
    from rich.text import Text

    return Text(""), Text(f"{datetime.now():%H:%M:%S} {log_line(progress)}")


def log_line(progress: Progress) -> str:
    """`orders stage 842000 rows 212000 rows/s`: plain numbers, for grep."""
    stage = progress.stage or "extract"
    rows, seconds = progress.rows[stage], seconds_in(progress, stage)
    amount = f" {rows} rows" if rows else ""
    speed = f" {rows / seconds:.0f} rows/s" if rows and seconds else ""
    return f"{escape(progress.pipeline)} {stage}{amount}{speed}"


# -- the view ------------------------------------------------------------------------------------------


def view(board: Board, screen: int, height: int, planned: int) -> Group:
    """The moving part of the screen: the running pipelines, and how many are done."""
    from rich.console import Group
    from rich.text import Text

    running = list(board.running.values())
    parts: list[Table | Text] = []
    if running and (screen < NARROW or 3 * len(running) > height - 3):
        parts.append(_small(running[: max(1, height - 3)], screen))
    elif running:
        parts.append(_large(running, screen))
    done = [f"{board.finished} of {planned} done"] if planned > 1 else []
    footer = "   ".join([*done, clock(time.monotonic() - board.began), f"{size(memory_used())} memory"])
    parts.append(Text(footer, style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def memory_used() -> int:
    """Bytes of memory that this process takes now; where the system does not tell, the most it ever took."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return _most_memory_used()


def _most_memory_used() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _small(running: list[Progress], screen: int) -> Text:
    """One line per pipeline: name, stage, how far, time left."""
    from rich.text import Text

    lines: list[str] = []
    for progress in running:
        stage = _slowest(progress)
        far, left = part_done(progress, stage), time_left(progress, stage)
        amount = f"{far:.0%}" if far is not None else f"{compact(progress.rows[stage])} rows"
        words = [stage, amount] + ([clock(left)] if left is not None else [])
        if is_finishing(progress):
            words = ["finishing"]
        elif progress.stage is None and not progress.rows[stage]:
            words = ["begins"]
        tail = " ".join(words)
        lines.append(f"{_cut(escape(progress.pipeline), screen - len(tail) - 2)} {tail}")
    return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


def _cut(name: str, room: int) -> str:
    if width(name) <= room:
        return name
    from rich.cells import set_cell_size

    return set_cell_size(name, max(1, room - 2)).rstrip() + ".."


#: What a wide screen shows beside the bar, each with the width it is given; a narrow one begins to do
#: without from the end of `DROPPED`. Fixed widths keep the bars from jumping.
FIGURES = {"amount": 14, "bytes": 7, "rate": 12, "part": 4, "left": 10}
DROPPED = ("left", "rate", "bytes")
SHORTEST_BAR, LONGEST_BAR = 10, 40


def _large(running: list[Progress], screen: int) -> Table:
    """Three lines per pipeline, one per stage; wider screens show more figures."""
    from rich.table import Table

    name_room = min(max(width(escape(p.pipeline)) for p in running), screen // 4)
    shown, bar = _figures_that_fit(screen - name_room - len("extract") - 4)
    grid = Table.grid(padding=(0, 2, 0, 0))
    for room in (name_room, len("extract"), bar):
        grid.add_column(width=room, no_wrap=True)
    for figure in shown:
        grid.add_column(width=FIGURES[figure], no_wrap=True, justify="left" if figure == "left" else "right")
    for progress in running:
        for stage in STAGES:
            name = _cut(escape(progress.pipeline), name_room) if stage == "extract" else ""
            grid.add_row(name, *_stage_cells(progress, stage, bar, shown))
    return grid


def _figures_that_fit(room: int) -> tuple[list[str], int]:
    """Which figures stand beside the bar, and how long it is."""
    shown, droppable = list(FIGURES), list(DROPPED)
    while (bar := room - sum(FIGURES[name] + 2 for name in shown)) < SHORTEST_BAR and droppable:
        shown.remove(droppable.pop())
    return shown, max(1, min(LONGEST_BAR, bar))


def _stage_cells(progress: Progress, stage: Stage, bar: int, shown: list[str]) -> list[RenderableType]:
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    rows, far, left = progress.rows[stage], part_done(progress, stage), time_left(progress, stage)
    if not rows and stage != (progress.stage or "extract"):
        return [
            Text(stage, style="dim"),
            Text("none" if progress.stage == "load" else "waiting", style="dim"),
        ]
    done = far == 1
    figures = {
        "amount": f"{rows:,} rows" if rows or progress.stage else "begins",
        "bytes": size(progress.bytes[stage]) if progress.bytes[stage] else "",
        "rate": rate(rows, seconds_in(progress, stage)),
        "part": f"{far:.0%}" if far is not None and rows else "",
        "left": "done" if done else f"{clock(left)} left" if left is not None else _hint(progress, stage),
    }
    moving: RenderableType = ProgressBar(
        total=None if far is None else 1.0, completed=far or 0.0, width=bar, pulse=far is None
    )
    if figures["left"] == "finishing" and "left" not in shown:
        moving = Text("finishing"[:bar])
    return [Text(stage), moving, *(Text(figures[name]) for name in shown)]


def _hint(progress: Progress, stage: Stage) -> str:
    """What stands where the time left is not known: `finishing`, or `~350k` rows as the last time."""
    if stage == "load" and is_finishing(progress):
        return "finishing"
    before = progress.rows_before
    known = progress.rows_expected is not None or not before or max(progress.rows.values()) > before
    return "" if known or before is None else f"of ~{compact(before)}"


def is_finishing(progress: Progress) -> bool:
    """Whether all rows have been read, and the last of the load has begun: merge, indexes, COMMIT."""
    return progress.stage == "load" and progress.rows["extract"] > 0


#: What is shown of a stage that has all the rows that the catalogue expects: an estimate may be too low.
NEARLY = 0.99


def part_done(progress: Progress, stage: Stage) -> float | None:
    """How much of a stage is done, from 0 to 1; None where nobody knows: better none than a false one."""
    if progress.stage == "load" and stage != "load":
        return 1.0  # everything is read and staged
    expected = progress.rows_expected
    if not expected or max(progress.rows.values()) > expected or is_finishing(progress):
        return None
    return min(NEARLY, progress.rows[stage] / expected)


def time_left(progress: Progress, stage: Stage) -> float | None:
    """Seconds until a stage is through at its speed so far, where the end is known."""
    far, seconds = part_done(progress, stage), seconds_in(progress, stage)
    return seconds / far - seconds if far and seconds >= 1 else None


def seconds_in(progress: Progress, stage: Stage) -> float:
    """Seconds from the beginning of the reading to the last batch of a stage: what speed is measured by."""
    return progress.last.get(stage, progress.began) - progress.began


def _slowest(progress: Progress) -> Stage:
    """The stage that is furthest behind and has begun: it sets the time of the run."""
    begun = [stage for stage in STAGES if progress.rows[stage]]
    return begun[-1] if begun else progress.stage or "extract"

"""Runs over time, drawn: bars of one pipeline, or a line of small bars for each of several.

    shop.orders  12 runs
    rows, at most 1.2M
    1.2M │ █
         │ █   ▂
       0 └─▂─▁─█─x

A run is one column, oldest first; `x` is one that failed. The highest value of a chart is full, and what is
more than nothing is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from dwcli.render.tables import GAP, Column, Said
from dwcli.render.words import compact, count, duration, escape, local_time, sparkline, width

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

#: Lines of one chart, the axis not among them.
HEIGHT = 6
#: A bar is not wider than this, and there is a gap between bars wider than one cell.
WIDEST_BAR = 6
#: Cells that the labels of the axis take, with the axis.
LABELS = 8
EIGHTHS = " ▁▂▃▄▅▆▇█"
#: Runs of each pipeline in a table of several.
SMALL = 30


@dataclass(frozen=True)
class Point:
    """A run in a chart. `seconds` is None while it is not known."""

    run_id: str
    started_at: datetime
    status: str
    rows: int | None
    seconds: float | None


def series(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """The ended runs of each pipeline, oldest first. runs: newest first, as the audit log has them."""
    found: dict[str, list[Point]] = {}
    for run in reversed(runs):
        started, finished = run["started_at"], run.get("finished_at")
        if run["status"] != "running":
            taken = (finished - started).total_seconds() if finished else None
            rows = run.get("rows_loaded") if run["status"] == "success" else None
            point = Point(run["run_id"], started, run["status"], rows, taken)
            found.setdefault(run["pipeline_name"], []).append(point)
    return dict(sorted(found.items()))


def runs_that_fit(screen: int) -> int:
    """How many runs a chart on a screen of this width can show."""
    return max(1, screen - LABELS)


def chart(pipeline: str, points: Sequence[Point], screen: int, ascii_only: bool = False) -> RenderableType:
    """The runs of one pipeline as two charts, rows and seconds. The newest that fit are shown."""
    from rich.console import Group
    from rich.text import Text

    shown = points[-runs_that_fit(screen) :]
    failed = sum(point.status != "success" for point in shown)
    head = f"{escape(pipeline)}  {count(len(shown), 'run')}" + (f", {failed} failed" if failed else "")
    rows = [point.rows if point.status == "success" else None for point in shown]
    seconds = [point.seconds if point.status == "success" else None for point in shown]
    return Group(
        Text(head, style="bold"),
        *_bars("rows", rows, compact, "cyan", screen, ascii_only),
        Text(""),
        *_bars("time", seconds, duration, "green", screen, ascii_only),
        _dates(shown, screen),
    )


def _bars(
    name: str,
    values: Sequence[float | None],
    words: Callable[[float], str],
    style: str,
    screen: int,
    ascii_only: bool,
) -> list[Text]:
    from rich.text import Text

    known = [value for value in values if value is not None]
    top = max(known, default=0)
    wide, gap = _bar_width(len(values), screen)
    said = f"{name}: at most {words(top)}" if known else f"{name}: no run went well"
    if len(known) > 1:
        said += f", median {words(median(known))},"
        last = f"last {words(known[-1])}"
        said += ("\n" if len(said) + 1 + len(last) > screen else " ") + last
    lines = [Text(said, style="dim")]
    for line in range(HEIGHT, 0, -1):
        label = words(top) if line == HEIGHT and top else "0" if line == 1 else ""
        drawn = Text(f"{_short(label):>{LABELS - 2}} {'|' if ascii_only else '│'}", style="dim")
        for value in values:
            failed = value is None
            cells = ("x" if line == 1 else " ") if failed else _part(value or 0, top, line, ascii_only)
            drawn.append(cells * (1 if failed else wide) + " " * (wide - 1 if failed else 0))
            drawn.stylize("bold red" if failed else f"not dim {style}", len(drawn) - wide)
            drawn.append(" " * gap)
        drawn.rstrip()
        lines.append(drawn)
    return lines


def _short(label: str) -> str:
    """A label of an axis: of `4 min 10 s` the first unit."""
    return " ".join(label.split(" ")[:2])


def _bar_width(number: int, screen: int) -> tuple[int, int]:
    """Cells of a bar, and of the gap after it."""
    room = max(1, screen - LABELS) // max(1, number)
    if room < 2:
        return 1, 0
    return min(WIDEST_BAR, room - 1), 1


def _part(value: float, top: float, line: int, ascii_only: bool) -> str:
    """What of a bar stands in one line; line 1 is the lowest."""
    eighths = round(value / top * HEIGHT * 8) if top else 0
    if value > 0:
        eighths = max(1, eighths)
    here = min(8, max(0, eighths - (line - 1) * 8))
    if ascii_only:
        return "#" if here >= 4 else "." if here else " "
    return EIGHTHS[here]


def _dates(points: Sequence[Point], screen: int) -> Text:
    """The axis of time: when the first and the last run began."""
    from rich.text import Text

    first, last = local_time(points[0].started_at), local_time(points[-1].started_at)
    wide, gap = _bar_width(len(points), screen)
    drawn = max(len(points) * (wide + gap) - gap, len(first))
    between = drawn - len(first) - len(last)
    if len(points) == 1:
        text = first
    elif between >= 3:
        text = first + " " * between + last
    else:
        text = f"{first} to {last}"
    if len(text) > screen - LABELS:
        text = f"{first[5:10]} to {last[5:10]}"
    return Text(" " * LABELS + text, style="dim")


# -- several pipelines ---------------------------------------------------------------------------------

CHART_COLUMNS = (
    Column("PIPELINE"),
    Column("ROWS PER RUN"),
    Column("MOST", right=True, optional=2),
    Column("SECONDS PER RUN", optional=1),
    Column("MOST", right=True, optional=3),
)
POINT_COLUMNS = (
    Column("PIPELINE"),
    Column("RUN"),
    Column("STARTED"),
    Column("STATUS"),
    Column("ROWS", right=True),
    Column("SECONDS", right=True),
)


def small_charts(
    found: Mapping[str, Sequence[Point]], screen: int, ascii_only: bool = False
) -> list[list[Any]]:
    """A row of CHART_COLUMNS for each pipeline."""
    names = max(width(name) for name in found)
    alone = screen - names - GAP
    fitting = max(5, min(SMALL, (alone - 20) // 2 if alone > 40 else alone))
    rows = []
    for pipeline, points in found.items():
        shown = points[-fitting:]
        good = [point for point in shown if point.status == "success"]
        most = max((point.rows or 0 for point in good), default=0)
        longest = max((point.seconds or 0.0 for point in good), default=0.0)
        counted = [(p.rows or 0) if p.status == "success" else None for p in shown]
        timed = [round((p.seconds or 0) * 1000) if p.status == "success" else None for p in shown]
        rows.append(
            [
                pipeline,
                sparkline(counted, ascii_only),
                Said(most, compact(most)) if good else None,
                sparkline(timed, ascii_only),
                Said(longest, duration(longest)) if good else None,
            ]
        )
    return rows


def point_rows(found: Mapping[str, Sequence[Point]]) -> list[list[Any]]:
    """The runs themselves, for POINT_COLUMNS."""
    return [
        [pipeline, point.run_id, point.started_at, point.status, point.rows, point.seconds]
        for pipeline, points in found.items()
        for point in points
    ]

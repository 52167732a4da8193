"""What the dashboard shows, in rows and lines; `dashboard.py` puts them on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dwcli.render.runs import STYLES, Standing, needs_attention, rate, rows_of_table, short_id, state_word
from dwcli.render.tables import Column, Said, fields
from dwcli.render.words import ago, compact, count, duration, escape, local_time, sparkline

if TYPE_CHECKING:
    from rich.console import RenderableType

Run = Mapping[str, Any]

#: Bars in the list of pipelines; the chart has the rest.
BARS_SHOWN = 7


@dataclass(frozen=True)
class Progress:
    """How far a run that goes on has come, as its log on this machine tells."""

    read: int = 0
    staged: int = 0
    loaded: int = 0
    #: how much of the log has been read
    place: int = 0
    #: whether there is such a log; without it the counts say nothing
    seen: bool = False


@dataclass(frozen=True)
class Found:
    """What one look at the project and its warehouse found."""

    header: str
    up: bool
    now: datetime
    #: what to type next, where there is something
    hint: str = ""
    standings: Sequence[Standing] = ()
    #: pipeline → its last runs, newest first
    history: Mapping[str, Sequence[Run]] = field(default_factory=dict)
    #: the last runs of all pipelines, newest first
    runs: Sequence[Run] = ()
    #: the runs that go on, oldest first
    going: Sequence[Run] = ()
    live: Mapping[str, Progress] = field(default_factory=dict)
    #: pipeline → what its file says of it
    about: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


PIPELINE_COLUMNS = (
    Column("PIPELINE"),
    Column("STATE"),
    Column("LAST OK", optional=1),
    Column("EVERY", optional=5),
    Column("LAST RUN", optional=4),
    Column("ROWS", right=True, optional=2),
    Column("LAST RUNS", optional=3),
)
GOING_COLUMNS = (
    Column("PIPELINE"),
    Column("RUN", optional=4),
    Column("FOR"),
    Column("READ", right=True, optional=1),
    Column("LOADED", right=True, optional=2),
    Column("RATE", right=True, optional=3),
)


def pipeline_row(standing: Standing, now: datetime, ascii_only: bool = False) -> list[Any]:
    """One row of the pipelines pane."""
    return [
        standing.pipeline,
        Said(standing.state, state_word(standing.state)),
        Said(standing.last_ok, ago(standing.last_ok, now) if standing.last_ok else "-"),
        standing.every,
        Said(standing.last_run, ago(standing.last_run, now) if standing.last_run else "-"),
        rows_of_table(standing),
        sparkline(standing.trend[-BARS_SHOWN:], ascii_only),
    ]


def going_row(run: Run, progress: Progress | None, now: datetime) -> list[Any]:
    """One row of the running pane. Counts are `-` where the run's log is on another machine."""
    seconds = max(0.0, (now - run["started_at"]).total_seconds())
    known = progress if progress and progress.seen else None
    return [
        run["pipeline_name"],
        short_id(str(run["run_id"])),
        duration(float(int(seconds))) if seconds >= 60 else f"{int(seconds)} s",
        known.read if known else None,
        known.loaded if known else None,
        (rate(known.read, seconds) or None) if known else None,
    ]


def trend_of(runs: Sequence[Run]) -> list[int | None]:
    """Rows per run, oldest first; None is a run that failed. Runs that go on are left out."""
    ended = [run for run in reversed(runs) if run.get("status") != "running"]
    return [(run.get("rows_loaded") or 0) if run["status"] == "success" else None for run in ended]


def trend_words(trend: Sequence[int | None]) -> str:
    """What the chart shows, in words: `2 runs, 1 failed, last 100, most 100`."""
    good = [value for value in trend if value is not None]
    failed = len(trend) - len(good)
    said = [count(len(trend), "run")] if trend else ["no runs known"]
    said += [f"{failed} failed"] if failed else []
    said += [f"last {compact(good[-1])}", f"most {compact(max(good))}"] if good else []
    return ", ".join(said)


def pipeline_detail(
    standing: Standing, about: Mapping[str, str], runs: Sequence[Run], now: datetime, screen: int
) -> RenderableType:
    """Everything that is known of one pipeline, its last runs below."""
    from rich.console import Group
    from rich.text import Text

    from dwcli.render.runs import AUDIT_COLUMNS, audit_row
    from dwcli.render.tables import table

    freshness = [
        f"{ago(standing.last_ok, now)} ({local_time(standing.last_ok, seconds=True)})"
        if standing.last_ok
        else "never"
    ]
    freshness += [f"every {standing.every}"] if standing.every else []
    pairs: list[tuple[str, Any]] = [
        ("pipeline", standing.pipeline),
        ("state", state_word(standing.state)),
        ("last ok", ", ".join(freshness)),
        *about.items(),
        ("rows", None if standing.table_rows is None else rows_of_table(standing).words),
        ("loaded", None if standing.rows is None else f"{standing.rows:,} in the last good run"),
        ("trend", trend_words(trend_of(runs))),
        ("error", Text(escape(standing.error), style=STYLES["FAILED"]) if standing.error else None),
        ("fix", standing.fix if needs_attention(standing) else None),
    ]
    view = [fields(pairs, screen)]
    if runs:
        view += [Text(""), table(AUDIT_COLUMNS, [audit_row(run) for run in runs[:20]], screen)]
    return Group(*view)


def matches(text: str, words: str) -> bool:
    """Whether every word of a filter stands in a text, capitals or not."""
    lowered = text.lower()
    return all(word in lowered for word in words.lower().split())

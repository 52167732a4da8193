"""`dw watch`: the dashboard. What it shows is gathered here; how it looks is in `render/dashboard.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dwcli.cli.settings import settings
from dwcli.errors import DriverMissing, UsageError

if TYPE_CHECKING:
    import psycopg

    from dwcli.project import Project
    from dwcli.render.dashboard import Dashboard
    from dwcli.render.watching import Found, Progress

LOOK_SECONDS = 2.0
#: Runs of one pipeline in its trend, and runs of all in the audit pane.
TREND_RUNS = 60
AUDIT_RUNS = 100
#: How much of the end of a log the tail reads.
TAIL_BYTES = 64 * 1024
#: Which count of a live run each event of its log adds to.
COUNTED = {"BatchRead": "read", "BatchStaged": "staged", "BatchLoaded": "loaded"}


def watch() -> None:
    """Watch all pipelines, runs and logs in one dashboard, and start runs from it."""
    import typer

    from dwcli.project import load_project

    _needs_terminal()
    _needs_textual()
    dashboard = dashboard_of(load_project(settings().project))
    dashboard.run()
    if dashboard.return_code:
        raise typer.Exit(dashboard.return_code)


def dashboard_of(project: Project, every: float = LOOK_SECONDS) -> Dashboard:
    """The dashboard of a project, looking every so many seconds."""
    from dwcli.render.dashboard import Dashboard

    return Dashboard(
        look=looker(project),
        log_of=lambda run_id: log_tail(project.private / "logs", run_id),
        start=lambda pipeline: start_run(project, pipeline),
        every=every,
    )


def _needs_terminal() -> None:
    """Raises UsageError where there is no screen to draw on: Textual would wait for keys that never come."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if not all(stream.isatty() for stream in streams) or os.environ.get("TERM") == "dumb":
        raise UsageError("dw watch needs a terminal that it can draw on", hint="dw status")
    if settings().json:
        raise UsageError("dw watch has no JSON: it is a screen", hint="dw status --json")


def _needs_textual() -> None:
    if find_spec("textual") is None:
        raise DriverMissing(
            "the dashboard is drawn by textual, which is not installed", hint="pip install 'dwcli[watch]'"
        )


# -- looking -------------------------------------------------------------------------------------------


def looker(project: Project) -> Callable[[], Found]:
    """A function that looks at the project and its warehouse, each time with a connection of its own.

    It raises DwError while a file of the project is not valid, as it is while somebody edits it.
    """
    from dwcli.project import load_project

    stamp = stamps(project)
    live: dict[str, Progress] = {}

    def look() -> Found:
        nonlocal project, stamp
        if stamps(project) != stamp:
            project = load_project(project.root)
            stamp = stamps(project)
        return found_now(project, live, datetime.now(UTC))

    return look


def stamps(project: Project) -> dict[Path, int]:
    """When each file of the project was changed."""
    files = (project.root / "dw.yaml", *(project.root / "sources").glob("*"))
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


def found_now(project: Project, live: dict[str, Progress], now: datetime) -> Found:
    """Everything that the dashboard shows. live: what is known of going runs; it is kept up to date."""
    from dwcli.cli.status import ask_warehouse, header, standings_of, tables_of
    from dwcli.render.watching import Found

    found, answer = ask_warehouse(
        project, lambda connection: (*_runs(connection), tables_of(project, connection))
    )
    history, runs, tables = answer or ({}, [], {})
    going = {
        str(run["run_id"]): run
        for run in (*(of_one[0] for of_one in history.values()), *runs)
        if run["status"] == "running"
    }
    for gone in live.keys() - going.keys():
        del live[gone]
    for run_id in going:
        live[run_id] = progress(project.private / "logs", run_id, live.get(run_id))
    standings = standings_of(project, None if answer is None else history, tables, now)
    return Found(
        header=header(project, found),
        up=found.up,
        hint=found.hint or ("" if standings else "dw add-source"),
        now=now,
        standings=standings,
        history=history,
        runs=runs,
        going=sorted(going.values(), key=lambda run: run["started_at"]),
        live=dict(live),
        about={p.full_name: _about(p) for p in _pipelines(project)},
    )


def _pipelines(project: Project) -> list[Any]:
    from dwcli.project import pipelines_of

    return pipelines_of(project)


def _about(pipeline: Any) -> dict[str, str]:
    """What a pipeline is, as its file says."""
    config = pipeline.config
    return {
        "source": f"{pipeline.source.name} ({pipeline.source.protocol})",
        "query": config.query,
        "table": f"{pipeline.schema}.{pipeline.target}",
        "write": config.write,
        "key": ", ".join(config.key),
        "cursor": config.cursor or "",
    }


def _runs(
    connection: psycopg.Connection,
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    from dwcli.staging.audit import last_runs, latest_runs

    return latest_runs(connection, TREND_RUNS), last_runs(connection, AUDIT_RUNS)


# -- logs ----------------------------------------------------------------------------------------------


def progress(folder: Path, run_id: str, known: Progress | None) -> Progress:
    """How far a run has come by its log, read on from where `known` ended.

    A run of another machine has no log here: its progress stays empty.
    """
    from dwcli.cli.logs import entry_of
    from dwcli.render.watching import Progress

    known = known or Progress()
    lines, place = _read_on(_log_file(folder, run_id), known.place)
    counts = {"read": known.read, "staged": known.staged, "loaded": known.loaded}
    for entry in map(entry_of, lines):
        count = COUNTED.get(str(entry.get("event")))
        if count and isinstance(entry.get("rows"), int):
            counts[count] += entry["rows"]
    return replace(known, place=place, seen=known.seen or place > 0, **counts)


def log_tail(folder: Path, run_id: str) -> list[Mapping[str, Any]]:
    """The last entries of a run's log; none where it has no log here."""
    from dwcli.cli.logs import entry_of

    path = _log_file(folder, run_id)
    try:
        start = max(0, path.stat().st_size - TAIL_BYTES)
    except OSError:
        return []
    lines, _ = _read_on(path, start)
    return [entry_of(line) for line in (lines[1:] if start else lines)]


def _log_file(folder: Path, run_id: str) -> Path:
    """The log of a run. The id is the warehouse's word: it must not lead out of the folder."""
    return folder / f"{Path(run_id).name}.log"


def _read_on(path: Path, place: int) -> tuple[list[bytes], int]:
    """The whole lines from `place` on, and where they end. A line that is being written waits."""
    try:
        with path.open("rb") as file:
            file.seek(place)
            data = file.read()
    except OSError:
        return [], place
    whole = data[: data.rfind(b"\n") + 1]
    return whole.splitlines(), place + len(whole)


# -- starting a run ------------------------------------------------------------------------------------


def start_run(project: Project, pipeline: str) -> Callable[[], str | None]:
    """Start `dw run PIPELINE` as a process of its own, which outlives the dashboard.

    Its result goes to `.dw/logs/PIPELINE.out`, what it tells to `PIPELINE.err`. Returns a function that
    says how it ended, None while it has not. Raises OSError when the process or a file cannot be made.
    """
    folder = project.private / "logs"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _private(folder / f"{pipeline}.out") as result, _private(folder / f"{pipeline}.err") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "dwcli", "-C", str(project.root), "--no-input", "run", pipeline],
            stdin=subprocess.DEVNULL,
            stdout=result,
            stderr=told,
            start_new_session=True,  # Ctrl-C in the dashboard, and its end, are not the run's
        )

    def ended() -> str | None:
        code = process.poll()
        if code is None:
            return None
        return f"{pipeline}: loaded" if code == 0 else f"{pipeline} failed: {_why(folder, pipeline)}"

    return ended


def _private(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _why(folder: Path, pipeline: str) -> str:
    """The sentence of the error that a run ended with; where it says none, the file to read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / f"{pipeline}.out").read_text("utf-8"))["error"]["message"])
    return f"see {folder / f'{pipeline}.err'}"

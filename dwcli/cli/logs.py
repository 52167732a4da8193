"""`dw logs`: what a run has told of itself, step by step, also while it runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from dwcli.cli._output import tell, tell_next
from dwcli.cli.settings import settings
from dwcli.errors import NameUnknown

if TYPE_CHECKING:
    from dwcli.project import Project

POLL_SECONDS = 0.2


def logs(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="One run, by the beginning of its id; else the last one."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    pipeline: Annotated[
        str | None, typer.Option(metavar="NAME", help="The last run of this pipeline, or of this source.")
    ] = None,
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(help="Leave out what is less grave. With -v nothing is left out, nor tracebacks."),
    ] = "debug",
) -> None:
    """Show the log of the last run, or of one run; with --json the lines as they were written."""
    from dwcli.project import load_project
    from dwcli.render.logs import LEVELS, gravity
    from dwcli.render.runs import short_id

    project = load_project(settings().project)
    path = _find(project, run, pipeline)
    show = _shower()
    least, last, first = LEVELS.index(level), dict[str, Any](), True
    with path.open(encoding="utf-8", errors="replace") as file:
        over = follow and not _is_written(file)
        for line in _lines(file, follow):
            entry = entry_of(line)
            if first:
                tell(f"run {short_id(path.stem)}  {entry.get('pipeline') or ''}  {_day(entry)}".rstrip())
                first = False
            last = entry
            if gravity(entry) >= least:
                show(line, entry)
        alive = last.get("event") != "RunFinished" and _is_written(file)
    if last.get("event") != "RunFinished":
        tell("It is still running." if alive else "It ended without a word: killed, or the machine stopped.")
        tell_next(f"dw logs {short_id(path.stem)} -f" if alive else f"dw audit {short_id(path.stem)}")
        return
    if over:
        tell("It was over already; -f follows a run that goes on.")
    if last.get("status") != "success":
        tell_next(f"dw audit {short_id(path.stem)}")


# -- which log -----------------------------------------------------------------------------------------


def run_logs(project: Project) -> list[Path]:
    """The logs of runs that are kept here, the last one first."""
    found = []
    for path in (project.private / "logs").glob("*.log"):
        with suppress(FileNotFoundError):  # a run that begins removes old ones
            if not path.name.startswith("error-"):
                found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]


def _find(project: Project, run: str | None, pipeline: str | None) -> Path:
    """The log that was asked for. Raises NameUnknown."""
    from dwcli.documents import nearest
    from dwcli.project import pipelines_of

    every = run_logs(project)
    if not every:
        raise NameUnknown(
            "there is no log of a run here yet",
            why="each run writes one, on the machine that it runs on",
            hint="dw run, or dw audit for runs of other machines",
        )
    chosen = [path for path in every if run is None or path.stem.startswith(run)]
    if not chosen:
        raise NameUnknown(
            f"there is no log of a run '{run}' here",
            why="logs stay on the machine that ran it, the last 200 and for 30 days",
            hint=f"dw audit {run}, or dw logs for the last run",
        )
    if run is not None and len(chosen) > 1:
        raise NameUnknown(
            f"'{run}' begins more than one run's id",
            hint="say more of it: " + ", ".join(path.stem for path in chosen[:5]),
        )
    if pipeline is None:
        return chosen[0]
    found = next((path for path in chosen if _is_of(path, pipeline)), None)
    if found is None:
        known = [name for p in pipelines_of(project) for name in (p.full_name, p.name, p.source.name)]
        wrong = "" if pipeline in known else nearest(pipeline, known)
        raise NameUnknown(
            f"there is no log of '{pipeline}' here.{wrong}", hint=f"dw audit --pipeline {pipeline}"
        )
    return found


def _is_of(path: Path, name: str) -> bool:
    """Whether a log is of a pipeline of this name, or of this source."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            pipeline = str(entry_of(file.readline()).get("pipeline"))
    except FileNotFoundError:
        return False
    source, _, own = pipeline.partition(".")
    return name in (pipeline, source, own)


# -- its lines -----------------------------------------------------------------------------------------


def _lines(file: TextIO, follow: bool) -> Iterator[str]:
    """Whole lines of a log; with `follow` those to come as well, until its run has ended."""
    begun = ""
    while True:
        # asked before reading: what a run wrote last is read after it has gone
        written = follow and _is_written(file)
        while part := file.readline():
            begun += part
            if begun.endswith("\n"):
                yield begun
                if follow and entry_of(begun).get("event") == "RunFinished":
                    return
                begun = ""
        if not written:
            if begun:
                yield begun + "\n"
            return
        time.sleep(POLL_SECONDS)


def _is_written(file: TextIO) -> bool:
    """Whether the run that writes a log is alive: it holds a lock on the file as long as it is."""
    try:
        import fcntl
    except ImportError:  # Windows: not known, so a follower goes on until Ctrl-C
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def entry_of(line: str | bytes) -> dict[str, Any]:
    """A line of a log as an entry. One that is no JSON (a full disk cut it) is a message."""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if isinstance(entry, dict):
        return entry
    text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
    return {"event": "log", "logger": "dwcli", "message": text.rstrip("\n")}


def _day(entry: dict[str, Any]) -> str:
    from dwcli.render.logs import log_time

    when = log_time(entry)
    return "" if when is None else f"{when.astimezone():%Y-%m-%d}"


def _shower() -> Callable[[str, dict[str, Any]], None]:
    """How an entry is put on stdout: as it is, as a line that fits the screen, or tab-separated."""
    from dwcli.render.console import stdout, write_text
    from dwcli.render.logs import LOG_COLUMNS, is_said_twice, log_line, log_row
    from dwcli.render.tables import tsv_line

    more = settings().verbose > 0
    if settings().json:
        return lambda line, entry: write_text([line])
    if not sys.stdout.isatty():
        write_text([tsv_line(column.name for column in LOG_COLUMNS)])
        return lambda line, entry: write_text([tsv_line(log_row(entry))])
    out = stdout()

    def show(line: str, entry: dict[str, Any]) -> None:
        if more or not is_said_twice(entry):
            out.print(log_line(entry, out.width, tracebacks=more))

    return show

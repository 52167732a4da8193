"""`dw status`: how every pipeline stands, and what to do about it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dwcli.cli._output import show_rows, tell_broken, tell_next
from dwcli.cli.settings import settings
from dwcli.errors import DwError, UsageError

if TYPE_CHECKING:
    import psycopg
    from rich.console import Group

    from dwcli.project import Project
    from dwcli.render.runs import Standing
    from dwcli.staging.counting import Rows

Answer = TypeVar("Answer")

WATCH_SECONDS = 0.5
#: A status screen does not wait longer than this for a warehouse.
PATIENCE_SECONDS = 2.0


@dataclass(frozen=True)
class Warehouse:
    """The warehouse as `dw status` found it. `where` never holds a password."""

    up: bool
    where: str
    bytes_used: int | None = None
    bytes_free: int | None = None
    why: str = ""
    hint: str = ""


def status(
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 if anything failed or is late: for monitoring.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep looking; q quits.")] = False,
) -> None:
    """Show how every pipeline stands: last good run, freshness, trend."""
    from dwcli.project import load_project
    from dwcli.render.runs import STATUS_COLUMNS, needs_attention, next_step, status_row

    project = load_project(settings().project)
    if watch:
        _watch(project)
        return
    now = datetime.now(UTC)
    found, standings = look(project, now)
    records = {
        "project": project.config.name,
        "warehouse": asdict(found),
        "pipelines": [record(standing, now) for standing in standings],
        "ok": not any(needs_attention(standing) for standing in standings),
    }
    tell_broken(header(project, found))
    show_rows(STATUS_COLUMNS, (status_row(s, now, _ascii()) for s in standings), records)
    tell_next(found.hint if not found.up else next_step(standings) or ("" if standings else "dw add-source"))
    if check and not records["ok"]:
        raise typer.Exit(1)


def look(project: Project, now: datetime) -> tuple[Warehouse, list[Standing]]:
    """The warehouse, and every pipeline of the project. With the warehouse down, from the local record."""
    from dwcli.project import pipelines_of
    from dwcli.render.runs import RUNS_SHOWN
    from dwcli.staging.audit import latest_runs

    names = [pipeline.full_name for pipeline in pipelines_of(project)]
    found, answer = ask_warehouse(
        project,
        lambda connection: (latest_runs(connection, RUNS_SHOWN, names), tables_of(project, connection)),
    )
    runs, tables = answer or (None, {})
    return found, standings_of(project, runs, tables, now)


def tables_of(project: Project, connection: psycopg.Connection) -> dict[tuple[str, str], Rows]:
    """How many rows the tables of a project's pipelines have, by schema and name."""
    from dwcli.project import pipelines_of
    from dwcli.staging.counting import rows_in

    return rows_in(connection, [(pipeline.schema, pipeline.target) for pipeline in pipelines_of(project)])


def standings_of(
    project: Project,
    runs: Mapping[str, Sequence[Mapping[str, Any]]] | None,
    tables: Mapping[tuple[str, str], Rows],
    now: datetime,
) -> list[Standing]:
    """How every pipeline stands by its last runs, newest first. None: take the local record."""
    from dwcli.cli._record import last_runs_here
    from dwcli.project import pipelines_of
    from dwcli.render.runs import standing

    known = last_runs_here(project) if runs is None else runs
    return [
        standing(
            pipeline.full_name,
            pipeline.config.every,
            known.get(pipeline.full_name, []),
            now,
            tables.get((pipeline.schema, pipeline.target)),
        )
        for pipeline in pipelines_of(project)
    ]


def ask_warehouse(
    project: Project, ask: Callable[[psycopg.Connection], Answer]
) -> tuple[Warehouse, Answer | None]:
    """What the warehouse says of itself, and its answer to `ask`. Starts nothing, raises nothing.

    The answer is None where the warehouse cannot be asked; `why` and `hint` then tell the reason.
    """
    try:
        url = running_url(project)
    except DwError as error:
        return Warehouse(False, "not known", why=error.message, hint=error.hint), None
    if url is None:
        return Warehouse(False, "embedded", why="it is not running", hint="dw up"), None
    import psycopg

    from dwcli.warehouse import connect, mask_url

    try:
        with closing(connect(url, patience=PATIENCE_SECONDS)) as connection:
            connection.execute("set statement_timeout = '5s'")
            answer = ask(connection)
            used = connection.execute("select pg_database_size(current_database())").fetchone()
            info = connection.info
            where = f"{'127.0.0.1' if info.host.startswith('/') else info.host}:{info.port}"
    except DwError as error:
        return Warehouse(
            False, mask_url(url), why=error.why or error.message, hint="dw test-connection dw"
        ), None
    except psycopg.Error as error:  # it went away between the greeting and the answer
        why = str(error).partition("\n")[0]
        return Warehouse(False, mask_url(url), why=why, hint="dw test-connection dw"), None
    here = project.config.warehouse == "embedded"
    free = _free(project) if here else None
    return Warehouse(True, where, used[0] if used else None, free), answer


def running_url(project: Project) -> str | None:
    """The warehouse's URL; None where it is the project's own and does not run."""
    from dwcli.references import environment
    from dwcli.warehouse import embedded, resolve_url

    known = environment(project.root / ".env")
    url = resolve_url(None, known, project.config.warehouse, project.root)
    if url != "embedded":
        return url
    server = embedded.running(project.private / "postgres")
    return embedded.url(server) if server else None


def _free(project: Project) -> int:
    import shutil

    return shutil.disk_usage(project.root).free


def _ascii() -> bool:
    from dwcli.render.console import ascii_only

    return ascii_only(sys.stdout)


def header(project: Project, found: Warehouse) -> str:
    """`shop  warehouse up 127.0.0.1:5433  2.1 GB used, 38 GB free`."""
    from dwcli.render.words import escape, size

    name = escape(project.config.name)
    if not found.up:
        why = f" ({escape(found.why)})" if found.why else ""
        return f"{name}  warehouse DOWN{why}: this is the local record"
    sizes = [f"{size(found.bytes_used)} used"] if found.bytes_used is not None else []
    sizes += [f"{size(found.bytes_free)} free"] if found.bytes_free is not None else []
    return "  ".join([name, f"warehouse up {escape(found.where)}", ", ".join(sizes)]).rstrip()


def record(standing: Standing, now: datetime) -> dict[str, Any]:
    """One pipeline for JSON."""
    from dwcli.render.runs import needs_attention

    age = (now - standing.last_ok).total_seconds() if standing.last_ok else None
    return asdict(standing) | {"needs_attention": needs_attention(standing), "seconds_since_ok": age}


# -- watching ------------------------------------------------------------------------------------------


def _watch(project: Project) -> None:
    if not sys.stdout.isatty() or not sys.stdin.isatty() or settings().json:
        raise UsageError("--watch needs a terminal", hint="dw status --json")
    from rich.live import Live

    from dwcli.render.console import stdout

    out = stdout()
    with (
        keys() as quit_within,
        Live(console=out, screen=True, auto_refresh=False, redirect_stdout=False) as live,
    ):
        while True:
            live.update(screenful(project, out.width), refresh=True)
            if quit_within(WATCH_SECONDS):
                return


def screenful(project: Project, width: int) -> Group:
    """One frame of `dw status --watch`."""
    from rich.console import Group
    from rich.text import Text

    from dwcli.render.runs import STATUS_COLUMNS, status_row
    from dwcli.render.tables import broken, table

    now = datetime.now(UTC)
    found, standings = look(project, now)
    rows = [status_row(standing, now, _ascii()) for standing in standings]
    return Group(
        broken(Text(f"{header(project, found)}  {now.astimezone():%H:%M:%S}"), width),
        table(STATUS_COLUMNS, rows, width),
        "",
        "q quits",
    )


@contextmanager
def keys() -> Iterator[Callable[[float], bool]]:
    """Keys one by one while the block lasts; yields a wait that says whether q was pressed.

    Where the terminal has no such mode (Windows), the wait only waits and Ctrl-C quits.
    """
    try:
        import select
        import termios
        import tty
    except ImportError:
        yield _only_wait
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def quit_within(seconds: float) -> bool:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return bool(ready) and os.read(descriptor, 64) in (b"q", b"Q", b"\x1b", b"")

    try:
        tty.setcbreak(descriptor)
        yield quit_within
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _only_wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False

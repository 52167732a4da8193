"""`dw doctor`: the whole installation, layer by layer, each trouble with what mends it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from dwcli.cli._output import tell, tell_next
from dwcli.cli.settings import settings
from dwcli.errors import DwError

if TYPE_CHECKING:
    from dwcli.cli._doctor_project import Folder
    from dwcli.cli._doctor_warehouse import Place
    from dwcli.connectors import Connector
    from dwcli.project import Project
    from dwcli.render.doctor import Finding


def doctor(
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Mend what can do no harm: permissions, .gitignore, dead runs, a warehouse that is down.",
        ),
    ] = False,
    sources: Annotated[
        bool, typer.Option("--sources/--no-sources", help="Also connect to every source.")
    ] = True,
) -> None:
    """Check the project, its secrets, drivers, disks, warehouse, lake, runs and sources."""
    from dwcli.render.doctor import totals

    found = []
    try:
        for finding in _clean(examine(fix, sources)):
            found.append(finding)
            _show(finding)
    except KeyboardInterrupt:
        _leave_waiting(130)
        raise
    ok = not any(finding.state == "fail" for finding in found)
    _show_rest(found, ok)
    tell(totals(found))
    if not fix and any(finding.mend for finding in found):
        tell_next("dw doctor --fix")
    _leave_waiting(0 if ok else 1)
    if not ok:
        raise typer.Exit(1)


def _leave_waiting(code: int) -> None:
    """End at once where a driver still waits for its server: it would not survive the usual end of Python."""
    from dwcli.cli._doctor_sources import WAITING

    if any(thread.name == WAITING for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# -- what is looked at ---------------------------------------------------------------------------------


def examine(fix: bool, sources: bool) -> Iterator[Finding]:
    """Every check, in the order in which one builds on the other."""
    from dwcli.cli._doctor_project import read_folder

    folder = read_folder(settings().project or os.environ.get("DW_PROJECT"))
    settle = mend if fix else _leave
    for check in _checks(folder, settle, sources):
        for finding in check:
            yield finding if finding.mended else settle(finding)


def _checks(
    folder: Folder, settle: Callable[[Finding], Finding], sources: bool
) -> Iterator[Iterable[Finding]]:
    from dwcli.cli._doctor_project import configured, drivers, permissions, plain_secrets, timer_of
    from dwcli.cli._doctor_sources import reachable
    from dwcli.render.doctor import Finding

    yield [_this_dw()]
    yield folder.findings
    root, project = folder.root, folder.project
    if root is None:
        yield _guarded("warehouse", _without_project)
        return
    yield _guarded("secrets", lambda: permissions(root))
    if project is None:
        return
    yield _guarded("secrets", lambda: plain_secrets(project))
    yield _guarded("drivers", lambda: drivers(project))
    yield from _of_warehouse(project, settle)
    yield _guarded("schedule", lambda: timer_of(project))
    connectors: dict[str, Connector] = {}
    yield _guarded("sources", lambda: configured(project, connectors))
    if sources:
        yield _guarded("sources", lambda: reachable(connectors))
    elif connectors:
        yield [Finding("sources", "ok", f"complete, not connected to: {', '.join(connectors)}")]


def _this_dw() -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    from dwcli.render.doctor import Finding

    python = ".".join(map(str, sys.version_info[:3]))
    try:
        return Finding("dw", "ok", f"dw {version('dwcli')}, Python {python}")
    except PackageNotFoundError:
        return Finding("dw", "warn", f"dw is not installed, Python {python}", "pip install dwcli")


def _without_project() -> Iterator[Finding]:
    """Without a project: the warehouse of the environment, or what a project's own could be made with."""
    from pathlib import Path

    from dwcli.cli import _doctor_warehouse as warehouse
    from dwcli.references import environment
    from dwcli.render.doctor import Finding
    from dwcli.warehouse import embedded, resolve_url

    known = environment(Path(".env"))
    if known.get("DW_URL") or known.get("DW_HOST"):
        url = resolve_url(None, known, None)
        if url != "embedded":
            yield from _server(warehouse.Place(url), "public")
            return
    programs = embedded.find_binaries()
    number = ".".join(map(str, programs.version))
    yield Finding("warehouse", "ok", f"PostgreSQL {number} is here for a project's own: {programs.path}")


def _server(place: Place, schema: str) -> Iterator[Finding]:
    from dwcli.cli import _doctor_warehouse as warehouse

    begun = time.perf_counter()
    with closing(warehouse.open_warehouse(place)) as connection:
        yield from warehouse.server(connection, place, schema, time.perf_counter() - begun)


def _of_warehouse(project: Project, settle: Callable[[Finding], Finding]) -> Iterator[Iterable[Finding]]:
    """The warehouse, the disks, and what can be said of runs and the lake with it or without it."""
    from dwcli.cli import _doctor_warehouse as warehouse
    from dwcli.cli._doctor_project import disks
    from dwcli.cli._record import last_runs_here
    from dwcli.project import pipelines_of

    place: warehouse.Place | None = None

    def find() -> Iterator[Finding]:
        nonlocal place
        place, findings = warehouse.find_warehouse(project, settle)
        yield from findings

    yield list(_guarded("warehouse", find))
    data = place.server.data if place and place.server else None
    yield _guarded("disk", lambda: disks(project, data))
    pipelines = pipelines_of(project)
    asked = False

    def ask() -> Iterator[Finding]:
        nonlocal asked
        assert place is not None
        begun = time.perf_counter()
        with closing(warehouse.open_warehouse(place)) as connection:
            seconds = time.perf_counter() - begun
            asked = True
            yield from warehouse.server(connection, place, project.config.schema_, seconds)
            yield from warehouse.versions(connection)
            yield from warehouse.lake(connection, project, pipelines)
            yield from warehouse.runs(connection, place, pipelines, warehouse.now_utc())

    if place is not None:
        yield _guarded("warehouse", ask)
    if not asked:
        yield _guarded("lake", lambda: warehouse.lake(None, project, pipelines))
        yield warehouse.late(last_runs_here(project), pipelines, warehouse.now_utc())


def _guarded(layer: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check; what it cannot do is a finding too, and the next check goes on."""
    from dwcli.render.doctor import Finding

    try:
        yield from check()
    except DwError as error:
        said = f"{error.message} ({error.why})" if error.why else error.message
        yield Finding(layer, "fail", said, error.hint)
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        yield Finding(layer, "fail", f"cannot be looked at: {said}")
    except Exception as error:
        import psycopg

        if not isinstance(error, psycopg.Error):
            raise
        said = error.diag.message_primary or str(error).split("\n")[0]
        yield Finding(layer, "fail", f"the warehouse refused: {said}", "dw test-connection dw")


# -- mending -------------------------------------------------------------------------------------------


def _leave(finding: Finding) -> Finding:
    return finding


def mend(finding: Finding) -> Finding:
    """Mend what is not well, where that does no harm; the finding then says what was done."""
    if finding.mend is None or finding.state == "ok":
        return finding
    try:
        return replace(finding, state="ok", mended=finding.mend())
    except DwError as error:
        return replace(finding, detail=f"{finding.detail}; not mended: {error.message}", mend=None)
    except OSError as error:
        return replace(finding, detail=f"{finding.detail}; not mended: {error.strerror}", mend=None)


# -- showing -------------------------------------------------------------------------------------------


def _clean(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings without a secret in them."""
    from dwcli.cli.app import known_secrets
    from dwcli.references import redact

    secrets = known_secrets()
    for finding in findings:
        yield replace(finding, detail=redact(finding.detail, secrets), fix=redact(finding.fix, secrets))


def _show(finding: Finding) -> None:
    """On a screen each finding at once."""
    from dwcli.render.console import show, stdout
    from dwcli.render.doctor import finding_view

    quiet = settings().quiet and finding.state == "ok" and not finding.mended
    if sys.stdout.isatty() and not settings().json and not quiet:
        show(finding_view(finding, stdout().width))


def _show_rest(found: list[Finding], ok: bool) -> None:
    from dwcli.render.console import print_json, print_rows
    from dwcli.render.doctor import COLUMNS, finding_row

    if settings().json:
        names = ("layer", "state", "detail", "fix", "mended")
        checks = [dict(zip(names, finding_row(finding), strict=True)) for finding in found]
        print_json({"ok": ok, "checks": checks})
    elif not sys.stdout.isatty():
        print_rows(COLUMNS, [finding_row(finding) for finding in found])

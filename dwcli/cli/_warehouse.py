"""The warehouse of a project, running and ready to be connected to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dwcli.cli._say import waiting
from dwcli.cli.settings import settings
from dwcli.errors import ProjectMissing, UsageError
from dwcli.references import environment

if TYPE_CHECKING:
    from dwcli.project import Project
    from dwcli.warehouse.embedded import Server


def warehouse_url_for(project: Project, explicit: str | None = None) -> str:
    """The URL of a project's warehouse; its own server is started when it is down.

    explicit: the value of --warehouse. It wins over DW_URL, which wins over dw.yaml.
    """
    from dwcli.warehouse import embedded, resolve_url

    url = resolve_url(explicit, environment(project.root / ".env"), project.config.warehouse, project.root)
    if url != "embedded":
        return url
    server, _ = started(server_home(project))
    return embedded.url(server)


def started(home: Path, port: int | None = None) -> tuple[Server, bool]:
    """The server of a folder, started if it is down, and whether that was so."""
    from dwcli.warehouse import embedded

    running = embedded.running(home)
    if running:
        return running, False
    with waiting("starting Postgres"):
        return embedded.start(home, port), True


def warehouse_anywhere(explicit: str | None = None) -> tuple[str, str]:
    """(URL, schema) of the warehouse: of the project that we stand in, else of the environment.

    explicit: the value of --warehouse; with a URL, no project is looked for. Without a project, DW_URL or
    DW_HOST… may also stand in `.env` here. Raises UsageError when nothing says where the warehouse is.
    """
    from dwcli.project import load_project
    from dwcli.warehouse import resolve_url

    known = environment(Path(".env"))
    if explicit and explicit != "embedded":
        return resolve_url(explicit, known, None), "public"
    try:
        project = load_project(settings().project)
    except ProjectMissing:
        if not (known.get("DW_URL") or known.get("DW_HOST")):
            raise UsageError(
                "no warehouse is given, and there is no project here to take it from",
                hint="--warehouse postgresql://…, or set DW_URL, also in .env here",
            ) from None
        return resolve_url(None, known, None), "public"
    return warehouse_url_for(project), project.config.schema_


def server_home(project: Project) -> Path:
    """Where a project's own server lives."""
    return project.private / "postgres"


def own_server_home(project: Project, command: str) -> Path:
    """`server_home`, for commands that only a warehouse of dw's own can take. Raises UsageError."""
    from dwcli.warehouse import resolve_url

    url = resolve_url(None, environment(project.root / ".env"), project.config.warehouse, project.root)
    if url != "embedded":
        raise UsageError(
            f"this project's warehouse is not dw's own: `dw {command}` has nothing to do",
            why="warehouse: in dw.yaml (or DW_URL, DW_HOST) names a server that others run",
            hint="dw test-connection --source dw",
        )
    return server_home(project)

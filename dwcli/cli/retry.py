"""`dw retry`: run again what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcli.cli._output import result_wanted, show_rows, tell
from dwcli.cli.run import PROGRESS, run_and_report
from dwcli.cli.settings import settings

if TYPE_CHECKING:
    import psycopg

    from dwcli.project import Pipeline, Project


@dataclass(frozen=True)
class Failure:
    """A pipeline whose last run failed."""

    pipeline: Pipeline
    run_id: str | None
    failed_at: datetime | None
    error_code: str | None
    error: str


def retry(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Only of these pipelines or sources; else of all."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be run again, and do nothing.")
    ] = False,
    full_refresh: Annotated[
        bool, typer.Option("--full-refresh", help="Read everything again, whatever the cursor says.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Pipelines that run at the same time.")] = 1,
    allow_shrink: Annotated[
        bool, typer.Option("--allow-shrink", help="Go on though a source has lost most of its rows.")
    ] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Begin no more after a failure.")] = False,
    progress: Annotated[PROGRESS, typer.Option(help="How to show the work, on stderr.")] = "auto",
) -> None:
    """Run again the pipelines whose last run failed or was killed."""
    from dwcli.cli._warehouse import warehouse_url_for
    from dwcli.project import load_project, pipelines_of, select
    from dwcli.render.words import count
    from dwcli.warehouse import connect

    project = load_project(settings().project)
    chosen = select(project, names) if names else pipelines_of(project)
    url = warehouse_url_for(project)
    with closing(connect(url)) as connection:
        found = failures(connection, project, chosen)
    if dry_run:
        _show(found)
        tell(f"{count(len(found), 'pipeline')} would be run again." if found else "Nothing has failed.")
        return
    if not found:
        if result_wanted():
            from dwcli.render.console import print_json

            print_json({"ok": True, "runs": []})
        tell("Nothing has failed.")
        return
    _tell(found)
    from dwcli.pipeline import RunOptions

    options = RunOptions(full_refresh, None, None, None, jobs, fail_fast, allow_shrink)
    run_and_report(project, [failure.pipeline for failure in found], url, options, progress, alone=False)


def failures(
    connection: psycopg.Connection, project: Project, pipelines: Sequence[Pipeline]
) -> list[Failure]:
    """Those of the pipelines whose last run failed.

    Also one that was killed, and one that failed because the warehouse could not be reached: of that the
    audit log knows nothing.
    """
    from dwcli.cli._record import last_runs_here
    from dwcli.pipeline.lock import holder
    from dwcli.staging.audit import latest_runs

    names = [pipeline.full_name for pipeline in pipelines]
    known, here = latest_runs(connection, 1, names), last_runs_here(project)
    found = []
    for pipeline in pipelines:
        name = pipeline.full_name
        runs = [*known.get(name, []), *here.get(name, [])]
        if not runs:
            continue
        last = max(runs, key=_when)
        if last["status"] == "running":
            if holder(connection, name):
                continue
            last |= {"error_message": "it ended without a word: killed, or the machine stopped"}
        elif last["status"] == "success":
            continue
        found.append(
            Failure(
                pipeline,
                last.get("run_id"),
                last.get("finished_at"),
                last.get("error_code"),
                str(last.get("error_message") or "no reason is known"),
            )
        )
    return found


def _when(run: Mapping[str, Any]) -> datetime:
    moment: datetime = run.get("finished_at") or run["started_at"]
    return moment


def _records(found: Sequence[Failure]) -> list[dict[str, Any]]:
    return [
        {
            "pipeline_name": failure.pipeline.full_name,
            "run_id": failure.run_id,
            "failed_at": failure.failed_at,
            "error_code": failure.error_code,
            "error": failure.error,
        }
        for failure in found
    ]


def _show(found: Sequence[Failure]) -> None:
    from dwcli.render.runs import FAILURE_COLUMNS, failure_row

    records = _records(found)
    show_rows(FAILURE_COLUMNS, [failure_row(record) for record in records], records)


def _tell(found: Sequence[Failure]) -> None:
    """The list on stderr: stdout is for the result."""
    from dwcli.render.console import stderr
    from dwcli.render.runs import FAILURE_COLUMNS, failure_row
    from dwcli.render.tables import table
    from dwcli.render.words import count

    tell(f"Running {count(len(found), 'pipeline')} again:")
    tell(table(FAILURE_COLUMNS, [failure_row(record) for record in _records(found)], stderr().width))
    tell("")

"""`dw verify`: compare source, lake and warehouse."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcli.cli._output import result_wanted, tell
from dwcli.cli.settings import settings

if TYPE_CHECKING:
    import psycopg

    from dwcli.pipeline.record import Job


def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Pipelines or sources; else all of them.")
    ] = None,
    no_source: Annotated[
        bool, typer.Option("--no-source", help="Compare lake and warehouse alone: quick.")
    ] = False,
) -> None:
    """Compare source, lake and warehouse: counts, keys, values, checksums. Changes nothing."""
    from dwcli.cli._warehouse import warehouse_url_for
    from dwcli.pipeline import job_of
    from dwcli.project import load_project, pipelines_of, select
    from dwcli.render.console import print_json
    from dwcli.warehouse import connect

    project = load_project(settings().project)
    chosen = select(project, names) if names else pipelines_of(project)
    with closing(connect(warehouse_url_for(project))) as connection:
        results = [_verify(connection, job_of(project, pipeline), not no_source) for pipeline in chosen]
    ok = all(result["ok"] for result in results)
    if result_wanted():
        print_json(results[0] if len(results) == 1 and names else {"ok": ok, "pipelines": results})
    if not ok:
        raise typer.Exit(1)


def _verify(connection: psycopg.Connection, job: Job, with_source: bool) -> dict[str, Any]:
    """Verify one pipeline, tell it, and keep it as plain values."""
    from dwcli.pipeline.verify import verify as findings
    from dwcli.render.console import stderr
    from dwcli.render.sources import checks_view

    checks: list[dict[str, Any]] = []
    begun = time.monotonic()
    for finding in findings(job, connection, with_source):
        now = time.monotonic()
        checks.append(asdict(finding) | {"milliseconds": round((now - begun) * 1000, 1)})
        begun = now
    shown = [check | {"detail": f"{check['part']:<9} {check['detail']}"} for check in checks]
    tell(checks_view(job.pipeline, f"{job.schema}.{job.table}", shown, stderr().width))
    connection.rollback()
    return {
        "pipeline_name": job.pipeline,
        "target_table": f"{job.schema}.{job.table}",
        "ok": all(check["ok"] for check in checks),
        "checks": checks,
    }

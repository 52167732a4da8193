"""`dw audit`: what past runs did."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcli.cli._output import show_rows, tell, tell_next
from dwcli.cli.settings import settings
from dwcli.errors import DwError, UsageError

if TYPE_CHECKING:
    import psycopg

    from dwcli.project import Project

LISTED_RUNS = 10
#: Runs of each pipeline that a chart is drawn from, at most.
CHARTED_RUNS = 200


def audit(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="One run in detail; the beginning of its id is enough."),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="How many runs: 10, or in a chart as many of a pipeline as fit."
        ),
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this pipeline, or this source.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only runs that failed.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only runs of the last 90s, 15m, 1h, 7d, 2w.")
    ] = None,
    chart: Annotated[
        bool, typer.Option("--chart", help="Draw rows and seconds of the runs over time.")
    ] = False,
) -> None:
    """Show past runs, newest first, or one run in detail, or draw them over time."""
    from dwcli.cli._warehouse import warehouse_url_for
    from dwcli.project import load_project
    from dwcli.render.runs import AUDIT_COLUMNS, audit_row, short_id
    from dwcli.staging.audit import find_run, last_runs
    from dwcli.warehouse import connect

    start = moment(since)
    if chart and (run is not None or failed):
        raise UsageError(
            f"--chart draws all runs over time, so it takes no {'RUN' if run is not None else '--failed'}",
            hint="dw audit --chart --pipeline NAME",
        )
    project = load_project(settings().project)
    with closing(connect(warehouse_url_for(project))) as connection:
        if run is not None:
            _show_run(told(project, connection, find_run(connection, run)))
            return
        if chart:
            _draw(connection, last, pipeline, start)
            return
        runs = last_runs(connection, last or LISTED_RUNS, pipeline, failed, start)
    show_rows(AUDIT_COLUMNS, (audit_row(entry) for entry in runs), runs)
    if not runs:
        tell("No such runs." if pipeline or failed or since else "No runs yet.")
    troubled = next((entry for entry in runs if entry["status"] == "failure"), None)
    if troubled and not settings().json:
        tell_next(f"dw audit {short_id(troubled['run_id'])}")


def told(project: Project, connection: psycopg.Connection, run: dict[str, Any]) -> dict[str, Any]:
    """A run of the audit log with all else that is known of it.

    files: of its snapshot; ddl; rejects; config_before; log: where it is, None where it is not here.
    """
    from dwcli.staging.story import rejects_of, run_before, schema_changes_of, snapshot_of

    run_id, before = run["run_id"], run_before(connection, run)
    snapshot = run.get("snapshot") or snapshot_of(connection, run_id)
    log = project.private / "logs" / f"{run_id}.log"
    files, remark = _files(project, snapshot) if snapshot else ([], "")
    return run | {
        "snapshot": snapshot,
        "files": files,
        "files_remark": remark,
        "ddl": schema_changes_of(connection, run_id),
        "rejects": rejects_of(connection, run_id),
        "config_before": before,
        "log": str(log) if log.is_file() else None,
    }


def _files(project: Project, snapshot: str) -> tuple[list[dict[str, Any]], str]:
    """The Parquet files of a snapshot as its manifest has them, and what is wrong with them."""
    from dwcli.staging.writer import read_manifest

    path = project.lake / snapshot
    if not path.is_file():
        return [], "no longer in the lake"
    try:
        manifest = read_manifest(path)
    except DwError as error:
        return [], error.why or error.message
    listed = [
        {
            "name": file.name,
            "rows": file.rows,
            "bytes": file.bytes,
            "there": (path.parent / file.name).is_file(),
        }
        for file in manifest.every_file
    ]
    return listed, "" if all(file["there"] for file in listed) else "not all of its files are in the lake"


def _show_run(run: dict[str, Any]) -> None:
    import sys

    from dwcli.render.console import print_json, show, stdout, to_json, write_text
    from dwcli.render.runs import audit_detail, short_id
    from dwcli.render.tables import tsv_line

    if settings().json:
        print_json(run)
    elif sys.stdout.isatty():
        show(audit_detail(run, stdout().width))
        if run["log"]:
            tell_next(f"dw logs {short_id(run['run_id'])}")
    else:
        write_text(
            tsv_line([name, to_json(value) if isinstance(value, dict | list) else value])
            for name, value in run.items()
        )


# -- drawn ---------------------------------------------------------------------------------------------


def _draw(
    connection: psycopg.Connection, last: int | None, pipeline: str | None, since: datetime | None
) -> None:
    import sys

    from dwcli.render.charts import CHART_COLUMNS, POINT_COLUMNS, chart, point_rows, series, small_charts
    from dwcli.render.console import ascii_only, print_json, print_rows, show, stdout
    from dwcli.staging.audit import latest_runs

    found = series(
        [
            run
            for name, runs in latest_runs(connection, last or CHARTED_RUNS).items()
            for run in runs
            if (pipeline is None or _is_of(name, pipeline)) and (since is None or run["started_at"] >= since)
        ]
    )
    if settings().json:
        print_json(
            [
                {"pipeline_name": name, "runs": [asdict(point) for point in points]}
                for name, points in found.items()
            ]
        )
        return
    out, plain = stdout(), ascii_only(sys.stdout)
    if not found:
        tell("No such runs." if pipeline or since else "No runs yet.")
    elif not sys.stdout.isatty():
        print_rows(POINT_COLUMNS, point_rows(found))
    elif len(found) == 1:
        for name, points in found.items():
            show(chart(name, points, out.width, plain))
    else:
        print_rows(CHART_COLUMNS, small_charts(found, out.width, plain))
        tell_next(f"dw audit --chart --pipeline {next(iter(found))}")


def _is_of(full_name: str, name: str) -> bool:
    """Whether a pipeline is meant by its name, the part after the dot, or its source."""
    source, _, own = full_name.partition(".")
    return name in (full_name, source, own)


def moment(since: str | None) -> datetime | None:
    """The moment that a duration such as `7d` reaches back to. Raises UsageError."""
    from dwcli.project import seconds

    if since is None:
        return None
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds(since))
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--since: {error}", hint="--since 7d") from None

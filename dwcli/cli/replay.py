"""`dw replay`: rebuild a table from the lake, without its source."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcli.cli._output import result_wanted, show_rows, tell
from dwcli.cli.settings import settings
from dwcli.errors import NameUnknown, UsageError

if TYPE_CHECKING:
    from dwcli.pipeline.replay import Kept, Stretch
    from dwcli.project import Pipeline, Project


def replay(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A pipeline, or one run by its id.")],
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Only runs loaded from then on: 2026-11-23.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Only runs loaded before then.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the snapshots that would be loaded, and do nothing.")
    ] = False,
) -> None:
    """Rebuild a table from the Parquet files of the lake. The source is not asked."""
    from dwcli.cli._warehouse import warehouse_url_for
    from dwcli.cli.run import listening, report
    from dwcli.pipeline import job_of
    from dwcli.pipeline.replay import Stretch, chosen_snapshots
    from dwcli.pipeline.replay import replay as load_again
    from dwcli.project import load_project
    from dwcli.render.words import count
    from dwcli.warehouse import connect

    project = load_project(settings().project)
    url = warehouse_url_for(project)
    stretch = Stretch(None, _moment("--from", start), _moment("--to", end))
    with closing(connect(url)) as connection:
        pipeline, stretch = _what(project, connection, name, stretch)
        job = job_of(project, pipeline, warehouse_url=url)
        snapshots = chosen_snapshots(connection, job, stretch)
    if dry_run:
        _show(snapshots)
        return
    with listening("auto", 1) as emit:
        result, error = load_again(job, partial(connect, url), stretch, emit)
    report(project, [result], alone=True)
    if result["status"] == "success" and stretch.is_whole:
        built = count(len(snapshots), "snapshot")
        tell(f"The table was emptied, and built again from {built} in the lake.")
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    if result["status"] != "success":
        raise typer.Exit(1)


def _what(project: Project, connection: Any, name: str, stretch: Stretch) -> tuple[Pipeline, Stretch]:
    """The pipeline and the stretch that NAME means: a pipeline's own name comes before a run's id."""
    from dataclasses import replace

    from dwcli.project import pipelines_of, select
    from dwcli.staging.audit import find_run

    try:
        chosen = select(project, [name])
    except NameUnknown:
        if not re.fullmatch(r"[0-9a-f-]{4,36}", name):
            raise
        if not stretch.is_whole:
            raise UsageError("--from and --to choose runs of a pipeline; this is one run") from None
        entry = find_run(connection, name)
        known = {pipeline.full_name: pipeline for pipeline in pipelines_of(project)}
        if entry["pipeline_name"] not in known:
            raise NameUnknown(
                f"run {name} belongs to {entry['pipeline_name']}, which is no pipeline of this project"
            ) from None
        return known[entry["pipeline_name"]], replace(stretch, run_id=entry["run_id"])
    if len(chosen) != 1:
        raise UsageError(
            f"{name} has {len(chosen)} pipelines; one is rebuilt at a time",
            hint=" or ".join(f"dw replay {pipeline.full_name}" for pipeline in chosen),
        )
    return chosen[0], stretch


def _moment(flag: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{flag} {text!r} is no time", hint=f"{flag} 2026-11-23, or {flag} '2026-11-23 14:00'"
        ) from None
    return moment if moment.tzinfo else moment.astimezone()


def _show(snapshots: list[Kept]) -> None:
    from dwcli.render.tables import Column
    from dwcli.render.words import count

    columns = (
        Column("RUN"),
        Column("LOADED"),
        Column("WRITE"),
        Column("ROWS", right=True),
        Column("MANIFEST", optional=1),
    )
    records: list[dict[str, Any]] = [
        {
            "run_id": kept.receipt.run_id,
            "loaded_at": kept.receipt.loaded_at,
            "write": kept.manifest.write,
            "rows": kept.manifest.rows,
            "manifest": kept.receipt.snapshot,
        }
        for kept in snapshots
    ]
    rows = [
        [entry["run_id"][:8], entry["loaded_at"], entry["write"], entry["rows"], entry["manifest"]]
        for entry in records
    ]
    show_rows(columns, rows, records)
    if not result_wanted():
        tell(f"{count(len(records), 'snapshot')} would be loaded; nothing was changed.")

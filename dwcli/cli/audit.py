"""`dw audit`: what past runs did."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from dwcli.cli._output import show_rows, tell, tell_next
from dwcli.cli.settings import settings
from dwcli.errors import UsageError


def audit(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="One run in detail; the beginning of its id is enough."),
    ] = None,
    last: Annotated[int, typer.Option(min=1, metavar="N", help="How many runs.")] = 10,
    pipeline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this pipeline, or this source.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only runs that failed.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only runs of the last 90s, 15m, 1h, 7d, 2w.")
    ] = None,
) -> None:
    """Show past runs, newest first, or one run in detail."""
    from dwcli.cli._warehouse import warehouse_url_for
    from dwcli.project import load_project
    from dwcli.render.runs import AUDIT_COLUMNS, audit_row, short_id
    from dwcli.staging.audit import find_run, last_runs
    from dwcli.warehouse import connect

    start = moment(since)
    with closing(connect(warehouse_url_for(load_project(settings().project)))) as connection:
        if run is not None:
            _show_run(find_run(connection, run))
            return
        runs = last_runs(connection, last, pipeline, failed, start)
    show_rows(AUDIT_COLUMNS, (audit_row(entry) for entry in runs), runs)
    if not runs:
        tell("No such runs." if pipeline or failed or since else "No runs yet.")
    troubled = next((entry for entry in runs if entry["status"] == "failure"), None)
    if troubled and not settings().json:
        tell_next(f"dw audit {short_id(troubled['run_id'])}")


def _show_run(entry: dict[str, object]) -> None:
    import sys

    from dwcli.render.console import print_json, show, stdout, write_text
    from dwcli.render.runs import audit_detail
    from dwcli.render.tables import tsv_line

    if settings().json:
        print_json(entry)
    elif sys.stdout.isatty():
        show(audit_detail(entry, stdout().width))
    else:
        write_text(tsv_line([name, value]) for name, value in entry.items())


def moment(since: str | None) -> datetime | None:
    """The moment that a duration such as `7d` reaches back to. Raises UsageError."""
    from dwcli.project import seconds

    if since is None:
        return None
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds(since))
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--since: {error}", hint="--since 7d") from None

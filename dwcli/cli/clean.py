"""`dw clean`: remove from the project what nothing needs any more."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dwcli.cli._confirm import confirmed
from dwcli.cli._output import show_rows, tell
from dwcli.cli.settings import settings
from dwcli.errors import UsageError

if TYPE_CHECKING:
    from dwcli.pipeline.cleaning import Leftover


def clean(
    older: Annotated[
        str | None,
        typer.Option(
            "--older", metavar="TIME", help="Also snapshots in the warehouse that are older: 30d. Else keep:."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would go, and remove nothing.")
    ] = False,
) -> None:
    """Remove what killed runs left, damaged snapshots that were set aside, and old loaded snapshots.

    A snapshot that is not in the warehouse stays, however old it is. A run that begins again from the lake
    (`dw replay`) needs the snapshots that this removes.
    """
    from dwcli.cli._warehouse import warehouse_url_for
    from dwcli.pipeline import job_of
    from dwcli.pipeline.cleaning import leftovers, remove
    from dwcli.project import load_project, pipelines_of, seconds
    from dwcli.render.tables import Column
    from dwcli.render.words import count, size
    from dwcli.warehouse import connect

    columns = (
        Column("PIPELINE"),
        Column("WHAT", folds=True),
        Column("FILES", right=True),
        Column("BYTES", right=True),
    )
    project = load_project(settings().project)
    try:
        age = seconds(older) if older else None
    except ValueError as error:
        raise UsageError(f"--older: {error}", hint="--older 30d") from None
    with closing(connect(warehouse_url_for(project))) as connection:
        found: list[Leftover] = []
        for pipeline in pipelines_of(project):
            job = job_of(project, pipeline)
            found += leftovers(connection, job, job.keep if age is None else age)
        rows = [[entry.pipeline, entry.what, len(entry.paths), entry.bytes] for entry in found]
        files, total = sum(len(entry.paths) for entry in found), sum(entry.bytes for entry in found)
        records = {
            "files": files,
            "bytes": total,
            "leftovers": [asdict(entry) | {"paths": [str(p) for p in entry.paths]} for entry in found],
        }
        show_rows(columns, rows, records)
        if not found:
            tell("Nothing to remove.")
            return
        told = f"{count(files, 'file')} ({size(total)})"
        if dry_run:
            tell(f"{told}. Nothing was removed.")
        elif confirmed(f"Remove {told}?", "dw clean"):
            remove(found)
            tell(f"{told} removed.")
        else:
            tell("Nothing was removed.")

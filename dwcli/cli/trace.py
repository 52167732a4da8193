"""`dw trace`: which run and which Parquet file a row came from, and what it was before."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcli.cli._output import tell
from dwcli.cli.settings import settings
from dwcli.errors import NameUnknown, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg

    from dwcli.pipeline.trace import Found
    from dwcli.project import Pipeline, Project


def trace(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="A table that a pipeline loads, or the pipeline.")
    ],
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="VALUE", help="The row: a value of its key, or COLUMN=VALUE. Once per column."),
    ] = None,
    last: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many snapshots of the lake to search, newest first.")
    ] = 100,
) -> None:
    """Show which run and file a row came from, and each version of it in the lake."""
    from dwcli.cli._warehouse import warehouse_url_for
    from dwcli.project import load_project
    from dwcli.warehouse import connect

    project = load_project(settings().project)
    pipeline = pipeline_of(project, table)
    if not key:
        columns = pipeline.config.key
        values = " ".join(f"--key {column}=…" for column in columns) or "--key COLUMN=VALUE"
        raise UsageError("which row?", hint=f"dw trace {table} {values}")
    with closing(connect(warehouse_url_for(project))) as connection:
        from dwcli.pipeline import job_of
        from dwcli.pipeline.trace import trace as look_for

        found = look_for(connection, job_of(project, pipeline), key, last)
        runs = _runs(connection, found)
    _show(pipeline, found, runs)
    _tell_rest(pipeline, found)
    if not found.rows and not found.versions:
        raise typer.Exit(1)


def pipeline_of(project: Project, table: str) -> Pipeline:
    """The pipeline that loads a table: `table`, `schema.table`, or the pipeline's own name.

    Raises NameUnknown.
    """
    from dwcli.documents import nearest
    from dwcli.project import pipelines_of

    every = pipelines_of(project)
    for name_of in (
        lambda p: f"{p.schema}.{p.target}",
        lambda p: p.target,
        lambda p: p.full_name,
        lambda p: p.name,
    ):
        found = [pipeline for pipeline in every if name_of(pipeline) == table]
        if len(found) == 1:
            return found[0]
        if found:
            names = [f"{p.schema}.{p.target}" for p in found]
            raise NameUnknown(f"'{table}' is {len(found)} tables", hint="say which: " + " or ".join(names))
    tables = ", ".join(sorted({f"{p.schema}.{p.target}" for p in every}))
    known = [name for p in every for name in (p.target, f"{p.schema}.{p.target}", p.full_name)]
    raise NameUnknown(
        f"no pipeline loads a table '{table}'.{nearest(table, known)}",
        hint=f"known: {tables or 'none yet: dw add-source'}",
    )


def _runs(connection: psycopg.Connection, found: Found) -> dict[str, dict[str, Any]]:
    """The audit log's rows of the runs that matter. One that is no longer there is left out."""
    from dwcli.staging.audit import find_run

    wanted = {str(row["_run_id"]) for row in found.rows if row.get("_run_id")}
    runs = {}
    for run_id in wanted:
        try:
            runs[run_id] = find_run(connection, run_id)
        except NameUnknown:
            continue
    return runs


def _show(pipeline: Pipeline, found: Found, runs: Mapping[str, Mapping[str, Any]]) -> None:
    from dwcli.pipeline.trace import changes, key_of, since
    from dwcli.render.console import ascii_only, print_json, print_rows, show, stdout
    from dwcli.render.trace import TRACE_COLUMNS, trace_rows, trace_view

    changed = changes(found)
    versions: list[dict[str, Any]] = [
        {
            "run_id": version.run_id,
            "read_at": version.read_at,
            "file": version.file,
            "row": version.row,
            "loaded": version.loaded,
            "gone": version.gone,
            "key": key_of(version.values, found.identity),
            "changed": changed[number],
            "values": dict(version.values),
        }
        for number, version in enumerate(found.versions)
    ]
    rows = [
        {
            "values": row,
            "run": runs.get(str(row.get("_run_id"))),
            "since": {column: v.run_id for column, v in since(row, found).items()},
        }
        for row in found.rows
    ]
    record = {
        "table": f"{pipeline.schema}.{pipeline.target}",
        "pipeline_name": pipeline.full_name,
        "key": {one.column: one.text for one in found.wanted},
        "warehouse": rows,
        "lake": versions,
        "snapshots_searched": found.searched,
        "snapshots_left": found.left,
        "remarks": found.remarks,
    }
    if settings().json:
        print_json(record)
    elif sys.stdout.isatty():
        out = stdout()
        show(trace_view(record, out.width, ascii_only(sys.stdout)))
    else:
        print_rows(TRACE_COLUMNS, trace_rows(record))


def _tell_rest(pipeline: Pipeline, found: Found) -> None:
    from dwcli.render.words import count, escape

    for remark in found.remarks:
        tell(escape(remark))
    key = escape(", ".join(f"{one.column} = {one.text}" for one in found.wanted))
    searched = f"{count(found.searched, 'snapshot')} of the lake"
    if not found.rows and not found.versions:
        tell(f"No row with {key} in {pipeline.schema}.{pipeline.target}, nor in {searched}.")
    if found.left:
        tell(f"{count(found.left, 'older snapshot')} not searched: --last {found.searched + found.left}")

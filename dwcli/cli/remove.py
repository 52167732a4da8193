"""`dw remove`: take a pipeline or a whole source out of the project, and say what stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcli.cli._confirm import confirmed
from dwcli.cli._output import tell, tell_next
from dwcli.cli._say import command_line
from dwcli.cli.settings import settings
from dwcli.errors import DwError, WarehouseError

if TYPE_CHECKING:
    import psycopg

    from dwcli.pipeline.record import Job
    from dwcli.pipeline.removing import Traces
    from dwcli.project import Pipeline, Project, Source


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A source, a pipeline, or source.pipeline.")],
    drop_table: Annotated[
        bool, typer.Option("--drop-table", help="Drop the table too; refused while views read it.")
    ] = False,
    lake: Annotated[bool, typer.Option("--lake", help="Delete its Parquet files in the lake too.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go and what would stay; change nothing.")
    ] = False,
) -> None:
    """Remove a pipeline or a whole source. Its table and its files in the lake stay unless asked for."""
    from dwcli.cli._named import named
    from dwcli.pipeline import job_of
    from dwcli.project import load_project

    project = load_project(settings().project)
    source, pipelines, whole = named(project, name)
    jobs = [job_of(project, pipeline) for pipeline in pipelines]
    with ExitStack() as stack:
        connection, why = _warehouse(project, dry_run)
        if connection is not None:
            stack.enter_context(closing(connection))
            _hold(connection, jobs, dry_run)
        elif drop_table and jobs:
            raise WarehouseError(
                "the warehouse cannot be reached, so no table can be dropped",
                why=why,
                hint="dw up, or leave out --drop-table",
            )
        found = _found(connection, jobs)
        if drop_table and not dry_run:
            _refuse_views(found)
        left_out = _unused_secrets(project, source) if whole else []
        record = _record(project, source, jobs, found, whole, left_out, drop_table, lake)
        _tell(record, why)
        if dry_run:
            tell("Nothing was changed.")
        elif confirmed(
            _question(source, pipelines, whole, drop_table, lake), _command(name, drop_table, lake)
        ):
            _remove(connection, source, jobs, whole, drop_table, lake)
            tell(f"Removed {source.name if whole else pipelines[0].full_name}.")
            if not whole and len(source.pipelines) == 1:
                tell_next(f"dw remove {source.name}   (it has no pipelines left)")
        else:
            tell("Nothing was changed.")
            record["removed"] = False
        _print(record | {"dry_run": dry_run, "removed": record.get("removed", not dry_run)})


# -- what there is ------------------------------------------------------------------------------------


def _warehouse(project: Project, dry_run: bool) -> tuple[psycopg.Connection | None, str]:
    """The warehouse, or why it cannot be had. A server that was never made is not made for this."""
    from dwcli.cli._warehouse import server_home, warehouse_url_for
    from dwcli.cli.status import running_url
    from dwcli.warehouse import connect

    try:
        url = running_url(project)
        if url is None and not dry_run and server_home(project).exists():
            url = warehouse_url_for(project)
        if url is None:
            return None, "it is not running"
        return connect(url, patience=5), ""
    except DwError as error:
        return None, error.why or error.message


def _hold(connection: psycopg.Connection, jobs: Sequence[Job], dry_run: bool) -> None:
    """No run of these pipelines can begin until the session ends. Raises PipelineLocked."""
    from dwcli.pipeline.lock import take_lock

    for job in () if dry_run else jobs:
        take_lock(connection, job.pipeline, "remove")
    connection.commit()


def _found(connection: psycopg.Connection | None, jobs: Sequence[Job]) -> dict[str, Traces]:
    from dwcli.pipeline.removing import traces

    if connection is None:
        return {}
    found = {job.pipeline: traces(connection, job) for job in jobs}
    connection.rollback()
    return found


def _refuse_views(found: Mapping[str, Traces]) -> None:
    used = [(trace.table, view) for trace in found.values() for view in trace.views]
    if used:
        raise WarehouseError(
            "; ".join(f"{view} reads {table}" for table, view in used) + ": nothing was removed",
            why="a view is never dropped with its table",
            hint=f"drop {used[0][1]} first, or leave out --drop-table",
        )


def _unused_secrets(project: Project, source: Source) -> list[str]:
    """Variables of `.env` that no other file of the project refers to."""
    from dwcli.references import read_env_file

    others = [dict(s.connection) for s in project.sources.values() if s.name != source.name]
    used = set(_variables([others, project.config.warehouse, project.config.lake]))
    known = read_env_file(project.root / ".env")
    mine = dict.fromkeys(_variables(dict(source.connection)))
    return [variable for variable in mine if variable in known and variable not in used]


def _variables(value: Any) -> Iterator[str]:
    from dwcli.references import REFERENCE

    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _variables(item)
    elif isinstance(value, str):
        yield from (name.strip() for kind, name in REFERENCE.findall(value) if kind == "env")


# -- what is said -------------------------------------------------------------------------------------


def _record(
    project: Project,
    source: Source,
    jobs: Sequence[Job],
    found: Mapping[str, Traces],
    whole: bool,
    secrets: list[str],
    drop_table: bool,
    lake: bool,
) -> dict[str, Any]:
    """What goes and what stays, for JSON and for the screen."""
    from dwcli.pipeline.removing import lake_files
    from dwcli.staging.writer import source_folder

    entries: list[dict[str, Any]] = []
    for job in jobs:
        files, size = lake_files(job)
        trace = asdict(found[job.pipeline]) if job.pipeline in found else {}
        folder = source_folder(job.lake, job.protocol, job.lake_name)
        entries.append(
            {
                "pipeline_name": job.pipeline,
                "table": f"{job.schema}.{job.table}",
                "rows": trace.get("rows"),
                "views": list(trace.get("views", ())),
                "state": trace.get("state"),
                "table_goes": bool(drop_table and trace.get("rows") is not None),
                "state_goes": trace.get("state") is not None,
                "lake": _relative(folder, project.root),
                "lake_files": len(files),
                "lake_bytes": size,
                "lake_goes": bool(lake and files),
            }
        )
    return {
        "ok": True,
        "name": source.name if whole else jobs[0].pipeline,
        "file": _relative(source.path, project.root),
        "file_goes": whole,
        "warehouse_reached": bool(found) or not jobs,
        "pipelines": entries,
        "secrets_kept": secrets,
    }


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _tell(record: Mapping[str, Any], why: str) -> None:
    from dwcli.render.removal import removal_view

    tell(removal_view(record, why))


def _question(
    source: Source, pipelines: Sequence[Pipeline], whole: bool, drop_table: bool, lake: bool
) -> str:
    from dwcli.render.words import count

    what = f"the source {source.name}" if whole else f"the pipeline {pipelines[0].full_name}"
    if whole and pipelines:
        what += f" with {count(len(pipelines), 'pipeline')}"
    tables = "its table" if len(pipelines) == 1 else f"{len(pipelines)} tables"
    more = [tables] if drop_table and pipelines else []
    more += ["its files in the lake"] if lake else []
    return f"Remove {', '.join([what, *more])}?"


def _command(name: str, drop_table: bool, lake: bool) -> str:
    flags = [flag for flag, on in (("--drop-table", drop_table), ("--lake", lake)) if on]
    return command_line(["dw", "remove", name, *flags])


def _print(record: Mapping[str, Any]) -> None:
    from dwcli.render.console import print_json

    if settings().json:
        print_json(record)


# -- the removal --------------------------------------------------------------------------------------


def _remove(
    connection: psycopg.Connection | None,
    source: Source,
    jobs: Sequence[Job],
    whole: bool,
    drop_table: bool,
    lake: bool,
) -> None:
    """Warehouse, file and lake, in the order that leaves nothing behind which loads rows twice.

    The file goes before the warehouse commits: a state without a pipeline does no harm, a pipeline without
    its state would read everything again.
    """
    from dwcli.cli._rewrite import GONE, read_text, replace_text, rewritten
    from dwcli.pipeline.removing import remove_from_lake, remove_from_warehouse

    if connection is not None:
        for job in jobs:
            remove_from_warehouse(connection, job, drop_table)
    if whole:
        source.path.unlink()
    else:
        text = read_text(source.path)
        keys = ("pipelines", jobs[0].pipeline.partition(".")[2])
        replace_text(source.path, text, rewritten(text, source.path, {keys: GONE}))
    if connection is not None:
        connection.commit()
    for job in jobs if lake else ():
        remove_from_lake(job)

"""`dw run --due`: which pipelines' time has come.

That is asked of the audit log each time: nothing else is kept, so a missed day is caught up by one run.
What has failed is due again after waits that grow with the failures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dwcli.cli._output import tell
from dwcli.cli.settings import settings

if TYPE_CHECKING:
    import psycopg

    from dwcli.clock import Past
    from dwcli.events import Emit, Event
    from dwcli.project import Pipeline, Project


def with_a_time(project: Project, names: Sequence[str]) -> list[Pipeline]:
    """The pipelines that have `every:`, of those named or of all."""
    from dwcli.project import pipelines_of, select

    chosen = select(project, names) if names else pipelines_of(project)
    return [pipeline for pipeline in chosen if pipeline.config.every]


def pasts(url: str, pipelines: Sequence[Pipeline]) -> dict[str, Past]:
    """What decides when each of these pipelines runs next, by its name."""
    from dwcli.warehouse import connect

    with closing(connect(url)) as connection:
        return pasts_of(connection, [pipeline.full_name for pipeline in pipelines])


def pasts_of(connection: psycopg.Connection, names: Sequence[str]) -> dict[str, Past]:
    """What the audit log says of the past of pipelines, by name; one that never ran is not there."""
    from dwcli.clock import past_of
    from dwcli.staging.audit import latest_runs

    return {name: past_of(runs) for name, runs in latest_runs(connection, names=names).items()}


def due_of(pipelines: Sequence[Pipeline], known: Mapping[str, Past]) -> list[Pipeline]:
    """The pipelines that are to run now."""
    from dwcli.clock import Past, is_due

    now = datetime.now(UTC)
    return [p for p in pipelines if is_due(p.config.every or "", known.get(p.full_name, Past()), now)]


def part_running(url: str, pipelines: Sequence[Pipeline]) -> tuple[list[Pipeline], list[dict[str, Any]]]:
    """(the pipelines that nobody runs, a result for each of the others)."""
    from dwcli.pipeline.lock import holder
    from dwcli.warehouse import connect

    with closing(connect(url)) as connection:
        held = {p.full_name: holder(connection, p.full_name) for p in pipelines}
    return (
        [p for p in pipelines if held[p.full_name] is None],
        [
            skipped(
                {
                    "pipeline_name": p.full_name,
                    "source_name": p.source.name,
                    "target_table": f"{p.schema}.{p.target}",
                },
                f"{p.full_name} is already running{held[p.full_name]}",
            )
            for p in pipelines
            if held[p.full_name] is not None
        ],
    )


def skipped(result: Mapping[str, Any], why: str) -> dict[str, Any]:
    """The result of a pipeline that was left to the run that has it."""
    kept = ("pipeline_name", "source_name", "target_table")
    return {
        "run_id": None,
        "status": "skipped",
        **{name: result[name] for name in kept},
        "rows_loaded": 0,
        "parquet_files": 0,
        "duration_seconds": 0.0,
        "error": None,
        "why": why,
    }


def still_due(pipelines: Sequence[Pipeline]) -> Callable[[psycopg.Connection, str], bool]:
    """Asks whether a pipeline, by name, is due: another `dw run --due` may have run it meanwhile."""
    by_name = {p.full_name: p for p in pipelines}

    def wanted(session: psycopg.Connection, name: str) -> bool:
        return bool(due_of([by_name[name]], pasts_of(session, [name])))

    return wanted


def without_locked(emit: Emit) -> Emit:
    """A listener that is not told of a pipeline that another run took first."""
    from dwcli.events import RunFinished

    def quiet(event: Event) -> None:
        if isinstance(event, RunFinished):
            if is_locked(event.result):
                return
            if event.result["status"] != "success":
                stamp()
        emit(event)

    return quiet


def stamp() -> None:
    """The time above what goes wrong, where a timer calls and a log is written."""
    if settings().quiet and not sys.stderr.isatty():
        from dwcli.render.console import say

        say(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z} dw run --due")


def is_locked(result: Mapping[str, Any]) -> bool:
    return (result.get("error") or {}).get("code") == "DW-LOCKED"


def locked_as_skipped(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results, with those that another run had taken as skipped."""
    return [skipped(r, r["error"]["message"]) if is_locked(r) else r for r in results]


def tell_nothing_due(pipelines: Sequence[Pipeline], known: Mapping[str, Past]) -> None:
    """Say that there is nothing to do, and when there will be."""
    from dwcli.clock import Past, next_run
    from dwcli.render.runs import after_failures
    from dwcli.render.words import local_time

    if not pipelines:
        tell("Nothing is due: no pipeline has a time. Give one in its source file, such as every: 1h")
        return
    now = datetime.now(UTC)
    found = [(p.full_name, known.get(p.full_name, Past()), p.config.every or "") for p in pipelines]
    moment, name, past = min(
        ((next_run(every, past) or now, name, past) for name, past, every in found), key=lambda one: one[:2]
    )
    after = f"{after_failures(past.failures)}; at once: dw run {name}" if past.failures else ""
    tell(f"Nothing is due. {name} is next: {local_time(moment)}{after}")

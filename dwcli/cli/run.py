"""`dw run`: load pipelines, or one query without a project."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dwcli.cli._output import result_wanted, tell, tell_next
from dwcli.cli.settings import can_animate, can_ask, settings
from dwcli.errors import AnswerMissing, DwError, RunStopped, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dwcli.events import Emit
    from dwcli.pipeline import RunOptions
    from dwcli.pipeline.planning import Plan
    from dwcli.project import Pipeline, Project
    from dwcli.render.progress import Mode

PROGRESS = Literal["auto", "bars", "log", "none"]


def run(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Pipelines, sources, or source.pipeline.")
    ] = None,
    every_one: Annotated[bool, typer.Option("--all", help="Every pipeline of the project.")] = False,
    due: Annotated[
        bool, typer.Option("--due", help="Only those whose time (every:) has come: for timers and cron.")
    ] = False,
    full_refresh: Annotated[
        bool, typer.Option("--full-refresh", help="Read everything again, whatever the cursor says.")
    ] = False,
    start: Annotated[
        str | None, typer.Option("--from", metavar="VALUE", help="Backfill: cursor values from here on.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="VALUE", help="Backfill: cursor values before this.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after N rows of each pipeline.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Pipelines that run at the same time.")] = 1,
    allow_shrink: Annotated[
        bool, typer.Option("--allow-shrink", help="Go on though a source has lost most of its rows.")
    ] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Begin no more after a failure.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would happen; change nothing anywhere.")
    ] = False,
    progress: Annotated[PROGRESS, typer.Option(help="How to show the work, on stderr.")] = "auto",
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel="One query, no project", help="Connection, as YAML or JSON."
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            metavar="QUERY", rich_help_panel="One query, no project", help="What to read: table, SQL, path …"
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel="One query, no project",
            help="Name of the source in lake and audit log.",
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(metavar="TABLE", rich_help_panel="One query, no project", help="Table to load into."),
    ] = None,
    lake: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", rich_help_panel="One query, no project", help="Folder for the Parquet files."
        ),
    ] = None,
    schema: Annotated[
        str,
        typer.Option(metavar="NAME", rich_help_panel="One query, no project", help="Schema of the table."),
    ] = "public",
    pipeline: Annotated[
        str,
        typer.Option(metavar="NAME", rich_help_panel="One query, no project", help="Name in the audit log."),
    ] = "default",
    warehouse: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            rich_help_panel="One query, no project",
            help="Warehouse; else DW_URL, else the project's.",
        ),
    ] = None,
) -> None:
    """Read what is new, keep it in the lake, load it into the warehouse."""
    one_query = {"--config": config, "--query": query, "--source": source, "--table": table, "--lake": lake}
    if any(value is not None for value in one_query.values()):
        _refuse_mixed(
            {
                "NAME": names,
                "--all": every_one,
                "--due": due,
                "--full-refresh": full_refresh,
                "--from": start,
                "--to": end,
                "--limit": limit,
                "--jobs": jobs != 1,
                "--fail-fast": fail_fast,
                "--allow-shrink": allow_shrink,
            }
        )
        missing = [flag for flag, value in one_query.items() if value is None]
        if missing:
            raise AnswerMissing(
                f"for one query without a project, {', '.join(missing)} must be given too",
                hint="dw run --config FILE --query QUERY --source NAME --table TABLE --lake DIR",
            )
        one = OneQuery(str(config), str(query), str(source), str(table), str(lake), schema, pipeline)
        if dry_run:
            _plan_one_query(one, warehouse)
        else:
            _run_one_query(one, warehouse, progress)
        return
    if due:
        given = {"--full-refresh": full_refresh, "--from": start, "--to": end, "--limit": limit}
        given["--dry-run"] = dry_run
        _refuse_with_due(given)
        from dwcli.cli._due import stamp

        try:
            _run_due(names or [], warehouse, jobs, fail_fast, allow_shrink, progress)
        except DwError:
            stamp()
            raise
        return
    from dwcli.cli._warehouse import warehouse_url_for
    from dwcli.pipeline import RunOptions
    from dwcli.project import load_project

    project = load_project(settings().project)
    chosen = choose(project, names or [], every_one)
    url = warehouse_url_for(project, warehouse)
    options = RunOptions(full_refresh, start, end, limit, jobs, fail_fast, allow_shrink)
    alone = len(chosen) == 1 and len(names or []) <= 1 and not every_one
    if dry_run:
        from dwcli.pipeline.planning import plan_project

        _show_plans(plan_project(project, chosen, url, options), alone)
        return
    run_and_report(project, chosen, url, options, progress, alone)


def run_and_report(
    project: Project,
    pipelines: Sequence[Pipeline],
    url: str,
    options: RunOptions,
    progress: PROGRESS,
    alone: bool,
) -> None:
    """Run pipelines and say how it went. alone: one was asked for, so its result is the document.

    Raises typer.Exit where one failed, or a signal ended it.
    """
    from dwcli.cli._notify import tell_of_runs
    from dwcli.cli._record import read_last, rows_before
    from dwcli.pipeline import run_project

    before = read_last(project)
    try:
        with listening(progress, len(pipelines), rows_before(project)) as emit:
            results = run_project(project, pipelines, url, options, emit)
    except RunStopped as stopped:
        if not stopped.results:
            raise
        tell(stopped.message)
        report(project, stopped.results, alone)
        raise typer.Exit(stopped.exit_code) from None
    report(project, results, alone)
    tell_of_runs(project, url, results, before)
    if any(result["status"] != "success" for result in results):
        raise typer.Exit(1)


def _refuse_with_due(given: Mapping[str, object]) -> None:
    found = [flag for flag, value in given.items() if value is not None and value is not False]
    if found:
        raise UsageError(
            f"{', '.join(found)}: not with --due, which runs what a timer would run",
            hint=f"name the pipelines: dw run NAME {found[0]} …",
        )


def _run_due(
    names: Sequence[str],
    warehouse: str | None,
    jobs: int,
    fail_fast: bool,
    allow_shrink: bool,
    progress: PROGRESS,
) -> None:
    """Run what is due, leave what runs already, and tell of what is late."""
    from dwcli.cli import _due
    from dwcli.cli._notify import tell_of_runs, tell_of_warehouse
    from dwcli.cli._record import read_last
    from dwcli.cli._timers import trim_log
    from dwcli.cli._warehouse import warehouse_url_for
    from dwcli.project import load_project

    project = load_project(settings().project)
    trim_log(project.root)
    timed = _due.with_a_time(project, names)
    if not timed:
        _due.tell_nothing_due([], {})
        report(project, [], alone=False)
        return
    before = read_last(project)
    try:
        url = warehouse_url_for(project, warehouse)
        known = _due.pasts(url, timed)
    except DwError as error:
        tell_of_warehouse(project, before, error)
        raise
    tell_of_warehouse(project, before, None)
    due = _due.due_of(timed, known)
    results: list[dict[str, Any]] = []
    if due:
        from dwcli.pipeline import RunOptions, run_project

        free, results = _due.part_running(url, due)
        options = RunOptions(
            jobs=jobs, fail_fast=fail_fast, allow_shrink=allow_shrink, wanted=_due.still_due(free)
        )
        try:
            with listening(progress, len(free)) as emit:
                done = run_project(project, free, url, options, _due.without_locked(emit))
        except RunStopped as stopped:
            if not stopped.results:
                raise
            tell(stopped.message)
            report(project, [*results, *_due.locked_as_skipped(stopped.results)], alone=False)
            raise typer.Exit(stopped.exit_code) from None
        results += _due.locked_as_skipped(done)
    if not results:
        _due.tell_nothing_due(timed, known if not due else _due.pasts(url, timed))
    report(project, results, alone=False)
    tell_of_runs(project, url, results, before, timed)
    if any(result["status"] == "failure" for result in results):
        raise typer.Exit(1)


def choose(project: Project, names: Sequence[str], every_one: bool) -> list[Pipeline]:
    """The pipelines that a command line means: named, all, the only one, or asked for."""
    from dwcli.project import pipelines_of, select

    known = pipelines_of(project)
    if names and every_one:
        raise UsageError("either names or --all, not both", hint="dw run --all")
    if names:
        return _with_pipelines(select(project, names))
    if not known:
        raise UsageError("there is nothing to run yet: no source has a pipeline", hint="dw add-source")
    if every_one or len(known) == 1:
        return known
    if not can_ask():
        raise AnswerMissing(
            "which pipelines? Name them, or take --all",
            why="there are " + ", ".join(pipeline.full_name for pipeline in known),
            hint=f"dw run {known[0].full_name}, or dw run --all",
        )
    return _ask(known)


def _with_pipelines(chosen: list[Pipeline]) -> list[Pipeline]:
    if not chosen:
        raise UsageError("that source has no pipelines", hint="dw sources shows what there is")
    return chosen


def _ask(known: list[Pipeline]) -> list[Pipeline]:
    import questionary
    from prompt_toolkit.output import create_output

    answer: list[str] = questionary.checkbox(
        "What to run?",
        [pipeline.full_name for pipeline in known],
        instruction="(space picks, enter runs)",
        # stdout is for data: a question on it would be swallowed by a pipe
        output=create_output(stdout=sys.stderr),
    ).unsafe_ask()
    if not answer:
        raise UsageError("nothing was picked", hint="space picks, enter runs; or dw run --all")
    return [pipeline for pipeline in known if pipeline.full_name in answer]


def _refuse_mixed(given: Mapping[str, object]) -> None:
    """One query has no place in a project, so nothing that speaks of its pipelines goes with it."""
    found = [flag for flag, value in given.items() if value]
    if found:
        raise UsageError(
            f"{', '.join(found)}: for pipelines of a project, not for one query (--config …)",
            hint="dw run --help",
        )


@contextmanager
def listening(
    progress: PROGRESS, planned: int, before: Mapping[tuple[str, bool], int] | None = None
) -> Iterator[Emit]:
    """The listener of a run, in the form that was asked for and that stderr can show."""
    from dwcli.events import Event, RunFinished
    from dwcli.render.progress import follow

    if settings().quiet:
        with follow("none") as show:

            def failures(event: Event) -> None:
                if isinstance(event, RunFinished) and event.result.get("status") != "success":
                    show(event)

            yield failures
        return
    mode: Mode = "none" if progress == "none" else "bars"
    if progress == "log" or (
        mode == "bars" and not (can_animate() or (progress == "bars" and sys.stderr.isatty()))
    ):
        mode = "log"
    with follow(mode, planned=planned, before=before) as emit:
        yield emit


def report(project: Project, results: Sequence[Mapping[str, Any]], alone: bool) -> None:
    """Everything after the run: the JSON result, the local record, what to do next."""
    from dwcli.cli._record import write_last
    from dwcli.render.console import print_json
    from dwcli.render.runs import after_runs, totals

    ran = [result for result in results if result["status"] != "skipped"]
    if result_wanted():
        ok = (bool(results) or not alone) and all(result["status"] == "success" for result in ran)
        print_json(results[0] if alone and results else {"ok": ok, "runs": list(results)})
    for result in results:
        if result["status"] == "skipped":
            tell(f"{result['why']}: skipped")
    if not ran:
        return
    write_last(project, ran)
    _refresh_completion(project, ran)
    if len(ran) > 1:
        tell(totals(ran))
    tell_next(after_runs(ran))


def _refresh_completion(project: Project, results: Sequence[Mapping[str, Any]]) -> None:
    from dwcli.cli.completion import refresh_completion_cache

    tables = sorted({str(result["target_table"]) for result in results if result.get("target_table")})
    refresh_completion_cache(project, tables, [str(r["run_id"]) for r in results if r.get("run_id")])


# -- what would happen ---------------------------------------------------------------------------------


def _show_plans(plans: Iterable[Plan], alone: bool) -> None:
    """Show each plan as soon as it is made. Exit 1 where something is known that would make a run fail."""
    from dwcli.pipeline.planning import record
    from dwcli.render.console import ascii_only, print_json, say
    from dwcli.render.plans import closing_line, plan_view

    made: list[Plan] = []
    for plan in plans:
        made.append(plan)
        if not settings().json and not (settings().quiet and plan.ok):
            say(plan_view(plan, ascii_only(sys.stderr)))
    records = [record(plan) for plan in made]
    ok = all(plan.ok for plan in made)
    if result_wanted():
        print_json(records[0] if alone and records else {"ok": ok, "plans": records})
    if not settings().json:
        tell(closing_line(made))
    if not ok:
        raise typer.Exit(1)


def _plan_one_query(one: OneQuery, warehouse: str | None) -> None:
    from dwcli.cli._warehouse import warehouse_anywhere
    from dwcli.pipeline.planning import plan_one
    from dwcli.pipeline.runner import one_job

    url = warehouse_anywhere(warehouse)[0]
    job = one_job(
        {"config_file": one.config}, one.query, one.source, one.table, one.lake, one.schema, one.pipeline
    )
    _show_plans([plan_one(job, url)], alone=True)


# -- one query, without a project ----------------------------------------------------------------------


@dataclass(frozen=True)
class OneQuery:
    """What `dw run --config …` was given."""

    config: str
    query: str
    source: str
    table: str
    lake: str
    schema: str
    pipeline: str


def _run_one_query(one: OneQuery, warehouse: str | None, progress: PROGRESS) -> None:
    from dwcli.cli._warehouse import warehouse_anywhere
    from dwcli.events import Event, RunFinished
    from dwcli.pipeline import run_pipeline
    from dwcli.render.console import print_json
    from dwcli.warehouse import make_engine

    results: list[Mapping[str, Any]] = []
    engine = make_engine(warehouse_anywhere(warehouse)[0])
    try:
        with listening(progress, 1) as show:

            def emit(event: Event) -> None:
                if isinstance(event, RunFinished):
                    results.append(event.result)
                show(event)

            run_pipeline(
                {"config_file": one.config},
                one.query,
                one.source,
                one.table,
                one.lake,
                engine,
                one.schema,
                one.pipeline,
                emit,
            )
    except DwError as error:
        if not results:
            raise
        raise typer.Exit(error.exit_code) from None  # the listener has told it already
    finally:
        engine.dispose()
        if result_wanted() and results:
            print_json(results[0])
    if results and results[0]["status"] != "success":
        raise typer.Exit(1)

"""`dw state`: how far each pipeline has come, and how to move it."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dwcli.cli._confirm import confirmed
from dwcli.cli._output import show_rows, tell
from dwcli.cli._say import command_line
from dwcli.cli.settings import settings
from dwcli.errors import UsageError

if TYPE_CHECKING:
    import psycopg

    from dwcli.project import Pipeline, Project


def state(
    action: Annotated[
        Literal["show", "set", "reset"],
        typer.Argument(help="show: how far; set: move the cursor; reset: forget it."),
    ] = "show",
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A pipeline; for show also a source, or nothing.")
    ] = None,
    value: Annotated[
        str | None, typer.Argument(metavar="VALUE", help="Where the next run begins, for set.")
    ] = None,
) -> None:
    """Show or move the cursor of a pipeline. Rows in the warehouse stay as they are."""
    from dwcli.cli._warehouse import warehouse_url_for
    from dwcli.project import load_project, pipelines_of, select
    from dwcli.warehouse import connect

    if (action != "show" and name is None) or (action == "set") != (value is not None):
        raise UsageError(
            f"dw state {action} takes " + {"set": "a pipeline and a value"}.get(action, "one pipeline"),
            hint="dw state set shop.orders 2026-01-01, or dw state reset shop.orders",
        )
    project = load_project(settings().project)
    chosen = select(project, [name]) if name else pipelines_of(project)
    with closing(connect(warehouse_url_for(project))) as connection:
        if action == "show":
            _show(connection, chosen)
        elif len(chosen) == 1:
            _move(connection, project, chosen[0], value)
        else:
            raise UsageError(
                f"'{name}' is {len(chosen)} pipelines; one at a time",
                hint=" or ".join(pipeline.full_name for pipeline in chosen[:3]),
            )


def _show(connection: psycopg.Connection, pipelines: list[Pipeline]) -> None:
    from dwcli.render.tables import Column
    from dwcli.staging.state import states

    known = states(connection)
    records = [
        {"pipeline_name": p.full_name, **known.get(p.full_name, dict.fromkeys(_FIELDS))} for p in pipelines
    ]
    columns = (
        Column("PIPELINE"),
        Column("CURSOR"),
        Column("VALUE", folds=True),
        Column("POSITION", optional=2, folds=True),
        Column("SINCE", optional=1),
    )
    rows = (
        [
            record["pipeline_name"],
            record["cursor_column"],
            record["cursor_value"],
            None if record["position"] is None else json.dumps(record["position"]),
            record["updated_at"],
        ]
        for record in records
    )
    show_rows(columns, rows, records)


_FIELDS = ("cursor_column", "cursor_value", "cursor_type", "position", "run_id", "updated_at")


def _move(connection: psycopg.Connection, project: Project, pipeline: Pipeline, value: str | None) -> None:
    from dwcli.pipeline.lock import take_lock
    from dwcli.staging.state import State, forget_state, read_state, set_cursor, states

    name = pipeline.full_name
    take_lock(connection, name, "state")
    before = read_state(connection, name) if name in states(connection) else State()
    if value is None:
        _reset_allowed(pipeline)
        if not confirmed(
            f"Forget how far {name} has come? Its next run reads everything", f"dw state reset {name}"
        ):
            tell("Nothing was changed.")
            return
        forget_state(connection, name)
        after = None
    else:
        if before.cursor is None:
            raise UsageError(
                f"{name} keeps no cursor value that could be set",
                why="it has none yet, or its source keeps its own place",
                hint=f"dw run {name}, or dw state show",
            )
        after = set_cursor(connection, name, value)
    connection.commit()
    tell(f"{name}: {before.cursor or 'cursor'} {before.value or 'none'} → {after or 'none'}")
    if before.value is not None:
        tell(
            f"Undo: {command_line(['dw', 'state', 'set', name, before.value])}"
            if after
            else "The next run reads everything again."
        )
    _print({"pipeline_name": name, "cursor_from": before.value, "cursor_to": after})


def _reset_allowed(pipeline: Pipeline) -> None:
    if pipeline.config.write == "append":
        raise UsageError(
            f"{pipeline.full_name} appends: read again from the beginning, its rows would be there twice",
            hint=f"dw run {pipeline.full_name} --full-refresh reads everything into an emptied table",
        )


def _print(result: dict[str, Any]) -> None:
    from dwcli.render.console import print_json

    if settings().json:
        print_json(result)

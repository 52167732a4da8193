"""`dw sources`: the project's sources and pipelines, and the kinds of source there are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcli.cli._output import show_rows, tell, tell_next
from dwcli.cli.settings import settings

if TYPE_CHECKING:
    from dwcli.project import Project


def sources(
    protocols: Annotated[
        bool, typer.Option("--protocols", help="The kinds of source that can be added, and their drivers.")
    ] = False,
) -> None:
    """List sources and pipelines: what is read, where it goes, how, and the last run from here."""
    if protocols:
        _show_protocols()
        return
    from dwcli.cli._record import read_last
    from dwcli.project import load_project
    from dwcli.render.sources import SOURCE_COLUMNS, source_row

    project = load_project(settings().project)
    records, last, now = describe(project), read_last(project), datetime.now(UTC)
    rows = [
        source_row(source, pipeline, last.get(f"{source['name']}.{pipeline.get('name')}"), now)
        for source in records
        for pipeline in source["pipelines"] or [{}]
    ]
    show_rows(SOURCE_COLUMNS, rows, records)
    if not records:
        tell("No sources yet.")
        tell_next("dw add-source")


def describe(project: Project) -> list[dict[str, Any]]:
    """Every source with its pipelines, plainly. Connection values stay out: some are secret."""
    from dwcli.project import pipelines_of

    every = pipelines_of(project)
    return [
        {
            "name": source.name,
            "protocol": source.protocol,
            "file": str(source.path.relative_to(project.root)),
            "pipelines": [
                {
                    "name": pipeline.name,
                    "query": pipeline.config.query,
                    "target": f"{pipeline.schema}.{pipeline.target}",
                    "write": pipeline.config.write,
                    "key": pipeline.config.key,
                    "cursor": pipeline.config.cursor,
                    "every": pipeline.config.every,
                }
                for pipeline in every
                if pipeline.source.name == source.name
            ],
        }
        for source in project.sources.values()
    ]


def _show_protocols() -> None:
    from dwcli.connectors import names
    from dwcli.render.sources import PROTOCOL_COLUMNS, protocol_row

    records = [describe_protocol(name) for name in names()]
    show_rows(PROTOCOL_COLUMNS, (protocol_row(record) for record in records), records)


def describe_protocol(name: str) -> dict[str, Any]:
    """What there is to know about a kind of source before one is configured. Imports no connector."""
    from dwcli.connectors import extra, literals, missing_packages, title

    said = literals(name)
    return {
        "protocol": name,
        "title": title(name),
        "aliases": list(said.get("ALIASES", ())),
        "extra": extra(name),
        "missing": missing_packages(name),
        "incremental": said.get("INCREMENTAL") or None,
        "typing": said.get("TYPING"),
        "streaming": said.get("STREAMING"),
        "tried": said.get("TRIED"),
        "stand_in": said.get("STAND_IN"),
    }

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
    from dwcli.connectors import literals, names, title
    from dwcli.render.sources import PROTOCOL_COLUMNS, protocol_row

    records = [
        {
            "protocol": name,
            "title": title(name),
            "aliases": list(literals(name).get("ALIASES", ())),
            "extra": literals(name).get("EXTRA"),
            "missing": missing_drivers(name),
        }
        for name in names()
    ]
    show_rows(PROTOCOL_COLUMNS, (protocol_row(record) for record in records), records)


def missing_drivers(protocol: str) -> list[str]:
    """Modules that a connector imports and that are not installed. Nothing is imported to find out."""
    import ast
    import sys
    from importlib.util import find_spec
    from pathlib import Path

    import dwcli.connectors

    path = Path(dwcli.connectors.__file__).parent / f"{protocol}.py"
    if not path.exists() or "EXTRA" not in dwcli.connectors.literals(protocol):
        return []
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return sorted(name for name in found - set(sys.stdlib_module_names) if find_spec(name) is None)

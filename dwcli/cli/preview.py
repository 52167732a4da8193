"""`dw preview`: the first rows of a source, as they would be loaded."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dwcli.cli._output import tell
from dwcli.cli.settings import settings
from dwcli.errors import SourceError, UsageError

if TYPE_CHECKING:
    from dwcli.contract import IngestedItem
    from dwcli.project import Project, Source

#: The smallest batches there are: a preview should not make a source read ahead.
BATCH_BYTES = 64 * 1024


def preview(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A pipeline, source.pipeline, or a source.")],
    resource: Annotated[
        str | None, typer.Argument(metavar="RESOURCE", help="With a source: table, SQL, path, endpoint …")
    ] = None,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, metavar="N", help="How many rows.")] = 10,
) -> None:
    """Show first rows without loading them: values and types as the warehouse would get them."""
    from dwcli.connectors import create_connector
    from dwcli.project import connection_values, load_project
    from dwcli.render import preview as view

    project = load_project(settings().project)
    source, query, overrides = what_to_read(project, name, resource)
    connector = create_connector(connection_values(project, source), {"batch_bytes": BATCH_BYTES})
    with closing(connector):
        connector.connect()
        result = connector.fetch_data(query)
        if not result.success:
            raise SourceError(result.error or "the source answered without success")
        types, records = first_rows(result.items, rows)
    view.show(types | overrides, records, settings().json)
    if not types:
        tell("No rows.")


def what_to_read(project: Project, name: str, resource: str | None) -> tuple[Source, str, dict[str, str]]:
    """The source, the query and the declared types that a name means. Raises NameUnknown, UsageError."""
    from dwcli.project import find_source, select

    if resource is not None:
        return find_source(project, name), resource, {}
    chosen = select(project, [name])
    if len(chosen) != 1:
        known = " or ".join(f"dw preview {pipeline.full_name}" for pipeline in chosen)
        raise UsageError(
            f"which of '{name}'?" if chosen else f"'{name}' has no pipelines",
            hint=known or f"dw preview {name} RESOURCE",
        )
    pipeline = chosen[0]
    return pipeline.source, pipeline.config.query or pipeline.name, dict(pipeline.config.columns)


def first_rows(items: Iterable[IngestedItem], wanted: int) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Column → PostgreSQL type, and the first rows. Reading ends as soon as there are enough."""
    import polars as pl

    from dwcli.staging.dw_schema import frame_types
    from dwcli.staging.frames import item_frame

    types: dict[str, str] = {}
    records: list[dict[str, Any]] = []
    for item in items:
        if item.lake_path is not None:
            frame, declared = pl.read_parquet(item.lake_path, n_rows=wanted), dict(item.types)
        else:
            frame, declared = item_frame(item)
        for column, kind in frame_types(frame, declared).items():
            if types.get(column, "null") == "null":
                types[column] = kind
        records += frame.head(wanted - len(records)).to_dicts()
        if len(records) >= wanted:
            break
    return types, records

"""What a removal takes and what it leaves, on the screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dwcli.render.tables import marked
from dwcli.render.words import count, escape, size

if TYPE_CHECKING:
    from rich.console import RenderableType


def removal_view(record: Mapping[str, Any], why: str) -> RenderableType:
    """One line for each thing, with the word `goes` or `stays` before it. why: no warehouse, and why."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(escape(record["name"]), style="bold")]
    for word, text in _lines(record, why):
        style = "red" if word == "goes" else ""
        parts.append(marked(Text(f"  {word}", style=style), Text(escape(text)), 9))
    return Group(*parts)


def _lines(record: Mapping[str, Any], why: str) -> Iterator[tuple[str, str]]:
    if record["file_goes"]:
        yield "goes", record["file"]
    else:
        yield "goes", f"its entry in {record['file']}"
    for entry in record["pipelines"]:
        yield from _of_pipeline(entry, len(record["pipelines"]) > 1)
    if not record["warehouse_reached"]:
        yield "stays", f"everything in the warehouse, which cannot be reached ({why}): also its state"
    if record["pipelines"]:
        yield "stays", "the record of its runs (dw audit)"
    for variable in record["secrets_kept"]:
        yield "stays", f"{variable} in .env; nothing else refers to it: delete the line by hand"


def _of_pipeline(entry: Mapping[str, Any], several: bool) -> Iterator[tuple[str, str]]:
    of = f" of {entry['pipeline_name']}" if several else ""
    if entry["state"] is not None:
        yield "goes", f"state{of}: how far it has come ({entry['state']})"
    if entry["rows"] is not None:
        told = f"table {entry['table']}, {count(entry['rows'], 'row')}"
        if entry["views"]:
            told += f", read by {', '.join(entry['views'])}"
        yield ("goes", told) if entry["table_goes"] else ("stays", f"{told} (--drop-table)")
    if entry["lake_files"]:
        told = f"{entry['lake']}, {count(entry['lake_files'], 'file')}, {size(entry['lake_bytes'])}"
        yield ("goes", told) if entry["lake_goes"] else ("stays", f"{told} (--lake)")

"""Sources, pipelines, protocols and connection checks on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dwcli.render.runs import state_of_run, state_word
from dwcli.render.tables import Column, Said
from dwcli.render.words import ago, escape

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Cells before what a check says; its mark stands in them.
MARGIN = 8
#: The layer of a check that is none: what a person should know of a connection that works.
WARNING = "warning"
SOURCE_COLUMNS = (
    Column("SOURCE"),
    Column("PROTOCOL", optional=5),
    Column("PIPELINE"),
    Column("QUERY", optional=1, folds=True),
    Column("TARGET", optional=4),
    Column("WRITE", optional=2),
    Column("KEY", optional=6),
    Column("CURSOR", optional=3),
    Column("EVERY", optional=7),
    Column("LAST RUN", optional=8),
)


def source_row(
    source: Mapping[str, Any], pipeline: Mapping[str, Any], last: Mapping[str, Any] | None, now: datetime
) -> list[Any]:
    """One pipeline of a source; `last` is its entry in the local record."""
    when = datetime.fromisoformat(last["finished_at"]) if last and last.get("finished_at") else None
    return [
        source["name"],
        source["protocol"],
        pipeline.get("name"),
        pipeline.get("query") or None,
        pipeline.get("target"),
        pipeline.get("write"),
        ", ".join(pipeline.get("key") or []) or None,
        pipeline.get("cursor"),
        pipeline.get("every"),
        Said(when, f"{state_of_run(last or {})} {ago(when, now)}" if when else "-"),
    ]


PROTOCOL_COLUMNS = (
    Column("PROTOCOL"),
    Column("TITLE", optional=2, folds=True),
    Column("ALIASES", optional=5, folds=True),
    Column("DRIVER", folds=True),
    Column("NEW ROWS BY", optional=1, folds=True),
    Column("TYPES", optional=4),
    Column("TRIED AGAINST", optional=3, folds=True),
)


def protocol_row(record: Mapping[str, Any]) -> list[Any]:
    """One kind of source, and whether it can be used at once."""
    return [
        record["protocol"],
        record["title"],
        ", ".join(record["aliases"]) or None,
        f"pip install 'dwcli[{record['extra']}]'" if record["missing"] else "ready",
        record["incremental"],
        record["typing"],
        tried_against(record["tried"], record["stand_in"]),
    ]


def tried_against(server: str | None, stand_in: str | None) -> str | None:
    """The real server, or what stood in for it."""
    return server or (f"stand-in: {stand_in}" if stand_in else None)


def checks_view(name: str, about: str, checks: Sequence[Mapping[str, Any]], screen: int) -> RenderableType:
    """A connection, layer by layer; a failure with its fix under it."""
    from rich.console import Group
    from rich.text import Text

    from dwcli.render.tables import broken, marked
    from dwcli.render.words import duration, width

    room = screen - MARGIN
    head = Text.assemble((escape(name), "bold"), f"  {escape(about)}", overflow="fold")
    parts: list[RenderableType] = [broken(head, screen)]
    for check in checks:
        took = f"   {duration(check['milliseconds'] / 1000)}" if check["milliseconds"] >= 0.5 else ""
        body = Text(escape(check["detail"]))
        alone = width(body.plain + took) > room
        body.append(f"\n{took.strip()}" if took and alone else took)
        if check.get("hint"):
            body.append(f"\nfix: {escape(check['hint'])}", style="bold")
        parts.append(marked(_mark(check["ok"], check.get("layer", "")), body, MARGIN))
    return Group(*parts)


def _mark(ok: bool, layer: str) -> Any:
    from rich.text import Text

    if layer == WARNING:
        return Text("  !", style="yellow")
    word = state_word("ok" if ok else "FAILED")
    return Text("  ok" if ok else "  FAIL", style=word.style)

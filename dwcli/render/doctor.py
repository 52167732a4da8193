"""What `dw doctor` found, one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dwcli.render.tables import Column, marked
from dwcli.render.words import count, escape

if TYPE_CHECKING:
    from rich.console import RenderableType

State = Literal["ok", "warn", "fail"]
WORDS = {"ok": "ok", "warn": "WARN", "fail": "FAIL"}
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
COLUMNS = (Column("LAYER"), Column("STATE"), Column("DETAIL"), Column("FIX"), Column("MENDED"))
#: A narrower screen has no column for the layer.
ROOMY = 60


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `fix` is what to type or to do where it is not well."""

    layer: str
    state: State
    detail: str
    fix: str = ""
    #: mends it without harm to anything, and says what it did
    mend: Callable[[], str] | None = None
    mended: str = ""


def finding_row(finding: Finding) -> list[Any]:
    """A finding for programs."""
    return [finding.layer, finding.state, finding.detail, finding.fix, finding.mended]


def finding_view(finding: Finding, screen: int) -> RenderableType:
    """A finding for a screen, what mends it under it."""
    from rich.text import Text

    alone = "" if screen >= ROOMY else f"{finding.layer}: "
    body = Text(alone + escape(finding.detail))
    if finding.mended:
        body.append(f"\nmended: {escape(finding.mended)}", style="green")
    elif finding.fix:
        body.append(f"\nfix: {escape(finding.fix)}", style="bold")
    mark = Text(WORDS[finding.state], style=STYLES[finding.state])
    if screen < ROOMY:
        return marked(mark, body, 6)
    return marked(Text.assemble(mark, " " * (6 - len(mark)), (finding.layer, "dim")), body, 17)


def totals(findings: list[Finding]) -> str:
    """`14 ok, 2 warnings, 1 failure.`"""
    number = {state: sum(finding.state == state for finding in findings) for state in WORDS}
    said = [f"{number['ok']} ok"]
    said += [count(number["warn"], "warning")] if number["warn"] else []
    said += [count(number["fail"], "failure")] if number["fail"] else []
    return ", ".join(said) + "."

"""An error as a person reads it: what, why, fix. The fix stands last, where the eye is."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dwcli.references import redact
from dwcli.render.console import console
from dwcli.render.words import escape_lines

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dwcli.errors import DwError

#: label → its style; the order of the screen
LABELS = {"dw:": "bold red", "  why:": "dim", "  fix:": "bold"}


def show_error(error: DwError, secrets: Iterable[str] = ()) -> None:
    """Tell an error on stderr. Every one of `secrets` is taken out of it first."""
    out = console(sys.stderr)
    if out.is_terminal:
        out.print(error_view(error, secrets))
    else:
        out.print(error_text(error, secrets), soft_wrap=True)


def error_text(error: DwError, secrets: Iterable[str] = ()) -> str:
    """An error as plain lines, none of them folded: for logs and for grep."""
    return "\n".join(
        f"{label} {text}".replace("\n", "\n       ") for label, text in _parts(error, list(secrets)).items()
    )


def error_view(error: DwError, secrets: Iterable[str] = ()) -> RenderableType:
    """An error for a screen: each part folded under itself."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    views: list[Table] = []
    for label, text in _parts(error, list(secrets)).items():
        view = Table.grid(padding=(0, 1, 0, 0))
        view.add_column(no_wrap=True)
        view.add_column(overflow="fold")
        body = Text(text)
        body.highlight_regex(r"  \[DW-[A-Z-]+\]$", "dim")
        view.add_row(Text(label, style=LABELS[label]), body)
        views.append(view)
    return Group(*views)


def _parts(error: DwError, secrets: list[str]) -> dict[str, str]:
    parts = {"dw:": error.message, "  why:": error.why, "  fix:": error.hint}
    shown = {label: escape_lines(redact(text, secrets)) for label, text in parts.items() if text}
    return {"dw:": f"{shown.pop('dw:')}  [{error.code}]", **shown}

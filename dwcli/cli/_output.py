"""How a command shows what it found: one decision, the same for all of them.

--json            one JSON document on stdout
a screen          a table on stdout
a pipe or a file  tab-separated text on stdout
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dwcli.cli.settings import settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dwcli.render.tables import Column


def show_rows(columns: Sequence[Column], rows: Iterable[Sequence[Any]], records: Any) -> None:
    """Show rows for a person or a pipe, or `records` as JSON."""
    from dwcli.render.console import print_json, print_rows

    if settings().json:
        print_json(records)
    else:
        print_rows(columns, rows)


def result_wanted() -> bool:
    """Whether stdout takes a JSON result: it was asked for, or a program reads stdout."""
    return settings().json or not sys.stdout.isatty()


def tell(text: RenderableType) -> None:
    """Tell the person something on stderr, unless --quiet."""
    from dwcli.render.console import say

    if not settings().quiet:
        say(text)


def tell_broken(text: str) -> None:
    """`tell` for a line of several parts with gaps between them: on a narrow screen, whole parts a line."""
    from rich.text import Text

    from dwcli.render.console import stderr
    from dwcli.render.tables import broken

    tell(broken(Text(text), stderr().width) if sys.stderr.isatty() else text)


def tell_next(command: str) -> None:
    """The one line that every command may end with: what to do next."""
    if command:
        tell(f"Next: {command}")

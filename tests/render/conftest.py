"""What a view looks like on a screen of a given width."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console


@pytest.fixture
def screen() -> Callable[[Any, int], list[str]]:
    """Lines of a view as a terminal of that width shows them, without colours and trailing blanks."""

    def lines(view: Any, width: int) -> list[str]:
        out = StringIO()
        console = Console(
            file=out, width=width, color_system=None, markup=False, highlight=False, emoji=False, height=50
        )
        console.print(view)
        return [line.rstrip() for line in out.getvalue().splitlines()]

    return lines

"""An error code, explained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

#: Longer lines are hard to read, however wide the screen is.
WIDEST = 90


def explanation_text(
    code: str, what: str, causes: Sequence[str], do: Sequence[str], exit_code: int
) -> Iterator[str]:
    """The lines of an explanation, none of them folded."""
    yield f"{code}   (exit code {exit_code})\n{what}\n"
    for title, sentences in _parts(causes, do):
        yield f"\n{title}\n" + "".join(f"  - {sentence}\n" for sentence in sentences)


def explanation_view(
    code: str, what: str, causes: Sequence[str], do: Sequence[str], exit_code: int, screen: int
) -> RenderableType:
    """An explanation for a screen."""
    from rich.console import Group
    from rich.constrain import Constrain
    from rich.text import Text

    from dwcli.render.tables import marked

    parts: list[RenderableType] = [
        Text.assemble((code, "bold"), (f"   exit code {exit_code}", "dim")),
        Text(what),
    ]
    for title, sentences in _parts(causes, do):
        parts += [Text(""), Text(title, style="bold")]
        parts += [marked(Text("  -"), _with_commands(sentence), 4) for sentence in sentences]
    return Constrain(Group(*parts), min(screen, WIDEST))


def _parts(causes: Sequence[str], do: Sequence[str]) -> tuple[tuple[str, Sequence[str]], ...]:
    return ("Usual causes", causes), ("What to do", do)


def _with_commands(sentence: str) -> Text:
    """A sentence whose `commands` stand out; the backticks stay, for whoever copies it."""
    from rich.text import Text

    text = Text(sentence)
    for match in re.finditer(r"`[^`]+`", sentence):
        text.stylize("bold", *match.span())
    return text

"""`--help` beyond what Typer makes of it: without types that say nothing, and readable on a narrow screen."""

from __future__ import annotations

import shutil
import sys
import textwrap
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typer.core import TyperCommand, TyperGroup

#: Below this width the columns of a table of flags are too narrow for their words.
NARROW = 60
INDENT = 2


def prepare(group: TyperGroup) -> None:
    """Make the help of a group and of its commands as it should be. Called before anything is parsed."""
    from typer import Context

    narrow = is_narrow()
    above = Context(group, **group.context_settings)
    # Typer has no setting for either, so the parsed commands themselves are told
    commands: list[Any] = [group, *group.commands.values()]
    for command in commands:
        context = above if command is group else Context(command, parent=above)
        if command.help:
            command.help = _paragraphs(command.help)
        for parameter in command.get_params(context):
            # a flag that takes no value, and a word whose name says what it is
            if getattr(parameter, "is_flag", False) or parameter.param_type_name == "argument":
                parameter.display_type_rich = _no_type
        if narrow:
            command.format_help = partial(write_narrow, command)


def _paragraphs(text: str) -> str:
    """A docstring without the line breaks of its source, which would be those of every screen."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _no_type(ctx: Any) -> None:
    return None


def is_narrow() -> bool:
    """Whether help goes to a screen that is too narrow for columns."""
    return sys.stdout.isatty() and shutil.get_terminal_size().columns < NARROW


def write_narrow(command: TyperCommand | TyperGroup, ctx: Any, formatter: Any) -> None:
    """The help of a command with each text under what it explains."""
    columns = shutil.get_terminal_size().columns
    formatter.write("\n".join(narrow_lines(command, ctx, columns)) + "\n")


def narrow_lines(command: TyperCommand | TyperGroup, ctx: Any, columns: int) -> Iterator[str]:
    """The lines of that help. No word is broken that fits the screen."""
    yield from _folded(command.get_usage(ctx), columns, 0)
    for paragraph in (command.help or "").split("\n\n"):
        yield ""
        yield from _folded(paragraph, columns, 0)
    panels: dict[str, list[tuple[str, str]]] = {}
    for name, other in getattr(command, "commands", {}).items():
        if not other.hidden:
            panels.setdefault(other.rich_help_panel or "Commands", []).append((name, other.help or ""))
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record:
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(record)
    for title, records in panels.items():
        yield ""
        yield title
        for name, text in records:
            yield from _folded(name.strip(), columns, INDENT)
            yield from _folded(text, columns, INDENT * 3)
    if command.epilog:
        yield ""
        yield from _folded(command.epilog, columns, 0)


def _folded(text: str, columns: int, indent: int) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(
        " ".join(text.split()),
        columns,
        initial_indent=margin,
        subsequent_indent=margin + " " * (INDENT * 2 if indent == INDENT else 0),
        break_on_hyphens=False,
    )

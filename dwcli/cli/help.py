"""`dw help`: a command, an error code, or everything there is."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from dwcli.cli._codes import CODES, find
from dwcli.cli.settings import settings
from dwcli.errors import NameUnknown


def help(
    topic: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CODE|COMMAND]", help="An error code such as DW-CONN-LOGIN, or a command."),
    ] = None,
) -> None:
    """Explain an error code or a command; alone, list the commands."""
    from dwcli.cli.app import ALIASES, COMMANDS

    words = topic or []
    first = words[0] if words else ""
    command = next((c.name for c in COMMANDS if c.name == ALIASES.get(first, first)), None)
    code = find(first)
    if words and command is None and (code is None or len(words) > 1):
        raise _unknown(" ".join(words) if code else first)
    if code is not None and command is None:
        _explain(code)
    elif not words and settings().json:
        _print({"commands": [c.name for c in COMMANDS], "codes": list(CODES)})
    else:
        _show_help([command, *words[1:]] if command else [])


def _unknown(topic: str) -> NameUnknown:
    from dwcli.cli.app import ALIASES, COMMANDS
    from dwcli.documents import nearest

    names = [*(c.name for c in COMMANDS), *ALIASES]
    word = topic.upper()
    suggestion = nearest(topic.lower(), names) or nearest(
        word if word.startswith("DW-") else f"DW-{word}", CODES
    )
    return NameUnknown(
        f"there is no command or error code '{topic}'.{suggestion}", hint="dw help lists the commands"
    )


def _show_help(words: list[str]) -> None:
    """What `dw WORDS --help` shows."""
    from dwcli.cli.app import program

    line = [*words, "--help"]
    program(line).main(line, prog_name="dw", standalone_mode=False)


def _explain(code: str) -> None:
    from dwcli.render.console import show, stdout, write_text
    from dwcli.render.help import explanation_text, explanation_view

    entry = CODES[code]
    if settings().json:
        _print({"code": code} | asdict(entry))
    elif sys.stdout.isatty():
        show(explanation_view(code, entry.what, entry.causes, entry.do, entry.exit_code, stdout().width))
    else:
        write_text(explanation_text(code, entry.what, entry.causes, entry.do, entry.exit_code))


def _print(value: Any) -> None:
    from dwcli.render.console import print_json

    print_json(value)

"""Short words to the person, on stderr."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence

from dwcli.cli.settings import settings


def say(line: str = "", fold: bool = False) -> None:
    """One line for people; nothing with --quiet. fold: break a sentence to fit the screen, hanging."""
    if settings().quiet:
        return
    if fold and sys.stderr.isatty():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        line = textwrap.fill(line, shutil.get_terminal_size().columns, subsequent_indent=indent)
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


#: Characters of a line of a command: with an indent of two and its backslash it stays below 80.
LINE = 75


def command_line(words: Sequence[str]) -> str:
    """Words as one line that a shell reads back as the same words; a new line where it grows long."""
    parts: list[str] = []
    for word in words:
        value = bool(parts) and words[len(parts) - 1].startswith("-") and not word.startswith("-")
        parts.append((" " if value else "") + shlex.quote(word))
    lines, line = list[str](), ""
    for index, part in enumerate(parts):
        ahead = len(parts[index + 1]) if index + 1 < len(parts) and parts[index + 1][:1] == " " else 0
        if line and part[:1] != " " and len(line) + 1 + len(part) + ahead > LINE:
            lines.append(line + " \\")
            line = "    " + part
        else:
            line = f"{line} {part.lstrip()}" if line else part
    return "\n".join([*lines, line])

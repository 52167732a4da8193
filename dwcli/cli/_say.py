"""Short words to the person, on stderr."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dwcli.cli.settings import can_animate, settings

if TYPE_CHECKING:
    from threading import Event

#: What stands before the last column of a line of columns.
COLUMNS = re.compile(r" *(?:\S+ {2,})+")
#: Seconds without a word before `waiting` speaks.
PATIENCE = 1.0


def say(line: str = "", fold: bool = False) -> None:
    """One line for people; nothing with --quiet.

    fold: break a sentence to fit the screen; what follows hangs below the last of its columns.
    """
    if settings().quiet:
        return
    if fold and sys.stderr.isatty():
        screen = shutil.get_terminal_size().columns
        columns = COLUMNS.match(line)
        hang = columns.end() if columns and columns.end() <= screen // 2 else _indent(line) + 2
        line = textwrap.fill(line, screen, subsequent_indent=" " * hang)
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what is waited for, and for how long, once that takes over a second; gone when it is over."""
    if not can_animate():
        yield
        return
    from threading import Event, Thread

    done = Event()
    clock = Thread(target=_count_seconds, args=(what, done), daemon=True)
    clock.start()
    try:
        yield
    finally:
        done.set()
        clock.join()


def _count_seconds(what: str, done: Event) -> None:
    seconds = 0
    while not done.wait(PATIENCE):
        seconds += 1
        line = f"  {what}, {seconds} s (Ctrl-C stops)"[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r{line}")
        sys.stderr.flush()
    if seconds:
        sys.stderr.write("\r\033[K")
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

"""The flags that stand before or after the command, taken off the command line before Typer sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from dwcli.cli.settings import Settings
from dwcli.errors import UsageError

#: flag → what it changes
SWITCHES: dict[str, Callable[[Settings], Settings]] = {
    "--json": lambda given: replace(given, json=True),
    "--quiet": lambda given: replace(given, quiet=True),
    "--verbose": lambda given: replace(given, verbose=given.verbose + 1),
    "--no-color": lambda given: replace(given, no_color=True),
    "--no-input": lambda given: replace(given, no_input=True),
    "--yes": lambda given: replace(given, yes=True),
}
SHORT = {"q": "--quiet", "v": "--verbose", "y": "--yes"}


def take_globals(argv: list[str], valued: Collection[str]) -> tuple[Settings, list[str]]:
    """Split a command line into the global settings and all the rest, in order.

    valued: the command's own flags that take a value; the word after one is never a global flag.
    Nothing after `--` is touched. Raises UsageError for a `-C` without a folder.
    """
    given, rest = Settings(), list[str]()
    words = iter(argv)
    for word in words:
        if word == "--":
            return given, [*rest, word, *words]
        if word in ("-C", "--project"):
            folder = next(words, None)
            if folder is None:
                raise UsageError(f"{word} needs a folder", hint="dw -C DIR COMMAND")
            given = replace(given, project=Path(folder))
        elif word.startswith("--project="):
            given = replace(given, project=Path(word.removeprefix("--project=")))
        elif word.startswith("-C") and not word.startswith("--"):
            given = replace(given, project=Path(word[2:].removeprefix("=")))
        elif word in SWITCHES:
            given = SWITCHES[word](given)
        elif word[0:1] == "-" and len(word) > 1 and set(word[1:]) <= set(SHORT):
            for letter in word[1:]:
                given = SWITCHES[SHORT[letter]](given)
        else:
            rest.append(word)
            if word in valued:
                rest.extend(value for value in [next(words, None)] if value is not None)
    return given, rest

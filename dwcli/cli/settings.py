"""The flags every command shares, taken from the command line once, before Typer sees it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Global flags; accepted before and after the command."""

    project: Path | None = None
    json: bool = False
    quiet: bool = False
    verbose: int = 0
    no_color: bool = False
    no_input: bool = False
    yes: bool = False


_current = Settings()


def settings() -> Settings:
    """What was given on this command line."""
    return _current


def use(given: Settings) -> None:
    """Set what `settings()` answers; called once by the entry point, and by tests."""
    global _current
    _current = given


def can_ask() -> bool:
    """Whether a question may be asked: a person is there, and did not forbid it."""
    forbidden = settings().no_input or os.environ.get("DW_NO_INPUT") not in (None, "", "0")
    return not forbidden and sys.stdin.isatty() and sys.stderr.isatty()


def can_animate() -> bool:
    """Whether progress may move on the screen; otherwise it is told in lines."""
    plain = (
        os.environ.get("TERM") == "dumb" or bool(os.environ.get("CI")) or os.environ.get("DW_PLAIN") == "1"
    )
    return sys.stderr.isatty() and not plain and not settings().quiet

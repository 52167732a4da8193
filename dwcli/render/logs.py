"""The log of a run as lines for a person: when, how grave, and what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dwcli.render.runs import failure_lines, what_was_loaded
from dwcli.render.tables import Column, broken, marked
from dwcli.render.words import count, escape_lines, size

if TYPE_CHECKING:
    from rich.console import RenderableType

#: From the least grave on; a level that is not among them counts as info.
LEVELS = ("debug", "info", "warning", "error", "critical")
STYLES = {"debug": "dim", "warning": "yellow", "error": "bold red", "critical": "bold red"}
SHORT = {"warning": "warn", "critical": "crit"}
#: Of a screen narrower than this, the time and the level take less.
WIDE = 60
#: Of one narrower than this they take a line's beginning, no column.
NARROW = 36

LOG_COLUMNS = (Column("TIME"), Column("LEVEL"), Column("RUN"), Column("PIPELINE"), Column("WHAT"))
#: What these say is said by an event beside it.
SAID_TWICE = ("dwcli.staging.writer", "dwcli.staging.loader")


def gravity(entry: Mapping[str, Any]) -> int:
    """How grave an entry is: its place in LEVELS."""
    level = str(entry.get("level"))
    return LEVELS.index(level) if level in LEVELS else LEVELS.index("info")


def is_said_twice(entry: Mapping[str, Any]) -> bool:
    """Whether an event says the same."""
    return entry.get("logger") in SAID_TWICE and gravity(entry) <= LEVELS.index("info")


def log_line(entry: Mapping[str, Any], screen: int, tracebacks: bool = False) -> RenderableType:
    """An entry of a log as it stands on a screen of this width."""
    from rich.text import Text

    level, wide = str(entry.get("level", "")), screen >= WIDE
    word = f"{level:<7}" if wide else f"{SHORT.get(level, level):<5}"
    when = log_time(entry)
    clock = "" if when is None else f"{when.astimezone():%H:%M:%S}"
    if wide and when is not None:
        clock += f".{when.microsecond // 1000:03}"
    mark = Text.assemble((f"{clock:<{12 if wide else 8}} ", "dim"), (f"{word} ", STYLES.get(level, "")))
    said = Text(escape_lines(log_words(entry, tracebacks)))
    if screen < NARROW:
        return mark + said
    return marked(mark, broken(said, screen - mark.cell_len), mark.cell_len)


def log_lines(entries: Iterable[Mapping[str, Any]], screen: int) -> list[RenderableType]:
    """Entries of a log as lines, without what would be said twice."""
    return [log_line(entry, screen) for entry in entries if not is_said_twice(entry)]


def log_row(entry: Mapping[str, Any]) -> list[Any]:
    """An entry for LOG_COLUMNS."""
    about = [log_time(entry), entry.get("level"), entry.get("run_id"), entry.get("pipeline")]
    return [*about, log_words(entry, tracebacks=True)]


def log_time(entry: Mapping[str, Any]) -> datetime | None:
    """When it was written; None where the entry does not say it."""
    try:
        return datetime.fromisoformat(str(entry.get("time")))
    except ValueError:
        return None


def log_words(entry: Mapping[str, Any], tracebacks: bool) -> str:
    """What an entry says, as a sentence. One of an unknown kind says all that it holds."""
    match entry.get("event"):
        case "RunStarted":
            expected = entry.get("rows_expected")
            about = f", about {count(expected, 'row')}" if isinstance(expected, int) else ""
            return f"started: {entry.get('pipeline')} into {entry.get('target')}{about}"
        case "StageStarted":
            return f"{entry.get('stage')} begins"
        case "BatchRead":
            return f"read {_rows(entry)} ({_size(entry)} in memory)"
        case "BatchStaged":
            return f"staged {_rows(entry)} ({_size(entry)}) in {entry.get('path')}"
        case "BatchLoaded":
            return f"loaded {_rows(entry)}"
        case "SchemaChanged":
            return f"schema: {entry.get('change')}"
        case "Notice":
            return str(entry.get("text"))
        case "RunFinished" if entry.get("status") == "success":
            return f"finished: {what_was_loaded(entry)}"
        case "RunFinished":
            return "failed: " + "\n".join(failure_lines(entry))
        case "log":
            error, trace = entry.get("error"), entry.get("traceback") if tracebacks else None
            logger = str(entry.get("logger") or "")
            said = str(entry.get("message"))
            if not logger.startswith("dwcli"):  # a driver's words: whose
                said = f"{logger}: {said}"
            return "\n".join(str(part).rstrip("\n") for part in (said, error, trace) if part)
        case _:
            return ", ".join(f"{key}={value}" for key, value in entry.items() if key not in ("time", "level"))


def _rows(entry: Mapping[str, Any]) -> str:
    rows = entry.get("rows")
    return count(rows, "row") if isinstance(rows, int) else "rows"


def _size(entry: Mapping[str, Any]) -> str:
    found = entry.get("bytes")
    return size(found) if isinstance(found, int | float) else "size not known"

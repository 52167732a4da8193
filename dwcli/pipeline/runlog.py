"""The log of one run: `.dw/logs/RUN.log`, one JSON object per line.

Everything that the run tells (its events) and everything that the library or a driver logs meanwhile is in
it, with time, level, logger, event, run_id and pipeline. Passwords and tokens are not: each known secret is
taken out by its value. A log that cannot be written is told once, and the run goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from dwcli.events import Event, Notice, RunFinished
from dwcli.log import get_logger
from dwcli.pipeline.record import Run
from dwcli.references import redact

#: How many logs are kept, and for how long: whichever is less.
KEPT_LOGS = 200
KEPT_SECONDS = 30 * 86400.0

#: The run that this thread works for; `ahead` hands it on to the threads that it starts.
_current: ContextVar[str | None] = ContextVar("dw_run", default=None)

log = get_logger(__name__)
_levels = threading.Lock()
_open_logs = 0
_level_before = logging.NOTSET


@dataclass
class RunLog:
    """An open log."""

    run: Run
    file: TextIO
    lock: threading.Lock = field(default_factory=threading.Lock)
    failed: bool = False


@contextlib.contextmanager
def logged(run: Run) -> Iterator[None]:
    """Write the log of this run while it lasts, where its job says into which folder."""
    opened = _open(run)
    if opened is None:
        yield
        return
    told, token = run.emit, _current.set(run.id)
    handler = _Handler(opened)
    root = logging.getLogger()

    def emit(event: Event) -> None:
        write_event(opened, event)
        told(event)

    run.emit = emit
    root.addHandler(handler)
    _listen(1)
    try:
        yield
    finally:
        _listen(-1)
        root.removeHandler(handler)
        _current.reset(token)
        run.emit = told
        with contextlib.suppress(OSError):
            opened.file.close()


def _listen(more: int) -> None:
    """Let the library tell what it does (level INFO) while any log is open."""
    global _open_logs, _level_before
    ours = logging.getLogger("dwcli")
    with _levels:
        if not _open_logs:
            _level_before = ours.level
            ours.setLevel(min(ours.getEffectiveLevel(), logging.INFO))
        _open_logs += more
        if not _open_logs:
            ours.setLevel(_level_before)


def _open(run: Run) -> RunLog | None:
    folder = run.job.logs
    if folder is None:
        return None
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        remove_old(folder)
        handle = os.open(folder / f"{run.id}.log", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        run.emit(Notice(run.job.pipeline, f"this run has no log: {error.strerror} ({folder})"))
        return None
    _hold(handle)
    return RunLog(run, os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace"))


def _hold(handle: int) -> None:
    """Lock the file while this process lives: so `dw logs` tells a run that goes on from a dead one."""
    with contextlib.suppress(ImportError, OSError):  # Windows; a file system without locks
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_old(folder: Path) -> None:
    """Remove logs beyond the newest KEPT_LOGS, and those older than KEPT_SECONDS."""
    found = []
    for path in folder.glob("*.log"):
        with contextlib.suppress(FileNotFoundError):  # another dw removes them too
            found.append((path.stat().st_mtime, path))
    found.sort(reverse=True)
    oldest = time.time() - KEPT_SECONDS
    for number, (written, path) in enumerate(found):
        if number >= KEPT_LOGS - 1 or written < oldest:
            path.unlink(missing_ok=True)


def write_event(opened: RunLog, event: Event) -> None:
    """An event of the run as a line."""
    values = {field.name: getattr(event, field.name) for field in fields(event) if field.name != "pipeline"}
    level = "info"
    if isinstance(event, RunFinished):
        values = dict(event.result)
        level = "info" if values.get("status") == "success" else "error"
    elif isinstance(event, Notice):
        level = "warning"
    _write(opened, level, "dwcli.events", type(event).__name__, values)


class _Handler(logging.Handler):
    """Takes what the library and the drivers log for this run, or for none that is known."""

    def __init__(self, opened: RunLog) -> None:
        super().__init__()
        self.opened = opened

    def emit(self, record: logging.LogRecord) -> None:
        if _current.get() not in (self.opened.run.id, None):
            return
        try:
            values: dict[str, Any] = {"message": record.getMessage()}
        except Exception:  # a driver's wrong format string is no reason to fail
            values = {"message": str(record.msg)}
        if record.exc_info and record.exc_info[1] is not None:
            values |= _error_fields(record.exc_info[1])
        _write(self.opened, record.levelname.lower(), record.name, "log", values)


def _error_fields(error: BaseException) -> dict[str, Any]:
    """Where an error came from. Of its text the first line alone: what follows may hold rows of data."""
    return {
        "error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
        "traceback": "".join(traceback.format_tb(error.__traceback__)),
    }


def _write(opened: RunLog, level: str, logger: str, event: str, values: Mapping[str, Any]) -> None:
    run = opened.run
    about = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "logger": logger,
        "event": event,
        "run_id": run.id,
        "pipeline": run.job.pipeline,
    }
    secrets = [*run.secrets]
    line = json.dumps(
        _clean(about | dict(values) | about, lambda text: redact(text, secrets)), ensure_ascii=False
    )
    with opened.lock:
        if opened.failed:
            return
        try:
            opened.file.write(line + "\n")
            opened.file.flush()
        except (OSError, ValueError):  # the disk is full, or a driver's thread outlived the run
            opened.failed = True


def _clean(value: Any, hide: Callable[[str], str]) -> Any:
    """A value as JSON can hold it, with `hide` applied to each text in it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {hide(str(key)): _clean(item, hide) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item, hide) for item in value]
    return hide(str(value))

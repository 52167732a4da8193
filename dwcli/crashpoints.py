"""Named places where a run can be made to die at once, for the tests that prove that the next one heals.

`DW_TEST_CRASH_AT=copy` kills the process (SIGKILL) when it comes to that place, `copy:3` at the third time,
`copy:1:TERM` sends it another signal. Without that variable a place costs one comparison.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

#: In the order in which a run comes to them.
POINTS = (
    "own_tables",
    "connect",
    "described",
    "fetch",
    "parquet_open",
    "parquet_half",
    "parquet_footer",
    "parquet_written",
    "parquet_renamed",
    "begin",
    "ddl",
    "copy",
    "copied",
    "manifest_written",
    "manifest",
    "merge",
    "finished",
    "commit",
    "committed",
    "acknowledged",
    "forget",
)

_wanted, _left, _signal = "", 1, signal.SIGTERM
_sent = threading.Lock()
#: How long a statement that the server works on has been under way when its client dies.
_UNDER_WAY_SECONDS = 0.02


def wish(text: str) -> None:
    """Say where to die: `copy`, `copy:3`, `copy:3:TERM`."""
    global _wanted, _left, _signal
    _wanted, times, name = f"{text}::".split(":")[:3]
    _left, _signal = int(times or 1), signal.Signals[f"SIG{name or 'KILL'}"]


def reached(point: str) -> None:
    """Die here, if that is wanted."""
    if point == _wanted and _is_time():
        _die()


def spoiled(point: str, path: Path, keep: float) -> None:
    """Die here with only this part of a file written."""
    if point == _wanted and _is_time():
        if _signal.name == "SIGKILL":  # what survives goes on with the whole file
            os.truncate(path, int(path.stat().st_size * keep))
        _die()


@contextlib.contextmanager
def during(point: str) -> Iterator[None]:
    """Die while the statements within are under way, at the latest when they have ended."""
    if point != _wanted or not _is_time():
        yield
        return
    threading.Timer(_UNDER_WAY_SECONDS, _die).start()
    yield
    _die()


def _is_time() -> bool:
    global _left
    _left -= 1
    return _left == 0


def _die() -> None:
    if _sent.acquire(blocking=False):  # a signal that can be survived is sent once
        os.kill(os.getpid(), _signal)


if "DW_TEST_CRASH_AT" in os.environ:
    wish(os.environ["DW_TEST_CRASH_AT"])

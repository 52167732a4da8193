"""`dw` in this process, on a terminal of any size and kind: what leaves it, byte by byte.

A process for each command would take a second to start. Here only the streams are others: two that lead
into a real pseudo-terminal, or two that do not.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from dwcli.cli import app
from dwcli.cli import settings as _settings

SEQUENCE = re.compile(rb"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|.)")


@dataclass(frozen=True)
class Typed:
    """What came of a command line. On a screen stdout and stderr are one, and `err` is empty."""

    code: int
    out: bytes
    err: bytes = b""


def typed(
    words: Sequence[str],
    project: Path,
    columns: int = 80,
    encoding: str = "utf-8",
    piped: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Typed:
    """Type a command line in a project's folder, on a screen or into pipes."""
    kept = _settings.settings()
    with pytest.MonkeyPatch.context() as here, ExitStack() as streams:
        for name in ("NO_COLOR", "FORCE_COLOR", "CI", "LINES", "DW_PROJECT", "DW_PLAIN"):
            here.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns), **environment}.items():
            here.setenv(name, value)
        here.setattr(app, "_stop_on_signals", lambda: None)
        here.chdir(project)
        out, written = streams.enter_context(_stream(columns, encoding, piped))
        err, told = streams.enter_context(_stream(columns, encoding, piped)) if piped else (out, bytearray())
        here.setattr(sys, "stdin", io.StringIO())
        here.setattr(sys, "stdout", out)
        here.setattr(sys, "stderr", err)
        _settings.use(_settings.Settings())
        try:
            code = app.main(list(words))
        finally:
            _settings.use(kept)
    return Typed(code, bytes(written), bytes(told))


@contextmanager
def _stream(columns: int, encoding: str, piped: bool) -> Iterator[tuple[io.TextIOWrapper, bytearray]]:
    """A stream to write to, and the bytes that come out at its other end; all are there afterwards."""
    if piped:
        reader, writer = os.pipe()
    else:
        reader, writer = pty.openpty()
        tty.setraw(writer)
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    found = bytearray()
    end = threading.Thread(target=_read, args=(reader, found))
    end.start()
    stream = os.fdopen(writer, "w", encoding=encoding, newline="")
    try:
        yield stream, found
    finally:
        stream.close()
        end.join()
        os.close(reader)


def _read(reader: int, found: bytearray) -> None:
    while True:
        try:
            chunk = os.read(reader, 65536)
        except OSError:  # the terminal's other side is closed
            return
        if not chunk:
            return
        found += chunk


def plain(written: bytes) -> list[str]:
    """The lines of what was written, without colours and trailing blanks."""
    return [line.rstrip() for line in SEQUENCE.sub(b"", written).decode("utf-8").splitlines()]

"""Loggers of the library, silent until somebody listens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def get_logger(name: str) -> logging.Logger:
    """The logger of a module. The library adds no handlers: the run's log file and tests do."""
    logger = logging.getLogger(name)
    if not logging.getLogger("dwcli").handlers:
        logging.getLogger("dwcli").addHandler(logging.NullHandler())
    return logger


@contextmanager
def warnings_heard() -> Iterator[list[str]]:
    """The warnings that connectors give in this thread meanwhile, for a person who looks on."""
    heard: list[str] = []
    thread = threading.get_ident()

    def hear(record: logging.LogRecord) -> bool:
        if record.thread == thread and record.levelno >= logging.WARNING:
            heard.append(record.getMessage())
        return False

    listener = logging.Handler()
    listener.addFilter(hear)
    logger = logging.getLogger("dwcli.connectors")
    logger.addHandler(listener)
    try:
        yield heard
    finally:
        logger.removeHandler(listener)

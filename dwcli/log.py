"""Loggers of the library, silent until somebody listens."""

from __future__ import annotations

import logging


def get_logger(name: str) -> logging.Logger:
    """The logger of a module. The library adds no handlers: the run's log file and tests do."""
    logger = logging.getLogger(name)
    if not logging.getLogger("dwcli").handlers:
        logging.getLogger("dwcli").addHandler(logging.NullHandler())
    return logger

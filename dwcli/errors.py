"""What can go wrong, what to do about it, and which exit code it ends with.

Every error a user can meet is one of these. It has three parts: what happened (the message), why
(where it is known), and what to type next (the hint). `cli.main` shows it once, on stderr.

    DwError                       1   dw worked and something failed
    ├── UsageError                2   nothing was done
    │   ├── ConfigError               a config file or value is wrong; carries file, line and column
    │   ├── SecretMissing             a ${env:…} or ${file:…} reference has no value
    │   ├── ProjectMissing            no dw.yaml here or above
    │   ├── NameUnknown               no such pipeline, source, run, protocol or key
    │   ├── AnswerMissing             a question has no answer and none can be asked for
    │   └── DriverMissing             the connector's driver is not installed
    ├── ConnectionFailed              a server cannot be reached or used; `layer` says how far it got
    ├── SourceError                   the source answered with something that cannot be used
    │   ├── ResourceMissing           the table, file or endpoint is not there
    │   ├── QueryFailed               the source refused the query
    │   ├── SourceData                the data cannot be read; carries file, line, row
    │   └── SourceShrank              it has lost so much that it may be broken
    ├── WarehouseError                the warehouse refused something
    │   ├── ValueRefused              a value that PostgreSQL or the target column cannot hold
    │   ├── KeyRefused                NULL or missing key columns in a merge
    │   ├── SchemaRefused             a change of schema that cannot or may not be made
    │   └── CommitUnknown             the connection broke at COMMIT, and nobody can say what came of it
    ├── LakeError                     the lake cannot be written or a file in it is damaged
    ├── CountsDiffer                  rows read, staged and loaded are not the same number
    ├── PipelineLocked                another run holds the pipeline
    └── RunStopped              130   a signal ended the run; what was begun is rolled back
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

#: What the operating system says of a disk that takes no more.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DwError(Exception):
    """Something went wrong."""

    code = "DW-ERROR"
    exit_code = 1
    hint = ""

    def __init__(self, message: str = "", why: str = "", hint: str = "", code: str = "") -> None:
        """Say what happened, why, and what to type next.

        message: one sentence, no trailing period needed; defaults to the class docstring.
        why: the cause in the words of whoever reported it, without values of data rows.
        hint: a command or an edit that mends it; defaults to the class's own.
        code: a stable name such as DW-CONN-REFUSED; defaults to the class's own.
        """
        super().__init__(message or (type(self).__doc__ or "").split("\n")[0])
        self.why = why
        self.hint = hint or type(self).hint
        self.code = code or type(self).code

    @property
    def message(self) -> str:
        return str(self.args[0])


class UsageError(DwError):
    """The command cannot be understood."""

    code = "DW-USAGE"
    exit_code = 2


class ConfigError(UsageError):
    """The configuration is not valid."""

    code = "DW-CONFIG"


class SecretMissing(UsageError):
    """A secret has no value."""

    code = "DW-SECRET"


class ProjectMissing(UsageError):
    """There is no dw project here or above."""

    code = "DW-NO-PROJECT"
    hint = "dw init, or dw -C PATH …"


class NameUnknown(UsageError):
    """There is nothing of that name."""

    code = "DW-UNKNOWN"


class AnswerMissing(UsageError):
    """A question has no answer, and none can be asked for here."""

    code = "DW-ANSWER"


class DriverMissing(UsageError):
    """The driver for this source is not installed."""

    code = "DW-DRIVER"


class ConnectionFailed(DwError):
    """The server cannot be reached.

    `layer` is how far the connection got before it failed: name, port, tls, login, database,
    permission, or lost for a connection that broke later.
    """

    code = "DW-CONN"

    def __init__(self, message: str = "", layer: str = "port", why: str = "", hint: str = "") -> None:
        super().__init__(message, why, hint, f"DW-CONN-{layer.upper()}")
        self.layer = layer


class SourceError(DwError):
    """The source could not be read."""

    code = "DW-SOURCE"


class ResourceMissing(SourceError):
    """The source has no such table, file or endpoint."""

    code = "DW-SOURCE-MISSING"


class QueryFailed(SourceError):
    """The source refused the query."""

    code = "DW-SOURCE-QUERY"


class SourceData(SourceError):
    """The source holds data that cannot be read."""

    code = "DW-SOURCE-DATA"


class SourceShrank(SourceError):
    """The source has far fewer rows than the warehouse."""

    code = "DW-SHRANK"


class WarehouseError(DwError):
    """The warehouse refused something."""

    code = "DW-WAREHOUSE"


class ValueRefused(WarehouseError):
    """A value does not fit the warehouse."""

    code = "DW-VALUE"


class KeyRefused(WarehouseError):
    """A merge needs a key in every row."""

    code = "DW-KEY"


class SchemaRefused(WarehouseError):
    """The table cannot take this change of schema."""

    code = "DW-SCHEMA"


class CommitUnknown(WarehouseError):
    """The connection to the warehouse was lost at COMMIT, so this run may be in the table or not."""

    code = "DW-COMMIT"
    hint = "run it again when the warehouse is back: it finds out, and loads nothing twice"


class LakeError(DwError):
    """The lake cannot be used."""

    code = "DW-LAKE"


class CountsDiffer(DwError):
    """Rows read, staged and loaded are not the same number; nothing was committed."""

    code = "DW-COUNTS"


class PipelineLocked(DwError):
    """The pipeline is already running."""

    code = "DW-LOCKED"


class RunStopped(DwError):
    """Stopped by a signal; what was begun is rolled back."""

    code = "DW-STOPPED"
    exit_code = 130

    def __init__(
        self, message: str = "", results: Sequence[dict[str, Any]] = (), exit_code: int = 130
    ) -> None:
        """results: what the runs before the signal came to; exit_code: 130 for Ctrl-C, 143 for SIGTERM."""
        super().__init__(message)
        self.results = list(results)
        self.exit_code = exit_code

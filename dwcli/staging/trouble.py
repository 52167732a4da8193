"""What keeps PostgreSQL from doing any statement: no room, a lock, a limit of its own, a lost connection."""

from __future__ import annotations

import psycopg

from dwcli.errors import WarehouseError

#: What the server says last when it ends a session, and what libpq says of a connection that broke.
LOST = (None, "57P01", "57P02", "57P03", "08000", "08003", "08006")


def trouble(error: BaseException, table: str = "") -> WarehouseError | None:
    """The error of a person for one of these; None where it is something else.

    table: which one the statement was about, where that is known.
    """
    if isinstance(error, psycopg.errors.DiskFull | psycopg.errors.OutOfMemory):
        return WarehouseError(
            "the warehouse has no room left",
            why=error.diag.message_primary or "",
            hint="free space on the warehouse's disk, then run it again; nothing was changed",
        )
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return WarehouseError(
            f"{table or 'a table'} is locked by another session",
            why=error.diag.message_primary or "",
            hint="run it again when that is done; nothing was changed",
        )
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return WarehouseError(
            "the warehouse takes no changes",
            why=error.diag.message_primary or "",
            hint="it is a standby, or read-only: name the primary in warehouse: (dw.yaml)",
        )
    if isinstance(error, psycopg.errors.ProgramLimitExceeded):
        return WarehouseError(
            f"{table or 'a table'} cannot hold a row",
            why=f"{error.diag.message_primary}; a long text takes 18 bytes of it, a key 2.7 kB at most",
            hint="read fewer columns, or the rarer ones as one JSON column, or choose a shorter key",
        )
    if isinstance(error, psycopg.OperationalError) and error.sqlstate in LOST:
        return WarehouseError(
            "the connection to the warehouse was lost; nothing of this run was committed",
            why=error.diag.message_primary or str(error).strip().split("\n")[0],
            hint="run it again when the warehouse is back: dw up",
        )
    return None

"""The lock of a pipeline: a PostgreSQL advisory lock, which dies with the session that holds it."""

from __future__ import annotations

import hashlib

import psycopg

from dwcli.errors import PipelineLocked

#: A holder that is gone when it is asked for has just let go, so the lock may be had after all.
TRIES = 3


def take_lock(session: psycopg.Connection, pipeline: str, who: str) -> None:
    """Hold a pipeline for as long as a session lives. Raises PipelineLocked, naming the holder.

    who: what others are told of the holder: a run's id, or what is done with the pipeline.
    """
    session.execute("select set_config('application_name', %s, false)", (f"dw {who} {pipeline}"[:63],))
    told = None
    for _ in range(TRIES):
        row = session.execute("select pg_try_advisory_lock(%s)", (_key(pipeline),)).fetchone()
        if row and row[0]:
            return
        told = holder(session, pipeline)
        if told is not None:
            break
    raise PipelineLocked(
        f"{pipeline} is already running{told or ''}",
        hint="wait until it is done: dw status",
    )


def holder(session: psycopg.Connection, pipeline: str) -> str | None:
    """Who holds a pipeline just now, such as ` (run 7f3a91c2, for 12 s)`; None for nobody. Takes nothing."""
    found = session.execute(
        """
        select split_part(application_name, ' ', 2), round(extract(epoch from now() - backend_start))
        from pg_locks join pg_stat_activity using (pid)
        where locktype = 'advisory' and granted and objsubid = 1
          and database = (select oid from pg_database where datname = current_database())
          and (classid::bigint << 32 | objid::bigint) = %s
        """,
        (_key(pipeline),),
    ).fetchone()
    return f" (run {found[0]}, for {found[1]} s)" if found else None


def is_held(session: psycopg.Connection, pipeline: str, who: str) -> bool:
    """Whether the session that took a pipeline under this name still lives."""
    row = session.execute(
        "select exists (select from pg_locks join pg_stat_activity using (pid) where locktype = 'advisory'"
        " and granted and (classid::bigint << 32 | objid::bigint) = %s"
        " and starts_with(application_name, %s))",
        (_key(pipeline), f"dw {who} "),
    ).fetchone()
    return bool(row and row[0])


def _key(pipeline: str) -> int:
    return int.from_bytes(hashlib.sha256(pipeline.encode()).digest()[:8], signed=True)

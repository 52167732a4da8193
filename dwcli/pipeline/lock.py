"""The lock of a pipeline: a PostgreSQL advisory lock, which dies with the session that holds it."""

from __future__ import annotations

import hashlib

import psycopg

from dwcli.errors import PipelineLocked


def take_lock(session: psycopg.Connection, pipeline: str, who: str) -> None:
    """Hold a pipeline for as long as a session lives. Raises PipelineLocked, naming the holder.

    who: what others are told of the holder: a run's id, or what is done with the pipeline.
    """
    key = _key(pipeline)
    session.execute("select set_config('application_name', %s, false)", (f"dw {who} {pipeline}"[:63],))
    row = session.execute("select pg_try_advisory_lock(%s)", (key,)).fetchone()
    if row and row[0]:
        return
    holder = session.execute(
        """
        select split_part(application_name, ' ', 2), round(extract(epoch from now() - backend_start))
        from pg_locks join pg_stat_activity using (pid)
        where locktype = 'advisory' and granted and objsubid = 1
          and (classid::bigint << 32 | objid::bigint) = %s
        """,
        (key,),
    ).fetchone()
    told = f" (run {holder[0]}, for {holder[1]} s)" if holder else ""
    raise PipelineLocked(
        f"{pipeline} is already running{told}",
        hint="wait until it is done: dw status",
    )


def is_held(session: psycopg.Connection, pipeline: str) -> bool:
    """Whether somebody holds a pipeline. Only looks: a run that begins just now is not disturbed."""
    query = """
        select 1 from pg_locks
        where locktype = 'advisory' and granted and objsubid = 1
          and (classid::bigint << 32 | objid::bigint) = %s
          and database = (select oid from pg_database where datname = current_database())
        """
    return session.execute(query, (_key(pipeline),)).fetchone() is not None


def _key(pipeline: str) -> int:
    return int.from_bytes(hashlib.sha256(pipeline.encode()).digest()[:8], signed=True)

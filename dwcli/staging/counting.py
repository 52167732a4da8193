"""How many rows tables have: counted where that is cheap, else as PostgreSQL's own statistics have it.

A screen asks this again and again, so it never waits: not for a lock that a load holds, nor for a long count.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import psycopg
from psycopg import sql

#: Tables of more rows than this, dead ones among them, are not counted.
COUNTED_UP_TO = 50_000
#: How long all counts together may take; what is left then is estimated.
PATIENCE_SECONDS = 1.0

# None of this takes a lock. Statistics are lost in a crash; reltuples is -1 before the first ANALYZE.
ESTIMATE_SQL = """
    select schema, name,
           relkind = 'r' and has_table_privilege(c.oid, 'select') and greatest(held, reltuples) <= %(most)s,
           case when live > 0 then live when reltuples >= 0 then reltuples::bigint end
    from unnest(%(schemas)s::text[], %(names)s::text[]) as asked (schema, name)
    join pg_namespace n on n.nspname = schema
    join pg_class c on c.relnamespace = n.oid and c.relname = name
    cross join lateral (select pg_stat_get_live_tuples(c.oid)) as l (live)
    cross join lateral (select live + pg_stat_get_dead_tuples(c.oid)) as h (held)
    order by live
"""


@dataclass(frozen=True)
class Rows:
    """How many rows a table has; not exact: about as many."""

    number: int
    exact: bool


def rows_in(connection: psycopg.Connection, tables: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Rows]:
    """How many rows tables, by schema and name, have. One that is not there, or not known, is left out."""
    asked = sorted(set(tables))
    values = {"schemas": [schema for schema, _ in asked], "names": [name for _, name in asked]}
    found: dict[tuple[str, str], Rows] = {}
    until = time.monotonic() + PATIENCE_SECONDS
    known = connection.execute(ESTIMATE_SQL, values | {"most": COUNTED_UP_TO}).fetchall()
    for schema, name, small, about in known:
        exact = _counted(connection, schema, name) if small and time.monotonic() < until else None
        if exact is not None:
            found[schema, name] = Rows(exact, True)
        elif about is not None:
            found[schema, name] = Rows(about, False)
    return found


def _counted(connection: psycopg.Connection, schema: str, name: str) -> int | None:
    """The count; None where it would take long, or a load has locked the table."""
    query = sql.SQL("select count(*) from {}").format(sql.Identifier(schema, name))
    try:
        with connection.transaction(force_rollback=True):  # and so the time-outs end here
            connection.execute("set local lock_timeout = '50ms'; set local statement_timeout = '300ms'")
            counted = connection.execute(query).fetchone()
    except psycopg.OperationalError:  # both time-outs, and a connection that is gone
        if connection.broken:
            raise
        return None
    return int(counted[0]) if counted else None

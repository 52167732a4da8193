"""The data and the two databases of the benchmark, made when they are not there."""

from __future__ import annotations

from pathlib import Path

import psycopg
from psycopg import sql

HERE = Path(__file__).parent
SOURCE, TARGET = "dw_bench_source", "dw_bench_target"
#: What both ends must agree on for a load to count: a row lost, doubled or changed shows in one of them.
FINGERPRINT = """
    SELECT count(*), sum(id::numeric), sum(total::numeric), sum(tax::numeric),
           count(score), sum(score::float8::numeric), count(*) FILTER (WHERE paid::boolean),
           min(order_date::date), max(created_at::timestamptz), count(shipped_at),
           sum(hashtext(ref)::bigint), sum(hashtext(note)::bigint)
    FROM {table}
"""


def database_url(server: str, database: str) -> str:
    """`server` is a URL without a database, such as postgresql://postgres@127.0.0.1:5432."""
    return f"{server.rstrip('/')}/{database}"


def make_source(server: str, rows: int) -> str:
    """The URL of a database whose table `orders` has `rows` rows; made anew only when it has not."""
    url = database_url(server, SOURCE)
    if existing_rows(server) != rows:
        recreate_database(server, SOURCE)
        with psycopg.connect(url, options="-c timezone=UTC") as connection:
            connection.execute("SELECT set_config('bench.rows', %s, false)", [str(rows)])
            connection.execute((HERE / "orders.sql").read_text())
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE orders")
    return url


def existing_rows(server: str) -> int:
    """Rows in the source table, or -1 where there is none."""
    try:
        with psycopg.connect(database_url(server, SOURCE)) as connection:
            row = connection.execute("SELECT count(*) FROM orders").fetchone()
            return row[0]
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
        return -1


def make_csv(source: str, rows: int, folder: Path) -> Path:
    """The same rows as a CSV file with a header."""
    path = folder / f"orders_{rows}.csv"
    if not path.exists():
        part = path.with_suffix(".part")
        with (
            psycopg.connect(source, options="-c timezone=UTC") as connection,
            connection.cursor().copy("COPY orders TO STDOUT (FORMAT csv, HEADER)") as copy,
            part.open("wb") as out,
        ):
            for block in copy:
                out.write(block)
        part.rename(path)
    return path


def empty_target(server: str) -> str:
    """The URL of an empty database, with the server's pending writes done: every tool starts alike."""
    recreate_database(server, TARGET)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    return database_url(server, TARGET)


def recreate_database(server: str, name: str) -> None:
    drop_database(server, name)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def drop_database(server: str, name: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def fingerprint(url: str) -> tuple[object, ...]:
    """Counts, sums and hashes of the table `orders`, in whichever schema the tool has put it."""
    with psycopg.connect(url, options="-c timezone=UTC") as connection:
        schemas = connection.execute(
            "SELECT schemaname FROM pg_tables WHERE tablename = 'orders' ORDER BY schemaname = 'public'"
        ).fetchall()
        if not schemas:
            return ()
        table = sql.Identifier(schemas[-1][0], "orders")
        try:
            return connection.execute(sql.SQL(FINGERPRINT).format(table=table)).fetchone()
        except psycopg.errors.DataException as error:
            return (str(error),)

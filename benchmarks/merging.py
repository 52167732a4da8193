"""`make bench-merge`: what a table that is kept up to date costs, into merging.md.

A table is loaded once by `dw`. Then one row in a hundred changes in the source, round after round, another
hundredth each time, and two bring the change over in turn, each into a table of its own with the same columns
and the same primary key: `dw run` (incremental, merge), and the SQL that a good engineer writes, which is
given the changed rows by COPY, dedupes them in a temporary table and says INSERT … ON CONFLICT. At the end
`dw verify` compares everything, beside what the first load took.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
from pathlib import Path

import psycopg
from psycopg import sql

from benchmarks import data
from benchmarks.__main__ import ROOT, fresh, shop_project
from benchmarks.measure import AS_INSTALLED, Cost, run

SCRIPT = Path(__file__).parent / "peers" / "merge_by_hand.sh"
OWN_SECONDS = re.compile(r'"duration_seconds": ([0-9.]+)')
#: One row in so many changes each round.
PART = 100
ORDERS = "{query: public.changing, write: merge, key: [id], cursor: updated_at}"
#: When the rows of a round are changed, in the source's own time: one after the other, on a day of its own.
CHANGED = "timestamptz '2026-01-01 00:00:00+00' + interval '1 day' * {round} + interval '1 ms' * id"


def main() -> int:
    given = arguments()
    folder = fresh(ROOT / ".benchdata" / "merging")
    print(f"making {given.rows:,} rows …", flush=True)
    source = data.make_source(given.server, given.rows)
    make_changing(source)
    target = data.empty_target(given.server)
    project = shop_project(folder, source, target, ORDERS)
    environment = {"SOURCE_URL": source, "TARGET_URL": target, "TZ": "UTC"} | AS_INSTALLED
    dw = [Path(sys.executable).parent / "dw", "-C", project]
    first = run([*dw, "run", "orders", "--json"], environment, folder, folder / "first.log")
    print(f"first load: {first.wall:.1f} s", flush=True)
    make_other_table(source, target)
    costs: dict[str, list[Cost]] = {"dw": [], "sql": []}
    own: list[float] = []
    for number in range(1, given.rounds + 1):
        change(source, number)
        settle(target)
        costs["dw"].append(run([*dw, "run", "orders", "--json"], environment, folder, folder / "dw.log"))
        own.append(float(OWN_SECONDS.findall((folder / "dw.log").read_text("utf-8"))[0]))
        settle(target)
        since = {"SINCE": f"2026-01-{number:02} 23:59:59+00"}
        costs["sql"].append(run(["bash", SCRIPT], environment | since, folder, folder / "sql.log"))
        print(
            f"round {number}: dw {costs['dw'][-1].wall:.2f} s, sql {costs['sql'][-1].wall:.2f} s", flush=True
        )
    equal = are_equal(source, target)
    verify = run([*dw, "verify", "orders", "--json"], environment, folder, folder / "verify.log")
    text = page(given.rows, given.rounds, costs, statistics.median(own), first, verify, equal)
    given.out.write_text(text, "utf-8")
    print(text)
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("DROP TABLE changing")
    return 0 if equal else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merging", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "merging.md")
    parser.add_argument(
        "--server", default=os.environ.get("BENCH_SERVER", "postgresql://postgres@127.0.0.1:5432")
    )
    return parser.parse_args()


def make_changing(source: str) -> None:
    """The table whose rows change, with the key and the index that such a table has."""
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS changing")
        connection.execute("CREATE TABLE changing AS SELECT *, created_at AS updated_at FROM orders")
        connection.execute("ALTER TABLE changing ADD PRIMARY KEY (id), ALTER updated_at SET NOT NULL")
        connection.execute("CREATE INDEX ON changing (updated_at)")
        connection.execute("VACUUM ANALYZE changing")


def make_other_table(source: str, target: str) -> None:
    """The same rows with the source's own columns and key, for the SQL by hand."""
    with psycopg.connect(source) as connection:
        columns = connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = 'changing'::regclass AND attnum > 0 ORDER BY attnum"
        ).fetchall()
    names = ", ".join(name for name, _ in columns)
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE by_hand ({', '.join(f'{name} {kind}' for name, kind in columns)})")
        connection.execute(f"INSERT INTO by_hand SELECT {names} FROM orders")
        connection.execute("ALTER TABLE by_hand ADD PRIMARY KEY (id)")
        connection.execute("VACUUM ANALYZE by_hand")
        connection.execute("VACUUM ANALYZE orders")


def change(source: str, number: int) -> None:
    """Change one row in a hundred, in a transaction that ends before anybody reads.

    They are read once: the first reader after a change writes into each page that the change is committed.
    """
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute(
            sql.SQL(
                "UPDATE changing SET total = total + 1, status = 'changed', updated_at = "
                + CHANGED.format(round=number)
                + " WHERE id % {part} = {number}"
            ).format(part=sql.Literal(PART), number=sql.Literal(number))
        )
        connection.execute("SELECT sum(total) FROM changing WHERE status = 'changed'")


def settle(target: str) -> None:
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("CHECKPOINT")


def are_equal(source: str, target: str) -> bool:
    """Whether both tables hold what the source holds."""
    query = (
        "SELECT count(*), sum(id), sum(total), max(updated_at), count(*) FILTER (WHERE status = 'changed'),"
        " sum(hashtext(ref)::bigint) FROM {}"
    )
    found = []
    for url, table in ((source, "changing"), (target, "orders"), (target, "by_hand")):
        with psycopg.connect(url) as connection:
            row = connection.execute(sql.SQL(query).format(sql.Identifier(table))).fetchone()
            found.append(row)
    return found[0] == found[1] == found[2]


def page(
    rows: int,
    rounds: int,
    costs: dict[str, list[Cost]],
    own: float,
    first: Cost,
    verify: Cost,
    equal: bool,
) -> str:
    """The figures as Markdown; seconds are of whole processes, from start to exit.

    own: what the run says it took, without the start of Python.
    """
    titles = {"sql": "COPY, dedupe, INSERT … ON CONFLICT by hand", "dw": "`dw run`, merge"}
    middle = {who: statistics.median(cost.wall for cost in costs[who]) for who in titles}
    lines = [
        f"| {title} | {middle[who]:.2f} | {max(cost.peak for cost in costs[who]):.0f} |"
        f" {middle[who] / middle['sql']:.2f} |"
        for who, title in titles.items()
    ]
    return "\n".join(
        [
            "# One row in a hundred has changed",
            "",
            f"{rows:,} rows in the table, {rows // PART:,} changed each round, median of {rounds}:"
            f" `make bench-merge`. Both tables hold what the source holds: {'yes' if equal else '**no**'}.",
            "",
            "| | seconds | MB | ÷ by hand |",
            "|---|--:|--:|--:|",
            *lines,
            f"| of it the run, once Python has started | {own:.2f} | | {own / middle['sql']:.2f} |",
            "",
            f"`dw verify` of all {rows:,} rows: {verify.wall:.1f} s, {verify.wall / first.wall:.2f} of the"
            f" first load ({first.wall:.1f} s); {verify.peak:.0f} MB.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

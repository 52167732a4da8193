"""`make bench-families`: one job per family of sources, `dw run` beside a plain script, into families.md.

The two take turns, round after round, each into an empty database; a figure is the median of its rounds. The
plain script reads with the same driver and writes with COPY. It keeps no Parquet, no state and no audit row,
and begins at the beginning every time: it is what people write first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from benchmarks import data
from benchmarks.__main__ import ROOT, fresh
from benchmarks.families import streams
from benchmarks.families.rows import NAME, PAGE_ROWS, Filled, total
from benchmarks.families.sources import FAMILIES, PAGE_SECONDS, Family
from benchmarks.measure import AS_INSTALLED, CommandFailed, Cost, run
from dwcli.connectors import names
from dwcli.project import dump_yaml

PLAIN = Path(__file__).parent / "plain"
SOURCE = "family"


@dataclass
class Result:
    family: Family
    rows: int
    #: who → what each round took
    costs: dict[str, list[Cost]] = field(default_factory=lambda: {"dw": [], "plain": []})
    exact: bool = True
    #: why there is no figure
    reason: str = ""


def main() -> int:
    given = arguments()
    folder = fresh(ROOT / ".benchdata" / NAME)
    try:
        results = {name: measure(FAMILIES[name], name, given, folder) for name in given.families}
    finally:
        data.drop_database(given.server, NAME)
    if not any(result.reason.startswith("failed") for result in results.values()):
        shutil.rmtree(folder)  # else its logs say why
    text = page(results, given.rows, given.rounds)
    given.out.write_text(text, "utf-8")
    print(text)
    return 0 if all(result.exact for result in results.values()) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "families.md")
    parser.add_argument(
        "--server", default=os.environ.get("BENCH_SERVER", "postgresql://postgres@127.0.0.1:5432")
    )
    return parser.parse_args()


def measure(family: Family, name: str, given: argparse.Namespace, folder: Path) -> Result:
    """Fill the source, and let both read it in turn."""
    result = Result(family, min(given.rows, family.most or given.rows))
    if family.protocol not in names():
        result.reason = f"there is no connector {family.protocol}"
        return result
    try:
        with family.fill(result.rows, folder) as filled:
            for number in range(given.rounds):
                for who in result.costs:
                    filled.refill()
                    result.costs[who].append(measure_one(who, name, filled, given, folder, result))
                    cost = result.costs[who][-1]
                    print(
                        f"{name} round {number + 1} {who}: {cost.wall:.1f} s, CPU {cost.cpu:.1f} s,"
                        f" {cost.peak:.0f} MB",
                        flush=True,
                    )
    except CommandFailed as error:
        result.reason = f"failed: {error}"
        result.exact = False
    except (OSError, ImportError) as error:  # a server or a driver that is not here
        result.reason = str(error).split("\n")[0]
    return result


def measure_one(
    who: str, name: str, filled: Filled, given: argparse.Namespace, folder: Path, result: Result
) -> Cost:
    """Run one of the two into an empty database. Raises CommandFailed."""
    data.recreate_database(given.server, NAME)
    target = data.database_url(given.server, NAME)
    log = folder / f"{name}.{who}.log"
    environment = {**filled.variables, "TARGET_URL": target, "TZ": "UTC"}
    if who == "dw":
        environment |= AS_INSTALLED
        project = write_project(result.family.protocol, filled, target, folder)
        dw = Path(sys.executable).parent / "dw"
        command = [str(dw), "-C", str(project), "run", SOURCE, "--json", "--progress", "none"]
    else:
        command = [sys.executable, str(PLAIN / f"read_{name}.py")]
    cost = run(command, environment, folder, log)
    result.exact &= arrived(target) == (result.rows, round(total(result.rows), 2))
    return cost


def write_project(protocol: str, filled: Filled, target: str, folder: Path) -> Path:
    """A dw project with the one pipeline."""
    project = fresh(folder / "project")
    (project / "sources").mkdir()
    (project / "dw.yaml").write_text(f"name: families\nwarehouse: {target}\n", "utf-8")
    source = {
        "protocol": protocol,
        **filled.config,
        "pipelines": {"orders": {"query": filled.query, "target": "orders"}},
    }
    (project / "sources" / f"{SOURCE}.yaml").write_text(dump_yaml(source), "utf-8")
    return project


def arrived(target: str) -> tuple[int, float]:
    """How many rows are in the table, and what `total` comes to."""
    with psycopg.connect(target) as connection:
        count, amount = connection.execute("SELECT count(*), sum(total::numeric) FROM orders").fetchone()
        return count, float(amount or 0)


def page(results: dict[str, Result], rows: int, rounds: int) -> str:
    """The results as Markdown."""
    lines = [
        "# One job per family of sources",
        "",
        f"Up to {rows:,} rows, median of {rounds}: `make bench-families FAMILY_ROWS={rows}`. Rows per second"
        " from start to exit, CPU seconds without the servers', and peak memory of all processes. `dw` keeps"
        " the rows as Parquet too, and of a message it loads the whole payload beside the five columns that"
        " the script loads. The API thinks for"
        f" {PAGE_SECONDS * 1000:g} ms before it gives a page of {PAGE_ROWS:,} rows.",
        "",
        f"MQTT gives at most {streams.MQTT_MOST:,} messages in a run, and nothing tells the last: both wait"
        f" for {streams.QUIET_SECONDS:g} s more. The stand-in for MongoDB reads the whole collection to count"
        " it, which `dw` asks for, for 0.2 s at most, and MongoDB knows.",
        "",
        "| family | source | rows | dw rows/s | CPU s | MB |"
        " plain script | rows/s | CPU s | MB | dw ÷ plain | all rows |",
        "|---|---|--:|--:|--:|--:|---|--:|--:|--:|--:|---|",
    ]
    for name, result in results.items():
        head = f"| {result.family.title} | {result.family.protocol} |"
        if result.reason:
            lines.append(f"{head} | | | | | | | | | left out: {result.reason} |")
            continue
        ours, plain = (middle(result.costs[who]) for who in ("dw", "plain"))
        title = (PLAIN / f"read_{name}.py").read_text("utf-8").split("\n", 1)[0].lstrip("# ")
        lines.append(
            f"{head} {result.rows:,} | {result.rows / ours.wall:,.0f} | {ours.cpu:.1f} | {ours.peak:.0f} |"
            f" {title} | {result.rows / plain.wall:,.0f} | {plain.cpu:.1f} | {plain.peak:.0f} |"
            f" {plain.wall / ours.wall:.2f} | {'yes' if result.exact else 'NO'} |"
        )
    return "\n".join(lines) + "\n"


def middle(costs: list[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(
        statistics.median(cost.wall for cost in costs),
        statistics.median(cost.cpu for cost in costs),
        statistics.median(cost.peak for cost in costs),
    )


if __name__ == "__main__":
    sys.exit(main())

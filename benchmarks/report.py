"""The measurements as a page to read."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from statistics import median

import psutil
import psycopg

from benchmarks.measure import Cost

JOBS = {"pg": "PostgreSQL → PostgreSQL", "csv": "CSV → PostgreSQL"}
LIMITS = {"pg": "psql_pipe", "csv": "psql_copy"}


@dataclass
class Series:
    """One tool doing one job: what each round cost, or why there is nothing to show."""

    tool: str
    title: str
    costs: list[Cost] = field(default_factory=list)
    exact: bool = True
    reason: str = ""


def page(
    rows: int,
    rounds: int,
    jobs: Mapping[str, Mapping[str, Series]],
    startup: Mapping[str, list[float] | str],
    server: str,
    packages: Path,
) -> str:
    """The whole results.md. `packages`: the folder that the other tools are installed in."""
    lines = [
        "# Measured",
        "",
        f"{rows:,} rows of the 14-column table in `orders.sql`, median of {rounds} rounds in which the tools",
        "took turns, on one server, into an empty database. Written by `make bench`.",
        "",
        f"{machine()}. {versions(server, packages)}. {datetime.now(UTC):%Y-%m-%d}.",
        "",
        "`×` is the wall time beside the limit: psql moving the same rows with nothing kept on the way.",
        "`memory` is the peak of all the tool's processes together, the server's left out. `same rows`",
        "compares counts, sums and hashes with the source. `dw` also keeps the rows as Parquet.",
    ]
    for job, series in jobs.items():
        lines += ["", f"## {JOBS[job]}", "", *table(series, LIMITS[job])]
    lines += ["", "## Start-up", "", "Wall seconds until the command has ended.", "", *startup_table(startup)]
    return "\n".join(lines) + "\n"


def table(series: Mapping[str, Series], limit: str) -> list[str]:
    lines = [
        "| tool | wall s | × | cpu s | memory MB | same rows |",
        "|---|--:|--:|--:|--:|---|",
    ]
    base = middle(series[limit]).wall if limit in series and series[limit].costs else None
    for one in sorted(series.values(), key=lambda s: middle(s).wall if s.costs else float("inf")):
        if not one.costs:
            lines.append(f"| {one.title} | | | | | left out: {one.reason[:80]} |")
            continue
        cost = middle(one)
        ratio = f"{cost.wall / base:.1f}" if base else ""
        name = f"**{one.title}**" if one.tool == "dw" else one.title
        lines.append(
            f"| {name} | {cost.wall:.1f} | {ratio} | {cost.cpu:.1f} | {cost.peak:.0f} "
            f"| {'yes' if one.exact else 'NO'} |"
        )
    return lines


def middle(series: Series) -> Cost:
    """The median of each figure."""
    return Cost(
        median(cost.wall for cost in series.costs),
        median(cost.cpu for cost in series.costs),
        median(cost.peak for cost in series.costs),
    )


def startup_table(startup: Mapping[str, list[float] | str]) -> list[str]:
    lines = ["| command | wall s |", "|---|--:|"]
    for title, seconds in startup.items():
        shown = seconds if isinstance(seconds, str) else f"{median(seconds):.2f}"
        lines.append(f"| `{title}` | {shown} |")
    return lines


def machine() -> str:
    memory = psutil.virtual_memory().total / 1e9
    return (
        f"{os.cpu_count()} cores ({processor()}), {memory:.0f} GB, {platform.system()} {platform.machine()}"
    )


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or "unknown"


def versions(server: str, packages: Path) -> str:
    with psycopg.connect(server) as connection:
        number = connection.execute("SHOW server_version").fetchone()[0]
    found = {d.name: d.version for d in distributions(path=[str(packages)])}
    peers = [
        f"{name.split('-')[0]} {found[name]}"
        for name in ("dlt", "ingestr", "polars", "sling-linux-amd64", "sling-linux-arm64")
        if name in found
    ]
    return ", ".join([f"PostgreSQL {number.split(' ')[0]}", f"Python {platform.python_version()}", *peers])

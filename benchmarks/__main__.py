"""`make bench`: make the data, run every tool in turn on the same servers, write results.md.

The tools of a job run one after the other, round after round, so that a slow minute of the machine
hits all of them; each figure is the median of the rounds. Before each run the target database is made
anew and the server has written out what it had pending. After each run the rows that arrived are
compared with the source by counts, sums and hashes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import psycopg

from benchmarks import data, report, startup
from benchmarks.measure import AS_INSTALLED, CommandFailed, run
from benchmarks.report import JOBS, LIMITS, Series

ROOT = Path(__file__).parent.parent
PEERS = Path(__file__).parent / "peers"
PEERS_BIN = ROOT / ".venv-bench" / "bin"


def main() -> int:
    given = arguments()
    folder = ROOT / ".benchdata"
    folder.mkdir(exist_ok=True)
    if given.clean:
        clean(given.server, folder)
        return 0
    try:
        print(f"making {given.rows:,} rows …", flush=True)
        source = data.make_source(given.server, given.rows)
    except psycopg.OperationalError as error:
        print(f"No PostgreSQL to measure on: {error}\nName one: BENCH_SERVER=postgresql://user@host:port")
        return 1
    csv = data.make_csv(source, given.rows, folder)
    jobs = {}
    for job in given.jobs:
        jobs[job] = measure_job(job, given, source, csv, folder)
    seconds = startup.measure(folder, write_project(given.server, source, csv, folder), PEERS_BIN)
    page = report.page(
        given.rows,
        given.rounds,
        jobs,
        seconds,
        given.server,
        next(PEERS_BIN.parent.glob("lib/*/site-packages"), ROOT),
    )
    given.out.write_text(page)
    print(page)
    return 0 if all(ours_is_exact(series) for series in jobs.values()) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--tools", nargs="+", help="only these: the names of the files in peers/")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.md")
    parser.add_argument("--clean", action="store_true", help="drop the data and the two databases, and end")
    parser.add_argument(
        "--server", default=os.environ.get("BENCH_SERVER", "postgresql://postgres@127.0.0.1:5432")
    )
    return parser.parse_args()


def clean(server: str, folder: Path) -> None:
    for name in (data.SOURCE, data.TARGET):
        data.drop_database(server, name)
    shutil.rmtree(folder)


def ours_is_exact(series: dict[str, Series]) -> bool:
    return "dw" not in series or (series["dw"].exact and not series["dw"].reason)


def measure_job(
    job: str, given: argparse.Namespace, source: str, csv: Path, folder: Path
) -> dict[str, Series]:
    """Run every tool that can do this job, `given.rounds` times. The limit comes first."""
    scripts = {path.name.split(".")[0]: path for path in sorted(PEERS.glob(f"*.{job}.*"))}
    tools = sorted(scripts, key=lambda tool: (tool != LIMITS[job], tool != "dw", tool))
    chosen = [tool for tool in tools if not given.tools or tool in given.tools]
    series = {tool: Series(tool, title(scripts[tool]), reason=missing(tool)) for tool in chosen}
    expected = data.fingerprint(source)
    for number in range(given.rounds):
        for tool in chosen:
            if series[tool].reason:
                continue
            target = data.empty_target(given.server)
            project = write_project(given.server, source, csv, folder)
            environment = variables(source, target, csv, project, folder)
            if tool == "dw":
                environment |= AS_INSTALLED
            log = folder / f"{tool}.{job}.log"
            try:
                cost = run(command(scripts[tool]), environment, folder, log)
            except CommandFailed as error:
                series[tool].reason = f"failed: {error} ({log.name})"
                continue
            series[tool].costs.append(cost)
            series[tool].exact &= data.fingerprint(target) == expected
            print(
                f"{job} round {number + 1} {tool}: {cost.wall:.1f} s, {cost.peak:.0f} MB"
                + ("" if series[tool].exact else ", NOT the same rows"),
                flush=True,
            )
    for one in series.values():
        if one.reason:
            print(f"{job} {one.tool}: left out, {one.reason}", flush=True)
    return series


def title(script: Path) -> str:
    """What a script calls itself in its first line."""
    return script.read_text().split("\n", 1)[0].lstrip("# ")


def missing(tool: str) -> str:
    """Why a tool cannot run on this machine, or nothing."""
    if tool == "dw" or (tool.startswith("psql") and shutil.which("psql")):
        return ""
    if tool.startswith("psql"):
        return "psql is not installed"
    if tool == "sling":
        return "" if sling() else "its package brings no program for this machine"
    if tool == "ingestr":
        return "" if (PEERS_BIN / "ingestr").exists() else "not installed in .venv-bench"
    return "" if (PEERS_BIN / "python").exists() else "there is no .venv-bench"


def sling() -> Path | None:
    found = PEERS_BIN.parent.glob("lib/python3*/site-packages/sling_linux_*/bin/sling-linux-*")
    program = next(found, None)
    if program:
        program.chmod(0o755)
    return program


def command(script: Path) -> list[str | Path]:
    return ["bash", script] if script.suffix == ".sh" else [PEERS_BIN / "python", script]


def variables(source: str, target: str, csv: Path, project: Path, folder: Path) -> dict[str, str]:
    """What the scripts in peers/ find in their environment."""
    return {
        "SOURCE_URL": source,
        "TARGET_URL": target,
        "CSV": str(csv),
        "DW_PROJECT": str(project),
        "DW_BIN": str(Path(sys.executable).parent),
        "PEERS_BIN": str(PEERS_BIN),
        "SLING": str(sling() or ""),
        "SLING_HOME_DIR": str(folder / "sling"),
        "SLING_DISABLE_TELEMETRY": "TRUE",
        "DLT_DATA_DIR": str(fresh(folder / "dlt")),
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "INGESTR_DISABLE_TELEMETRY": "true",
        "HOME": str(folder),
        "TZ": "UTC",
    }


def write_project(server: str, source: str, csv: Path, folder: Path) -> Path:
    """A dw project with the two pipelines, its lake empty."""
    target = data.database_url(server, data.TARGET)
    project = shop_project(folder, source, target, "{query: public.orders, write: replace}")
    (project / "sources" / "files.yaml").write_text(
        f"protocol: files\npath: {csv.parent}\n"
        f"pipelines:\n  orders: {{query: {csv.name}, target: orders, schema: files, write: replace}}\n"
    )
    return project


def shop_project(folder: Path, source: str, target: str, orders: str) -> Path:
    """A project that reads a PostgreSQL by its pipeline `orders`, its lake empty."""
    project = fresh(folder / "project")
    (project / "sources").mkdir()
    (project / "dw.yaml").write_text(f"name: bench\nwarehouse: {target}\n")
    parts = psycopg.conninfo.conninfo_to_dict(source)
    (project / "sources" / "shop.yaml").write_text(
        f"protocol: postgres\nhost: {parts['host']}\nport: {parts.get('port', 5432)}\n"
        f"database: {parts['dbname']}\nusername: {parts['user']}\npassword: '{parts.get('password', '')}'\n"
        f"pipelines:\n  orders: {orders}\n"
    )
    return project


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())

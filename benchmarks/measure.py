"""What one command costs: wall seconds, CPU seconds and peak memory, its children included."""

from __future__ import annotations

import compileall
import os
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

import dwcli

#: The environment of a command that runs dw: without what only its tests have installed.
AS_INSTALLED = {"PYTHONPATH": str(Path(__file__).parent / "as_installed")}
SAMPLE_SECONDS = 0.05
START_SECONDS = 30.0


@dataclass(frozen=True)
class Cost:
    """wall, cpu: seconds. peak: MB of all its processes together, sampled every 50 ms."""

    wall: float
    cpu: float
    peak: float


class CommandFailed(Exception):
    """The command ended with another code than 0; the message is the last line that it printed."""


@cache
def compile_dw() -> None:
    """Compile dw, as an installer does: this Python may have been told to keep no compiled modules."""
    compileall.compile_dir(Path(dwcli.__file__).parent, quiet=1)


def run(command: Sequence[str | Path], environment: Mapping[str, str], folder: Path, log: Path) -> Cost:
    """Run a command in `folder` to its end and say what it took; what it prints goes to `log`.

    Raises CommandFailed.
    """
    compile_dw()
    done = threading.Event()
    peak = [0.0]
    before = os.times()
    with log.open("wb") as out:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **environment},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        sampler = threading.Thread(target=_sample, args=(process.pid, done, peak))
        sampler.start()
        code = process.wait()
        wall = time.perf_counter() - started
    done.set()
    sampler.join()
    if code:
        printed = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        raise CommandFailed(printed[-1])
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(wall, cpu, peak[0])


def _sample(pid: int, done: threading.Event, peak: list[float]) -> None:
    while not done.is_set():
        peak[0] = max(peak[0], tree_megabytes(pid))
        done.wait(SAMPLE_SECONDS)


def tree_megabytes(pid: int) -> float:
    """Memory of a process and all below it.

    Pages that several of them share are counted once (PSS). A process alone shares with nobody here,
    so its resident size is taken: reading PSS stops the process for a moment and would slow it down.
    """
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(_process_bytes(process, alone=len(tree) == 1) for process in tree) / 1e6


def _process_bytes(process: psutil.Process, alone: bool) -> int:
    try:
        return process.memory_info().rss if alone else process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
        return 0


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for_port(port: int) -> None:
    """Wait until a server that was just started answers. Raises OSError when it does not."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)

"""Runs of `dw` as processes that can be killed, without paying for the start of each.

A process that has imported everything forks for each run: a tenth of the cost of a new interpreter. The
child is a process of its own, with its own arguments, folder and environment, so SIGKILL is the real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Forker = subprocess.Popen[str]
#: The real program, where a run is to be a process from its first moment.
DW = [sys.executable, "-m", "dwcli"]


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (negative: the signal that killed it) and what it wrote."""

    code: int
    output: str


#: pid → exit code of runs whose end was told while another began.
_EARLY: dict[int, int] = {}


@contextlib.contextmanager
def forker() -> Iterator[subprocess.Popen[str]]:
    """The process that forks. Without threads of numpy's, which a fork would lose."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.forker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.wait()
        process.stdout.close()


def start(
    process: subprocess.Popen[str], folder: Path, words: Sequence[str], crash: str, output: Path
) -> int:
    """Begin `dw words` in a folder, to die at the place `crash` where that is not empty. Returns its pid."""
    assert process.stdin is not None
    asked = {"words": list(words), "folder": str(folder), "crash": crash, "output": str(output)}
    print(json.dumps(asked), file=process.stdin, flush=True)
    while "code" in (answer := _answer(process)):  # another has ended meanwhile
        _EARLY[answer["pid"]] = answer["code"]
    return int(answer["pid"])


def ended(process: subprocess.Popen[str], output: Mapping[int, Path]) -> dict[int, Ended]:
    """Wait until these runs, by pid, have ended."""
    codes = {pid: _EARLY.pop(pid) for pid in output if pid in _EARLY}
    while len(codes) < len(output):
        answer = _answer(process)
        codes[answer["pid"]] = answer["code"]
    return {pid: Ended(code, output[pid].read_text("utf-8", "replace")) for pid, code in codes.items()}


def run(process: subprocess.Popen[str], folder: Path, *words: str, crash: str = "") -> Ended:
    """One run, from its beginning to its end."""
    output = folder.with_name(folder.name + ".output")  # the folder's own disk may be full
    pid = start(process, folder, words, crash, output)
    return ended(process, {pid: output})[pid]


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


# -- in the process that forks ------------------------------------------------------------------------


def main() -> None:
    """Fork for each line of stdin; say on stdout which child began, and which has ended."""
    import dwcli.cli.app
    import dwcli.cli.run
    import dwcli.connectors.sqlite
    import dwcli.pipeline.project
    import dwcli.pipeline.runner
    import dwcli.render.results
    import dwcli.staging.loader  # noqa: F401

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waker)
    lines, closed = b"", False
    while not closed:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 1024)
            _report(answers)
        if 0 in ready:
            read = os.read(0, 65536)
            closed = not read
            lines += read
            while b"\n" in lines:
                line, _, lines = lines.partition(b"\n")
                print(json.dumps({"pid": _fork(json.loads(line))}), file=answers)


def _report(answers: Any) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        print(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}), file=answers)


def _fork(asked: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = _child(asked)
    finally:
        os._exit(code)


def _child(asked: Mapping[str, Any]) -> int:
    from dwcli import crashpoints
    from dwcli.cli.app import main as dw

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(asked["folder"])
    crashpoints.wish(asked["crash"])
    try:
        return int(dw(asked["words"]) or 0)
    except SystemExit as error:
        return int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main()
